"""Two prompts and a few short curves, worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankray.report import figures as f
from rankray.report.figures import collect

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


VALUES = st.lists(st.floats(-1e6, 1e6) | st.just(NAN), min_size=1, max_size=900).map(np.array)


def test_thinning_averages_neighbours() -> None:
    # Seven values in three bins begin at 0, 2 and 4 (7/3 and 14/3, rounded down).
    values = np.array([1.0, 3.0, NAN, 5.0, 6.0, 7.0, 11.0])
    assert f.thinned(values, 3).tolist() == [2.0, 5.0, 8.0]
    np.testing.assert_array_equal(f.thinned(np.array([NAN, NAN, 4.0, 4.0]), 2), [NAN, 4.0])
    assert f.thinned(np.array([]), 3).tolist() == []


@given(VALUES, st.integers(1, 400))
def test_thinning_keeps_what_is_few_and_the_range(values: np.ndarray, most: int) -> None:
    found = f.thinned(values, most)
    assert found.size == min(values.size, most)
    if values.size <= most:
        np.testing.assert_array_equal(found, values)
    if not np.isnan(values).all():
        assert np.nanmin(values) - 1e-6 <= np.nanmin(found)
        assert np.nanmax(found) <= np.nanmax(values) + 1e-6


def test_the_average_is_one_of_halving_weights() -> None:
    # Span 2 halves a weight with every step: (1*4 + 2*0) / 3, then (1*4 + 2*0 + 4*8) / 7.
    values = np.array([NAN, 4.0, 0.0, NAN, 8.0])
    np.testing.assert_allclose(f.smoothed(values, 2), [NAN, 4.0, 4 / 3, 4 / 3, 36 / 7])


@given(VALUES, st.floats(1, 100))
def test_an_average_lies_within_what_it_averages(values: np.ndarray, span: float) -> None:
    found = f.smoothed(values, span)
    known = ~np.isnan(values)
    np.testing.assert_array_equal(np.isnan(found), np.cumsum(known) == 0)
    if known.any():
        assert np.nanmin(values) - 1e-6 <= np.nanmin(found)
        assert np.nanmax(found) <= np.nanmax(values) + 1e-6
    np.testing.assert_array_equal(f.smoothed(values[known], 1), values[known])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0, NAN], (1.0, 3.0)),
        # Quartiles of 0..8 and 1000 are 2.25 and 6.75: the upper end is 6.75 + 6 * 4.5.
        ([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 1000], (0.0, 33.75)),
        # More than half alike: there is no range to judge by, so nothing is left out.
        ([0.0, 5, 5, 5, 5], (0.0, 5.0)),
        ([2.0, 2.0], (1.9, 2.1)),
        ([0.0], (-0.5, 0.5)),
    ],
)
def test_limits(values: list[float], expected: tuple[float, float]) -> None:
    assert f.limits(np.array(values)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "smallest", "expected"),
    [
        (0.0, 1.0, 0.0, [0, 0.5, 1]),  # a quarter is 0.25, of which the next round number is 0.5
        (0.53, 0.71, 0.0, [0.5, 0.55, 0.6, 0.65, 0.7, 0.75]),
        (-0.2, 0.6, 0.0, [-0.2, 0, 0.2, 0.4, 0.6]),
        (0.0, 1e-4, 0.0, [0, 5e-5, 1e-4]),
        (1.0, 400.0, 1.0, [0, 100, 200, 300, 400]),
        (1.0, 3.0, 1.0, [1, 2, 3]),
    ],
)
def test_ticks(low: float, high: float, smallest: float, expected: list[float]) -> None:
    assert f.ticks(low, high, smallest) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-4, 1e6))
def test_ticks_span_what_they_are_for(low: float, size: float) -> None:
    found = f.ticks(low, low + size)
    assert 3 <= len(found) <= 6
    slack = 1e-5 * size
    assert found[0] <= low + slack
    assert found[-1] >= low + size - slack


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (NAN, "–"),
        (math.inf, "–"),
        (0.0, "0"),
        (-0.0, "0"),
        (0.693147, "0.6931"),
        (-0.0123456, "-0.01235"),
        (0.00001, "1e-5"),
        (-9.8767e-5, "-9.877e-5"),
        (999.96, "1,000"),
        (123_456.0, "123,500"),
        (12_345_678.0, "1.235e7"),
    ],
)
def test_compact(value: float | None, text: str) -> None:
    assert f.compact(value) == text


def test_a_path_has_gaps_and_dots() -> None:
    x, y = np.arange(6.0), np.array([1.0, 2.0, NAN, 4.0, NAN, NAN])
    assert f.path(x, y) == "M0.0,1.0L1.0,2.0M3.0,4.0h0"
    assert f.path(x[4:], y[4:]) == ""


def test_a_chart_in_its_own_units() -> None:
    chart = f.line_chart(
        np.array([1.0, 2.0, 3.0]), {"loss": np.array([0.0, NAN, 1.0])}, 2, skipped=[2], level=0.5
    )
    assert chart is not None
    # x from 50 to 350, y from 156 up to 20; the average is 0, still 0, then (1*0 + 2*1) / 3.
    assert chart.lines == [
        ("loss", "M50.0,156.0h0M350.0,20.0h0", "M50.0,156.0L200.0,156.0L350.0,65.3"),
    ]
    assert chart.x_ticks == [(50.0, "1"), (200.0, "2"), (350.0, "3")]
    assert chart.y_ticks == [(156.0, "0"), (88.0, "0.5"), (20.0, "1")]
    assert chart.level == 88.0
    assert chart.marks == [(200.0, "step 2 skipped")]
    assert chart.hints == [
        (50, 75.0, "step 1\nloss: 0\nloss, averaged: 0"),
        (125.0, 150.0, "step 2\nloss: –\nloss, averaged: 0"),
        (275.0, 75.0, "step 3\nloss: 1\nloss, averaged: 0.6667"),
    ]
    assert chart.cut == 0


def test_a_level_is_on_the_axis_and_a_span_of_one_draws_no_average() -> None:
    chart = f.line_chart(np.array([7.0]), {"a": np.array([60.0])}, 1, level=50.0)
    assert chart is not None
    assert chart.lines[0][2] == ""
    assert chart.y_ticks[0] == (156.0, "50")
    assert chart.level == 156.0
    assert chart.x_ticks[0] == (50.0, "7")


@pytest.mark.parametrize("values", [[], [NAN, math.inf]])
def test_nothing_gives_no_chart(values: list[float]) -> None:
    steps = np.arange(float(len(values)))
    assert f.line_chart(steps, {"a": np.array(values)}, 5) is None
    assert f.line_chart(steps, {}, 5) is None


def test_an_exploded_step_flattens_neither_the_axis_nor_the_average() -> None:
    values = np.tile([0.0, 1.0, 2.0, 3.0], 25)
    values[50] = 900.0
    chart = f.line_chart(np.arange(1.0, 101.0), {"loss": values}, 10)
    assert chart is not None
    assert chart.cut == 1
    # Quartiles 0.75 and 3: the fence is 3 + 6 * 2.25 = 16.5, and the axis ends at the round number above.
    assert chart.y_ticks[-1] == (20.0, "20")
    # A tenth of 16.5 adds 1.65 to an average around 1.5; a tenth of 900 would add 90.
    averages = [float(text.rpartition(" ")[2]) for _, _, text in chart.hints]
    assert max(averages) < 3.5


@given(st.integers(1, 3000), st.sets(st.integers(1, 3000), max_size=50))
def test_a_chart_stays_small_and_inside(steps: int, skipped: set[int]) -> None:
    at = np.arange(1.0, steps + 1.0)
    marked = sorted(step for step in skipped if step <= steps)
    chart = f.line_chart(at, {"a": np.sin(at), "b": np.cos(at)}, 20, marked)
    assert chart is not None
    for _, raw, mean in chart.lines:
        for drawn in (raw, mean):
            points = [point.split(",") for point in drawn.replace("h0", "")[1:].replace("M", "L").split("L")]
            assert len(points) <= f.MAX_POINTS
            assert all(f.LEFT <= float(x) <= f.RIGHT and f.TOP <= float(y) <= f.BOTTOM for x, y in points)
    assert len(chart.hints) <= f.HINTS
    assert sum(width for _, width, _ in chart.hints) == pytest.approx(f.RIGHT - f.LEFT)
    assert len({x for x, _ in chart.marks}) == len(chart.marks) <= len(marked)
    assert bool(chart.marks) == bool(marked)


def test_marks_at_one_place_are_one() -> None:
    at = np.arange(1.0, 3001.0)
    chart = f.line_chart(at, {"a": at}, 20, [1000, 1001, 2000])
    assert chart is not None
    # A unit of the axis is ten steps.
    assert [text for _, text in chart.marks] == ["2 steps skipped, 1000–1001", "step 2000 skipped"]
