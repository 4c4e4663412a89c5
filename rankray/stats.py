"""Is one model better than another? Paired statistics over prompts whose pictures were drawn from the same seeds.

Pairing by prompt and seed takes the prompts' own difficulty out of the difference: on held-out shapes prompts it
narrows the interval by a third. Intervals are bootstrapped over prompts, which are what varies; pictures of one prompt
are averaged first.

A benchmark's columns are figures of one model (`estimates`) or between two (`differences`): means, pooled shares, and
their mean, all columns drawn at once so that their mean gets its own interval. Where the columns of that mean part the
prompts among them (GenEval's categories), prompts are drawn within their column, as the benchmark fixes how many of
each there are; else among all. 553 prompts in seven columns take 0.1 s on one core.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DRAWS = 2000
BLOCK = 100
"""Draws at once: 10,000 prompts are 8 MB."""
SEED = 0


@dataclass(frozen=True)
class Difference:
    """One metric of two models on the same prompts and seeds.

    Attributes:
        before, after: means.
        gain: after - before.
        low, high: 95 % bootstrap interval of the gain.
        wins, losses: prompts on which after is higher, lower.
        p_value: two-sided sign test over wins and losses.
    """

    before: float
    after: float
    gain: float
    low: float
    high: float
    wins: int
    losses: int
    p_value: float


def compare(before: npt.ArrayLike, after: npt.ArrayLike) -> Difference:
    """Compares float[P] (or float[P, S], averaged over S pictures a prompt); pairs with a NaN are left out.

    Raises:
        ValueError: shapes differ, or nothing is left.
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if first.shape != second.shape:
        raise ValueError(
            f"{first.shape} values before and {second.shape} after; give the same prompts and pictures"
        )
    if first.ndim == 2:
        gone = np.isnan(first) | np.isnan(second)
        counts = np.maximum((~gone).sum(axis=1), 1)
        keep = (~gone).any(axis=1)
        first, second = (np.where(gone, 0.0, side).sum(axis=1) / counts for side in (first, second))
        first, second = first[keep], second[keep]
    keep = ~(np.isnan(first) | np.isnan(second))
    first, second = first[keep], second[keep]
    if not len(first):
        raise ValueError("no prompt has a value on both sides")
    change = second - first
    means = np.concatenate([weights @ change for weights in resamples([np.arange(len(change))])]) / len(
        change
    )
    low, high = np.quantile(means, [0.025, 0.975])
    wins, losses = int((change > 0).sum()), int((change < 0).sum())
    return Difference(
        float(first.mean()),
        float(second.mean()),
        float(change.mean()),
        float(low),
        float(high),
        wins,
        losses,
        sign_test(wins, losses),
    )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of so many wins and losses under a fair coin."""
    n, most = wins + losses, max(wins, losses)
    if n == 0:
        return 1.0
    tail: float
    if n <= 1000:
        tail = sum(math.comb(n, i) for i in range(most, n + 1)) / 2**n
    else:  # exact integers of thousands of digits take seconds
        logs = (math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(most, n + 1))
        tail = math.fsum(math.exp(each - n * math.log(2.0)) for each in logs)
    return min(1.0, 2.0 * tail)


def resamples(strata: Sequence[npt.NDArray[np.int64]]) -> Iterator[npt.NDArray[np.int64]]:
    """The bootstrap's draws, how often each prompt is taken: int[D, P] at a time, `DRAWS` in all.

    Args:
        strata: places of prompts that are drawn among themselves; together all of 0 .. P - 1.
    """
    rng = np.random.default_rng(SEED)
    size = sum(len(places) for places in strata)
    row = np.arange(BLOCK)[:, None] * size
    for _ in range(DRAWS // BLOCK):
        taken = [places[rng.integers(len(places), size=(BLOCK, len(places)))] for places in strata]
        flat = (np.concatenate(taken, axis=1) + row).ravel()
        yield np.bincount(flat, minlength=BLOCK * size).reshape(BLOCK, size)


@dataclass(frozen=True)
class Wins:
    """How often the first of two models is better on a prompt: a tie is half a win; a sign test over the rest."""

    wins: int
    losses: int
    ties: int
    win_rate: float
    p_value: float


def win_rate(first: npt.ArrayLike, second: npt.ArrayLike) -> Wins:
    """Wins of float[P] over float[P]; prompts with a NaN are left out.

    Raises:
        ValueError: no prompt has a value on both sides.
    """
    change = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    change = change[~np.isnan(change)]
    if not len(change):
        raise ValueError("no prompt has a value on both sides")
    wins, losses = int((change > 0).sum()), int((change < 0).sum())
    ties = len(change) - wins - losses
    return Wins(wins, losses, ties, (wins + ties / 2) / len(change), sign_test(wins, losses))


OVERALL = "overall"


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
