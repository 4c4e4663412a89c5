"""Signals and full disks, as processes and disks give them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.exceptions import RayTaskError

from rankray import commands, endings

SLEEPER = """
import sys, time
from rankray.endings import ended
def work():
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        time.sleep({cleaning_s})
        print("cleaned", flush=True)
    return 0
{before}
sys.exit(ended("job", work, lambda code, line: code))
"""


def started(cleaning_s: float = 0.0, before: str = "") -> subprocess.Popen[str]:
    """A command at work; a shell's background job, and so pytest's in one, has SIGINT ignored."""
    text = SLEEPER.format(cleaning_s=cleaning_s, before=before)
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n" + text,  # nohup had it ignored, and so it stays
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    return process


RAY_ENDS = """
import os, types
from rankray.cluster import terminal
sleep = work
def work():
    with terminal.of_job("job"):
        terminal.say("working")
        return sleep()
def shutdown():
    print("of a worker")
    os.system("echo of a worker >&2")
    {ends}
sys.modules["ray"] = types.SimpleNamespace(shutdown=shutdown)
"""


@pytest.mark.parametrize(("ends", "code"), [("", 143), ("os._exit(1)", 1)])
def test_the_line_is_told_though_ray_s_end_is_the_process_s(ends: str, code: int) -> None:
    """A thread of Ray's C++ that wants something of a raylet that is gone ends the process, now and then."""
    process = started(before=RAY_ENDS.format(ends=ends))
    process.send_signal(signal.SIGTERM)
    printed, told = process.communicate(timeout=60)
    assert (process.returncode, printed) == (code, "")
    assert [line.partition(";")[0] for line in told.splitlines()] == ["job: stopped by SIGTERM"]


@pytest.mark.parametrize(
    ("number", "name", "code"), [(2, "Ctrl-C", 130), (15, "SIGTERM", 143), (1, "SIGHUP", 129)]
)
def test_a_signal_is_one_line_and_cleans_up(number: int, name: str, code: int) -> None:
    process = started()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "cleaned\n")
    assert (
        err == f"job: stopped by {name}; what is finished is kept, and the same command goes on from there\n"
    )


def test_a_second_one_does_not_wait_unless_it_is_the_same_wish() -> None:
    process = started(cleaning_s=50.0)
    begin_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    time.sleep(endings.PATIENCE_S + 0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert time.monotonic() - begin_s < 40


def test_what_nohup_ignores_stays_ignored() -> None:
    process = started(before="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_within_c_code_is_one_too(
    number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """CPython makes a SystemError of what a handler raised where a function had its result already: Ray's `wait`."""

    def work() -> int:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except BaseException as raised:
            raise SystemError(
                "<cyfunction CoreWorker.wait> returned a result with an exception set"
            ) from raised
        return 0

    before = signal.signal(number, signal.SIG_DFL)  # a shell's background has it ignored
    try:
        assert endings.ended("job", work, lambda code, line: code) == code
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err.startswith(f"job: stopped by {'Ctrl-C' if code == 130 else 'SIGTERM'};")


def test_rays_own_answer_to_sigterm_is_one_too(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert endings.ended("job", lambda: sys.exit(signal.SIGTERM), lambda code, line: code) == 143
    assert capsys.readouterr().err.startswith("job: stopped by SIGTERM; ")
    with pytest.raises(SystemExit) as left:
        endings.ended("job", lambda: sys.exit(0), lambda code, line: code)
    assert left.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("mount"), reason="mounts a small disk")
def test_a_full_disk_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        pq.write_table(pa.table({"a": [os.urandom(1000) for _ in range(3000)]}), tmp_path / "a.parquet")
        return 0

    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)], check=False)
    if mounted.returncode:
        pytest.skip("this machine mounts nothing")
    try:
        assert endings.ended("job", work, lambda code, line: code) == 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("job: No space left on device: the disk of the output, or of Ray's files")
    assert line.endswith(
        "what is finished is kept: make room there, and give the same command again to go on"
    )


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_the_place_is_named_where_it_is_known(code: int) -> None:
    full = OSError(code, os.strerror(code), "/mnt/data/x.parquet")
    due = f"{os.strerror(code)}: /mnt/data/x.parquet; what is finished is kept"
    assert told(full).startswith(due)
    text = f"Traceback (most recent call last):\n  File 'a.py'\nOSError: {full}\n"
    task = RayTaskError("write", text, full, pid=1, ip="x")
    assert told(task.as_instanceof_cause()).startswith(due)
    above = RuntimeError("a stage failed")
    above.__cause__ = task
    assert told(above).startswith(due)


def told(error: BaseException, code: int = 1) -> str:
    found = endings.full_or_closed(error)
    assert found is not None
    assert found[0] == code
    return found[1]


def test_a_closed_place_is_named_and_no_fault() -> None:
    """As a local disk and an object store say it."""
    closed = PermissionError(errno.EACCES, "Failed to open local file '/data/x.parquet'. Permission denied")
    assert told(closed, 2).startswith("Permission denied: /data/x.parquet; ask its owner")
    said = "When reading information for key 'd/x' in bucket 'b': AWS Error ACCESS_DENIED during HeadObject operation"
    assert told(OSError(said), 2).startswith(f"AWS Error ACCESS_DENIED: {said}; ask its owner")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, "No such file", "/x"), ValueError("No space left on device")]
)
def test_other_faults_are_no_full_disk(error: Exception) -> None:
    assert endings.full_or_closed(error) is None


def test_commands_end_so_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(_options: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/data.parquet")

    monkeypatch.setattr(commands, "_validate", full)
    assert commands.main(["validate", "x"]) == 1
    assert capsys.readouterr().err.startswith("rankray: No space left on device: /full/data.parquet; ")
