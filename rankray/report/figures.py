"""Numbers for the reports: a dataset's wins and agreement, and a run's curves as the geometry of SVG charts.

A dataset is added up row by row from scores alone, so a report of 58,000 prompts needs no image but the few it
shows, and the memory of one file's scores. A curve is drawn from at most 400 points, means of bins of steps: 15 KB
however long the run, for which a spike of one step in 10,000 shows as a twenty-fifth of itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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


@dataclass(frozen=True)
class Figures:
    """Sums over a dataset. G generators, N rewards.

    Attributes:
        wins: float[G, G], how often a picture of the row's generator beat one of the column's (prompt by
            prompt, reward by reward); ties count in `compared` alone.
        compared: float[G, G], how many such comparisons there were.
        agreed: float[N, N], pairs of candidates that both rewards order alike, out of
        judged: float[N, N], pairs that both rewards order at all (ties and failures left out).
        phi_sum, firsts, counted: float[G], sum of win probabilities, first ranks, ranked candidates.
        scores: [G][N] lists of raw scores, NaN left out.
    """

    wins: Floats
    compared: Floats
    agreed: Floats
    judged: Floats
    phi_sum: Floats
    firsts: Floats
    counted: Floats
    scores: list[list[list[float]]]

    @property
    def win_share(self) -> Floats:
        """float[G, G]: share of comparisons that the row's generator wins; NaN where there were none."""
        return _ratio(self.wins, self.compared)

    @property
    def agreement(self) -> Floats:
        """float[N, N]: share of candidate pairs that two rewards order alike; 0.5 is chance."""
        return _ratio(self.agreed, self.judged)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.asarray(np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0))


def collect(rows: Iterable[dict[str, Any]], generators: Sequence[str], rewards: Sequence[str]) -> Figures:
    """Adds up the candidates of all rows (as `rankray.store.RankedDataset.rows` gives them)."""
    places = {name: i for i, name in enumerate(generators)}
    g, n = len(generators), len(rewards)
    sums = Figures(
        wins=np.zeros((g, g)),
        compared=np.zeros((g, g)),
        agreed=np.zeros((n, n)),
        judged=np.zeros((n, n)),
        phi_sum=np.zeros(g),
        firsts=np.zeros(g),
        counted=np.zeros(g),
        scores=[[[] for _ in rewards] for _ in generators],
    )
    for row in rows:
        owners = np.array([places[candidate["generator"]] for candidate in row["candidates"]])
        scores = np.array([candidate["scores"] for candidate in row["candidates"]], np.float64)  # [K, N]
        order = np.sign(scores[:, None, :] - scores[None, :, :])  # [K, K, N]; NaN where one is missing
        _add_wins(sums, owners, order)
        _add_agreement(sums, order)
        for owner, candidate in zip(owners, row["candidates"], strict=True):
            if candidate["rank"] > 0:
                sums.phi_sum[owner] += candidate["win_probability"]
                sums.firsts[owner] += candidate["rank"] == 1
                sums.counted[owner] += 1
            for reward, score in enumerate(candidate["scores"]):
                if not np.isnan(score):
                    sums.scores[owner][reward].append(score)
    return sums


def _add_wins(sums: Figures, owners: npt.NDArray[np.int64], order: Floats) -> None:
    """A generator's own samples are not compared with each other."""
    for i, row in enumerate(owners):
        for j, column in enumerate(owners):
            if row != column:
                sums.wins[row, column] += np.nansum(order[i, j] > 0)
                sums.compared[row, column] += np.count_nonzero(~np.isnan(order[i, j]))


def _add_agreement(sums: Figures, order: Floats) -> None:
    pairs = order[np.triu_indices(order.shape[0], 1)]  # [pairs, N]
    ordered = ~np.isnan(pairs) & (pairs != 0)
    both = ordered[:, :, None] & ordered[:, None, :]
    alike = pairs[:, :, None] == pairs[:, None, :]
    sums.judged[...] += both.sum(0)
    sums.agreed[...] += (both & alike).sum(0)


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
class Chart:
    """What a template draws a chart from, in the units of `WIDTH` and `HEIGHT`.

    Attributes:
        lines: (name, `d` of the values' path, `d` of their average's) of each curve.
        x_ticks, y_ticks: (place, label).
        level: y of the horizontal mark, or None.
        marks: (x, text) of skipped steps.
        hints: (x, width, text) of strips side by side.
        cut: points beyond the axis, which are drawn at its end.
    """

    lines: list[tuple[str, str, str]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    level: float | None
    marks: list[tuple[float, str]]
    hints: list[tuple[float, float, str]]
    cut: int


def line_chart(
    steps: Floats,
    series: Mapping[str, Floats],
    span: float,
    skipped: Sequence[int] = (),
    level: float | None = None,
) -> Chart | None:
    """Curves over a common axis of steps; None where no value is finite.

    Args:
        steps: float[N], rising.
        series: name -> float[N]; what is not finite leaves a gap.
        span: steps of the exponential average, in which a value beyond `limits` counts as these; 1 draws none.
        skipped: steps to mark.
        level: a value to draw a horizontal line at.
    """
    finite = {name: np.where(np.isfinite(values), values, np.nan) for name, values in series.items()}
    every = np.concatenate([np.zeros(0), *(thinned(values) for values in finite.values())])
    if np.isnan(every).all():
        return None
    fence = limits(np.concatenate(list(finite.values())))
    means = {name: smoothed(values.clip(*fence), span) for name, values in finite.items() if span > 1}
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


def _edges(size: int, most: int) -> npt.NDArray[np.int64]:
    """Where `min(size, most)` bins begin, equal to within one, and where the last ends."""
    bins = min(size, most)
    return np.arange(bins + 1) * size // max(bins, 1)


def thinned(values: Floats, most: int = MAX_POINTS) -> Floats:
    """Means of at most `most` bins of neighbours, equal to within one; NaN is left out, all NaN stays NaN."""
    edges = _edges(values.size, most)
    known = ~np.isnan(values)
    count = np.add.reduceat(known.astype(np.float64), edges[:-1])
    return _ratio(np.add.reduceat(np.where(known, values, 0.0), edges[:-1]), count)


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


def compact(value: float | None, digits: int = 4) -> str:
    """That many significant digits: `0.6931`, `1.2e-5`, `123,400`; a dash for what is missing."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    rounded = float(f"{value:.{digits}g}") + 0.0
    return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:g}"


def path(x: Floats, y: Floats) -> str:
    """The `d` of an SVG path through (x, y): a gap where y is NaN, a dot where a point stands alone."""
    known = np.flatnonzero(~np.isnan(y))
    runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
    return "".join(
        "M" + "L".join(f"{x[i]:.1f},{y[i]:.1f}" for i in run) + ("h0" if run.size == 1 else "")
        for run in runs
        if run.size
    )
