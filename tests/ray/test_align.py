"""Algorithm 3 end to end on pools that claim GPUs: one round that trains in this process; two by workers, killed; two
into a bucket, killed."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import torch
from conftest import CPUS, GPUS, Ended, finish, in_this_process, left, rows, start, wait_for
from ray.cluster_utils import Cluster
from safetensors.torch import load

from rankray import store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "prompts.limit": "12",
    "rehearse": "true",
    "model.pool.num_gpus": "1",
    "model.pool.num_cpus": "0.5",
    "generators": '[{model = "shapes-sdxl", samples = 2, steps = 4, pool = {num_gpus = 1, num_cpus = 0.5}}]',
    "rewards": '[{model = "shapes-pickscore", pool = {num_gpus = 0.5, num_cpus = 0.5}}]',
    "execution.rows_per_block": "4",
    "training.steps": "6",
    "training.batch_size": "4",
    "training.workers.num_cpus": "0.4",
    "training.workers.num_gpus": "1",
    "training.encoding.num_gpus": "0.5",
    "training.checkpoints.every": "2",
    "training.checkpoints.sample_every": "0",
    "training.validation.share": "0",
    "training.validation.stop": "none",
    "held_out.prompts.limit": "8",
}
# A phase has begun when something is in the first place, and is over when the second exists.
PHASES = {
    "evaluation before": ("evaluation/before/_work", "evaluation/before/dataset.json"),
    "synpic": ("round-1/synpic/_work/checkpoint-data", "round-1/synpic/dataset.json"),
    "encoding": ("round-1/synpic/encoded", "round-1/rankdpo/checkpoints"),
    "training": ("round-2/rankdpo/checkpoints", "round-2/rankdpo/run.json"),
    "evaluation after": ("evaluation/round-2/_work", "evaluation/round-2/dataset.json"),
}


def options(output: str | Path, rounds: int = 2) -> list[str]:
    given = [word for key, value in OPTIONS.items() for word in (f"--{key}", value)]
    config = ("--config", str(ROOT / "jobs" / "align-shapes.toml"))
    return [*config, "--output", str(output), *given, "--rounds", str(rounds)]


def weights(output: str | Path, number: int) -> dict[str, torch.Tensor]:
    file = f"{output}/round-{number}/rankdpo/pipeline/unet/diffusion_pytorch_model.safetensors"
    fs, path = store.filesystem(file)
    with fs.open_input_stream(path) as stream:
        return dict(load(stream.read()))


def gains(output: str | Path) -> list[dict[str, object]]:
    fs, path = store.filesystem(f"{output}/align.json")
    return [found["gain"] for found in store.read_json(path, fs)["rounds"]]


def files(place: str) -> list[str]:
    """All that is below a place, as far as it is there."""
    fs, path = store.filesystem(place)
    found = fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return [info.path for info in found if info.type == pafs.FileType.File]


@pytest.mark.parametrize("rounds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_rounds_end_to_end(
    job: Callable[..., Ended], golden: Callable[..., None], tmp_path: Path, rounds: int
) -> None:
    """Each round draws with the model of the one before, and the summary compares all of them with the start.

    Where it is one, it trains in this process.
    """
    with in_this_process() if rounds == 1 else contextlib.nullcontext():
        ended = job("align", *options(tmp_path / "o", rounds))
    assert ended.code == 0, ended.text
    printed = ended.text
    info = json.loads((tmp_path / "o" / "align.json").read_text())
    assert [set(found["gain"]) for found in info["rounds"]] == [{"shapes-pickscore", "checker"}] * rounds
    assert "| metric | before | after |" in printed
    assert Path(info["pipeline"]) == tmp_path / "o" / f"round-{rounds}" / "rankdpo" / "pipeline"
    made = [store.read(str(tmp_path / "o" / f"round-{n + 1}" / "synpic")).info for n in range(rounds)]
    assert len({dataset["generators"][0]["revision"] for dataset in made}) == rounds
    assert [dataset["seed"] for dataset in made] == [made[0]["seed"] + n for n in range(rounds)]
    assert all(dataset["cost"]["totals"]["gpu_hours"] > 0 for dataset in made)
    assert (tmp_path / "o" / "report.html").exists()
    if rounds == 1:
        golden("align.json", left(tmp_path / "o", "align.json"), abs=2e-3)  # AdamW enlarges rounding
    else:
        again = job("align", *options(tmp_path / "o", rounds))
        assert again.text.count("is complete already; nothing to do") == 7


@pytest.mark.slow
def test_killed_in_each_phase_it_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `ray job submit`, on a Ray that outlives each of its drivers."""
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", f'{{"CPU": {CPUS}, "GPU": {GPUS}}}')
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    demo = runpy.run_path(str(ROOT / "scripts" / "demo.py"))
    with demo["private_ray"]() as environment:
        assert submit(tmp_path / "whole", environment).wait() == 0
        for place, over in PHASES.values():
            job = submit(tmp_path / "killed", environment)
            deadline = time.monotonic() + 600
            while not any((tmp_path / "killed" / place).rglob("*")):
                assert job.poll() is None, f"it ended before {place}"
                assert time.monotonic() < deadline
                time.sleep(0.1)
            for pid in drivers(tmp_path / "killed"):
                os.kill(pid, signal.SIGKILL)
            assert job.wait() != 0
            assert not (tmp_path / "killed" / over).exists()
        assert submit(tmp_path / "killed", environment).wait() == 0
    same(tmp_path / "whole", tmp_path / "killed", rounds=2)


def same(one: str | Path, other: str | Path, rounds: int) -> None:
    """Their rows with the pictures, their weights to the bit, and so their gains."""
    numbered = range(1, rounds + 1)
    parts = [
        f"{kind}{n}{end}"
        for n in numbered
        for kind, end in (("round-", "/synpic"), ("evaluation/round-", ""))
    ]
    for part in ("evaluation/before", *parts):
        assert rows(f"{one}/{part}") == rows(f"{other}/{part}"), part
    for number in numbered:
        ours, theirs = (weights(place, number) for place in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert gains(one) == gains(other)


@pytest.mark.slow
def test_in_a_bucket_and_killed_three_times_it_is_the_local_one(
    cluster: Cluster, bucket: str, tmp_path: Path
) -> None:
    """Its driver is killed while it draws, while it encodes and while the second round trains."""
    there, alone = f"s3://{bucket}/aligned", ("--training.workers.count", "1")
    for name in ("synpic", "encoding", "training"):
        begun, over = PHASES[name]
        process = start(cluster.address, "align", *options(there), *alone)
        wait_for(lambda place=f"{there}/{begun}": bool(files(place)), process)  # type: ignore[misc]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not files(f"{there}/{over}"), f"{name} was over before the kill"
    ended = finish(start(cluster.address, "align", *options(there), *alone))
    assert ended.code == 0, ended.text
    whole = finish(start(cluster.address, "align", *options(tmp_path / "whole"), *alone))
    assert whole.code == 0, whole.text
    same(tmp_path / "whole", there, rounds=2)
    assert not [path for path in files(there) if "/_" in path or path.endswith(".tmp")]


def submit(output: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    words = ["python", "jobs/align.py", "--config", "jobs/align-shapes.toml", *options(output)[2:]]
    return subprocess.Popen(
        ["ray", "job", "submit", "--working-dir", ".", "--", *words], cwd=ROOT, env=environment
    )


def drivers(output: Path) -> list[int]:
    """Processes that run `jobs/align.py` for this output, without the shell that Ray starts them by."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if b"jobs/align.py" in words and str(output).encode() in words and b"submit" not in words:
                found.append(int(entry.parent.name))
    return found
