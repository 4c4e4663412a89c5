"""One process at a time on an output: the race, the dead, the one that slept, and what others are told."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rankray import store
from rankray.config import ConfigError
from rankray.data import owner
from rankray.data import place as places
from rankray.data.owner import Holder, Pace
from rankray.data.place import Output

QUICK = Pace(beat_s=0.05, stale_s=0.6, poll_s=0.02)
NEVER_STALE = Pace(beat_s=0.05, stale_s=1e9, poll_s=0.02)
"""Whoever waits for a beat waits for ever: what is found by the kernel alone is found at once, however busy it is."""
HANGS_S = 600.0
"""So long nothing takes that does not wait for ever, on a machine where a process is let in once a minute."""


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Output:
    """An output that does not exist yet."""
    uri = str(tmp_path / "deep" / "o")
    if request.param == "s3":
        uri = f"s3://{request.getfixturevalue('bucket')}/{tmp_path.name}/o"
    return places.open_output(uri, in_job=False)


def marks(output: Output) -> list[str]:
    return [path for path in output.files() if "_owner" in path]


def planted(output: Output, name: str, beat: str = "7 owns", **changes: Any) -> Holder:
    """The mark of a process that is not this one."""
    holder = dataclasses.replace(owner._this_process("synpic"), **changes)
    output.make()
    for file, text in (
        (owner._mark(name), json.dumps(dataclasses.asdict(holder))),
        (owner._beat(name), beat),
    ):
        owner._put(output, file, text)
    return holder


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def all_at_once(output: Output, count: int) -> list[str]:
    """What came of so many threads that want `output`: "owned", or what they were told."""
    told: list[str] = []
    start, refused = threading.Barrier(count), threading.Semaphore(0)

    def want() -> None:
        start.wait()
        try:
            with owner.owned(output, "synpic", pace=NEVER_STALE):
                told.append("owned")
                for _ in range(count - 1):  # the others are refused while it owns
                    assert refused.acquire(timeout=HANGS_S)
        except ConfigError as error:
            told.append(str(error))
            refused.release()

    threads = [threading.Thread(target=want, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS_S)
        assert not thread.is_alive(), "it waits for a beat"
    return told


def test_an_owner_is_named_to_all_others_and_leaves_nothing(output: Output) -> None:
    with owner.owned(output, "synpic"):
        holder = owner.of(output)
        assert holder is not None
        assert (holder.kind, holder.pid, holder.alive()) == ("synpic", os.getpid(), True)
        told = re.escape(
            f"another job is at work on {output.uri}: synpic on {holder.host}, pid {os.getpid()}, since "
            f"{holder.since}; wait for it, end it (`kill {os.getpid()}` on {holder.host}), or take another output"
        )
        with pytest.raises(ConfigError, match=f"^{told}$"), owner.owned(output, "rerank"):
            pass
        assert owner.of(output) == holder
        assert len(marks(output)) == 2
    assert owner.of(output) is None
    assert marks(output) == []


def test_of_an_output_that_was_only_looked_at_nothing_stays(tmp_path: Path) -> None:
    output = places.open_output(str(tmp_path / "deep" / "o"), in_job=False)
    with pytest.raises(ConfigError, match="no such model"), owner.owned(output, "synpic"):
        raise ConfigError("no such model")
    assert list(tmp_path.iterdir()) == []
    with owner.owned(output, "synpic"):
        output.write_text("x", "y")
    assert [path.name for path in (tmp_path / "deep" / "o").iterdir()] == ["x"]


def test_a_place_that_cannot_be_written_is_one_line() -> None:
    output = places.open_output("/proc/nothing/here", in_job=False)
    with pytest.raises(
        ConfigError, match=r"^output '/proc/nothing/here' cannot be written \(.*\); give a directory"
    ):
        owner.once(output, "synpic", "dataset.json", lambda: None, dict)
    with pytest.raises(ConfigError, match=r"^encoding.place '/proc/nothing/here' cannot be written"):
        owner.once(output, "encoding", "encoded.json", lambda: None, dict)


def test_a_directory_that_goes_as_it_is_listed_holds_no_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another made it, was refused elsewhere, and takes it away."""
    output, gone = places.open_output(str(tmp_path / "o"), in_job=False), []
    files = type(output).files

    def listed(self: Output) -> list[str]:
        if not gone:
            gone.append(True)
            raise FileNotFoundError(2, "Cannot list directory")
        return files(self)

    monkeypatch.setattr(type(output), "files", listed)
    with owner.owned(output, "synpic"):
        assert gone


@pytest.mark.parametrize("count", [2, 3, 6])
def test_of_those_who_start_at_once_one_works(output: Output, count: int) -> None:
    for _ in range(3):
        told = sorted(all_at_once(output, count))
        assert all(
            line.startswith(f"another job is at work on {output.uri}: synpic on") for line in told[:-1]
        )
        assert len(told) == count
        assert told[-1] == "owned"
        assert marks(output) == []


def test_of_several_who_find_a_killed_owner_one_takes_over_at_once(output: Output) -> None:
    planted(output, "0001-dead", pid=dead_pid())
    assert sorted(all_at_once(output, 4))[-1] == "owned"
    assert marks(output) == []


def test_a_pid_that_is_another_process_s_by_now_is_a_dead_one(tmp_path: Path) -> None:
    output = places.open_output(str(tmp_path), in_job=False)
    holder = planted(output, "0001-dead", begun=1)
    assert holder.pid == os.getpid()
    assert holder.alive() is False
    with owner.owned(output, "synpic"):
        pass


class Watch:
    """An observer's clock: it goes while the observer sleeps and at no other time, and `passes` is told of it."""

    def __init__(self, passes: Callable[[float], None]) -> None:
        self.now_s, self._passes = 0.0, passes

    def monotonic(self) -> float:
        return self.now_s

    def time_ns(self) -> int:
        return time.time_ns()

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self._passes(self.now_s)


def test_another_machine_s_owner_lives_while_its_beat_moves(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It beats twice in the time that makes it a dead one, and then no more."""
    holder = planted(output, "0001-far", machine="elsewhere", host="far", pid=dead_pid(), job="raysubmit_1")
    beats = {"far lives": True}

    def passes(now_s: float) -> None:
        if beats["far lives"]:
            owner._put(output, owner._beat("0001-far"), f"{now_s // (QUICK.stale_s / 2):09.0f} owns")

    watch = Watch(passes)
    monkeypatch.setattr(owner, "time", watch)
    told = rf"synpic on far, pid {holder.pid}, Ray job raysubmit_1, since .*; .*end it \(`ray job stop raysubmit_1`\)"
    for _ in range(3):
        with pytest.raises(ConfigError, match=told), owner.owned(output, "synpic", pace=QUICK):
            pass
    beats["far lives"] = False
    begin_s = watch.now_s
    with owner.owned(output, "synpic", pace=QUICK):
        assert QUICK.stale_s <= watch.now_s - begin_s <= QUICK.stale_s + 2 * QUICK.poll_s
        assert len(marks(output)) == 2
    assert marks(output) == []


def test_a_mark_that_was_cut_off_while_it_was_written_is_dead_when_it_stands_still(tmp_path: Path) -> None:
    output = places.open_output(str(tmp_path), in_job=False)
    owner._put(output, owner._mark("0001-cut"), '{"kind": "syn')
    with owner.owned(output, "synpic", pace=QUICK):
        pass
    assert marks(output) == []


OWNS = """
import sys, time
from pathlib import Path
from rankray.config import ConfigError
from rankray.data import owner, place
owner.PACE = owner.Pace(0.1, 1.0, 0.05)
output = place.open_output(sys.argv[1], in_job=False)
def make():
    print("owns", flush=True)
    while not Path(sys.argv[2]).exists():
        time.sleep(0.01 if sys.argv[3] == "short" else 600)
    output.write_text("row", str(len(sys.argv)))
    return {"identity": {}}
try:
    found = lambda: place.complete(output, "dataset.json", {}, print)
    owner.once(output, "synpic", "dataset.json", found, make)
except ConfigError as error:
    print(error, flush=True)
    raise SystemExit(2)
"""


def process(output: Path, go: Path, sleeps: str = "short") -> subprocess.Popen[str]:
    words = [sys.executable, "-c", OWNS, str(output), str(go), sleeps]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def line(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    return running.stdout.readline().strip()


def test_a_killed_owner_s_successor_does_not_wait(tmp_path: Path) -> None:
    go = tmp_path / "go"
    killed = process(tmp_path / "o", go)
    assert line(killed) == "owns"
    late = process(tmp_path / "o", go)
    assert line(late).startswith(f"another job is at work on {tmp_path}/o: synpic on ")
    assert late.wait() == 2
    killed.kill()
    killed.wait()
    with owner.owned(places.open_output(str(tmp_path / "o"), in_job=False), "synpic", pace=NEVER_STALE):
        assert killed.returncode == -signal.SIGKILL


@pytest.mark.parametrize("sleeps", ["short", "long"])
def test_an_owner_that_slept_stops_and_writes_no_more(tmp_path: Path, sleeps: str) -> None:
    """It is stopped in a call that returns at once, or in one that would not for ten minutes."""
    go, place = tmp_path / "go", tmp_path / "o"
    slept = process(place, go, sleeps)
    assert line(slept) == "owns"
    slept.send_signal(signal.SIGSTOP)
    while owner._process(slept.pid)[0] != "T":
        time.sleep(0.01)
    output = places.open_output(str(place), in_job=False)
    still = Pace(HANGS_S, 1.0, 0.05)  # its own beat stands, so that whoever reads it never meets half of one
    with owner.owned(output, "synpic", pace=still) as mine:
        slept.send_signal(signal.SIGCONT)
        told = line(slept)
        assert slept.wait(HANGS_S) == 2
        assert told.startswith(f"{place} was taken over by synpic on ")
        assert f"pid {os.getpid()}" in told
        assert "gave no sign of life for 1 s" in told
        assert not mine.lost()
        assert sorted(path.name for path in place.iterdir()) == [
            owner._beat(mine.name),
            owner._mark(mine.name),
        ]
    assert list(place.iterdir()) == []


def test_a_job_that_ends_while_another_waits_is_found_complete(tmp_path: Path) -> None:
    output = places.open_output(str(tmp_path / "o"), in_job=False)
    told, said, made = threading.Event(), list[str](), list[str]()

    def waits() -> None:
        def wait(text: str) -> None:
            said.append(text)
            told.set()

        def found() -> dict[str, Any] | None:
            return places.complete(output, "encoded.json", {"seed": 1}, said.append)

        def make() -> dict[str, Any]:
            made.append("again")
            return {}

        owner.once(output, "encoding", "encoded.json", found, make, wait=wait)

    with owner.owned(output, "encoding"):
        thread = threading.Thread(target=waits)
        thread.start()
        assert told.wait(HANGS_S)
        output.make("_work")
        store.write_json(output.at("encoded.json"), {"identity": {"seed": 1}}, output.fs)
    thread.join()
    assert made == []
    assert said[0].startswith(f"waiting for another job on {output.uri}: encoding on ")
    assert said[1:] == [f"{output.uri} is complete already; nothing to do"]
    assert [path.name for path in Path(output.path).iterdir()] == ["encoded.json"]


def test_what_a_kill_left_in_a_finished_output_goes(tmp_path: Path) -> None:
    output = places.open_output(str(tmp_path), in_job=False)
    planted(output, "0001-dead", pid=dead_pid())
    output.make("_work")
    output.write_text("dataset.json", "{}")
    assert owner.once(output, "synpic", "dataset.json", lambda: {"rows": 1}, dict) == {"rows": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


def test_a_finished_output_is_complete_for_those_who_may_not_write_there(tmp_path: Path) -> None:
    output = places.open_output(str(tmp_path), in_job=False)
    with owner.owned(output, "synpic"):  # another is about to end
        assert owner.once(output, "synpic", "dataset.json", lambda: {"rows": 1}, dict) == {"rows": 1}


def test_marks_are_no_foreign_files(tmp_path: Path) -> None:
    output = places.open_output(str(tmp_path), in_job=False)
    with owner.owned(output, "rerank"):
        places.claim(output, "dataset.json", {"seed": 1})
    assert places.claimed(output) == {"seed": 1}


class Turns(Output):
    """An output in memory, at which threads go on one operation at a time, in the order that a test gives."""

    def __init__(self) -> None:
        object.__setattr__(self, "uri", "turns")
        object.__setattr__(self, "path", "o")
        object.__setattr__(self, "fs", self)
        object.__setattr__(self, "held", {})
        object.__setattr__(self, "turns", {})
        object.__setattr__(self, "back", threading.Semaphore(0))

    def _turn(self) -> None:
        turn = self.turns.get(threading.current_thread())
        if turn is not None:
            self.back.release()
            turn.acquire()

    def let(self, thread: threading.Thread) -> None:
        """The thread goes on to its next operation, or to its end."""
        self.turns[thread].release()
        assert self.back.acquire(timeout=HANGS_S)

    def files(self, *parts: str) -> list[str]:
        self._turn()
        return sorted(self.held)

    def exists(self, *parts: str) -> bool:
        self._turn()
        return self.at(*parts) in self.held

    def make(self, *parts: str) -> str:
        return ""

    def delete_file(self, path: str) -> None:
        self._turn()
        if self.held.pop(path, None) is None:
            raise FileNotFoundError(path)

    def open_input_stream(self, path: str) -> io.BytesIO:
        self._turn()
        if path not in self.held:
            raise FileNotFoundError(path)
        return io.BytesIO(self.held[path])

    @contextlib.contextmanager
    def open_output_stream(self, path: str) -> Iterator[io.BytesIO]:
        self._turn()
        stream = io.BytesIO()
        yield stream
        self.held[path] = stream.getvalue()


class Clock:
    """Each look at it is a second later."""

    def __init__(self) -> None:
        self.ticks = itertools.count()

    def monotonic(self) -> float:
        return float(next(self.ticks))

    def time_ns(self) -> int:
        return next(self.ticks)

    def sleep(self, seconds: float) -> None:
        pass


def raced(order: list[int], machine: str, stale_s: float, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What came of three threads' race for one output in that order of operations: their marks, or what they were told.

    The rule that one alone owns is asked after every operation.
    """
    monkeypatch.setattr(owner, "time", Clock())
    monkeypatch.setattr(owner, "_machine", lambda: machine)
    output, came = Turns(), dict[int, Any]()
    pace = Pace(1, stale_s, 1)

    def race(number: int) -> None:
        output.turns[threading.current_thread()].acquire()
        try:
            came[number] = owner._Race(output, "synpic", None, pace).run()
        except ConfigError as error:
            came[number] = str(error)
        finally:
            output.turns.pop(threading.current_thread())
            output.back.release()

    threads = [threading.Thread(target=race, args=(number,), daemon=True) for number in range(3)]
    for thread in threads:
        output.turns[thread] = threading.Semaphore(0)
        thread.start()
    for number in itertools.chain(order, itertools.islice(itertools.cycle(range(3)), 3000)):
        if threads[number] in output.turns:
            output.let(threads[number])
        owners = [one.name for one in came.values() if not isinstance(one, str)]
        kept = [name for name in owners if output.at(owner._mark(name)) in output.held]
        assert len(kept) <= 1, "two own it"
        if not output.turns:
            break
    return list(came.values())


bursts = st.tuples(st.integers(0, 2), st.integers(1, 9))  # whose turn it is, and for how many operations
orders = st.lists(bursts, min_size=4, max_size=16).map(
    lambda found: [who for who, count in found for _ in range(count)]
)


@settings(max_examples=100)
@given(orders)
@example([0] * 2 + [1] * 4 + [0] * 9 + [1] * 9)  # the first to begin is the last to write its mark
def test_in_whatever_order_three_race_one_owns_and_two_are_told(order: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        came = raced(order, "this", 1e9, patch)
    assert len(came) == 3
    assert sum(isinstance(one, str) for one in came) == 2


@settings(max_examples=100)
@given(orders, st.integers(5, 60))
@example([0] * 4 + [1] * 40 + [0] * 9, 5)  # seen to be alone, it sleeps before it says so
def test_those_who_are_slow_and_taken_for_dead_never_own_beside_another(
    order: list[int], stale_s: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        raced(order, "", stale_s, patch)
