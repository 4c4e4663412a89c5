"""A few short curves, points with intervals, and bars on one axis, worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankray.report import charts as f
from rankray.report.charts import Point, bars, point_chart, side

NAN = math.nan
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


def test_a_curve_that_is_exact_has_no_average() -> None:
    curves = {"training": np.array([0.0, 1.0, 0.0]), "held out": np.array([0.0, 0.5, 1.0])}
    chart = f.line_chart(np.array([1.0, 2.0, 3.0]), curves, 2, exact=["held out"])
    assert chart is not None
    assert chart.lines[0][2] == "M50.0,156.0L200.0,65.3L350.0,117.1"  # 0, 2 / 3, 2 / 7
    assert chart.lines[1] == ("held out", "M50.0,156.0L200.0,88.0L350.0,20.0", "")
    assert chart.hints[1][2] == "step 2\ntraining: 1\nheld out: 0.5\ntraining, averaged: 0.6667"


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


def bar(gain: float, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"gain": gain, "low": low, "high": high}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.2, 1), (-0.2, -0.1, -1), (-0.1, 0.1, 0), (0.0, 0.1, 0), (None, 0.1, 0), (None, None, 0)],
)
def test_a_side_is_taken_only_where_zero_is_left_out(
    low: float | None, high: float | None, expected: int
) -> None:
    assert side({"low": low, "high": high}) == expected
    assert side(None) == 0


def test_bars_stand_on_one_axis() -> None:
    """From -1 to 3 over 120 units, 3 left free at both ends: a unit is 28.5."""
    first, second, gone = bars([bar(1.0, -1.0, 3.0), bar(2.0, None, None), None])
    assert first is not None
    assert (first.low, first.zero, first.mean, first.high) == (3.0, 31.5, 60.0, 117.0)
    assert second is not None
    assert (second.low, second.mean, second.high, second.sign) == (88.5, 88.5, 88.5, 0)
    assert gone is None
    (alone,) = bars([bar(0.0, 0.0, 0.0)])
    assert alone is not None
    assert alone.zero == alone.mean == 3.0


@settings(max_examples=40)
@given(st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 3), max_size=8))
def test_no_bar_leaves_its_frame(rows: list[tuple[float, float, float]]) -> None:
    for found in bars([bar(*row) for row in rows]):
        assert found is not None
        places = (found.low, found.high, found.mean, found.zero)
        assert all(3.0 <= place <= f.BAR_WIDTH - 3.0 for place in places)


def test_points_of_a_figure() -> None:
    """Values 0 to 10 get the ticks 0, 5 and 10 over 136 units of height."""
    chart = point_chart([Point(4, 10.0, None, None, "b"), Point(2, 5.0, 0.0, 6.0, "a")], level=0.0)
    assert chart is not None
    (x, y, low, high, text), (other, top, *_) = chart.points
    assert text == "a"  # by rising x
    assert (y, low, top) == ((f.BOTTOM + f.TOP) / 2, f.BOTTOM, f.TOP)
    assert high == pytest.approx(f.BOTTOM - 0.6 * (f.BOTTOM - f.TOP))
    assert chart.level == f.BOTTOM
    assert f.LEFT < x < other < f.RIGHT
    assert [label for _, label in chart.x_ticks] == ["2", "4"]
    assert chart.lines[0][1] == f"M{x:.1f},{y:.1f}L{other:.1f},{top:.1f}"
    assert point_chart([]) is None


def test_settings_that_double_stand_evenly_on_a_logarithmic_axis() -> None:
    chart = point_chart([Point(x, 1.0, None, None, "") for x in (1, 2, 4, 8)], doubling=True)
    assert chart is not None
    places = [point[0] for point in chart.points]
    gaps = [b - a for a, b in pairwise(places)]
    assert gaps == pytest.approx([gaps[0]] * 3)


def test_labels_do_not_run_into_each_other() -> None:
    chart = point_chart([Point(x, 1.0, None, None, "") for x in range(0, 100_000, 1000)])
    assert chart is not None
    assert len(chart.points) == 100
    assert 3 <= len(chart.x_ticks) <= 12


def test_one_point_is_a_figure() -> None:
    chart = point_chart([Point(7, 0.5, 0.4, 0.6, "alone")])
    assert chart is not None
    assert chart.points[0][0] == (f.LEFT + f.RIGHT) / 2
    assert chart.lines[0][1].endswith("h0")
