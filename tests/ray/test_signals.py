"""Signals to jobs with a Ray of their own, as terminals and supervisors send them, and the same command again."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Toys, finish, rows, start, toy_options, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}


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


def stop(words: list[str], output: Path, number: signal.Signals, ready: Callable[..., bool]) -> None:
    """Sends the signal to a job when it is so far; it ends by it, in one line, and leaves nothing that runs or owns."""
    process = start("local", "synpic", *words)
    wait_for(lambda: ready(process, output), process)
    started = family(process)
    process.send_signal(number)
    ended = finish(process, timeout_s=120)
    assert ended.code == 128 + number, ended.text
    line = f"synpic: stopped by {SIGNALS[number]}; what is finished is kept, and the same command goes on from there"
    assert ended.text.splitlines()[-1] == line
    assert "Traceback" not in ended.text
    _, left = psutil.wait_procs(started, timeout=60)
    assert not [" ".join(one.cmdline()) for one in left if one.status() != psutil.STATUS_ZOMBIE]
    assert not list(output.glob("_owner*"))


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
