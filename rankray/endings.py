"""How a command ends where something outside ends it: a signal, a disk that takes no more, a place that is closed.

Ctrl-C, SIGTERM and SIGHUP all raise in the main thread, so what cleans up after an error cleans up after them: actors
go, passing files are removed, and a Ray that was started for this command ends with it. The price is a wait of seconds,
which a second signal, `PATIENCE_S` after the first or later, cuts short: Ray's processes then end by the kernel's word.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

Answer = TypeVar("Answer")

FAULT_EXIT, USAGE_EXIT = 1, 2
PATIENCE_S = 1.0
"""`timeout` and supervisors send a signal to a process and at once to its group again: that is one wish."""

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
_FULL = re.compile("|".join(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)))
_CLOSED = re.compile(rf"{os.strerror(errno.EACCES)}|AWS Error ACCESS_DENIED")
_PATH = re.compile(r"'(/[^'\n]+)'")


class Stopped(KeyboardInterrupt):
    """Another signal than Ctrl-C's asked this process to end; `args[0]` is its number, and a plain one has none.

    A KeyboardInterrupt, of which Ray's C++ makes another without the number: any other exception that a handler raises
    while Ray waits, it prints and forgets, and the wait goes on.
    """


def ended(prog: str, work: Callable[[], Answer], otherwise: Callable[[int, str], Answer]) -> Answer:
    """`work()`'s answer; `otherwise(exit code, line)`, with the line said, where something outside ended it.

    The exit code is 128 and its number of a signal, `FAULT_EXIT` of a full disk, which room mends, and `USAGE_EXIT` of
    a place that is closed to this user, as of one that is not there.
    """
    with _raising() as heard:
        try:
            return work()
        except KeyboardInterrupt:
            number = next(iter(heard), signal.SIGINT)
        except SystemExit as leaving:  # Ray's own answer to SIGTERM, which it installs where it is joined
            if leaving.code != signal.SIGTERM:
                raise
            number = signal.SIGTERM
        except Exception as error:
            if not isinstance(error.__cause__, KeyboardInterrupt):
                found = full_or_closed(error)
                if found is None:
                    raise
                _tell(f"{prog}: {found[1]}")
                return otherwise(*found)
            # Raised within C code that has its answer already, such as Ray's `wait`: a SystemError made of it.
            number = next(iter(heard), signal.SIGINT)
        name = _NAMES[signal.Signals(number)]
        line = f"stopped by {name}; what is finished is kept, and the same command goes on from there"
        # Before Ray ends: a thread of its C++ that finds the raylet gone first ends this process without a word.
        _tell(f"{prog}: {line}")
        if "ray" in sys.modules:
            with _muted():
                sys.modules["ray"].shutdown()
        return otherwise(128 + number, line)


def full_or_closed(error: BaseException) -> tuple[int, str] | None:
    """Exit code and one line for a place that takes no more, or that this user may not read or write, wherever in a job
    it was found; None for any other error."""
    for told in _texts(error):
        for line in told.splitlines():
            path = _PATH.search(line)
            if found := _FULL.search(line):
                place = (
                    path[1] if path else "the disk of the output, or of Ray's files (RAY_TMPDIR, else /tmp)"
                )
                remedy = "make room there, and give the same command again to go on"
                return FAULT_EXIT, f"{found[0]}: {place}; what is finished is kept: {remedy}"
            if found := _CLOSED.search(line):
                # a bucket's store names its keys in words of its own
                place = path[1] if path else line.strip()
                remedy = "ask its owner to let you read it, or take a copy or a place of yours"
                return USAGE_EXIT, f"{found[0]}: {place}; {remedy}"
    return None


def _texts(error: BaseException | None) -> Iterator[str]:
    """What an error says, and those that it came from, in other processes too."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) or type(error).__module__.startswith("ray."):
            yield str(error)
        for one in getattr(error, "worker_failures", {}).values():  # of Ray Train
            yield str(one)
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__


@contextlib.contextmanager
def _raising() -> Iterator[dict[int, float]]:
    """Within it the three signals raise, and end the process where they come again; ignored ones (nohup) stay so. Tells
    which came first, and when."""
    heard: dict[int, float] = {}

    def handle(number: int, _frame: FrameType | None) -> None:
        if not heard:
            heard[number] = time.monotonic()
            raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)
        if time.monotonic() - next(iter(heard.values())) > PATIENCE_S:
            os._exit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _NAMES}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Within, nothing is printed: what Ray says of its workers while it ends is none of the job's lines."""
    with contextlib.ExitStack() as after, open(os.devnull, "w") as nowhere:
        _flush()
        for fd in (1, 2):
            with contextlib.suppress(OSError):  # closed by whoever started this process
                kept = os.dup(fd)
                after.callback(os.close, kept)
                after.callback(os.dup2, kept, fd)
                os.dup2(nowhere.fileno(), fd)
        after.callback(_flush)
        yield


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # gone, or closed
            stream.flush()


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # its terminal may be what is gone
        print(line, file=sys.stderr, flush=True)
