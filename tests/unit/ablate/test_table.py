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
    base = {
        "tables": ["4"],
        "failed": [],
        "categories": {"a": 0.5},
        "accuracy": 0.5,
        "paper": {},
        "against": {},
    }
    above = {**gain, "claimed": True}
    return {
        "metric": "checker",
        "start": {"accuracy": 0.4579, "categories": {"a": 0.4579}},
        "rows": [
            {
                **base,
                "name": "dpo",
                "label": "DPO",
                "gain": gain,
                "seeds": [0.49, 0.51],
                "paper": {"4": "DPO (5 Rewards)"},
                "against": {"low": above, "near": {**gain, "claimed": False}},
            },
            {
                **base,
                "name": "sft",
                "label": "SFT",
                "gain": None,
                "seeds": [],
                "failed": ["stopped"],
                "accuracy": None,
            },
            {
                **base,
                "name": "low",
                "label": "Low",
                "gain": {**gain, "gain": -0.01},
                "seeds": [0.45],
                "against": {
                    "dpo": {
                        **tables.mirrored({**gain, "before": 0, "after": 0, "p_value": 1}),
                        "claimed": True,
                    }
                },
            },
            {**base, "name": "other", "label": "elsewhere", "tables": ["5"], "gain": gain, "seeds": [0.5]},
        ],
        "power": {"difference": 0.034, "gain": 0.03, "planned": {"seeds": 5, "prompts": 485, "pictures": 4}},
        "sweep": [
            {
                "objective": "dpo",
                "has_beta": True,
                "chosen": 1,
                "inside": True,
                "trials": [
                    {
                        "learning_rate": 1e-4,
                        "beta": 50.0,
                        "seeds": 1,
                        "step": 60,
                        "gain": None,
                        "failed": "stopped",
                    },
                    {
                        "learning_rate": 2e-4,
                        "beta": 50.0,
                        "seeds": 2,
                        "step": 120,
                        "gain": gain,
                        "failed": None,
                    },
                ],
            },
            {
                "objective": "sft",
                "has_beta": False,
                "chosen": 0,
                "inside": False,
                "trials": [
                    {
                        "learning_rate": 1e-4,
                        "beta": 50.0,
                        "seeds": 2,
                        "step": 60,
                        "gain": gain,
                        "failed": None,
                    }
                ],
            },
        ],
    }


def test_the_markdown_of_a_table_and_what_it_claims() -> None:
    assert tables.markdown(info(), "4").splitlines() == [
        "| row | a | all | gain, 95 % interval | wins : losses | each seed | the paper, DSG Score |",
        "|---|---|---|---|---|---|---|",
        "| start | 45.8 | 45.8 |  |  |  | 74.65 |",
        "| DPO | 50.0 | 50.0 | +4.2 [-1.0, +9.5] | 9 : 4 | 49.0, 51.0 | 78.84 |",
        "| SFT |  |  | stopped |  |  |  |",
        "| Low | 50.0 | 50.0 | -1.0 [-1.0, +9.5] | 9 : 4 | 45.0 |  |",
        "",
        "What can be told: with 5 seeds a row on 485 prompts with 4 pictures each, two rows must be 3.4 points apart "
        "to be told apart four times in five, and a row's gain be 3.0.",
        "- DPO: above Low (+4.2 [-1.0, +9.5])",
        "- Low: above no other",
    ]


def test_the_markdown_of_a_sweep() -> None:
    assert tables.sweep_markdown(info()).splitlines()[2:] == [
        "| dpo | 0.0001 | 50 | 1 | 60 | stopped |  |",
        "| dpo | 0.0002 | 50 | 2 | 120 | +4.2 [-1.0, +9.5] | yes |",
        "| sft | 0.0001 |  | 2 | 60 | +4.2 [-1.0, +9.5] | yes, at the edge |",
    ]


def test_the_markdown_of_curves_and_of_a_long_training() -> None:
    gain = info()["rows"][0]["gain"]
    points = [{"x": 0.125, "row": "dpo", "accuracy": 0.5, "gain": gain}, {"x": 1, "row": "sft", "gain": None}]
    found = {"metric": "checker", "curves": [{"x_label": "share", "points": points}]}
    assert tables.curves_markdown(found).splitlines() == [
        "| along | at | all | gain, 95 % interval |",
        "|---|---|---|---|",
        "| share | 0.125 | 50.0 | +4.2 [-1.0, +9.5] |",
    ]
    metrics = {"pickscore": {"gain": -0.0123}, "checker": gain}
    found = {"metric": "checker", "along": {"points": [{"step": 100, "metrics": metrics}]}}
    assert tables.along_markdown(found).splitlines() == [
        "| step | checker | pickscore |",
        "|---|---|---|",
        "| 100 | +4.2 [-1.0, +9.5] | -0.012 |",
    ]


def test_a_reward_as_the_metric_stands_in_its_own_numbers() -> None:
    """Outside the shapes world nothing is a share: PickScore's 21.53 is no 2153 %."""
    gain = {
        "before": 21.53,
        "after": 21.84,
        "gain": 0.3127,
        "low": -0.04,
        "high": 0.5,
        "wins": 9,
        "losses": 4,
    }
    given = info() | {"metric": "pickscore", "start": {"accuracy": 21.53, "categories": {"a": 21.53}}}
    given["rows"] = [
        given["rows"][0] | {"accuracy": 21.84, "categories": {"a": 21.84}, "seeds": [21.8], "gain": gain}
    ]
    given["rows"][0]["against"] = {}
    given["power"] = given["power"] | {"difference": 0.31, "gain": 0.2}
    lines = tables.markdown(given, "4").splitlines()
    assert lines[2].startswith("| start | 21.53 | 21.53 |")
    assert lines[3].startswith("| DPO | 21.84 | 21.84 | +0.3127 [-0.04, +0.5] | 9 : 4 | 21.8 |")
    assert "two rows must be 0.31 of pickscore apart" in lines[5]
    assert "a row's gain be 0.2." in lines[5]
    curve = {"x_label": "share", "points": [{"x": 1, "row": "dpo", "accuracy": 21.84, "gain": gain}]}
    assert tables.curves_markdown({"metric": "pickscore", "curves": [curve]}).endswith(
        "| share | 1 | 21.84 | +0.3127 [-0.04, +0.5] |"
    )


def noisy(level: float, seeds: tuple[float, ...], rng: np.random.Generator) -> list[tables.Values]:
    """float[100, 2] a seed: a level, the seed's own shift, and noise of pictures."""
    return [level + shift + rng.normal(0.0, 0.1, (100, 2)) for shift in seeds]


def test_what_can_be_shown_is_worked_out_from_two_seeds_each() -> None:
    rng = np.random.default_rng(0)
    start = np.full((100, 2), 0.5)
    models = [noisy(0.5 + n / 10, (-0.02, 0.02), rng) for n in range(6)]
    found = tables.power(start, models, 5, 100, 2)
    assert found is not None
    # Seeds 0.04 apart have a variance of 0.0008; where both rows' shifts are alike their difference has none, and noise
    # of 0.1 in each of two rows a variance of 0.02, of 5 x 200 pictures an error of 0.0045.
    assert found["components"]["gain"]["seeds"] == pytest.approx(8e-4, rel=0.3)
    assert found["difference"] == pytest.approx(2.80 * 0.0045, rel=0.25)
    assert found["gain"] == pytest.approx(2.80 * (8e-4 / 5 + 0.01 / 1000) ** 0.5, rel=0.2)
    assert tables.smallest(found, 5, 5) == pytest.approx(found["difference"])
    assert tables.power(start, [models[0], models[1][:1]], 5, 100, 2) is None
    assert tables.power(None, models, 5, 100, 2) is None
    assert tables.smallest(None, 5, 5) == 0.0


def test_one_prompt_is_told_without_an_interval_and_claims_nothing() -> None:
    """Two seeds of one prompt: their spread says nothing of other prompts."""
    values = {"a": [np.array([[0.0]])] * 2, "b": [np.array([[1.0]])] * 2}
    found = tables.difference(values["a"], values["b"])
    assert (found["gain"], found["low"], found["high"]) == (1.0, None, None)
    assert tables.mirrored(found)["low"] is None
    assert (tables.points(found, "checker"), tables.points(tables.mirrored(found), "checker")) == (
        "+100.0",
        "-100.0",
    )
    rows = [{"name": name, "tables": ["4"]} for name in values]
    tables.compare_rows(rows, values, None)
    assert [row["against"][other]["claimed"] for row, other in zip(rows, "ba", strict=True)] == [False, False]


def test_an_order_is_claimed_beyond_the_smallest_difference_alone() -> None:
    values = {name: [np.full((20, 1), level)] * 2 for name, level in (("a", 0.5), ("b", 0.53), ("c", 0.6))}
    rows = [{"name": name, "tables": ["4"]} for name in values] + [{"name": "d", "tables": ["5"]}]
    values["d"] = values["a"]
    power = {
        "components": {"difference": {"seeds": 2 * (0.04 / 2.8016) ** 2, **dict.fromkeys(("prompts", "pictures"), 0.0),
                                      "seeds_prompts": 0.0, "rest": 0.0}},
        "planned": {"seeds": 2, "prompts": 20, "pictures": 1},
    }  # fmt: skip
    tables.compare_rows(rows, values, power)
    a, b, c, d = (row["against"] for row in rows)
    assert a["b"]["smallest"] == pytest.approx(0.04, rel=1e-4)
    # Three points apart with intervals of no width, and below what could be seen; seven and ten are above it.
    assert [a["b"]["claimed"], b["c"]["claimed"], a["c"]["claimed"], c["a"]["claimed"]] == [
        False,
        True,
        True,
        True,
    ]
    assert c["a"]["gain"] == pytest.approx(0.1)
    # Half of the variance is each row's: 1/5 + 1/3 of it, where 2/2 give 0.04.
    assert tables.smallest(power, 5, 3) == pytest.approx(0.04 * ((1 / 5 + 1 / 3) / (2 / 2)) ** 0.5, rel=1e-4)
    assert d == {}
