"""What reaches the terminal, and what goes to the log instead."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rankray.cluster import terminal
from rankray.cluster.terminal import Screen

JOB = """
import atexit, os, subprocess, sys, warnings
import pyarrow.fs as pafs
from rankray.cluster import terminal
from rankray.config import ConfigError
from rankray.data.place import Output

atexit.register(os.write, 2, b"Ray's farewell\\n")
output = Output(sys.argv[1], pafs.LocalFileSystem(), sys.argv[1])
try:
    with terminal.of_job("toy"):
        terminal.say("begun")
        print("a library's print")
        warnings.warn("a library's warning")
        os.write(1, b"C++ on stdout\\n")
        subprocess.run(["sh", "-c", "echo a child; echo a child, loudly >&2"])
        if sys.argv[2] != "unplaced":
            terminal.place_log(output)
        print("(Worker pid=12, ip=10.0.0.1) a worker's print")
        print("\\x1b[36m(RayTrainWorker pid=12)\\x1b[0m [rankray] step 1/4  loss 0.7")
        print("(autoscaler +5s) Error: No available node types can fulfill resource request {'GPU': 8}")
        print("(autoscaler +9s) Error: No available node types can fulfill resource request {'GPU': 8}")
        for count in (1, 2):
            print(f"Pool: an actor died during initialization ({count} so far). OSError: no weights")
        terminal.note("for the log")
        terminal.say("a prompt with \\x1b[31mred\\x07")
        if sys.argv[2] == "fault":
            {}["missing"]
        if sys.argv[2] == "refused":
            raise ConfigError("no")
finally:
    print("after", terminal.log_named())
"""

SAID = [
    "begun",
    "[rankray] step 1/4  loss 0.7",
    "(autoscaler +5s) Error: No available node types can fulfill resource request {'GPU': 8}",
    "Pool: an actor died during initialization (1 so far). OSError: no weights",
    "a prompt with red\\x07",
]
KEPT = [
    "a library's print",
    "UserWarning: a library's warning",
    "C++ on stdout",
    "a child",
    "a child, loudly",
    "(Worker pid=12, ip=10.0.0.1) a worker's print",
    "for the log",
    "Ray's farewell",
]


def ran(output: Path, how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", JOB, str(output), how],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_only_what_is_said_reaches_whoever_looks_on(tmp_path: Path) -> None:
    ended = ran(tmp_path / "o", "well")
    (log,) = (tmp_path / "o" / "logs").iterdir()
    assert re.fullmatch(r"toy-\d{8}-\d{6}\.log", log.name)
    *said, after = ended.stdout.splitlines()
    assert sorted(said) == sorted(SAID), "workers' lines come when the log is read"
    assert said[0] == "begun"
    assert ended.stderr == ""
    assert after.startswith("after")
    kept = log.read_text()
    for line in KEPT:
        assert line in kept
    assert "after" not in kept


def test_a_fault_s_traceback_is_there_in_full_and_the_log_is_named(tmp_path: Path) -> None:
    ended = ran(tmp_path / "o", "fault")
    (log,) = (tmp_path / "o" / "logs").iterdir()
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback (most recent call last):\n")
    assert ended.stderr.endswith("KeyError: 'missing'\n")
    assert ended.stdout.endswith(f"after ; what libraries printed is in {log}\n")


@pytest.mark.parametrize("end", ["os._exit(1)", "os.kill(os.getpid(), 9)"])
def test_the_last_words_of_a_process_that_is_gone_are_said(tmp_path: Path, end: str) -> None:
    """As where Ray's own code says why on stderr, and exits."""
    script = JOB.replace('terminal.note("for the log")', f'os.write(2, b"Lost the head node"); {end}')
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "o"), "well"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    (log,) = (tmp_path / "o" / "logs").iterdir()
    assert ended.returncode != 0
    first, *last = ended.stderr.splitlines()
    assert first == f"toy: ended without a word; the last lines of {log}:"
    assert last[-1] == "  Lost the head node"


def test_what_began_nothing_leaves_no_log_and_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    ended = ran(tmp_path / "o", "unplaced")
    assert ended.stdout.endswith("after \n")
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_has_no_output_yet_is_kept_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    script = textwrap.dedent(
        """
        import sys
        from rankray.cluster import terminal
        try:
            with terminal.of_job("toy"):
                print("last words")
                raise RuntimeError
        except RuntimeError:
            print(terminal.log_named())
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    (log,) = tmp_path.iterdir()
    assert log.read_text() == "last words\n"
    assert str(log) in ended.stdout


def test_an_object_store_has_the_log_at_the_end(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        import pyarrow.fs as pafs
        from rankray.cluster import terminal
        from rankray.data.place import Output
        with terminal.of_job("toy"):
            print("before")
            terminal.place_log(Output("s3://bucket/o", pafs.SubTreeFileSystem(sys.argv[1], pafs.LocalFileSystem()), ""))
            print("after")
        print(terminal.log_named())
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    (log,) = (tmp_path / "logs").iterdir()
    assert log.read_text() == "before\nafter\n"
    assert f"s3://bucket/o/logs/{log.name}" in ended.stdout


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError


LOG = [
    "prompts read",
    "  [rankray 0:10]  done",
    "  sdxl             1",
    "  [rankray 0:20]  done",
    "  sdxl             2",
    "2 images in 0:21",
    "  [rankray 0:10]  done",
    "  encoding         1",
    "[rankray] step 1/2  loss 1",
    "[rankray] step 2/2  loss 0",
    "  the pipeline is of step 2",
    "the end",
]


@pytest.mark.parametrize("kind", ["dumb", ""])
def test_a_terminal_that_cannot_redraw_has_plain_lines(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", kind)
    stream = Tty()
    Screen(stream).write("\n".join([*LOG, ""]))
    assert stream.getvalue().splitlines() == LOG


def test_a_log_has_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    screen = Screen(stream)
    screen.write("\n".join([*LOG, "\x1b[1mbold\x1b[0m\r", ""]))
    screen.show(["block"])
    screen.clear()
    assert stream.getvalue().splitlines() == [*LOG, "bold\\x0d", "block"]


@pytest.mark.skipif(sys.platform != "linux", reason="a pseudo-terminal")
def test_on_a_terminal_a_block_takes_the_place_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a terminal shows in the end: lines that stay, and no block."""
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        screen = Screen(stream)
        for line in LOG[:5]:
            screen.feed(line)
        middle = sent(ours)
        for line in LOG[5:]:
            screen.feed(line)
        end = sent(ours)
    os.close(ours)
    assert shown(middle) == ["prompts read", *LOG[3:5]]
    assert shown(middle + end) == [
        "prompts read",
        "2 images in 0:21",
        "  the pipeline is of step 2",
        "the end",
    ]
    assert "\x1b[3" not in middle + end, "no colours"


def sent(terminal_: int) -> str:
    """All that has been written to a pseudo-terminal."""
    found = b""
    while select.select([terminal_], [], [], 0.2)[0]:
        found += os.read(terminal_, 65536)
    return found.decode()


def shown(text: str) -> list[str]:
    """The lines of a terminal that was sent `text`: it knows the moves of a block that is drawn anew."""
    lines, row = [""], 0
    for piece in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\r\n|\r|\n|[^\x1b\r\n]+", text):
        if piece in ("\n", "\r\n"):
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif piece.endswith("A") and piece.startswith("\x1b"):
            row -= int(piece[2:-1] or 1)
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif not piece.startswith(("\x1b", "\r")):
            lines[row] += piece
    return [line.rstrip() for line in lines if line.strip()]


def test_a_part_says_aloud_only_what_one_may_have_to_act_on() -> None:
    said: list[str] = []
    part = terminal.aside(said.append)
    for line in ("output: /o", "waiting up to 300 s for nodes", "warning: memory", "12 prompts"):
        part(line)
    assert said == ["waiting up to 300 s for nodes", "warning: memory"]
