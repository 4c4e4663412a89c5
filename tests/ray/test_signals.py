"""Signals to jobs, as terminals and supervisors send them, and the same command again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, Toys, environment, finish, rows, start, toy_options, wait_for
from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}

WAITS = """
import sys, time
import ray
from rankray.cluster.job import connect
from rankray.endings import ended

def work():
    connect()
    slow = ray.remote(num_cpus=0)(lambda: time.sleep(600)).remote()
    print("waiting", flush=True)
    ray.get(slow)

sys.exit(ended("job", work, lambda code, line: code))
"""


@pytest.fixture
def _heard() -> Iterator[None]:
    """A shell's background has SIGINT ignored, nohup SIGHUP, and so has what is started from there."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """All that a job has started and that lives."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def ray_starts(process: subprocess.Popen[str], output: Path) -> bool:
    """Its first process is there, and the job has not joined it yet."""
    return any("gcs_server" in one.name() for one in family(process) if one.is_running())


def further_rows(output: Path) -> Callable[[subprocess.Popen[str], Path], bool]:
    """Says whether there are more than now: those of an earlier start are there before a job has begun."""

    def count() -> int:
        return sum(1 for _ in output.rglob("checkpoint-*/*.parquet"))

    known = count()
    return lambda process, output: count() > known


def said(number: signal.Signals) -> str:
    return f"stopped by {SIGNALS[number]}; what is finished is kept, and the same command goes on from there"


def stop(
    words: list[str], output: Path, number: signal.Signals, ready: Callable[..., bool], job: str = "synpic"
) -> None:
    """Sends the signal to a job when it is so far; it ends by it, in one line, and leaves nothing that runs or owns."""
    process = start("local", job, *words)
    wait_for(lambda: ready(process, output), process)
    started = family(process)
    process.send_signal(number)
    ended = finish(process, timeout_s=120)
    assert ended.code == 128 + number, ended.text
    assert ended.text.splitlines()[-1] == f"{job}: {said(number)}"
    assert "Traceback" not in ended.text
    _, left = psutil.wait_procs(started, timeout=60)
    assert not [" ".join(one.cmdline()) for one in left if one.status() != psutil.STATUS_ZOMBIE]
    assert not list(output.glob("_owner*"))


@pytest.mark.usefixtures("_heard")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_process_that_waits_for_ray_ends(head: Cluster, number: signal.Signals) -> None:
    """As it waits for a training: of what a handler raises, Ray's C++ lets through what it knows and nothing else."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS],
        env=environment(head.address),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Ray: joined")
    assert process.stdout.readline() == "waiting\n"
    time.sleep(1.0)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number, told
    assert told.splitlines()[-1] == f"job: {said(number)}"


@pytest.mark.slow
@pytest.mark.usefixtures("_heard")
def test_a_stopped_training_goes_on(dataset: Path, tmp_path: Path) -> None:
    """Each signal as it stores a checkpoint, which may then be no whole one; then it ends, with every step once."""
    output = tmp_path / "o"
    words = ["--config", str(REPOSITORY / "jobs" / "rankdpo-shapes.toml"), "--dataset", str(dataset)]
    words += ["--output", str(output), "--batch_size", "4", "--steps", "300", "--checkpoints.every", "10"]
    words += ["--validation.share", "0", "--validation.stop", "none", "--workers.count", "1"]

    def last() -> str:
        return max((one.name for one in output.glob("checkpoints/checkpoint_*")), default="")

    def further() -> Callable[[subprocess.Popen[str], Path], bool]:
        known = last()
        return lambda process, output: last() > known

    for number in SIGNALS:
        stop(words, output, number, further(), job="rankdpo")
    ended = finish(start("local", "rankdpo", *words))
    assert ended.code == 0, ended.text
    steps = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 301))


@pytest.mark.slow
@pytest.mark.usefixtures("_heard")
def test_a_stopped_job_says_so_leaves_nothing_and_goes_on(toys: Toys, tmp_path: Path) -> None:
    """While its Ray starts, and at work; then its rows are the undisturbed ones."""
    output = tmp_path / "o"
    words = ["--output", str(output), *toy_options(toys.prompts, delay_s=0.3)]
    stop(words, output, signal.SIGINT, ray_starts)
    stop(words, output, signal.SIGTERM, ray_starts)
    for number in SIGNALS:
        before = time.monotonic()
        stop(words, output, number, further_rows(output))
        print(f"{number.name}: {time.monotonic() - before:.0f} s")
    ended = finish(start("local", "synpic", *words))
    assert ended.code == 3, ended.text
    assert "resuming: " in ended.text
    assert rows(output) == rows(toys.output)
