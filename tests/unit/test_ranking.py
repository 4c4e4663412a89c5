"""Algorithm 1 by hand, by a slow double loop, and by what must hold for any scores."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rankray import ranking

NAN = math.nan
FEW = st.sampled_from([0.0, 1.0, 2.0, -1.5, NAN])
SCORES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6).flatmap(
    lambda shape: hnp.arrays(np.float64, shape, elements=FEW)
)


def slow(scores: np.ndarray) -> list[float]:
    k, n = scores.shape
    phi = []
    for i in range(k):
        wins = valid = 0
        for j in range(k):
            for r in range(n):
                if i != j and not math.isnan(scores[i, r]) and not math.isnan(scores[j, r]):
                    valid += 1
                    wins += int(scores[i, r] > scores[j, r])
        phi.append(wins / valid if valid else NAN)
    return phi


@pytest.mark.parametrize(
    ("scores", "phi", "ranks"),
    [
        # Two rewards that agree: 3, 2, 1, 0 wins of 3 each.
        ([[4, 9], [3, 5], [2, 1], [1, 0]], [1, 2 / 3, 1 / 3, 0], [1, 2, 3, 4]),
        # They disagree wholly: everyone wins 3 of 6, and input order decides.
        ([[4, 1], [3, 2], [2, 3], [1, 4]], [0.5] * 4, [1, 2, 3, 4]),
        # A tie gives a win to neither side.
        ([[1.0], [1.0], [0.0]], [0.5, 0.5, 0], [1, 2, 3]),
        # Reward 1 failed for candidate 1: that one compares in reward 0 alone, the others lose a comparison each.
        ([[3, 3], [2, NAN], [1, 5]], [2 / 3, 1 / 2, 1 / 3], [1, 2, 3]),
        # A candidate without any score is left out.
        ([[1, 1], [NAN, NAN], [2, 2]], [0, NAN, 1], [2, 0, 1]),
        # Alone there is nothing to compare.
        ([[5.0, 6.0]], [NAN], [0]),
        ([[NAN], [1.0]], [NAN, NAN], [0, 0]),
    ],
)
def test_by_hand(scores: list[list[float]], phi: list[float], ranks: list[int]) -> None:
    result = ranking.win_probability(scores)
    np.testing.assert_allclose(result, phi, rtol=1e-15)
    assert ranking.rank(result).tolist() == ranks


@given(SCORES)
def test_equals_the_double_loop(scores: np.ndarray) -> None:
    np.testing.assert_array_equal(ranking.win_probability(scores), slow(scores))


@given(SCORES, st.randoms(use_true_random=False))
def test_order_of_candidates_does_not_matter(scores: np.ndarray, random) -> None:
    order = list(range(scores.shape[0]))
    random.shuffle(order)
    np.testing.assert_array_equal(
        ranking.win_probability(scores[order]), ranking.win_probability(scores)[order]
    )


@given(SCORES)
def test_only_the_order_of_scores_matters(scores: np.ndarray) -> None:
    warped = scores.copy()
    warped[:, 0] = np.exp(3 * warped[:, 0]) - 7
    np.testing.assert_array_equal(ranking.win_probability(warped), ranking.win_probability(scores))


@given(SCORES)
def test_ranks_are_one_to_usable(scores: np.ndarray) -> None:
    phi = ranking.win_probability(scores)
    ranks = ranking.rank(phi)
    usable = ~np.isnan(phi)
    assert sorted(ranks[usable]) == list(range(1, usable.sum() + 1))
    assert (ranks[~usable] == 0).all()
    ordered = phi[np.argsort(ranks)][ranks[np.argsort(ranks)] > 0]
    assert (np.diff(ordered) <= 0).all()


@given(hnp.arrays(np.float64, (3, 4, 2), elements=FEW))
def test_batched_equals_one_by_one(scores: np.ndarray) -> None:
    batched = ranking.win_probability(scores)
    np.testing.assert_array_equal(batched, [ranking.win_probability(row) for row in scores])
    np.testing.assert_array_equal(ranking.rank(batched), [ranking.rank(row) for row in batched])


def test_without_ties_and_nan_phi_sums_to_half_of_k() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 5))
    assert ranking.win_probability(scores).sum() == pytest.approx(4 / 2)


def test_one_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\); give \[\.\.\., candidates, rewards\]"):
        ranking.win_probability([1, 2, 3])
