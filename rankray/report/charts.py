"""Charts as the geometry of inline SVG: curves over steps, points with 95 % intervals, bars in a table's rows.

A curve is drawn from at most 400 points, means of bins of steps: 15 KB however long the run, for which a spike of one
step in 10,000 shows as a twenty-fifth of itself. A figure of points has as many as were measured, and straight lines
between neighbours. Bars of one table share an axis with its zero, so that rows can be compared by eye at 120 x 14 units
each, which fits a phone where a forest plot of its own would not. It is geometry alone: `templates/parts.html.j2`
draws it in the page's own colours, light and dark, with tooltips and without a script.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rankray.words import compact

Floats = npt.NDArray[np.float64]

MAX_POINTS = 400
"""Points of a curve."""
HINTS = 100
"""Strips of a chart that have a tooltip each."""
WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 50, 350, 20, 156
"""A chart's size and the frame of its curves, in the units of its `viewBox`."""
FENCE = 6.0
"""Interquartile ranges beyond the quartiles at which an axis ends: one exploded step does not flatten a curve."""
BAR_WIDTH, BAR_HEIGHT = 120, 14
_INSET = 3.0


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` along one side of a chart; what lies beyond lands on its ends."""

    low: float
    high: float
    start: float
    end: float

    def place(self, values: npt.ArrayLike) -> Floats:
        """Where values stand, in the chart's units."""
        share = (np.asarray(values, np.float64) - self.low) / (self.high - self.low)
        return np.asarray(self.start + (self.end - self.start) * np.clip(share, 0.0, 1.0))

    def labelled(self, rungs: Sequence[float]) -> list[tuple[float, str]]:
        """(place, label) of those ticks that lie on the axis."""
        on = [rung for rung in rungs if self.low <= rung <= self.high]
        return list(zip(self.place(on).tolist(), (compact(rung, 6) for rung in on), strict=True))


@dataclass(frozen=True)
class Point:
    """One measurement: `mean` at `x`, its interval (None where there is none), and a tooltip's text."""

    x: float
    mean: float
    low: float | None
    high: float | None
    text: str


@dataclass(frozen=True)
class Chart:
    """What a template draws a chart from, in the units of `WIDTH` and `HEIGHT`.

    Attributes:
        lines: (name, `d` of the values' path, `d` of their average's) of each curve.
        x_ticks, y_ticks: (place, label).
        level: y of the horizontal mark, or None.
        points: (x, y, y of the interval's low end, of its high end, text); None for an end that there is not.
        marks: (x, text) of skipped steps.
        hints: (x, width, text) of strips side by side.
        cut: points beyond the axis, which are drawn at its end.
    """

    lines: list[tuple[str, str, str]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    level: float | None
    points: list[tuple[float, float, float | None, float | None, str]] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    hints: list[tuple[float, float, str]] = field(default_factory=list)
    cut: int = 0


def line_chart(
    steps: Floats,
    series: Mapping[str, Floats],
    span: float,
    skipped: Sequence[int] = (),
    level: float | None = None,
    exact: Collection[str] = (),
) -> Chart | None:
    """Curves over a common axis of steps; None where no value is finite.

    Args:
        steps: float[N], rising.
        series: name -> float[N]; what is not finite leaves a gap.
        span: steps of the exponential average, in which a value beyond `limits` counts as these; 1 draws none.
        skipped: steps to mark.
        level: a value to draw a horizontal line at.
        exact: names of series that are drawn as they are, without an average.
    """
    finite = {name: np.where(np.isfinite(values), values, np.nan) for name, values in series.items()}
    every = np.concatenate([np.zeros(0), *(thinned(values) for values in finite.values())])
    if np.isnan(every).all():
        return None
    fence = limits(np.concatenate(list(finite.values())))
    noisy = [name for name in finite if span > 1 and name not in exact]
    means = {name: smoothed(finite[name].clip(*fence), span) for name in noisy}
    low, high = limits(every)
    rungs = ticks(*((low, high) if level is None else (min(low, level), max(high, level))))
    y = Axis(rungs[0], rungs[-1], BOTTOM, TOP)
    x = Axis(steps[0], max(steps[-1], steps[0] + 1.0), LEFT, RIGHT)

    def drawn(values: Floats | None) -> str:
        return "" if values is None else path(x.place(thinned(steps)), y.place(thinned(values)))

    return Chart(
        lines=[(name, drawn(finite[name]), drawn(means.get(name))) for name in finite],
        x_ticks=x.labelled(ticks(x.low, x.high, smallest=1.0)),
        y_ticks=y.labelled(rungs),
        level=None if level is None else float(y.place(level)),
        marks=_marks(skipped, x),
        hints=_hints(steps, finite, means, x),
        cut=int(np.count_nonzero((every < y.low) | (every > y.high))),
    )


def _marks(skipped: Sequence[int], x: Axis) -> list[tuple[float, str]]:
    """A mark for all skipped steps that stand at the same whole unit."""
    at: dict[float, list[int]] = {}
    for step, place in zip(skipped, x.place(skipped).round().tolist(), strict=True):
        at.setdefault(place, []).append(step)
    several = "{n} steps skipped, {first}–{last}"
    return [
        (place, (several if len(s) > 1 else "step {first} skipped").format(n=len(s), first=s[0], last=s[-1]))
        for place, s in at.items()
    ]


def _hints(
    steps: Floats, series: Mapping[str, Floats], means: Mapping[str, Floats], x: Axis
) -> list[tuple[float, float, str]]:
    """Strips that reach halfway to their neighbours, each with the means of its steps in words."""
    edges = _edges(steps.size, HINTS)
    places = x.place(thinned(steps, HINTS))
    borders = [x.start, *((places[1:] + places[:-1]) / 2).tolist(), x.end]
    lines = [(name, thinned(values, HINTS)) for name, values in series.items()]
    lines += [(f"{name}, averaged", thinned(values, HINTS)) for name, values in means.items()]
    found = []
    for i, (first, last) in enumerate(zip(steps[edges[:-1]], steps[edges[1:] - 1], strict=True)):
        named = [f"step {first:.0f}" if first == last else f"steps {first:.0f}–{last:.0f}"]
        named += [f"{name}: {compact(values[i])}" for name, values in lines]
        found.append((borders[i], borders[i + 1] - borders[i], "\n".join(named)))
    return found


def point_chart(points: Sequence[Point], level: float | None = None, doubling: bool = False) -> Chart | None:
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

    return Chart(
        lines=[("", path(along, up), "")],
        points=[
            (float(at), float(mean), height(point.low), height(point.high), point.text)
            for at, mean, point in zip(along, up, ordered, strict=True)
        ],
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


def side(found: Mapping[str, Any] | None) -> int:
    """1 where a difference's whole interval lies above zero, -1 where below, 0 where it holds zero or is not there."""
    if found is None or found["low"] is None or found["high"] is None:
        return 0
    return int(found["low"] > 0) - int(found["high"] < 0)


@dataclass(frozen=True)
class Bar:
    """An interval in a row: places along `BAR_WIDTH` of its ends, its mean and zero, and which way it lies."""

    low: float
    high: float
    mean: float
    zero: float
    sign: int


def bars(differences: Sequence[Mapping[str, Any] | None]) -> list[Bar | None]:
    """`gain`, `low` and `high` of each row as a bar on an axis that all share; None where a row has none.

    An interval that is not there is drawn as its mean alone.
    """
    keys = ("low", "high", "gain")
    ends = [0.0, *(row[key] for row in differences if row for key in keys if row[key] is not None)]
    axis = Axis(min(ends), min(ends) + (max(ends) - min(ends) or 1.0), _INSET, BAR_WIDTH - _INSET)

    def drawn(row: Mapping[str, Any] | None) -> Bar | None:
        if row is None or row["gain"] is None:
            return None
        values = [*(row["gain"] if row[key] is None else row[key] for key in keys), 0.0]
        low, high, mean, zero = axis.place(values).tolist()
        return Bar(low, high, mean, zero, side(row))

    return [drawn(row) for row in differences]


def _edges(size: int, most: int) -> npt.NDArray[np.int64]:
    """Where `min(size, most)` bins begin, equal to within one, and where the last ends."""
    bins = min(size, most)
    return np.arange(bins + 1) * size // max(bins, 1)


def thinned(values: Floats, most: int = MAX_POINTS) -> Floats:
    """Means of at most `most` bins of neighbours, equal to within one; NaN is left out, all NaN stays NaN."""
    edges = _edges(values.size, most)
    known = ~np.isnan(values)
    count = np.add.reduceat(known.astype(np.float64), edges[:-1])
    return ratio(np.add.reduceat(np.where(known, values, 0.0), edges[:-1]), count)


def smoothed(values: Floats, span: float) -> Floats:
    """Exponential average with weights (1 - 1/span)^age that sum to one from the first value on.

    A NaN has no weight: the average stays what it was, and is NaN before the first value.
    """
    keep, total, weight = 1.0 - 1.0 / span, 0.0, 0.0
    found = np.full(values.size, np.nan)
    for i, value in enumerate(values.tolist()):
        if not math.isnan(value):
            total, weight = keep * total + value / span, keep * weight + 1.0 / span
        found[i] = total / weight if weight else np.nan
    return found


def limits(values: Floats) -> tuple[float, float]:
    """Least and greatest value, but no further than `FENCE` interquartile ranges from the quartiles; never equal."""
    known = values[np.isfinite(values)]
    low, high = float(known.min()), float(known.max())
    lower, upper = (float(quartile) for quartile in np.percentile(known, [25, 75]))
    reach = FENCE * (upper - lower)
    if reach:
        low, high = max(low, lower - reach), min(high, upper + reach)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = abs(low) / 20 or 0.5
        return low - pad, high + pad
    return low, high


def ticks(low: float, high: float, smallest: float = 0.0) -> list[float]:
    """Three to six multiples of 1, 2 or 5 times a power of ten, from at most `low` to at least `high`."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    gap = max(smallest, next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.999 * rough))
    first, last = math.floor(low / gap + 1e-6), math.ceil(high / gap - 1e-6)
    return [gap * n for n in range(first, max(last, first + 1) + 1)]


def path(x: Floats, y: Floats) -> str:
    """The `d` of an SVG path through (x, y): a gap where y is NaN, a dot where a point stands alone."""
    known = np.flatnonzero(~np.isnan(y))
    runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
    return "".join(
        "M" + "L".join(f"{x[i]:.1f},{y[i]:.1f}" for i in run) + ("h0" if run.size == 1 else "")
        for run in runs
        if run.size
    )


def ratio(part: Floats, whole: Floats) -> Floats:
    """`part / whole`, NaN where there is nothing."""
    return np.asarray(np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0))
