"""Paired statistics by hand, and the interval's coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rankray.stats import compare, sign_test


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
