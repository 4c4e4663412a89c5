"""What a worker reads: its share of each step and no more, in order, with faults raised where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankray.config import ConfigError
from rankray.config.rankdpo import ValidationConfig
from rankray.rankdpo.encoded import RowPlace
from rankray.rankdpo.feed import (
    STEPS_AHEAD,
    epoch_order,
    epochs_line,
    feed,
    held_out,
    reads,
    share,
    step_rows,
    taken,
    validated,
)


class Rows:
    """Twelve rows that count how often they are read."""

    def __init__(self, broken: int | None = None) -> None:
        self.places, self.weights = (
            [[RowPlace(f"p{n:02}", f"p{n:02}", 0, "f", n, 0) for n in range(12)]],
            [1.0],
        )
        self.reads: list[list[str]] = []
        self._broken = broken

    def read(self, places: Sequence[RowPlace]) -> list[Any]:
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
            due = step_rows(loaded.step, 8, [12], [1.0], 3)[4 * rank : 4 * rank + 4]
            assert loaded.rows == tuple(f"p{row:02}" for _, _, row in due)
            assert loaded.epochs == tuple(epoch for _, epoch, _ in due)
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


def test_sets_take_their_parts_of_every_step() -> None:
    """1:3 of 10 is 2.5 to 7.5: 3 to 7 of the first ten, 5 to 15 of twenty, so 2 to 8 of the second ten."""
    assert [taken(count, [1.0, 3.0]) for count in (0, 1, 2, 8, 10, 20)] == [
        [0, 0],
        [0, 1],
        [1, 1],
        [2, 6],
        [3, 7],
        [5, 15],
    ]
    assert taken(12, [0.5, 1.0, 1.5]) == [2, 4, 6]
    assert taken(7, [2.0]) == [7]
    steps = [step_rows(step, 10, [4, 100], [1.0, 3.0], 0) for step in range(2)]
    assert [sum(n == 0 for n, *_ in step) for step in steps] == [3, 2]
    first = [(epoch, row) for step in steps for n, epoch, row in step if n == 0]
    order, again = (epoch_order(4, 0, epoch).tolist() for epoch in (0, 1))
    assert first == [*((0, row) for row in order), (1, again[0])], "its own epochs, on from where it was"


def test_workers_have_alike_to_do_of_each_set() -> None:
    step = step_rows(0, 16, [40, 40], [1.0, 3.0], 0)
    assert [[n for n, *_ in share(step, rank, 4)].count(0) for rank in range(4)] == [1, 1, 1, 1]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=4), st.integers(1, 3_000))
def test_parts_are_due_ones_and_never_fall(weights: list[float], count: int) -> None:
    before, found = taken(count - 1, weights), taken(count, weights)
    assert sum(found) == count
    assert all(now - then in (0, 1) for then, now in zip(before, found, strict=True))
    due = [count * weight / sum(weights) for weight in weights]
    assert all(abs(ours - theirs) < 2 for ours, theirs in zip(found, due, strict=True))


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=3), st.integers(1, 17), st.integers(0, 5))
def test_reads_are_what_all_steps_take_of_each_set(weights: list[float], batch: int, seed: int) -> None:
    sizes = [5, 3, 8][: len(weights)]
    seen = [place for step in range(6) for place in step_rows(step, batch, sizes, weights, seed)]
    for n, drawn in enumerate(taken(6 * batch, weights)):
        ids = [f"p{row:02}" for row in range(sizes[n])]
        found = reads(ids, drawn, seed)
        due = sorted((ids[row], epoch) for m, epoch, row in seen if m == n)
        assert sorted((name, epoch) for name in ids for epoch in found.epochs(name)) == due


@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 5))
def test_every_epoch_holds_each_row_once_whatever_the_batch(rows: int, batch: int, seed: int) -> None:
    steps = -(-3 * rows // batch)
    seen = [place for step in range(steps) for place in step_rows(step, batch, [rows], [1.0], seed)]
    for epoch in range(3):
        assert sorted(row for _, e, row in seen if e == epoch) == list(range(rows))


@given(st.integers(1, 40), st.integers(1, 17), st.integers(1, 12), st.integers(0, 5))
def test_reads_are_the_pairs_of_all_steps_and_no_others(rows: int, batch: int, steps: int, seed: int) -> None:
    ids = [f"p{row:02}" for row in range(rows)]
    seen = [place for step in range(steps) for place in step_rows(step, batch, [rows], [1.0], seed)]
    due = {(ids[row], epoch) for _, epoch, row in seen}
    found = reads(ids[::-1], steps * batch, seed)
    assert {(name, epoch) for name in ids for epoch in found.epochs(name)} == due


def test_the_paper_s_run_reads_its_eighth_epoch_in_part() -> None:
    found = reads(map(str, range(58_000)), 400 * 1024, 0)
    assert (found.whole, len(found.last)) == (7, 3_600)


def test_held_out_prompts_are_never_read_ahead() -> None:
    ids = [f"p{row:02}" for row in range(10)]
    found = reads(ids[3:], 3 * 7, 0, frozenset(ids[:3]))
    assert [len(found.epochs(name)) for name in ids] == [0, 0, 0, 3, 3, 3, 3, 3, 3, 3]


IDS = [f"{number:016x}" for number in range(3_000)]


@pytest.mark.parametrize(("prompts", "count"), [(200, 64), (1_280, 64), (3_000, 150)])
def test_a_share_of_the_prompts_is_held_out_and_at_least_64(prompts: int, count: int) -> None:
    found = held_out(IDS[:prompts], ValidationConfig())
    assert len(found) == count
    assert found == held_out(IDS[:prompts][::-1], ValidationConfig())


def test_at_most_512_are_held_out() -> None:
    assert len(held_out(IDS, ValidationConfig(share=0.4))) == 512


def test_a_dataset_that_grows_holds_most_of_them_out_again() -> None:
    less, more = (held_out(IDS[:rows], ValidationConfig(share=0.1)) for rows in (2_700, 3_000))
    assert len(less & more) > 0.8 * len(less)


def test_without_a_share_none_is_held_out() -> None:
    assert held_out(IDS[:4], ValidationConfig(share=0.0)) == frozenset()


def test_prompts_are_held_out_and_not_rows() -> None:
    """Forty prompts, of which every second was judged three times: four of them are due, as of forty rows."""
    rows = [one for n, one in enumerate(IDS[:40]) for _ in range(3 if n % 2 else 1)]
    config = ValidationConfig(share=0.1, min_prompts=2)
    found = held_out(rows, config)
    assert len(found) == 4
    assert held_out(rows[::-1], config) == found == held_out(IDS[:40], config)
    with pytest.raises(ConfigError, match="would hold 64 of 8 prompts out and leave 0 to learn from"):
        held_out(IDS[:8] * 100, ValidationConfig())


def test_a_held_out_prompt_is_validated_by_one_row_of_one_set() -> None:
    prompts = {(n % 2, IDS[n]): IDS[n % 7] for n in range(60)}
    found = validated(prompts)
    assert sorted(prompts[row] for row in found) == IDS[:7]
    assert validated(dict(reversed(prompts.items()))) == found
    assert {number for number, _ in found} == {0, 1}, "neither set is preferred"


def test_fewer_to_learn_from_than_to_validate_on_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"validation would hold 64 of 100 prompts out and leave 36 to learn from; give more prompts, a lower "
        r"validation\.share or validation\.min_prompts, or validation\.share = 0 to train without",
    ):
        held_out(IDS[:100], ValidationConfig())


def test_epochs_are_said_beside_the_paper_s() -> None:
    said = epochs_line("400 steps of 1,024", 400 * 1024, 58_000)
    assert said == "400 steps of 1,024 over 58,000 prompts are 7.1 epochs (the paper: 7)"


def test_many_epochs_are_warned_of() -> None:
    said = epochs_line("450 steps of 64", 450 * 64, 475)
    assert said.startswith(
        "450 steps of 64 over 475 prompts are 60.6 epochs (the paper: 7); warning: above 50 "
    )
    assert said.endswith("or leave the end to validation.stop = 'patience'")
    said = epochs_line("450 steps of 64", 450 * 64, 475, "patience")
    assert said.endswith("validation.stop = 'patience' ends it where that shows"), (
        "what is asked for is no remedy"
    )


def test_order_is_a_function_of_seed_and_epoch() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert tuple(epoch_order(50, 0, 0)) == orders[0]
