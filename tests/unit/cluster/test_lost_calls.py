"""Items that end their process: known by what was lost, tried alone, and failed; by processes that really end."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_meter import LocalMeter, answering

from rankray.cluster.item_safe import ItemSafe
from rankray.cluster.lost_calls import LostItemError, Watched, groups


@pytest.fixture(autouse=True)
def _meter_answers() -> Iterator[None]:
    with answering():
        yield


class Ends(BaseException):
    """The process is gone: nothing of the actor's runs any more."""


def test_what_was_lost_once_is_tried_as_before() -> None:
    assert groups(4, []) == ([[0, 1, 2, 3]], [])
    assert groups(4, [[0, 1, 2, 3]]) == ([[0, 1, 2, 3]], [])


def test_what_was_lost_twice_is_tried_alone_and_first_and_failed_after_two_times_alone() -> None:
    assert groups(4, [[0, 1, 2, 3], [1, 2]]) == ([[1], [2], [0, 3]], [])
    assert groups(3, [[0, 1, 2], [1, 2], [1]]) == ([[1], [2], [0]], [])
    assert groups(3, [[0, 1, 2], [1, 2], [1], [1]]) == ([[2], [0]], [1])


@given(st.integers(1, 17), st.data())
def test_a_deadly_item_alone_fails_whatever_its_place(count: int, data: st.DataObject) -> None:
    deadly = data.draw(st.sets(st.integers(0, count - 1), max_size=2))
    meter, starts = LocalMeter(), 0

    def call(items: Sequence[int]) -> list[int]:
        if deadly & set(items):
            raise Ends
        return [10 * item for item in items]

    while True:
        starts += 1
        watched = Watched(meter, f"actor-{starts}", 100.0)
        try:
            found = watched.run(ItemSafe(object(), "model").run, call, range(count), "block")
        except Ends:
            # what the lost process did not take back: `finally` ran here, as it would not there
            meter._inside["block"] = {f"actor-{starts}": meter.begun[-1]}
            continue
        break
    assert {n for n, result in enumerate(found) if isinstance(result, LostItemError)} == deadly
    assert [result for n, result in enumerate(found) if n not in deadly] == [
        10 * n for n in range(count) if n not in deadly
    ]
    assert starts <= 1 + 2 + 2 * len(deadly)
    assert meter._inside == meter._lost == {}  # nothing is kept of a finished block


HANGS = textwrap.dedent("""
    import ctypes, sys
    from local_meter import LocalMeter, answering
    from rankray.cluster import lost_calls
    def call(items):
        if {holds_lock}:
            ctypes.PyDLL(None).sleep(60)  # the interpreter's lock stays taken
        import time; time.sleep(60)
    with answering():
        lost_calls.Watched(LocalMeter(), "a", 0.1).run(lambda call, items: list(call(items)), call, [1, 2, 3], "b")
""")


@pytest.mark.parametrize("holds_lock", [False, True])
def test_a_call_that_hangs_ends_its_process_even_where_it_holds_the_interpreter(holds_lock: bool) -> None:
    begin_s = time.monotonic()
    script = f"import sys; sys.path[:0] = {sys.path!r}\n" + HANGS.format(holds_lock=holds_lock)
    ended = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=50
    )
    assert ended.returncode == 1
    assert "Timeout (0:00:00.400000)!" in ended.stderr  # 3 items x 0.1 s, and one more as it is the first
    assert time.monotonic() - begin_s < 45


BREAKS = textwrap.dedent("""
    import ray, torch
    from local_meter import LocalMeter, answering
    from rankray.cluster import lost_calls
    from rankray.cluster.item_safe import ItemSafe
    class Meter(LocalMeter):
        def end(self, block, actor):
            print("ended")
    def call(items):
        if 2 in items:
            raise torch.AcceleratorError("CUDA error: {what}")
        return items
    with answering():
        watched = lost_calls.Watched(Meter(), "a", 100.0)
        print(watched.run(ItemSafe(object(), "m").run, call, [1], "b"))
        print(watched.run(ItemSafe(object(), "m").run, call, [1, 2], "c"))
""")


@pytest.mark.parametrize(
    ("what", "code", "ends", "error"),
    [
        ("device-side assert triggered", 1, 1, "broke its device (AcceleratorError: CUDA error: device-side"),
        ("out of memory", 0, 4, "had no memory for a batch of 2"),
    ],
)
def test_a_call_that_breaks_the_device_is_lost_with_its_process(
    what: str, code: int, ends: int, error: str
) -> None:
    """A full device breaks nothing: of two items each is tried alone."""
    script = f"import sys; sys.path[:0] = {sys.path!r}\n" + BREAKS.format(what=what)
    ended = subprocess.run(
        [sys.executable, "-uc", script], check=False, capture_output=True, text=True, timeout=50
    )
    assert (ended.returncode, ended.stdout.count("ended")) == (code, ends), ended.stderr
    assert error in ended.stderr


def test_a_call_in_time_ends_nothing() -> None:
    meter = LocalMeter()
    watched = Watched(meter, "actor", 0.15)
    for _ in range(2):
        assert watched.run(ItemSafe(object(), "m").run, lambda items: items, [1, 2], "block") == [1, 2]
    time.sleep(0.7)  # a timer that was left would end the tests here
