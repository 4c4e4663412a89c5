"""Trackers, each for real and offline: one process is killed, another goes on, and what they kept is read back."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rankray import config
from rankray.config import ConfigError
from rankray.config.rankdpo import RankDPOConfig
from rankray.rankdpo import trackers
from rankray.rankdpo.trackers import Trackers

STEPS = range(1, 9)
RUN = """
import os, sys, time
from pathlib import Path
from rankray import config
from rankray.config.rankdpo import RankDPOConfig
from rankray.rankdpo.train_job import TrainJob
from rankray.rankdpo.trackers import Trackers

place, first, last, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
tables = {"dataset": "/d", "output": place, "model": {"model": "shapes-sdxl"}}
asked = {"tensorboard": True, "wandb": "shapes", "mlflow": "shapes", "mlflow_uri": f"{place}/mlflow"}
settings = config.build(RankDPOConfig, {**tables, "checkpoints": asked})
job = TrainJob(settings, None, (), "", (), None, 1, (), place, "cpu")
kept = Trackers(job)
for step in range(first, last + 1):
    kept.log({"step": step, "loss": step / 2, "grad_norm": None}, step)
    if step % 2 == 0:
        kept.log({"validation_loss": step / 4}, step)
    if step == 5:
        kept.flush()
if end == "killed":
    # W&B's own process writes its file every few seconds; what it holds when it ends with this one is lost.
    while sum(file.read_bytes().count(b"_step") for file in Path(place).glob("wandb/offline-*/*.wandb")) < 4:
        time.sleep(0.1)
    os._exit(9)
kept.close()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 to 7, of which 4 were sent before the kill; then from a checkpoint after 3 to the end."""
    place = tmp_path_factory.mktemp("run")
    (place / "_work").mkdir()
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
    for arguments, code in (("1 7 killed", 9), ("4 8 closed", 0)):
        ended = subprocess.run(
            [sys.executable, "-c", RUN, str(place), *arguments.split()],
            env={**os.environ, **offline, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert ended.returncode == code, ended.stderr[-2000:]
    return place


def due() -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """(step, loss) and (step, validation loss), each step once."""
    return [(step, step / 2) for step in STEPS], [(step, step / 4) for step in STEPS if step % 2 == 0]


def test_tensorboard_goes_on_in_its_directory(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"loss", "validation_loss"}
    read = [
        [(event.step, event.value) for event in found.Scalars(name)] for name in ("loss", "validation_loss")
    ]
    assert tuple(read) == due()


def test_mlflow_goes_on_in_its_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=str(run / "mlflow"))
    experiment = client.get_experiment_by_name("shapes")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["objective.name"] == "rank_dpo"
    read = [
        [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, name)]
        for name in ("loss", "validation_loss")
    ]
    assert tuple(read) == due()


def test_wandb_goes_on_in_its_run(run: Path) -> None:
    lines: list[dict[str, Any]] = []
    runs = set()
    for record in records(run):
        if record.HasField("run"):
            runs.add((record.run.project, record.run.run_id))
        if record.HasField("history"):
            items = record.history.item
            lines.append(
                {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
            )
    losses = [(line["_step"], line["loss"]) for line in lines]
    validation = [(line["_step"], line["validation_loss"]) for line in lines if "validation_loss" in line]
    assert (losses, validation) == due()
    assert [project for project, _ in runs] == ["shapes"], "both processes wrote one run"


def records(run: Path) -> Iterator[Any]:
    """What both processes left in W&B's own files, the first one's first: a header, then LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted((run / "wandb").glob("offline-run-*/run-*.wandb")):
        data, at, whole = file.read_bytes(), 7, b""
        while len(data) - at >= 7:
            block_left = 32768 - at % 32768
            if block_left < 7:
                at += block_left
                continue
            _, length, kind = struct.unpack(
                "<IHB", data[at : at + 7]
            )  # checksum, bytes, 1 or 4: a record ends
            whole += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):
                record = Record()
                record.ParseFromString(whole)
                yield record
                whole = b""


def settings(**changes: Any) -> Any:
    tables = {"dataset": "/d", "output": "/o", "model": {"model": "shapes-sdxl"}, "checkpoints": changes}
    return config.build(RankDPOConfig, tables).checkpoints


def test_what_a_worker_would_fail_at_is_one_line_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    cases = [
        ({"tensorboard": True}, "s3://b/o", "tensorboard writes to directories"),
        (
            {"mlflow": "shapes"},
            "/o",
            "give checkpoints.mlflow_uri, such as 'http://host:5000', or MLFLOW_TRACKING_URI",
        ),
        ({"mlflow_uri": "http://host"}, "/o", "names a place, and no experiment: give checkpoints.mlflow"),
        (
            {"mlflow": "shapes", "mlflow_uri": "gopher://host"},
            "/o",
            "checkpoints.mlflow_uri 'gopher://host': ",
        ),
    ]
    for changes, output, message in cases:
        with pytest.raises(ConfigError, match=message) as caught:
            trackers.check(settings(**changes), output)
        assert "\n" not in str(caught.value)
    trackers.check(settings(), "s3://b/o")
    trackers.check(settings(tensorboard=True, mlflow="x", mlflow_uri="http://host:5000"), "/o")


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_package_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = name
    assert importlib.util.find_spec(package) is not None
    paths = [path for path in sys.path if not (Path(path) / package).exists()]
    monkeypatch.setattr(sys, "path", paths)
    monkeypatch.delitem(sys.modules, package, raising=False)
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=rf"pip install 'rankray\[{name}\]' on all nodes"):
        trackers.check(settings(**{name: True if name == "tensorboard" else "x"}), "/o")


@pytest.fixture
def refusals() -> Iterator[tuple[str, list[str]]]:
    """A server that is there and answers nothing but 503: its address, and what it was asked for."""
    asked: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path.partition("?")[0].rpartition("/")[2])
            self.send_error(503)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def going_on(place: Path, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> Trackers:
    """A run that a start before began, with its environment as it stands where nobody set anything."""
    for name in trackers.DEFAULTS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (place / "_work").mkdir()
    kept = {"runs": dict.fromkeys(("mlflow", "wandb"), "abc"), "step": 0}
    (place / "_work" / "trackers.json").write_text(json.dumps(kept))
    tables = {"dataset": "/d", "output": str(place), "model": {"model": "shapes-sdxl"}, "checkpoints": asked}
    settings = config.build(RankDPOConfig, tables)
    job: Any = SimpleNamespace(config=settings, output=str(place))
    return Trackers(job)


def test_an_mlflow_that_does_not_answer_is_asked_once_in_five_minutes(
    refusals: tuple[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is asked to go on, for a line after the pause, and to end, twice each; 65 lines are left out."""
    uri, asked = refusals
    run = going_on(tmp_path, monkeypatch, mlflow="shapes", mlflow_uri=uri)
    assert asked == ["get"] * 2
    for step in range(1, 34):
        run.log({"loss": 1.0}, step)
    run.flush()
    assert asked == ["get"] * 2
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + trackers.PAUSE_S)
    for step in range(34, 67):
        run.log({"loss": 1.0}, step)
    run.close()
    assert asked == [*["get"] * 2, *["log-batch"] * 2, *["get"] * 2]
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == [
        f"[rankray] MLflow did not {what}, and gets no lines for 5 minutes"
        for what in ("take up run abc", "take step 33", "end run abc")
    ]


def test_a_wandb_that_does_not_answer_costs_a_run_that_goes_on_its_lines(
    refusals: tuple[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri, _ = refusals
    for name, value in {"BASE_URL": uri, "API_KEY": "a" * 40, "INIT_TIMEOUT": "2", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    run = going_on(tmp_path, monkeypatch, wandb="shapes")
    assert "[rankray] W&B did not take up run abc, and gets no lines: " in capsys.readouterr().out
    run.log({"loss": 1.0}, 1)
    run.close()


def test_runs_that_ask_for_nothing_import_nothing() -> None:
    code = (
        "import sys, rankray.rankdpo.job, rankray.rankdpo.trackers\n"
        "print({'wandb', 'mlflow', 'tensorboard'} & set(sys.modules) or 'none')"
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=paths)
    assert seen.stdout.strip() == "none"
