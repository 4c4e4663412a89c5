"""Bars share one axis with zero on it; a figure's points stand where their values say."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankray.report import figures, intervals
from rankray.report.intervals import Point, bars, point_chart, side


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.2, 1), (-0.2, -0.1, -1), (-0.1, 0.1, 0), (0.0, 0.1, 0), (None, 0.1, 0), (None, None, 0)],
)
def test_a_side_is_taken_only_where_zero_is_left_out(
    low: float | None, high: float | None, expected: int
) -> None:
    assert side(low, high) == expected


def test_bars_stand_on_one_axis() -> None:
    """From -1 to 3 over 120 units, 3 left free at both ends: a unit is 28.5."""
    first, second, gone = bars([(1.0, -1.0, 3.0), (2.0, None, None), (None, None, None)])
    assert first is not None
    assert (first.low, first.zero, first.mean, first.high) == (3.0, 31.5, 60.0, 117.0)
    assert second is not None
    assert (second.low, second.mean, second.high, second.sign) == (88.5, 88.5, 88.5, 0)
    assert gone is None
    (alone,) = bars([(0.0, 0.0, 0.0)])
    assert alone is not None
    assert alone.zero == alone.mean == 3.0


@settings(max_examples=40)
@given(st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 3), max_size=8))
def test_no_bar_leaves_its_frame(rows: list[tuple[float, float, float]]) -> None:
    for bar in bars(rows):
        assert bar is not None
        places = (bar.low, bar.high, bar.mean, bar.zero)
        assert all(3.0 <= place <= intervals.BAR_WIDTH - 3.0 for place in places)


def test_points_of_a_figure() -> None:
    """Values 0 to 10 get the ticks 0, 5 and 10 over 136 units of height."""
    chart = point_chart([Point(4, 10.0, None, None, "b"), Point(2, 5.0, 0.0, 6.0, "a")], level=0.0)
    assert chart is not None
    (x, y, low, high, text), (other, top, *_) = chart.points
    assert text == "a"  # by rising x
    assert (y, low, top) == ((figures.BOTTOM + figures.TOP) / 2, figures.BOTTOM, figures.TOP)
    assert high == pytest.approx(figures.BOTTOM - 0.6 * (figures.BOTTOM - figures.TOP))
    assert chart.level == figures.BOTTOM
    assert figures.LEFT < x < other < figures.RIGHT
    assert [label for _, label in chart.x_ticks] == ["2", "4"]
    assert chart.line == f"M{x:.1f},{y:.1f}L{other:.1f},{top:.1f}"
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
    assert chart.points[0][0] == (figures.LEFT + figures.RIGHT) / 2
    assert chart.line.endswith("h0")
