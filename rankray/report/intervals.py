"""Means and their 95 % intervals as the geometry of inline SVG: a bar in a table's row, points over a setting.

Bars of one table share an axis with its zero, so that rows can be compared by eye at 120 x 14 units each, which fits a
phone where a forest plot of its own would not. A figure has as many points as were measured, and no curve through them
that was not: straight lines join neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankray.report.figures import BOTTOM, LEFT, RIGHT, TOP, Axis, compact, limits, path, ticks

BAR_WIDTH, BAR_HEIGHT = 120, 14
_INSET = 3.0


@dataclass(frozen=True)
class Point:
    """One measurement: `mean` at `x`, its interval (None where there is none), and a tooltip's text."""

    x: float
    mean: float
    low: float | None
    high: float | None
    text: str


@dataclass(frozen=True)
class Bar:
    """An interval in a row: places along `BAR_WIDTH` of its ends, its mean and zero, and which way it lies."""

    low: float
    high: float
    mean: float
    zero: float
    sign: int


@dataclass(frozen=True)
class PointChart:
    """What a template draws, in the units of `rankray.report.figures.WIDTH` and `HEIGHT`.

    Attributes:
        points: (x, y, y of the interval's low end, of its high end, text); None for an end that there is not.
        line: `d` of the path through the points.
        x_ticks, y_ticks: (place, label).
        level: y of a horizontal mark, or None.
    """

    points: list[tuple[float, float, float | None, float | None, str]]
    line: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    level: float | None


def side(low: float | None, high: float | None) -> int:
    """1 where the whole interval lies above zero, -1 where below, 0 where it holds zero or is not there."""
    if low is None or high is None:
        return 0
    return int(low > 0) - int(high < 0)


def bars(rows: Sequence[tuple[float | None, float | None, float | None]]) -> list[Bar | None]:
    """(mean, low, high) of each row as a bar on an axis that all share; None where a row has no mean.

    An interval that is not there is drawn as its mean alone.
    """
    ends = [0.0, *(value for row in rows for value in row if value is not None)]
    span = max(ends) - min(ends) or 1.0
    axis = Axis(min(ends), min(ends) + span, _INSET, BAR_WIDTH - _INSET)

    def drawn(mean: float | None, low: float | None, high: float | None) -> Bar | None:
        if mean is None:
            return None
        start, end, middle, zero = (
            float(axis.place(mean if v is None else v)) for v in (low, high, mean, 0.0)
        )
        return Bar(start, end, middle, zero, side(low, high))

    return [drawn(*row) for row in rows]


def point_chart(
    points: Sequence[Point], level: float | None = None, doubling: bool = False
) -> PointChart | None:
    """Points over x with their intervals; None without points.

    Args:
        level: a value to draw a horizontal line at.
        doubling: x on a logarithmic axis, as for settings that double; all x are above zero.
    """
    if not points:
        return None
    ordered = sorted(points, key=lambda point: point.x)
    values = [v for p in ordered for v in (p.mean, p.low, p.high, level) if v is not None]
    rungs = ticks(*limits(np.array([min(values), max(values)])))
    y = Axis(rungs[0], rungs[-1], BOTTOM, TOP)
    scale = np.log2 if doubling else np.asarray
    places = np.asarray(scale([point.x for point in ordered]), np.float64)
    margin = 0.5 if places[0] == places[-1] else 0.06 * (places[-1] - places[0])
    x = Axis(places[0] - margin, places[-1] + margin, LEFT, RIGHT)
    along, up = x.place(places), y.place([point.mean for point in ordered])

    def height(value: float | None) -> float | None:
        return None if value is None else float(y.place(value))

    return PointChart(
        points=[
            (float(at), float(mean), height(point.low), height(point.high), point.text)
            for at, mean, point in zip(along, up, ordered, strict=True)
        ],
        line=path(along, up),
        x_ticks=_apart([(float(at), compact(point.x)) for at, point in zip(along, ordered, strict=True)]),
        y_ticks=y.labelled(rungs),
        level=height(level),
    )


def _apart(labels: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Those labels, from the first on, that do not run into the one before."""
    kept: list[tuple[float, str]] = []
    for place, text in labels:
        if not kept or place - kept[-1][0] >= 4.0 * (len(text) + len(kept[-1][1])):
            kept.append((place, text))
    return kept
