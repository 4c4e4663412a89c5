"""Two prompts, worked out by hand."""

import math

import numpy as np
import pytest

from rankray.figures import collect

NAN = math.nan


def candidate(generator: str, scores: list[float], phi: float, rank: int) -> dict:
    return {"generator": generator, "scores": scores, "win_probability": phi, "rank": rank}


def two_prompts() -> list[dict]:
    return [
        {
            "candidates": [
                candidate("a", [3, 1], 0.5, 1),
                candidate("b", [2, 1], 0.25, 2),
                candidate("b", [1, 2], 0.5, 3),
            ]
        },
        {
            "candidates": [
                candidate("a", [0, NAN], 0.0, 3),
                candidate("b", [1, 5], 1.0, 1),
                candidate("b", [1, 4], 0.5, 2),
            ]
        },
    ]


def test_wins_count_between_generators_only() -> None:
    figures = collect(two_prompts(), ["a", "b"], ["r", "s"])
    # Prompt 1: a beats both b in r; in s it ties with one and loses to the other. Prompt 2: a loses both in r.
    assert figures.wins.tolist() == [[0, 2], [3, 0]]
    assert figures.compared.tolist() == [[0, 6], [6, 0]]
    np.testing.assert_allclose(figures.win_share, [[NAN, 2 / 6], [3 / 6, NAN]])


def test_agreement_leaves_out_ties_and_failures() -> None:
    figures = collect(two_prompts(), ["a", "b"], ["r", "s"])
    # Prompt 1: of three pairs s ties one; the other two it orders against r. Prompt 2: b and b tie in r.
    assert figures.judged.tolist() == [[5, 2], [2, 3]]
    assert figures.agreed.tolist() == [[5, 0], [0, 3]]


def test_standings_are_of_ranked_candidates() -> None:
    rows = two_prompts()
    rows[0]["candidates"][2] = candidate("b", [NAN, NAN], NAN, 0)
    figures = collect(rows, ["a", "b"], ["r", "s"])
    assert figures.firsts.tolist() == [1, 1]
    assert figures.counted.tolist() == [2, 3]
    assert figures.phi_sum.tolist() == pytest.approx([0.5, 1.75])
    assert figures.scores == [[[3, 0], [1]], [[2, 1, 1], [1, 5, 4]]]


def test_nothing_gives_no_shares() -> None:
    figures = collect([], ["a"], ["r"])
    assert np.isnan(figures.win_share).all()
    assert np.isnan(figures.agreement).all()
