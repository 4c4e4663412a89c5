"""Whose an output is: one process at a time on any filesystem, one line to all others, and a way round the dead.

    OUTPUT/_owner.ID.json    the mark of a process: its kind, host, pid, since when; written once, removed once
    OUTPUT/_owner.ID.beat    a count that grows while the process lives, and whether it owns

**Who owns.** A process owns an output once a listing of it, begun after the process had written its mark, shows that
mark and no other. No two can: of two marks one was written first, and it goes only when its process is done, so the
other's listing, begun later, shows it. Nothing else is asked of a filesystem than that a listing shows what was written
before it began, which local disks, S3 (since 2020), GCS and Azure promise: no lock, no conditional write (which pyarrow
does not offer), no clock. A process that sees others takes its own mark back and waits, unless its ID is the lowest: of
those that start together one goes on, and whoever sees an owner alive is refused.

**Who is dead.** On the same machine the kernel says, at once: the pid is gone, or is another process by now. Of another
machine, or of a process that is stopped, the observer watches the beat: one that stands still for `stale_s` by the
observer's own clock is dead, one that moves is alive. Whoever finds a mark dead removes it, which is no claim: the race
begins anew, and a mark that is removed is never written again. An owner that slept through that finds its mark gone, at
its next beat or before it publishes, and stops with one line.

The price: two small writes a start and one each `beat_s`, on S3 a quarter of a dollar a day; and a process that slept
may write until its first beat after waking.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pyarrow.fs as pafs

from rankray import store
from rankray.config import ConfigError
from rankray.data.place import OWNER, Output, Publish, publish
from rankray.words import Say, first_line

Info = TypeVar("Info", bound=dict[str, Any])


@dataclass(frozen=True)
class Pace:
    """How often an owner says that it lives, when one that does not is dead, and how often those who wait look."""

    beat_s: float = 5.0
    stale_s: float = 30.0
    poll_s: float = 0.5


PACE = Pace()

WAKE = signal.SIGRTMAX if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2
"""What tells the main thread of a process that it has lost its output: SIGINT is ignored in a shell's background."""


@dataclass(frozen=True)
class Holder:
    """Who is at work on an output.

    Attributes:
        kind: "synpic", "rerank" and so on.
        since: when it began, UTC, by its own clock.
        job: the submission of `ray job submit`, where it is one.
        machine: the boot and the pid namespace that `pid` belongs to; "" where the system does not say.
        begun: when that process began, in the kernel's ticks; 0 where the system does not say.
    """

    kind: str
    host: str
    pid: int
    since: str
    job: str | None
    machine: str
    begun: int

    def __str__(self) -> str:
        job = f", Ray job {self.job}" if self.job else ""
        return f"{self.kind} on {self.host}, pid {self.pid}{job}, since {self.since}"

    @property
    def remedy(self) -> str:
        """The command that ends it."""
        return f"`ray job stop {self.job}`" if self.job else f"`kill {self.pid}` on {self.host}"

    def alive(self) -> bool | None:
        """Whether it lives, as the kernel knows; None of another machine's, and of a process that is stopped."""
        if not self.machine or self.machine != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # another user's
        state, begun = _process(self.pid)
        if begun and begun != self.begun:
            return False
        return {"Z": False, "X": False, "T": None, "t": None}.get(state, True)


def of(output: Output) -> Holder | None:
    """Who owns `output` by the marks in it, alive or not (`Holder.alive`); None where nobody does."""
    for name in _marked(output):
        holder = _holder(output, name)
        if holder is not None and _get(output, _beat(name)).endswith("owns"):
            return holder
    return None


def lives(output: Output, quiet_s: float) -> bool:
    """Whether a process is at work on `output`: one that the kernel knows, or whose beat is younger than `quiet_s` by
    the date that its file has."""
    for name in _marked(output):
        holder = _holder(output, name)
        alive = None if holder is None else holder.alive()
        if alive is None:
            beat = output.fs.get_file_info(output.at(_beat(name))).mtime
            alive = beat is not None and time.time() - beat.timestamp() < quiet_s
        if alive:
            return True
    return False


def once(
    output: Output,
    kind: str,
    marker: str,
    found: Callable[[], Info | None],
    make: Callable[[], Info],
    report: Publish | None = None,
    wait: Say | None = None,
) -> Info:
    """What `found` finds finished, or else what `make` makes and this publishes, as the only one at work on `output`.

    `found` is asked again once the output is owned: another process may have ended meanwhile.

    Args:
        marker: the file that is written last.
        report: writes the page before it.
        wait: is told of an owner who is waited for; without it an owner is an error.

    Raises:
        ConfigError: another process is at work there, or the place cannot be written; or whatever the others raise.
    """
    info = found()
    if info is not None:
        if output.exists("_work") or _marked(output):  # what a kill left
            with contextlib.suppress(ConfigError), owned(output, kind):
                output.remove("_work")
        return info
    with owned(output, kind, wait) as owner:
        info = found()
        if info is None:
            info = make()
            owner.require()
            publish(output, marker, info, report)
        else:
            output.remove("_work")
    return info


@contextlib.contextmanager
def owned(output: Output, kind: str, wait: Say | None = None, pace: Pace | None = None) -> Iterator[Owner]:
    """`output`, which need not exist yet, is this process's alone; no mark is left there afterwards.

    Args:
        wait: is told of an owner who is waited for; without it an owner is an error.

    Raises:
        ConfigError: another process is at work there, the place cannot be written, or the output was lost.
    """
    pace, missing = pace or PACE, _missing(output)
    try:
        try:
            owner = _Race(output, kind, wait, pace).run()
        except OSError as error:
            option = "encoding.place" if kind == "encoding" else "output"
            raise ConfigError(
                f"{option} '{output.uri}' cannot be written ({first_line(error)}); give a directory that can be"
            ) from None
        try:
            with owner:
                yield owner
        except (Exception, KeyboardInterrupt, SystemExit):
            owner.require()  # whatever went wrong, that the output is another's says it best
            raise
    finally:
        for place in missing:  # of a job that was refused nothing stays
            with contextlib.suppress(OSError):
                place.rmdir()


class Owner:
    """This process's mark on an output, and, while it owns (context manager), the thread that beats."""

    def __init__(self, output: Output, kind: str, pace: Pace) -> None:
        self.name = f"{time.time_ns():020}-{uuid.uuid4().hex[:8]}"
        self._output, self._kind, self._pace = output, kind, pace
        self._beats, self._lost, self._ended = 0, False, False
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="rankray-owner", daemon=True)
        self._in_main = threading.current_thread() is threading.main_thread()
        self._handler: Any = None
        try:
            _put(output, _mark(self.name), json.dumps(asdict(_this_process(kind))))
        except OSError:
            self.remove()
            raise

    def beat(self, owns: bool) -> None:
        """Says that this process lives."""
        self._beats += 1
        # always as long: S3 is asked for a file's length first, and a longer or shorter one then fails
        _put(self._output, _beat(self.name), f"{self._beats:09} {'owns' if owns else 'race'}")

    def remove(self) -> None:
        """Takes the mark back."""
        _remove(self._output, self.name)

    def lost(self) -> bool:
        """Whether the mark was removed by another, as that of a process which is dead; of a place that does not
        answer, what was known last."""
        if not (self._lost or self._ended):
            with contextlib.suppress(OSError):
                self._lost = not self._output.exists(_mark(self.name))
        return self._lost

    def require(self) -> None:
        """Goes on only as the owner.

        Raises:
            ConfigError: the output is another's by now, as this process gave no sign of life for long.
        """
        if self.lost():
            by: Holder | None = None
            with contextlib.suppress(OSError):
                by = of(self._output)
            raise ConfigError(
                f"{self._output.uri} was taken over by {by or 'another process'}, as this {self._kind} gave no sign of "
                f"life for {self._pace.stale_s:.0f} s (stopped, or cut off from the place); it ends here, and what it "
                "had finished is kept"
            )

    def __enter__(self) -> Owner:
        if self._in_main:
            self._handler = signal.signal(WAKE, _woken)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        try:
            self._thread.join()
        finally:
            if self._in_main:
                signal.signal(WAKE, self._handler or signal.SIG_DFL)
            self.lost()
            self._ended = True
            with contextlib.suppress(OSError):
                self.remove()

    def _run(self) -> None:
        while not self._stop.wait(self._pace.beat_s):
            if self.lost():
                if self._in_main:
                    signal.pthread_kill(threading.main_thread().ident or 0, WAKE)
                return
            with contextlib.suppress(OSError):  # the next beat tries again
                self.beat(owns=True)


def _woken(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # which libraries let through, and `owned` tells for what it is


@dataclass(frozen=True)
class _Other:
    """Another's mark, as it was just seen; `alive` is None where that is not known yet."""

    holder: Holder | None
    owns: bool
    alive: bool | None

    @property
    def told(self) -> str:
        if self.holder is None:
            return "its mark cannot be read; wait for it, or take another output"
        return f"{self.holder}; wait for it, end it ({self.holder.remedy}), or take another output"


class _Race:
    """One process's way to an output: its own mark, and what it has seen of others', by its own clock."""

    def __init__(self, output: Output, kind: str, wait: Say | None, pace: Pace) -> None:
        self._output, self._kind, self._wait, self._pace = output, kind, wait, pace
        self._mine: Owner | None = None
        self._first: dict[str, tuple[str, float]] = {}
        self._begin_s, self._told = time.monotonic(), False

    def run(self) -> Owner:
        """This process's mark, once it owns the output."""
        try:
            while (owner := self._step()) is None:
                pass
        except BaseException:
            self._withdraw()
            raise
        return owner

    def _step(self) -> Owner | None:
        names = _marked(self._output)
        if self._mine is not None and self._mine.name not in names:
            self._mine = None  # this process slept, and was taken for dead
        others = [self._look(name) for name in names if self._mine is None or name != self._mine.name]
        if not others:
            return self._alone()
        if not any(other.alive is False for other in others):  # those marks are gone: look again at once
            self._meet(others, min(names))
            time.sleep(self._pace.poll_s)
        return None

    def _alone(self) -> Owner | None:
        if self._mine is None:
            self._mine = self._begun()
            return None
        self._mine.beat(owns=True)
        return None if self._mine.lost() else self._mine

    def _begun(self) -> Owner:
        """A new mark. Who made the directory for nothing may take it away before the mark is written into it."""
        for _ in range(3):
            self._output.make()
            with contextlib.suppress(FileNotFoundError):
                return Owner(self._output, self._kind, self._pace)
        raise FileNotFoundError(f"{self._output.uri} is removed again and again")

    def _meet(self, others: Sequence[_Other], first: str) -> None:
        """Gives way to an owner, and to the mark called `first`; says that it lives where that is its own."""
        ahead = self._mine is not None and first == self._mine.name
        # one that lives, and comes to nothing
        stuck = not ahead and time.monotonic() - self._begin_s > self._pace.stale_s
        holder = next((other for other in others if other.alive and (other.owns or stuck)), None)
        if holder is not None and self._wait is None:
            raise ConfigError(f"another job is at work on {self._output.uri}: {holder.told}")
        if holder is not None and self._wait is not None and not self._told:
            self._wait(f"waiting for another job on {self._output.uri}: {holder.told}")
            self._told = True
        if self._mine is not None and ahead and holder is None:
            self._mine.beat(owns=False)
        else:
            self._withdraw()

    def _withdraw(self) -> None:
        if self._mine is not None:
            self._mine.remove()
            self._mine = None

    def _look(self, name: str) -> _Other:
        """The mark of that name; it is removed where its process is dead."""
        holder, beat = _holder(self._output, name), _get(self._output, _beat(name))
        first, since_s = self._first.setdefault(name, (beat, time.monotonic()))
        alive = holder.alive() if holder is not None else None
        if alive is None and beat != first:
            alive = True if first and beat else None  # one that appears, or cannot be read now, says nothing
            self._first[name] = (first or beat, time.monotonic())
        elif alive is None and time.monotonic() - since_s > self._pace.stale_s:
            alive = False
        if alive is False:
            _remove(self._output, name)
        return _Other(holder, beat.endswith("owns"), alive)


def _mark(name: str) -> str:
    return f"{OWNER}{name}.json"


def _beat(name: str) -> str:
    return f"{OWNER}{name}.beat"


def _marked(output: Output) -> list[str]:
    """The names of all marks in one listing, the earliest first by their makers' clocks; none in a directory that goes
    as it is listed, since who made it for nothing takes it away."""
    try:
        found = [path.rpartition("/")[2] for path in output.files()]
    except FileNotFoundError:
        return []
    return sorted(
        name.removeprefix(OWNER).removesuffix(".json")
        for name in found
        if name.startswith(OWNER) and name.endswith(".json")
    )


def _remove(output: Output, name: str) -> None:
    for file in (_beat(name), _mark(name)):
        with contextlib.suppress(FileNotFoundError):
            output.fs.delete_file(output.at(file))


def _put(output: Output, file: str, text: str) -> None:
    with output.fs.open_output_stream(output.at(file)) as stream:
        stream.write(text.encode())


def _get(output: Output, file: str) -> str:
    """What is in it; nothing where it is gone, or goes just now, which S3 calls an internal failure."""
    try:
        with output.fs.open_input_stream(output.at(file)) as stream:
            return bytes(stream.read()).decode()
    except OSError:
        return ""


def _holder(output: Output, name: str) -> Holder | None:
    """Whose mark it is; None where it is being written, or gone."""
    try:
        return Holder(**store.parse_json(_get(output, _mark(name))))
    except (ValueError, TypeError):
        return None


def _this_process(kind: str) -> Holder:
    try:
        submitted = store.parse_json(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        submission = (submitted.get("metadata") or {}).get("job_submission_id")
    except (ValueError, AttributeError):  # whoever set it, it is not Ray's
        submission = None
    return Holder(
        kind=kind,
        host=socket.gethostname(),
        pid=os.getpid(),
        since=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        job=submission,
        machine=_machine(),
        begun=_process(os.getpid())[1],
    )


def _machine() -> str:
    """This boot of this machine, and the pid namespace of this process: containers of one machine number their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process(pid: int) -> tuple[str, int]:
    """(the kernel's letter for its state, when it began in ticks since the boot) of a process; ("", 0) if not told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[19])


def _missing(output: Output) -> list[Path]:
    """Directories that do not exist yet, the innermost first; object stores have none."""
    found = []
    if isinstance(output.fs, pafs.LocalFileSystem):
        place = Path(output.path)
        while not place.exists() and place != place.parent:
            found.append(place)
            place = place.parent
    return found
