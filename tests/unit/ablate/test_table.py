"""Figures of an ablation from values that are small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rankray.ablate import table as tables

NAN = float("nan")


def test_a_share_is_the_mean_over_prompts_of_their_means() -> None:
    # Prompts: 1/2, 1 (one picture failed), left out.
    values = np.array([[1.0, 0.0], [1.0, NAN], [NAN, NAN]])
    assert tables.share(values) == pytest.approx(0.75)
    assert np.isnan(tables.share(np.full((2, 1), NAN)))


def test_categories_keep_their_order() -> None:
    values = np.array([[1.0], [0.0], [1.0], [0.0]])
    found = tables.by_category(values, ["two", "one", "two", "one"])
    assert list(found.items()) == [("two", 1.0), ("one", 0.0)]


def test_a_difference_stands_the_start_against_every_seed() -> None:
    start = np.array([[0.0], [1.0]])
    seeds = [np.array([[1.0], [1.0]]), np.array([[0.0], [1.0]]), np.array([[1.0], [0.0]])]
    found = tables.difference([start], seeds)
    # After: prompt 0 is 2/3, prompt 1 is 2/3.
    assert (found["before"], found["after"]) == (pytest.approx(0.5), pytest.approx(2 / 3))
    assert (found["wins"], found["losses"]) == (1, 1)


def test_a_mirrored_difference_is_that_of_the_sides_exchanged() -> None:
    first, second = np.array([[0.0], [1.0], [0.0]]), np.array([[1.0], [1.0], [0.25]])
    there, back = tables.difference([first], [second]), tables.difference([second], [first])
    assert tables.mirrored(there) == pytest.approx(back, abs=1e-12)
    assert tables.mirrored(tables.mirrored(there)) == there


def test_two_and_three_seeds_are_compared_whole() -> None:
    first = [np.array([[0.0]]), np.array([[1.0]])]
    second = [np.array([[1.0]]), np.array([[1.0]]), np.array([[0.0]])]
    found = tables.difference(first, second)
    assert (found["before"], found["after"]) == (pytest.approx(0.5), pytest.approx(2 / 3))


def test_an_interval_is_over_seeds_as_well_as_prompts() -> None:
    """Every prompt gains 1 in one seed and loses 1 in the other: prompts alone would say 0 for certain."""
    start, one = np.zeros((50, 1)), np.ones((50, 1))
    found = tables.difference([start], [one, -one])
    assert (found["gain"], found["low"], found["high"]) == (0.0, -1.0, 1.0)
    same = tables.difference([start], [one, one])
    assert (same["low"], same["high"]) == (1.0, 1.0)
    # Two prompts of one seed: each draw has 0, 1 or 2 of the better one, its quantiles are the ends.
    alone = tables.difference([np.zeros((2, 1))], [np.array([[0.0], [1.0]])])
    assert (alone["low"], alone["high"]) == (0.0, 1.0)


def test_a_prompt_without_a_picture_in_one_seed_is_in_no_draw() -> None:
    start = np.zeros((3, 2))
    seeds = [np.array([[1.0, 1.0], [1.0, NAN], [NAN, NAN]]), np.array([[1.0, 1.0], [NAN, 1.0], [9.0, 9.0]])]
    found = tables.difference([start], seeds)
    assert (found["low"], found["high"]) == (1.0, 1.0)


def test_a_row_of_two_seeds() -> None:
    start = {"checker": np.array([[0.0], [1.0]]), "r": np.array([[0.2], [0.4]])}
    seeds = [
        {"checker": np.array([[1.0], [1.0]]), "r": np.array([[0.3], [0.5]])},
        {"checker": np.array([[0.0], [1.0]]), "r": np.array([[0.5], [0.7]])},
    ]
    row = tables.row_of("checker", start, seeds, ["a", "b"])
    assert row["accuracy"] == pytest.approx(0.75)
    assert row["seeds"] == [1.0, 0.5]
    assert row["gain"]["gain"] == pytest.approx(0.25)
    assert row["categories"] == {"a": 0.5, "b": 1.0}
    assert row["rewards"]["r"]["gain"] == pytest.approx(0.2)
    assert list(row["rewards"]) == ["r"]


def test_a_row_whose_every_training_diverged_has_no_figure() -> None:
    row = tables.row_of("checker", {"checker": np.array([[1.0]])}, [], ["a"])
    assert row["accuracy"] is None
    assert row["gain"] is None


def info() -> dict[str, object]:
    gain = {"gain": 0.0421, "low": -0.01, "high": 0.0949, "wins": 9, "losses": 4}
    base = {"tables": ["4"], "failed": [], "categories": {"a": 0.5}, "accuracy": 0.5}
    return {
        "start": {"accuracy": 0.4579, "categories": {"a": 0.4579}},
        "rows": [
            {**base, "label": "DPO", "gain": gain, "seeds": [0.49, 0.51]},
            {**base, "label": "SFT", "gain": None, "seeds": [], "failed": ["stopped"], "accuracy": None},
            {**base, "label": "elsewhere", "tables": ["5"], "gain": gain, "seeds": [0.5]},
        ],
        "sweep": [
            {
                "objective": "dpo",
                "has_beta": True,
                "chosen": 1,
                "trials": [
                    {"learning_rate": 1e-4, "beta": 50.0, "gain": None, "failed": "stopped"},
                    {"learning_rate": 2e-4, "beta": 50.0, "gain": gain, "failed": None},
                ],
            }
        ],
    }


def test_the_markdown_of_a_table() -> None:
    assert tables.markdown(info(), "4").splitlines() == [
        "| row | a | all | gain, 95 % interval | wins : losses | each seed |",
        "|---|---|---|---|---|---|",
        "| start | 45.8 | 45.8 |  |  |  |",
        "| DPO | 50.0 | 50.0 | +4.2 [-1.0, +9.5] | 9 : 4 | 49.0, 51.0 |",
        "| SFT |  |  | stopped |  |  |",
    ]


def test_the_markdown_of_a_sweep() -> None:
    assert tables.sweep_markdown(info()).splitlines()[2:] == [
        "| dpo | 0.0001 | 50 | stopped |  |",
        "| dpo | 0.0002 | 50 | +4.2 [-1.0, +9.5] | yes |",
    ]
