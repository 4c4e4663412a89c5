"""Aggregations worked out by hand, and what each promises whatever the scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rankray import ranking
from rankray.ranking import AGGREGATIONS, strength

NAN = math.nan
# Three rewards over three candidates: 0 is first for two of them and last for the third.
SCORES = [[3.0, 30.0, 0.0], [2.0, 20.0, 2.0], [1.0, 10.0, 1.0]]
scores = hnp.arrays(
    np.float64, st.tuples(st.integers(2, 5), st.integers(1, 4)), elements=st.integers(-4, 4).map(float)
)


def test_win_probability_by_hand() -> None:
    # Wins of 6: candidate 0 has 2 + 2 + 0, candidate 1 1 + 1 + 2, candidate 2 0 + 0 + 1.
    assert strength("win_probability", SCORES).tolist() == pytest.approx([4 / 6, 4 / 6, 1 / 6])
    # The third reward counts for two: of 8, 2 + 2 + 0, 1 + 1 + 4, 0 + 0 + 2.
    assert strength("win_probability", SCORES, [1, 1, 2]).tolist() == pytest.approx([4 / 8, 6 / 8, 2 / 8])
    # One that weighs nothing is not there.
    assert strength("win_probability", SCORES, [1, 1, 0]).tolist() == pytest.approx([1.0, 0.5, 0.0])


def test_a_tie_is_no_win_for_the_paper_and_half_a_win_for_borda() -> None:
    tied = [[1.0], [1.0], [0.0]]
    assert strength("win_probability", tied).tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert strength("borda", tied).tolist() == pytest.approx([0.75, 0.75, 0.0])


def test_majority_by_hand() -> None:
    # 0 beats 1 and 2 by two rewards to one; 1 beats 2 by three to none.
    assert strength("majority", SCORES).tolist() == pytest.approx([1.0, 0.5, 0.0])
    # With the third reward at 2, each pair with 0 is a draw.
    assert strength("majority", SCORES, [1, 1, 2]).tolist() == pytest.approx([0.5, 0.75, 0.25])
    # 0.1 + 0.2 against 0.3 is a draw, whatever the rounding.
    assert strength("majority", [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [0.1, 0.2, 0.3]).tolist() == [0.5, 0.5]


def test_mean_z_by_hand() -> None:
    # z of (3, 2, 1) is (1, 0, -1) / sqrt(2/3); the third reward's (0, 2, 1) is (-1, 1, 0) / sqrt(2/3).
    z = math.sqrt(3 / 2)
    means = [(2 * z - z) / 3, z / 3, -2 * z / 3]
    due = [0.5 * (1 + math.erf(mean / math.sqrt(2))) for mean in means]
    assert strength("mean_z", SCORES).tolist() == pytest.approx(due)
    assert strength("mean_z", [[5.0], [5.0]]).tolist() == [0.5, 0.5]
    assert strength("mean_z", [[0.1 + 0.2], [0.3]]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_failed_reward_is_left_out(name: str) -> None:
    """Candidate 2 lacks the second reward, candidate 3 has none: 0 is still above 1, and 3 has no strength."""
    found = strength(name, [[2.0, 2.0], [1.0, 1.0], [0.0, NAN], [NAN, NAN]])
    assert found[0] > found[1] > found[2]
    assert math.isnan(found[3])
    assert np.isnan(strength(name, [[1.0], [NAN]])).tolist()[1]


def test_borda_with_a_hole_by_hand() -> None:
    # Reward 0: 1, 1/2, 0; reward 1 knows 0 and 1 alone: 1, 0. Means over the rewards that know a candidate.
    assert strength("borda", [[2.0, 2.0], [1.0, 1.0], [0.0, NAN]]).tolist() == pytest.approx([1.0, 0.25, 0.0])


@pytest.mark.parametrize("name", AGGREGATIONS)
@given(scores, st.randoms())
def test_the_order_of_candidates_does_not_matter(name: str, values: np.ndarray, random: object) -> None:
    order = list(range(len(values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert strength(name, values[order]).tolist() == pytest.approx(strength(name, values)[order].tolist())


@pytest.mark.parametrize("name", AGGREGATIONS)
@given(scores, st.floats(0.1, 9.0), st.floats(-5.0, 5.0))
def test_no_scale_or_offset_of_a_reward_matters(
    name: str, values: np.ndarray, scale: float, offset: float
) -> None:
    moved = values.copy()
    moved[:, 0] = moved[:, 0] * scale + offset
    assert strength(name, moved).tolist() == pytest.approx(strength(name, values).tolist(), abs=1e-9)
    assert ((strength(name, values) >= 0) & (strength(name, values) <= 1)).all()


@pytest.mark.parametrize("name", ["win_probability", "borda", "majority"])
@given(scores)
def test_votes_know_order_alone(name: str, values: np.ndarray) -> None:
    assert strength(name, np.exp(values)).tolist() == strength(name, values).tolist()


@given(scores)
def test_equal_weights_are_algorithm_1_to_the_bit(values: np.ndarray) -> None:
    expected = ranking.win_probability(values).tolist()
    assert strength("win_probability", values).tolist() == expected
    assert strength("win_probability", values, [2.0] * values.shape[1]).tolist() == expected
    assert AGGREGATIONS["win_probability"](values, np.arange(1.0, values.shape[1] + 1)).max() <= 1.0


@given(scores)
def test_who_beats_all_others_stands_first_by_majority(values: np.ndarray) -> None:
    for k, ours in enumerate(values):
        votes = np.sign(ours - np.delete(values, k, axis=0)).sum(axis=1)
        if (votes > 0).all():
            assert strength("majority", values)[k] == 1.0
            assert ranking.rank(strength("majority", values))[k] == 1


def test_what_does_not_fit_is_named() -> None:
    for message, name, weights in (
        ("aggregation 'best'; allowed: win_probability, borda, majority, mean_z", "best", None),
        ("2 weights for 3 rewards", "borda", [1, 2]),
        ("not negative, and not all 0", "borda", [1, -1, 1]),
        ("not negative, and not all 0", "borda", [0, 0, 0]),
        ("give finite ones", "borda", [1, NAN, 1]),
    ):
        with pytest.raises(ValueError, match=message):
            strength(name, SCORES, weights)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        strength("borda", [1.0, 2.0, 3.0])
