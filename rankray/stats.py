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
from dataclasses import astuple, dataclass
from statistics import NormalDist

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
        low, high: 95 % bootstrap interval of the gain; None where fewer than two prompts can vary.
        wins, losses: prompts on which after is higher, lower.
        p_value: two-sided sign test over wins and losses.
    """

    before: float
    after: float
    gain: float
    low: float | None
    high: float | None
    wins: int
    losses: int
    p_value: float


def compare(before: npt.ArrayLike, after: npt.ArrayLike) -> Difference:
    """Compares float[P] (or float[P, S], averaged over S pictures a prompt); pairs with a NaN are left out.

    Raises:
        ValueError: shapes differ, or nothing is left.
    """
    first, second = _by_prompt(before, after)
    change = second - first
    one, other, gain = (float(values.mean()) for values in (first, second, change))
    if len(change) < 2:
        return Difference(one, other, gain, None, None, *_votes(change))
    drawn = [weights @ change for weights in resamples([np.arange(len(change))])]
    low, high = np.quantile(np.concatenate(drawn) / len(change), [0.025, 0.975])
    return Difference(one, other, gain, float(low), float(high), *_votes(change))


def _by_prompt(before: npt.ArrayLike, after: npt.ArrayLike) -> tuple[Floats, Floats]:
    """float[P'] of each side: a prompt's mean over the pictures that both have a value of; no prompt without one.

    Raises:
        ValueError: shapes differ, or nothing is left.
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if first.shape != second.shape:
        raise ValueError(
            f"{first.shape} values before and {second.shape} after; give the same prompts and pictures"
        )
    if first.ndim == 1:
        first, second = first[:, None], second[:, None]
    both = ~(np.isnan(first) | np.isnan(second))
    keep = both.any(axis=1)
    if not keep.any():
        raise ValueError("no prompt has a value on both sides")
    one, other = (
        np.where(both, side, 0.0).sum(axis=1)[keep] / both.sum(axis=1)[keep] for side in (first, second)
    )
    return one, other


def _votes(change: Floats) -> tuple[int, int, float]:
    """How many of float[P] are above and below zero, and the sign test's p-value."""
    wins, losses = int((change > 0).sum()), int((change < 0).sum())
    return wins, losses, sign_test(wins, losses)


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
    """Wins of float[P], or float[P, S] averaged over pictures, over the same; pairs with a NaN are left out.

    Raises:
        ValueError: shapes differ, or no prompt has a value on both sides.
    """
    one, other = _by_prompt(first, second)
    wins, losses, p_value = _votes(one - other)
    ties = len(one) - wins - losses
    return Wins(wins, losses, ties, (wins + ties / 2) / len(one), p_value)


def share_interval(share: float, count: int) -> tuple[float, float]:
    """95 % of a share of `count` independent votes, ties as halves (Wilson 1927): it stays within 0 .. 1, and is no
    point where all votes are alike; 20 of 20 are 84 to 100 %."""
    z = NormalDist().inv_cdf(0.975)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, middle - reach), min(1.0, middle + reach)


@dataclass(frozen=True)
class Components:
    """Variances of the difference between two models that are trained from several seeds: of its parts that are drawn
    anew with each seed, prompt, picture of a prompt, seed on a prompt, and picture of a seed."""

    seeds: float
    prompts: float
    pictures: float
    seeds_prompts: float
    rest: float

    def error(self, seeds: float, prompts: int, pictures: int) -> float:
        """Standard error of the mean difference over so many seeds a model, prompts, and pictures a prompt."""
        by_prompt = self.prompts + self.pictures / pictures
        by_both = self.seeds_prompts + self.rest / pictures
        return math.sqrt(self.seeds / seeds + by_prompt / prompts + by_both / (seeds * prompts))


def components(change: npt.ArrayLike) -> Components:
    """Of float[S, P, M] differences, S >= 2 seeds crossed with P >= 2 prompts of M pictures each; without bias, so one
    may come out below 0. One picture a prompt cannot be told from its prompt, and counts as that.

    The expected mean squares of a random-effects layout, solved (Searle, Casella, McCulloch, "Variance Components").
    """
    y = np.asarray(change, np.float64)
    s, p, m = y.shape
    seed, prompt, cell = (
        y.mean((1, 2), keepdims=True),
        y.mean((0, 2), keepdims=True),
        y.mean(0, keepdims=True),
    )
    both, mean = y.mean(2, keepdims=True), y.mean()
    of_seeds = p * m * float(((seed - mean) ** 2).sum()) / (s - 1)
    of_prompts = s * m * float(((prompt - mean) ** 2).sum()) / (p - 1)
    of_both = m * float(((both - seed - prompt + mean) ** 2).sum()) / ((s - 1) * (p - 1))
    of_pictures = s * float(((cell - prompt) ** 2).sum()) / max(p * (m - 1), 1)
    rest = float(((y - both - cell + prompt) ** 2).sum()) / max((s - 1) * p * (m - 1), 1)
    return Components(
        seeds=(of_seeds - of_both) / (p * m),
        prompts=(of_prompts - of_both - of_pictures + rest) / (s * m),
        pictures=(of_pictures - rest) / s,
        seeds_prompts=(of_both - rest) / m,
        rest=rest,
    )


def pooled(found: Sequence[Components]) -> Components:
    """The mean of each, 0 where that is below."""
    return Components(*(max(0.0, float(value)) for value in np.mean([astuple(one) for one in found], axis=0)))


def smallest_difference(error: float, power: float = 0.8, level: float = 0.05) -> float:
    """The difference that a two-sided test at `level` finds with probability `power`, of this standard error; 2.80
    errors for 80 % and 5 %."""
    normal = NormalDist()
    return error * (normal.inv_cdf(1.0 - level / 2.0) + normal.inv_cdf(power))


OVERALL = "overall"


@dataclass(frozen=True)
class Column:
    """One column of a benchmark's table.

    Attributes:
        values: by prompt: one value a picture, or one an answer.
        pooled: False: the mean over prompts of each prompt's mean. True: the mean over all values.
    """

    values: Mapping[str, Sequence[float]]
    pooled: bool = False

    @property
    def mean(self) -> float | None:
        """The column's figure; None without a value."""
        found = [list(values) for values in self.values.values() if len(values)]
        if self.pooled:
            found = [[value] for values in found for value in values]
        means = [sum(values) / len(values) for values in found]
        return sum(means) / len(means) if means else None


@dataclass(frozen=True)
class Estimate:
    """One figure of one model.

    Attributes:
        mean: None where no picture has a value.
        low, high: 95 % bootstrap interval; None where fewer than two prompts can vary, and of a mean of categories
            also where one of them has a single prompt: drawn within its category, it would vary by nothing.
        prompts, values: how many the figure is made of.
    """

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    prompts: int = 0
    values: int = 0


def estimates(columns: Mapping[str, Column], overall: Sequence[str]) -> dict[str, Estimate]:
    """Each column's figure and "overall", the plain mean of those columns of `overall` that have a value."""
    table = _sums(columns, columns, overall)
    means, intervals = table.means(table.sums), table.intervals(table.sums)
    return {
        name: Estimate(
            None if np.isnan(means[n]) else float(means[n]),
            *intervals[n],
            int(table.inside[n].sum()),
            int(table.values[n]),
        )
        for n, name in enumerate(table.labels)
    }


def differences(
    before: Mapping[str, Column], after: Mapping[str, Column], overall: Sequence[str]
) -> dict[str, Difference]:
    """The paired difference of each column that has a value, and of the overall mean.

    Both sides hold the same prompts with equally many values each: what failed on one side was left out of both. A win
    is a prompt whose mean over its columns is higher after.

    Raises:
        ValueError: a prompt has other values on one side than on the other.
    """
    first, second = _sums(before, after, overall), _sums(after, before, overall)
    if first.labels != second.labels or not np.array_equal(first.counts, second.counts):
        raise ValueError("the two models have values of different pictures; leave out what either lacks")
    change = second.sums - first.sums
    old, new = (first.means(table.sums) for table in (first, second))
    by_prompt = np.divide(change, first.counts, out=np.zeros_like(change), where=first.counts > 0)
    by_prompt = np.vstack([by_prompt, by_prompt[first.chosen].sum(axis=0)])
    found = {}
    for n, (name, (low, high)) in enumerate(zip(first.labels, first.intervals(change), strict=True)):
        if not np.isnan(old[n]):
            means = (float(old[n]), float(new[n]), float(new[n]) - float(old[n]))
            found[name] = Difference(*means, low, high, *_votes(by_prompt[n][first.inside[n]]))
    return found


@dataclass(frozen=True)
class _Sums:
    """Columns as sums over prompts: a figure is sums / counts, both weighted by how often a prompt is drawn.

    Attributes:
        labels: the figures [F]: the C columns, and the mean of some of them unless a column is called that.
        chosen: places of the columns which that mean is of.
        sums, counts: float[C, P]: a pooled column's values and their number, else a prompt's mean and 1.
        inside: bool[F, P]: whether the figure has a value of the prompt.
        values: int[F], how many values each figure has.
    """

    labels: tuple[str, ...]
    chosen: Ints
    sums: Floats
    counts: Floats
    inside: npt.NDArray[np.bool_]
    values: Ints

    def figures(self, sums: Floats, weights: Ints) -> Floats:
        """float[D, F] of int[D, P]; NaN without a value."""
        counts = weights @ self.counts.T
        found: Floats = np.full(counts.shape, np.nan)
        np.divide(weights @ sums.T, counts, out=found, where=counts > 0)
        if len(self.labels) == len(self.counts):
            return found
        mean = found[:, self.chosen].mean(axis=1) if len(self.chosen) else np.full(len(found), np.nan)
        return np.column_stack([found, mean])

    def means(self, sums: Floats) -> Floats:
        """The figures of all prompts, each once."""
        found: Floats = self.figures(sums, np.ones((1, sums.shape[1]), np.int64))[0]
        return found

    def strata(self) -> list[Ints]:
        """Prompts by the chosen column that has them, where none has two; else all together."""
        member = self.counts[self.chosen] > 0
        if len(self.chosen) < 2 or (member.sum(axis=0) > 1).any():
            return [np.arange(self.counts.shape[1])]
        column = np.where(member.any(axis=0), member.argmax(axis=0), -1)
        return [np.flatnonzero(column == value) for value in np.unique(column)]

    def intervals(self, sums: Floats) -> list[tuple[float | None, float | None]]:
        """95 % of each figure; None where one of its prompts can only be drawn itself, or it has no two."""
        strata = self.strata()
        drawn = np.concatenate([self.figures(sums, weights) for weights in resamples(strata)])
        largest = np.zeros(sums.shape[1], np.int64)
        for places in strata:
            largest[places] = len(places)
        found: list[tuple[float | None, float | None]] = []
        for n, row in enumerate(self.inside):
            if (largest[row] > 1).all() and row.sum() > 1:
                low, high = np.nanquantile(drawn[:, n], [0.025, 0.975])
                found.append((float(low), float(high)))
            else:
                found.append((None, None))
        return found


def _sums(columns: Mapping[str, Column], other: Mapping[str, Column], overall: Sequence[str]) -> _Sums:
    """The columns over the prompts of both sides, in an order that both give alike."""
    names = sorted({prompt for one in (*columns.values(), *other.values()) for prompt in one.values})
    place = {prompt: n for n, prompt in enumerate(names)}
    sums = np.zeros((len(columns), len(place)))
    counts, values = np.zeros_like(sums), np.zeros(len(columns), np.int64)
    for c, column in enumerate(columns.values()):
        for prompt, found in column.values.items():
            if len(found):
                sums[c, place[prompt]] = sum(found) if column.pooled else sum(found) / len(found)
                counts[c, place[prompt]] = len(found) if column.pooled else 1
                values[c] += len(found)
    labels, inside = tuple(columns), counts > 0
    has = [labels.index(name) for name in overall if name in labels and inside[labels.index(name)].any()]
    chosen = np.array(has, np.int64)
    if OVERALL not in labels:
        labels = (*labels, OVERALL)
        inside = np.vstack([inside, inside[chosen].any(axis=0)])
        values = np.append(values, values[chosen].sum())
    return _Sums(labels, chosen, sums, counts, inside, values)
