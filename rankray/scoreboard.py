"""A benchmark's columns as figures with intervals, of one model or between two: means, pooled shares, their mean.

Intervals are bootstrapped over prompts, for all columns at once, so that the mean of columns gets its own. Where the
columns of that mean part the prompts among them (GenEval's categories), prompts are drawn within their column, as the
benchmark fixes how many of each there are; else among all. 553 prompts in seven columns take 0.1 s on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rankray.comparison import Difference, resamples, sign_test

OVERALL = "overall"

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Values(Protocol):
    """One column: by prompt, one value a picture or one an answer."""

    @property
    def values(self) -> Mapping[str, Sequence[float]]: ...

    @property
    def pooled(self) -> bool:
        """The mean over all values, and not over prompts of each prompt's mean."""


@dataclass(frozen=True)
class Estimate:
    """One figure of one model.

    Attributes:
        mean: None where no picture has a value.
        low, high: 95 % bootstrap interval; None where fewer than two prompts can vary.
        prompts, values: how many the figure is made of.
    """

    mean: float | None
    low: float | None
    high: float | None
    prompts: int
    values: int


@dataclass(frozen=True)
class _Sums:
    """Columns as sums over prompts: a figure is sums / counts, both weighted by how often a prompt is drawn.

    Attributes:
        names: the columns [C]; the mean of some of them is one more figure, unless a column is called that.
        chosen: places of the columns which that mean is of.
        sums, counts: float[C, P]: a pooled column's values and their number, else a prompt's mean and 1.
        values: int[C], how many values each column has.
    """

    names: tuple[str, ...]
    chosen: Ints
    sums: Floats
    counts: Floats
    values: Ints

    def figures(self, sums: Floats, weights: Ints) -> Floats:
        """float[D, C], or float[D, C + 1] with the mean of the chosen columns, of int[D, P]; NaN without a value."""
        counts = weights @ self.counts.T
        found: Floats = np.full(counts.shape, np.nan)
        np.divide(weights @ sums.T, counts, out=found, where=counts > 0)
        if self.whole:
            return found
        mean = found[:, self.chosen].mean(axis=1) if len(self.chosen) else np.full(len(found), np.nan)
        return np.column_stack([found, mean])

    def means(self, sums: Floats) -> Floats:
        """The figures of all prompts, each once."""
        found: Floats = self.figures(sums, np.ones((1, sums.shape[1]), np.int64))[0]
        return found

    @property
    def whole(self) -> bool:
        """Whether a column of the benchmark's own is the overall figure."""
        return OVERALL in self.names

    @property
    def labels(self) -> tuple[str, ...]:
        return self.names if self.whole else (*self.names, OVERALL)

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        """bool[C or C + 1, P]: whether the figure has a value of the prompt."""
        own = self.counts > 0
        return own if self.whole else np.vstack([own, own[self.chosen].any(axis=0)])

    def strata(self) -> list[Ints]:
        """Prompts by the chosen column that has them, where none has two; else all together."""
        member = self.counts[self.chosen] > 0
        if len(self.chosen) < 2 or (member.sum(axis=0) > 1).any():
            return [np.arange(self.counts.shape[1])]
        column = np.where(member.any(axis=0), member.argmax(axis=0), -1)
        return [np.flatnonzero(column == value) for value in np.unique(column)]

    def intervals(self, sums: Floats) -> list[tuple[float | None, float | None]]:
        """95 % of each figure; None where no two prompts are drawn from."""
        strata = self.strata()
        drawn = np.concatenate([self.figures(sums, weights) for weights in resamples(strata)])
        largest = np.zeros(sums.shape[1], np.int64)
        for places in strata:
            largest[places] = len(places)
        vary = [(largest[row] > 1).any() and row.sum() > 1 for row in self.inside]
        found: list[tuple[float | None, float | None]] = []
        for n, varies in enumerate(vary):
            if not varies:
                found.append((None, None))
                continue
            low, high = np.nanquantile(drawn[:, n], [0.025, 0.975])
            found.append((float(low), float(high)))
        return found


def estimates(columns: Mapping[str, Values], overall: Sequence[str]) -> dict[str, Estimate]:
    """Each column's figure and "overall", the plain mean of those columns of `overall` that have a value."""
    table = _sums(columns, columns, overall)
    means, intervals, inside = table.means(table.sums), table.intervals(table.sums), table.inside
    values = table.values if table.whole else np.append(table.values, table.values[table.chosen].sum())
    return {
        name: Estimate(
            None if np.isnan(means[n]) else float(means[n]),
            *intervals[n],
            int(inside[n].sum()),
            int(values[n]),
        )
        for n, name in enumerate(table.labels)
    }


def differences(
    before: Mapping[str, Values], after: Mapping[str, Values], overall: Sequence[str]
) -> dict[str, Difference]:
    """The paired difference of each column that has a value, and of the overall mean.

    Both sides hold the same prompts with equally many values each: what failed on one side was left out of both. A win
    is a prompt whose mean over its columns is higher after.

    Raises:
        ValueError: a prompt has other values on one side than on the other.
    """
    first, second = _sums(before, after, overall), _sums(after, before, overall)
    if first.names != second.names or not np.array_equal(first.counts, second.counts):
        raise ValueError("the two models have values of different pictures; leave out what either lacks")
    change = second.sums - first.sums
    means = [first.means(table.sums) for table in (first, second)]
    intervals, inside = first.intervals(change), first.inside
    own = np.divide(change, first.counts, out=np.zeros_like(change), where=first.counts > 0)
    by_prompt = own if first.whole else np.vstack([own, own[first.chosen].sum(axis=0)])
    found = {}
    for n, name in enumerate(first.labels):
        if np.isnan(means[0][n]):
            continue
        wins, losses = (int((sign * by_prompt[n][inside[n]] > 0).sum()) for sign in (1, -1))
        old, new = float(means[0][n]), float(means[1][n])
        low, high = intervals[n]
        nan = float("nan")
        found[name] = Difference(
            old,
            new,
            new - old,
            nan if low is None else low,
            nan if high is None else high,
            wins,
            losses,
            sign_test(wins, losses),
        )
    return found


def _sums(columns: Mapping[str, Values], other: Mapping[str, Values], overall: Sequence[str]) -> _Sums:
    """The columns over the prompts of both sides, in an order that both give alike."""
    prompts = {
        prompt: n
        for n, prompt in enumerate(
            sorted({p for c in (*columns.values(), *other.values()) for p in c.values})
        )
    }
    sums = np.zeros((len(columns), len(prompts)))
    counts, values = np.zeros_like(sums), np.zeros(len(columns), np.int64)
    for c, column in enumerate(columns.values()):
        for prompt, found in column.values.items():
            if not len(found):
                continue
            sums[c, prompts[prompt]] = sum(found) if column.pooled else sum(found) / len(found)
            counts[c, prompts[prompt]] = len(found) if column.pooled else 1
            values[c] += len(found)
    names = tuple(columns)
    chosen = [names.index(name) for name in overall if name in names and counts[names.index(name)].any()]
    return _Sums(names, np.array(chosen, np.int64), sums, counts, values)
