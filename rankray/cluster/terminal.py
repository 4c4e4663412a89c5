"""What a job shows: its own lines, below them on a terminal a block that is drawn anew, and nothing that others print.

Within `of_job` stdout and stderr of this process are a file, for Python, C++ and children alike; `say` and `show`
alone reach whoever looks on. It is a file and no pipe: code that prints while it holds the interpreter's lock
would wait for ever at a full pipe, and a process that is killed leaves its last words. The price is that what workers
say of themselves (`OURS`), which Ray prints into that file too, is found by reading it, `LOOK_S` late.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from rankray import secret
from rankray.config import ConfigError
from rankray.data.place import Output
from rankray.words import Say

OURS = ("[rankray] ", "rankray: ")
"""How a line begins that a worker says to whoever looks on."""

STEP = "[rankray] step "
"""How a training's figures begin; on a terminal the next one takes the place of the last."""

ALOUD = re.compile(
    r"(?:warning|waiting|resuming|reusing|phase|encoding|reference ahead)\b|.*; nothing to do$"
)
"""Lines of a part that are said aloud though the whole has lines of its own (`aside`)."""

TROUBLE = re.compile(
    r"\(autoscaler.*(?:Error|Warning):|memory pressure|No space left|out of disk|died during initialization"
)
"""What Ray says while a job waits or slows down without failing: said once of each kind."""

LOG_COLUMNS = 100
LOOK_S = 0.3

_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PREFIX = re.compile(r"^\([^()]*pid=[^()]*\) ")
_HEAD = re.compile(r"\S+ \S+\tINFO job_manager\.py|Running entrypoint for job ")
"""What Ray itself writes at the head of a job's log."""
_BLOCK = re.compile(r"  \[rankray \d+:[\d:]+\]")


class Screen:
    """A stream that people look at: lines, and below them one block where the stream can redraw (a terminal)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.redraws = stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
        self._console: Any = None
        self._live: Any = None
        self._lock = threading.RLock()
        self._block: list[str] = []
        self._training: dict[bool, str] = {}
        self._rest = ""

    @property
    def columns(self) -> int:
        """How wide a block may be."""
        return self._size()[0] if self.redraws else LOG_COLUMNS

    def say(self, text: str) -> None:
        """Lines that stay, above the block."""
        with self._lock:
            if self._live is None:
                print(_harmless(text), file=self._stream, flush=True)
            else:
                from rich.text import Text

                self._console.print(Text(_harmless(text)), soft_wrap=True)

    def show(self, lines: Sequence[str]) -> None:
        """The block, in the place of the one before; where nothing redraws, lines like others."""
        with self._lock:
            if not self.redraws:
                self.say("\n".join(lines))
                return
            from rich.console import Console
            from rich.live import Live
            from rich.text import Text

            block = Text(_harmless("\n".join(lines)), no_wrap=True, overflow="ellipsis")
            if self._console is None:
                self._console = Console(file=self._stream, force_terminal=True, color_system=None)
            self._console.size = self._size()
            if self._live is None:
                self._live = Live(
                    console=self._console,
                    auto_refresh=False,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._live.start()
            self._live.update(block, refresh=True)

    def clear(self) -> None:
        """Takes the block away."""
        with self._lock:
            self._block, self._training = [], {}
            if self._live is not None:
                self._live.stop()
                self._live = None

    def write(self, text: str) -> None:
        """A piece of the log of a job that runs elsewhere; on a terminal its blocks redraw as they would there."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if not _HEAD.match(line):
                self.feed(line)

    def feed(self, line: str) -> None:
        """One line of such a log, or of a worker."""
        with self._lock:
            if not self.redraws:
                self.say(line)
            elif line.startswith(STEP):
                self._block = []
                self._training["  validation: " in line] = line.removeprefix("[rankray] ")
                self.show([self._training[key] for key in sorted(self._training)])
            elif _BLOCK.match(line):
                self._block = [line]
            elif self._block and line.startswith("  "):
                self._block.append(line)
                self.show(self._block)
            else:
                self.clear()
                self.say(line.removeprefix("[rankray] "))

    def _size(self) -> tuple[int, int]:
        """(columns, lines)."""
        with contextlib.suppress(OSError):
            columns, lines = os.get_terminal_size(self._stream.fileno())
            if columns and lines:
                return columns, lines
        return shutil.get_terminal_size()


def _harmless(text: str) -> str:
    """The text without secrets and what moves a cursor or colours: prompts and errors are strangers'."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", _ESCAPE.sub("", secret.masked(text)))


_WATCH = """
import sys
name, path, ended = *sys.argv[1:], False
for line in sys.stdin:
    path, ended = line.strip() or path, not line.strip()
if not ended:
    with open(path, "rb") as log:
        log.seek(max(0, log.seek(0, 2) - 4000))
        last = log.read().decode("utf-8", "replace").replace(chr(27), "").splitlines()[-20:]
    print(f"{name}: ended without a word; the last lines of {path}:", *last, sep="\\n  ", file=sys.stderr)
"""
"""A process that outlives a job which is killed, or ended by Ray's own code that says why on stderr and exits: nothing
else could still say it. Where the log is comes on its stdin, and an empty line where the job ends as it should."""


class _Terminal:
    """stdout and stderr of this process in a file, and the screen that they were."""

    def __init__(self, job: str) -> None:
        self._name = f"{job}-{time.strftime('%Y%m%d-%H%M%S')}.log"
        handle, path = tempfile.mkstemp(prefix=f"rankray-{job}-", suffix=".log")
        self.path, self.placed = path, False
        self._remote: Output | None = None
        self._streams = sys.stdout, sys.stderr
        for stream in self._streams:
            stream.flush()
        self._descriptors = [_kept(1), _kept(2)]
        self._own = [
            _reopened(stream, fd) for stream, fd in zip(self._streams, self._descriptors, strict=True)
        ]
        self.screen, self.errors = Screen(self._own[0]), self._own[1]
        self._file = os.fdopen(handle, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        self._onto(os.open(path, os.O_WRONLY | os.O_APPEND))
        sys.stdout = sys.stderr = self._file
        self._faults = not faulthandler.is_enabled()
        if self._faults:
            faulthandler.enable(self._descriptors[1])
        self._watch = subprocess.Popen(
            [sys.executable, "-IS", "-c", _WATCH, job, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._descriptors[1],
            text=True,
            start_new_session=True,
        )
        self._read, self._lock, self._told = 0, threading.Lock(), set[str]()
        self._partial = b""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="rankray-terminal", daemon=True)
        self._thread.start()

    def _onto(self, log: int) -> None:
        """Makes the open file `log` what everything prints into."""
        for fd in (1, 2, self._file.fileno()):
            os.dup2(log, fd)
        os.close(log)

    def place(self, output: Output) -> None:
        """Has the log in the output's `logs/` from now on, or, of an object store, at the end."""
        if self.placed or self._remote is not None:
            return
        if "://" in output.uri:
            self._remote = output
            return
        path = output.at("logs", self._name)
        try:
            output.make("logs")
            with self._lock:
                shutil.copyfile(self.path, path)
                copied = os.path.getsize(path)
                self._onto(os.open(path, os.O_WRONLY | os.O_APPEND))
                with open(self.path, "rb") as late, open(path, "ab") as log:  # printed since it was copied
                    late.seek(copied)
                    log.write(late.read())
                os.unlink(self.path)
                self.path, self.placed = path, True
            self._tell_watch(path)
        except OSError as error:
            note(f"the log stays here: {error}")

    def close(self, keep: bool) -> None:
        """Gives the process its streams again; the log stays where it was placed, and elsewhere if it is to be kept."""
        for stream in self._streams:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        self._tell_watch("")
        self._stop.set()
        self._thread.join()
        self._look()
        self.screen.clear()
        sys.stdout, sys.stderr = self._streams
        self._file.close()
        for fd, kept in zip((1, 2), self._descriptors, strict=True):
            os.dup2(kept, fd)
        if self._faults:
            faulthandler.disable()
        for stream, own in zip(self._streams, self._own, strict=True):
            if own is not stream:
                own.close()
        for fd in self._descriptors:
            os.close(fd)
        self._leave(keep)
        atexit.register(self._end)

    def _end(self) -> None:
        """What Ray still prints while the process ends, after all that is said, goes to the log too."""
        for stream in self._streams:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        try:
            log = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        except OSError:  # there is none, or it is in an object store
            log = os.open(os.devnull, os.O_WRONLY)
        for fd in (1, 2):
            os.dup2(log, fd)

    def _tell_watch(self, path: str) -> None:
        assert self._watch.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._watch.stdin.write(f"{path}\n")
            self._watch.stdin.flush()
        if not path:
            with contextlib.suppress(BrokenPipeError):
                self._watch.stdin.close()
            self._watch.wait()

    def _leave(self, keep: bool) -> None:
        text = ""
        with contextlib.suppress(OSError):  # whoever removed the output
            said = Path(self.path).read_text("utf-8", "backslashreplace")
            if (text := secret.masked(said)) != said:
                Path(self.path).write_text(text, "utf-8")
        if self._remote is not None:
            try:
                self._remote.make("logs")
                self._remote.write_text(f"logs/{self._name}", text)
            except OSError:
                return
            os.unlink(self.path)
            self.path, self.placed = self._remote.uri_of("logs", self._name), True
        elif not self.placed and not keep:
            os.unlink(self.path)
            self.path = ""

    def _follow(self) -> None:
        while not self._stop.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        """Shows what workers said since the last look."""
        with self._lock, open(self.path, "rb") as log:
            log.seek(self._read)
            found = log.read()
            self._read += len(found)
        *lines, self._partial = (self._partial + found).split(b"\n")
        for line in lines:
            text = _ESCAPE.sub("", line.decode("utf-8", "replace"))
            bare = _PREFIX.sub("", text)
            if bare.startswith(STEP):
                self.screen.feed(bare)
            elif bare.startswith(OURS):
                self.screen.say(bare)
            elif TROUBLE.search(text) and (kind := re.sub(r"\d+", "", text)) not in self._told:
                self._told.add(kind)
                self.screen.say(text)


def _kept(fd: int) -> int:
    try:
        return os.dup(fd)
    except OSError:  # closed by whoever started this process
        return os.open(os.devnull, os.O_WRONLY)


def _reopened(stream: TextIO, kept: int) -> TextIO:
    """A stream on the descriptor that was kept, or the stream itself where it is none of the process's own."""
    try:
        standard = stream.fileno() in (1, 2)
    except (OSError, ValueError):
        return stream
    if not standard:
        return stream
    return os.fdopen(os.dup(kept), "w", encoding=stream.encoding, errors="replace")


_open: list[_Terminal] = []
"""The terminal of the job that runs, if one does."""
_ended: list[_Terminal] = []
"""That of the last one."""


@contextlib.contextmanager
def of_job(name: str) -> Iterator[None]:
    """Within, the terminal is the job's: `say` and `show` reach it, all else that is printed goes to the log."""
    if _open:
        yield
        return
    terminal, keep = _Terminal(name), False
    _open.append(terminal)
    try:
        yield
    except Exception as error:
        keep = not isinstance(error, ConfigError)
        raise
    finally:
        _open.clear()
        terminal.close(keep)
        _ended[:] = [terminal]


def place_log(output: Output) -> None:
    """The job's output is there: its log goes to `logs/`. Of jobs within a job the outermost's place it is."""
    for terminal in _open:
        terminal.place(output)


def log_named() -> str:
    """What to add to the line of the job that failed last: where to find what others printed; empty without a log."""
    return next((f"; what libraries printed is in {one.path}" for one in _ended if one.path), "")


def say(text: str) -> None:
    """A line for whoever looks on."""
    _screen().say(text)


def note(text: str) -> None:
    """A line for the log alone, where there is one."""
    if _open:
        print(text, flush=True)


def aside(say_: Say) -> Say:
    """How a part speaks whose whole has lines of its own: to the log, and aloud only what a user may have to act on."""
    return lambda line: (say_ if ALOUD.match(line) else note)(line)


def show(lines: Callable[[int], Sequence[str]]) -> None:
    """The block for so many columns, in the place of the one before."""
    screen = _screen()
    screen.show(lines(screen.columns))


def clear() -> None:
    """Takes the block away."""
    _screen().clear()


def redraws() -> bool:
    """Whether the block is drawn anew in its place, or becomes lines of a log."""
    return _screen().redraws


def _screen() -> Screen:
    for terminal in _open:
        return terminal.screen
    plain = Screen(sys.stdout)
    plain.redraws = False
    return plain
