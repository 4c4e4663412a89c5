"""Jobs as users start them, on one Ray for the whole session: eight logical GPUs, and no model computes on one.

A job with a Ray of its own takes 50 s on two cores, as the third in this one 11 s. Most run in this process, through
the functions that the job scripts call; where exit codes or a kill matter, as a process that joins by address.
A module joins while its tests run and leaves at their end (`cluster`), so a module may also start a Ray of its own.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from ray.cluster_utils import Cluster
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from rankray import cli, config, store
from rankray.config import SynPicConfig
from rankray.data.place import Output
from rankray.models import environments
from rankray.rankdpo import job as rankdpo
from rankray.rankdpo.train_job import TrainJob
from rankray.synpic import job as synpic
from rankray.words import Say

REPOSITORY = Path(__file__).parents[2]
JOB_TIMEOUT_S = 600
CPUS, GPUS = 12, 8
TOKEN = "s3cret-of-the-judge"
"""What no job may write anywhere."""
REHEARSE = ("--rehearse", "true")
MAINS: dict[str, Callable[[list[str]], int]] = {
    "synpic": cli.run_synpic,
    "extend": cli.run_extend,
    "rankdpo": cli.run_rankdpo,
    "align": cli.run_align,
    "evaluate": cli.run_evaluate,
    "ablate": cli.run_ablate,
}


@dataclass(frozen=True)
class Ended:
    """A finished job: exit code and what it printed."""

    code: int
    text: str


def python_path() -> str:
    """By which any process finds this repository before an installed one, and the toy models."""
    paths = [str(REPOSITORY), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(filter(None, paths))


@pytest.fixture(scope="session")
def head(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The session's Ray. Its workers see this repository, the toy models, the bucket, and overlays of this session
    alone.

    Its files are in a directory of its own: a note there says where the last Ray is, and whoever asks for any Ray of
    this machine would come to this one.
    """
    home = tempfile.mkdtemp(prefix="tests-")  # short: a socket's path in it is limited to 107 bytes
    settings = {
        "PYTHONPATH": python_path(),
        "RAY_TMPDIR": home,
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_prestart_worker_first_driver": "0",  # else a process for each of the CPUs that it is told of
        "RAY_worker_niceness": "0",  # at Ray's own 15, workers get a 28th of what a process beside them gets
        environments.HOME: str(tmp_path_factory.mktemp("environments")),
        "JUDGE_TOKEN": TOKEN,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        found = started()
        yield found
        found.shutdown()
        shutil.rmtree(home, ignore_errors=True)


def started() -> Cluster:
    """A Ray of this session; on a busy machine it misses the 30 s that Ray gives it, and is tried again."""
    node = {
        "num_cpus": CPUS,
        "num_gpus": GPUS,
        "object_store_memory": 512 * 1024**2,
        "include_dashboard": False,
    }
    for last in (False, False, True):
        try:
            return Cluster(initialize_head=True, head_node_args=node)
        except Exception:
            if last:
                raise
    raise AssertionError("unreachable")


@contextlib.contextmanager
def connected(head: Cluster) -> Iterator[None]:
    """Within, this process is a driver of the session's Ray."""
    if ray.is_initialized():
        yield
        return
    ray.init(address=head.address, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def cluster(head: Cluster) -> Iterator[Cluster]:
    """The session's Ray, joined."""
    with connected(head):
        yield head


def here(name: str, *words: str) -> Ended:
    """Runs a job's main function in this process, and finds that the job leaves no actor and holds no GPU."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = MAINS[name](list(words))
    if ray.is_initialized():
        gc.collect()  # a failed pipeline and its error refer to each other, and to actors that had not started
        nothing_left()
    return Ended(code, printed.getvalue())


def nothing_left() -> None:
    """Every named actor is gone and every GPU is free again, within seconds of a job's end."""

    def left() -> list[Any]:
        ours = {"rankray", ray.get_runtime_context().namespace}  # Ray keeps actors of its own in others
        named = [a for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] in ours]
        held = GPUS - ray.available_resources().get("GPU", 0.0)
        return [*named, f"{held:g} GPUs"] if named or held > 1e-3 else []

    deadline = time.monotonic() + 60
    while found := left():
        assert time.monotonic() < deadline, f"left behind: {found}"
        time.sleep(0.1)


@pytest.fixture
def job(cluster: Cluster) -> Callable[..., Ended]:
    """`job(name, *options)` runs a job in this process, on the session's Ray."""
    return here


def environment(address: str = "local") -> dict[str, str]:
    """A process's, which joins the Ray at `address`, or starts one of its own."""
    quiet = {
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    return {**os.environ, **quiet, "PYTHONPATH": python_path(), "RAY_ADDRESS": address}


def start(address: str, name: str, *words: str) -> subprocess.Popen[str]:
    """A job as a process, `python jobs/NAME.py ...`, in a session of its own so that all of it can be killed.

    Where it starts a Ray of its own, at the address "local", that has as many GPUs as the session's.
    """
    own = {"RAY_OVERRIDE_RESOURCES": f'{{"CPU": {CPUS}, "GPU": {GPUS}}}'} if address == "local" else {}
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py"), *words],
        env={**environment(address), **own},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = JOB_TIMEOUT_S) -> Ended:
    """What came of a process."""
    text, _ = process.communicate(timeout=timeout_s)
    return Ended(process.returncode, text)


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = JOB_TIMEOUT_S
) -> None:
    """Waits until something is so while a job runs."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.05)


def rows(output: str | Path) -> dict[str, Any]:
    """prompt_id -> the whole row, of a dataset anywhere, pictures as their bytes; fails on a repeated id."""
    found: dict[str, Any] = {}
    fs, place = store.filesystem(str(output))
    for file in store.data_files(fs, place):
        for row in store.located(store.read_table(file, fs, images=True).to_pylist(), str(output)):
            assert row["prompt_id"] not in found, f"{row['prompt_id']} stands twice"
            for candidate in row["candidates"]:
                image = candidate["image"]
                candidate["image"] = None if image is None else store.image_bytes(image)
            found[row["prompt_id"]] = _comparable(row)
    return found


def left(output: Path, *names: str, but: str = "") -> dict[str, Any]:
    """What a job left, for `golden`: its files, dates and digests masked, `but` one folder; those named whole."""
    found = (str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    by_chance = r"[0-9A-Za-z]{22}_[0-9a-f]{32}|(?<=checkpoint_)[-_.\d]+|(?<=/)[0-9a-f]{16}(?=/)|(?<=start-)[0-9a-f]{8}"
    by_chance += r"|(?<=-)\d{8}-\d{6}(?=\.log)"
    files = sorted(re.sub(by_chance, "<id>", name) for name in found if not (but and name.startswith(but)))
    contents: dict[str, Any] = {"files": files}
    for name in names:
        text = (output / name).read_text()
        lined = name.endswith(".jsonl")
        contents[name] = [json.loads(line) for line in text.splitlines()] if lined else json.loads(text)
    return contents


def _comparable(value: Any) -> Any:
    """NaN as a word, so that equal rows compare equal."""
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    return value


class Killed(BaseException):
    """In the place of SIGKILL where a job trains in this process: no code of ours handles it."""


@contextlib.contextmanager
def in_this_process(killed_at: int = 0) -> Iterator[None]:
    """Within, RankDPO trains in this process; it is killed where it would store its checkpoint of that number.

    Ray Train's own local mode in the place of workers: the same `train`, alone. Local mode only remembers a
    checkpoint's place, so they are stored and found here as Ray Train would.
    """
    from rankray.rankdpo import training, zero

    def fit(job: TrainJob, output: Output, say: Say) -> str:
        stored = Path(output.path) / "checkpoints"

        def places() -> list[Path]:
            return sorted(stored.glob("checkpoint_*"))

        def report(metrics: dict[str, Any], checkpoint: ray.train.Checkpoint, **how: Any) -> None:
            if len(places()) + 1 == killed_at:
                shutil.rmtree(checkpoint.path)
                raise Killed
            shutil.move(checkpoint.path, stored / f"checkpoint_{len(places()):06}")

        def last() -> ray.train.Checkpoint | None:
            return ray.train.Checkpoint.from_directory(places()[-1]) if places() else None

        zero.alone()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ray.train, "report", report)
            patch.setattr(ray.train, "get_checkpoint", last)
            alone = ray.train.ScalingConfig(num_workers=0)
            DataParallelTrainer(lambda: training.train(job), scaling_config=alone).fit()
        return places()[-1].name if places() else ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rankdpo, "_train", fit)
        yield


PLAIN = tuple(f"prompt number {i}" for i in range(33))
ODD = ("<b>&amp;</b><script>alert(1)</script>", "🦊 émoji", "nul \0 inside", ("long " * 2000).strip())
BAD = ("unpaintable thing", "unjudgeable thing", "miscounted thing")
SEED = 5


def model(kind: str, name: str, pool: str, samples: int = 1, **options: object) -> str:
    """A toy model as an entry of `--generators` or `--rewards`; `pool` is the inside of its table."""
    given = ", ".join(f"{key}={value!r}".replace("'", '"') for key, value in options.items())
    drawn = f"samples={samples}, " if samples > 1 else ""
    pool = f"{{num_cpus=0.1, {pool}}}"
    return f'{{model="toy_models:{kind}", name="{name}", {drawn}options={{{given}}}, pool={pool}}}'


RED = model("Brightness", "red", "num_gpus=0.25")
GREEN = model("Brightness", "green", "num_gpus=0.5", channel=1)


def toy_options(
    prompts: Path, *more: str, delay_s: float = 0.0, log: str = "", pool: str = "num_gpus=1"
) -> list[str]:
    """Syn-Pic on toy models: three pictures of two generators, two rewards, pools that claim GPUs and parts of them."""
    noise = model("Noise", "noise", pool, 2, delay_s=delay_s, log=log)
    coarse = model("Noise", "coarse", pool, size=4)
    models = ("--generators", f"[{noise}, {coarse}]", "--rewards", f"[{RED}, {GREEN}]")
    settings = ("--execution.rows_per_block", "4", "--seed", str(SEED), *REHEARSE)
    return ["--prompts.path", str(prompts), *models, *settings, *more]


@dataclass(frozen=True)
class Toys:
    """A finished dataset of toy models, of 40 prompts, odd and bad ones among them; and how its job ended."""

    prompts: Path
    output: Path
    ended: Ended


@pytest.fixture(scope="session")
def toys(head: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Toys:
    """Made once for all, by a process as users start it."""
    place = tmp_path_factory.mktemp("toys")
    prompts = place / "prompts.txt"
    odd = b"prompt number 3\n\n  \nprompt \xff broken\n"
    prompts.write_bytes("".join(f"{prompt}\n" for prompt in (*PLAIN, *ODD, *BAD)).encode() + odd)
    way = toy_options(prompts)
    ended = finish(start(head.address, "synpic", "--output", str(place / "o"), *way))
    return Toys(prompts, place / "o", ended)


@pytest.fixture(scope="session")
def dataset(head: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 prompts, three candidates of the shapes world's quickest model, ranked by two rewards."""
    place = tmp_path_factory.mktemp("synpic") / "dataset"
    gpus = {"pool": {"num_gpus": 0.5, "num_cpus": 0.5}}
    settings = {
        "prompts": {"path": "shapes:train", "limit": 24},
        "generators": [{"model": "shapes-sdxl", "samples": 3, "steps": 4, **gpus}],
        "rewards": [{"model": "shapes-pickscore", **gpus}, {"model": "shapes-clipscore", **gpus}],
        "output": str(place),
        "execution": {"rows_per_block": 8},
        "rehearse": True,
    }
    with connected(head):
        synpic.run(config.build(SynPicConfig, settings), say=lambda line: None)
        nothing_left()
    return place
