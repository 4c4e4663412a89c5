"""What a worker reads: its share of each step and no more, in order, with faults raised where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rankray.rankdpo.encoded import EncodedRow, Place, step_rows
from rankray.rankdpo.feed import STEPS_AHEAD, feed, reference_of, share


class Rows:
    """Twelve rows that count how often they are read."""

    def __init__(self, broken: int | None = None) -> None:
        self.places = [Place(f"p{n:02}", "f", n, 0) for n in range(12)]
        self.reads: list[list[str]] = []
        self._broken = broken

    def read(self, places: Sequence[Place]) -> list[Any]:
        if self._broken is not None and len(self.reads) == self._broken:
            raise OSError("the disk is gone")
        self.reads.append([place.prompt_id for place in places])
        return [place.prompt_id for place in places]


def test_workers_share_a_batch_without_overlap() -> None:
    parts = [share(list(range(10)), rank, 3) for rank in range(3)]
    assert parts == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_each_step_brings_this_workers_rows_of_the_seeded_order() -> None:
    for rank in (0, 1):
        source = Rows()
        found = list(feed(source, 1, 4, 8, seed=3, rank=rank, world=2))  # type: ignore[arg-type]
        assert [loaded.step for loaded in found] == [1, 2, 3]
        for loaded in found:
            due = step_rows(loaded.step, 8, 12, 3)[4 * rank : 4 * rank + 4]
            assert loaded.rows == tuple(f"p{row:02}" for _, row in due)
            assert loaded.epochs == tuple(epoch for epoch, _ in due)
            assert loaded.wait_s >= 0
        assert len(source.reads) == 3


def test_no_more_than_a_few_steps_are_read_ahead() -> None:
    source = Rows()
    steps = feed(source, 0, 100, 4, seed=0, rank=0, world=1)  # type: ignore[arg-type]
    next(steps)
    steps.close()
    assert len(source.reads) <= STEPS_AHEAD + 3


def test_a_fault_while_reading_is_raised_at_its_step() -> None:
    steps = feed(Rows(broken=1), 0, 3, 4, seed=0, rank=0, world=1)  # type: ignore[arg-type]
    assert next(steps).step == 0
    with pytest.raises(OSError, match="the disk is gone"):
        next(steps)


def test_reference_errors_are_those_of_the_rows_epoch() -> None:
    def row(name: str, k: int) -> EncodedRow:
        zeros = np.zeros((k, 1, 1, 1), np.float32)
        return EncodedRow(name, name, zeros, zeros, zeros[:, 0, 0, 0], np.arange(k), np.zeros((k, 1)), {})

    errors = {"a": [[1.0, 2.0], [3.0, 4.0]], "b": [[5.0, 6.0, 7.0], [8.0, 9.0, 10.0]]}
    found = reference_of(errors, [row("a", 2), row("b", 3)], [1, 0])
    assert found.tolist() == [[3.0, 4.0, 0.0], [5.0, 6.0, 7.0]]
