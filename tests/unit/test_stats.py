"""Paired statistics by hand, and the interval's coverage."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest

from rankray.stats import (
    Column,
    Components,
    Difference,
    compare,
    components,
    differences,
    estimates,
    pooled,
    share_interval,
    sign_test,
    smallest_difference,
)


def test_by_hand() -> None:
    found = compare([0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0])
    assert (found.before, found.after, found.gain) == (0.5, 0.75, 0.25)
    assert (found.wins, found.losses) == (2, 1)
    assert found.low <= found.gain <= found.high


def test_pictures_of_a_prompt_are_averaged_and_failed_ones_left_out() -> None:
    before = [[0.0, np.nan], [1.0, 0.0], [np.nan, np.nan]]
    after = [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    found = compare(before, after)
    assert (found.before, found.after) == (0.25, 1.0)
    assert (found.wins, found.losses) == (2, 0)


def test_one_prompt_has_no_interval() -> None:
    """Drawn from one, every draw is the same: its interval would be a point, which says that nothing can vary."""
    assert compare([1.0], [2.0]) == Difference(1.0, 2.0, 1.0, None, None, 1, 0, 1.0)
    assert compare([1.0, np.nan], [2.0, 3.0]).low is None, "one is left"


def test_a_mean_of_categories_of_which_one_has_a_single_prompt_has_no_interval() -> None:
    """Prompts are drawn within their category: (0, 1) and (1), whose mean 3/4 would be 1/2 to 1 with certainty."""
    two, one = Column({"a": [0.0], "b": [1.0]}), Column({"c": [1.0]})
    found = estimates({"two": two, "one": one}, ("two", "one"))
    assert (found["overall"].mean, found["overall"].low, found["overall"].high) == (0.75, None, None)
    assert (found["two"].low, found["two"].high) == (0.0, 1.0)
    assert found["one"].low is None
    gained = differences({"two": two, "one": one}, {"two": two, "one": Column({"c": [0.5]})}, ("two", "one"))
    assert (gained["overall"].gain, gained["overall"].low) == (-0.25, None)
    both = estimates({"two": two, "one": Column({"c": [1.0], "d": [1.0]})}, ("two", "one"))
    assert (both["overall"].low, both["overall"].high) == (0.5, 1.0)


def test_the_interval_of_a_share_by_hand() -> None:
    """n / (n + z^2) where all of n votes are alike; of 50 in 100, 9.617 points to either side."""
    assert share_interval(1.0, 20) == (pytest.approx(20 / (20 + 1.959964**2), abs=1e-6), 1.0)
    assert share_interval(0.0, 20) == (0.0, pytest.approx(1.959964**2 / (20 + 1.959964**2), abs=1e-6))
    assert share_interval(0.5, 100) == (pytest.approx(0.40383, abs=1e-5), pytest.approx(0.59617, abs=1e-5))


def test_sign_test_by_hand() -> None:
    assert sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(4, 1) == pytest.approx(2 * 6 / 32)
    assert sign_test(3, 3) == 1.0
    assert sign_test(0, 0) == 1.0
    exact = 2 * sum(math.comb(1101, i) for i in range(600, 1102)) / 2**1101
    assert sign_test(501, 600) == pytest.approx(exact, rel=1e-9), "by logarithms"


def test_the_interval_holds_the_truth_nineteen_times_of_twenty() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        before = rng.random(80)
        found = compare(before, before + rng.normal(0.3, 0.5, 80))
        hits += found.low <= 0.3 <= found.high
    assert hits >= 51


def test_other_shapes_and_nothing_left_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) values before and \(3,\) after"):
        compare([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="no prompt has a value"):
        compare([np.nan], [1.0])


def drawn(true: Components, s: int, p: int, m: int, rng: np.random.Generator) -> np.ndarray:
    """Differences float[S, P, M] of a mean of 0."""
    sizes = ((s, 1, 1), (1, p, 1), (1, p, m), (s, p, 1), (s, p, m))
    variances = (true.seeds, true.prompts, true.pictures, true.seeds_prompts, true.rest)
    parts = [math.sqrt(v) * rng.standard_normal(size) for v, size in zip(variances, sizes, strict=True)]
    return np.asarray(sum(parts))


TRUE = Components(seeds=4e-4, prompts=0.03, pictures=0.05, seeds_prompts=0.02, rest=0.1)


def test_components_by_hand() -> None:
    # Two seeds, two prompts, one picture: means 1 and 3 of the seeds, all prompts alike.
    found = components([[[1.0], [1.0]], [[3.0], [3.0]]])
    assert (found.seeds, found.prompts, found.rest) == (2.0, 0.0, 0.0)
    # Prompts 0 and 4, whatever the seed.
    found = components([[[0.0], [4.0]], [[0.0], [4.0]]])
    assert (found.seeds, found.prompts) == (0.0, 8.0)
    # Two pictures that differ within each prompt, whatever the seed: their variance, and none of prompts.
    found = components([[[0.0, 2.0], [0.0, 2.0]]] * 2)
    assert (found.pictures, found.prompts, found.rest) == (2.0, -1.0, 0.0)
    assert found.prompts + found.pictures / 2 == 0.0


def test_components_are_found_again() -> None:
    rng = np.random.default_rng(1)
    found = pooled([components(drawn(TRUE, 3, 60, 2, rng)) for _ in range(400)])
    for value, true in zip(astuple(found), astuple(TRUE), strict=True):
        assert value == pytest.approx(true, rel=0.12)


def test_the_smallest_difference_is_found_four_times_in_five() -> None:
    """A test by the standard error that was planned with, on data that have the difference, and that have none."""
    rng = np.random.default_rng(2)
    planned = TRUE.error(5, 100, 4)
    effect = smallest_difference(planned)
    means = np.array([drawn(TRUE, 5, 100, 4, rng).mean() for _ in range(4000)])
    assert np.mean(np.abs(means + effect) > 1.96 * planned) == pytest.approx(0.8, abs=0.02)
    assert np.mean(np.abs(means) > 1.96 * planned) == pytest.approx(0.05, abs=0.012)
    assert effect / planned == pytest.approx(2.8016, abs=1e-4)


def test_more_of_anything_makes_smaller_differences_seen() -> None:
    base = TRUE.error(5, 100, 4)
    assert all(TRUE.error(*more) < base for more in ((6, 100, 4), (5, 101, 4), (5, 100, 5)))
    assert pooled([Components(-1.0, 2.0, 0.0, 0.0, 0.0), Components(0.0, 4.0, 0.0, 0.0, 0.0)]).seeds == 0.0
