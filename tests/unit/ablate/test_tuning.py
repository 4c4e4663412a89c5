"""Successive halving on a grid that grows: equal purses, the best inside, the same again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankray.ablate.tuning import Choice, Done, Grid, Place, Trial, choose, next_trials, ranked

few = settings(max_examples=40, deadline=None)
SQUARE = Grid((1e-4, 2e-4, 4e-4), (10.0, 30.0, 90.0))
LINE = Grid((1e-4, 3e-4, 9e-4), (1.0,))


def searched(grid: Grid, truth: Callable[[Place, int], float], trainings: int = 20, seeds: int = 2) -> Done:
    """All rounds, each training measured once; `truth` is a setting's gain from a seed."""
    done: dict[Trial, list[float]] = {}
    while due := next_trials(grid, done, trainings, seeds):
        assert not set(due) & set(done)
        done |= {trial: [truth(*trial)] for trial in due}
    return done


def peak(top: Place) -> Callable[[Place, int], float]:
    return lambda place, seed: -float((place[0] - top[0]) ** 2 + (place[1] - top[1]) ** 2)


def noise(key: int) -> Callable[[Place, int], float]:
    return lambda place, seed: math.sin(1000.0 * (place[0] + 17 * place[1] + 31 * seed + key))


def test_a_grids_values_go_on_by_the_factor_of_its_end() -> None:
    grid = Grid((1e-4, 2e-4, 6e-4), (10.0, 30.0))
    rates = [grid.setting((i, 0))[0] for i in (-2, -1, 0, 2, 3, 4)]
    assert rates == pytest.approx([2.5e-5, 5e-5, 1e-4, 6e-4, 1.8e-3, 5.4e-3])
    assert [grid.setting((0, j))[1] for j in (-1, 2)] == [3.33, 90.0]


def test_the_first_rungs_by_hand() -> None:
    done: dict[Trial, list[float]] = {}
    first = next_trials(SQUARE, done, 20, 2)
    assert first == [(place, 0) for place in SQUARE.places]
    done = {trial: [peak((2, 2))(*trial)] for trial in first}
    assert set(next_trials(SQUARE, done, 20, 2)) == {(place, 1) for place in ((2, 2), (1, 2), (2, 1), (1, 1))}
    done |= {trial: [peak((2, 2))(*trial)] for trial in next_trials(SQUARE, done, 20, 2)}
    # It leads from both its seeds, at the corner: the grid is extended both ways.
    assert next_trials(SQUARE, done, 20, 2) == [((3, 2), 0), ((2, 3), 0)]


@pytest.mark.parametrize(("side", "trainings", "inside"), [(2, 16, 184), (3, 24, 187)])
def test_so_many_searches_end_inside_where_seeds_differ(side: int, trainings: int, inside: int) -> None:
    """200 searches: three points lost at a factor's distance from the best, 1.5 between seeds."""
    rng, ended = np.random.default_rng(0), 0
    grid = Grid(tuple(1e-4 * 2.0**n for n in range(side)), tuple(10 * 3.0**n for n in range(side)))
    for _ in range(200):
        i, j = rng.uniform(-1.5, side + 0.5, 2)

        def truth(place: Place, seed: int, i: float = i, j: float = j) -> float:
            return float(-3 * ((place[0] - i) ** 2 + (place[1] - j) ** 2) + rng.normal(0, 1.5))

        ended += choose(grid, searched(grid, truth, trainings), 2).inside is True
    assert ended == inside


@few
@given(st.integers(-2, 4), st.integers(-2, 4))
def test_the_best_ends_inside_wherever_it_lies(i: int, j: int) -> None:
    done = searched(SQUARE, peak((i, j)), trainings=40)
    assert choose(SQUARE, done, 2) == Choice((i, j), 0, True)
    assert choose(LINE, searched(LINE, peak((i, 0)), trainings=16), 2) == Choice((i, 0), 0, True)


@few
@given(st.integers(0, 200), st.integers(9, 30), st.integers(1, 3))
def test_every_objective_spends_the_same_purse_whatever_it_finds(
    key: int, trainings: int, seeds: int
) -> None:
    spent = {len(searched(grid, noise(key), trainings, seeds)) for grid in (SQUARE, LINE)}
    assert spent == {trainings}


@few
@given(st.integers(0, 200), st.integers(14, 30))
def test_what_is_taken_lies_inside_or_says_that_it_does_not(key: int, trainings: int) -> None:
    done = searched(SQUARE, noise(key), trainings)
    found, tried = choose(SQUARE, done, 2), Counter(place for place, _ in done)
    assert tried[found.place] >= 2
    assert found.inside is (
        found.place == ranked(done)[0] and all(tried[one] for one in SQUARE.around(found.place))
    )


@few
@given(st.integers(0, 200), st.integers(1, 30))
def test_a_seed_is_drawn_after_those_before_it(key: int, trainings: int) -> None:
    done = searched(SQUARE, noise(key), trainings)
    for place, count in Counter(place for place, _ in done).items():
        assert {seed for at, seed in done if at == place} == set(range(count))


def test_a_purse_that_ends_at_the_edge_says_so() -> None:
    far = searched(SQUARE, peak((9, 0)), trainings=20)
    found = choose(SQUARE, far, 2)
    assert found.inside is False
    assert found.place[0] > 2


def test_the_step_is_the_best_of_the_mean_over_seeds() -> None:
    done = {((0, 0), 0): [1.0, 3.0, 0.0], ((0, 0), 1): [4.0, 1.0, 0.0], ((1, 0), 0): [0.0, 2.4, 0.0]}
    grid = Grid((1e-4, 2e-4), (1.0,))
    # Means 2.5, 2.0, 0.0: the first step, and above the other setting's 2.4.
    assert ranked(done) == [(0, 0), (1, 0)]
    assert choose(grid, done, 2).point == 0


def test_a_training_that_diverged_is_behind_all_others() -> None:
    done = {((0, 0), 0): [], ((1, 0), 0): [-0.9], ((2, 0), 0): [-0.5]}
    assert ranked(done) == [(2, 0), (1, 0), (0, 0)]


def test_what_diverged_is_not_taken_before_what_did_not() -> None:
    """Of two seeds each: the second setting diverged from one of them, and the first has come through one alone."""
    grid = Grid((1e-4, 2e-4), (1.0,))
    done: dict[Trial, list[float]] = {((0, 0), 0): [0.5], ((1, 0), 0): [0.9], ((1, 0), 1): []}
    assert choose(grid, done, 2) == Choice((0, 0), 0, False)
    # Whether a neighbour that was not tried would be better nobody knows; here both of them diverged.
    assert choose(grid, done | {((0, 0), 1): [0.1]}, 2).inside is False
    assert choose(grid, done | {((0, 0), 1): [0.1], ((-1, 0), 0): []}, 2) == Choice((0, 0), 0, True)
    every: dict[Trial, list[float]] = {((i, 0), seed): [] for i in (-1, 0, 1, 2) for seed in (0, 1)}
    assert choose(grid, every, 2).inside is False, "none of them is good"


def test_one_setting_is_given_and_not_searched() -> None:
    one = Grid((1e-4,), (100.0,))
    assert next_trials(one, {}, 20, 2) == []
    assert choose(one, {}, 2) == Choice((0, 0), -1, None)
