"""From scores to a ranking: win probability and rank (paper section 3.2, Algorithm 1).

Rewards are compared and never added: each reward votes on each pair of a prompt's candidates, so no scale, no
offset and no outlier of one reward can outweigh the others. The price is that a hair's breadth counts as much
as a landslide, and that n rewards over k candidates give at most n*(k-1)+1 distinct values: 16 for the
paper's five rewards and four models.

`AGGREGATIONS` are what the field has beside the paper's: each takes scores [K, N] and a weight for each reward [N],
and gives a strength in 0 .. 1, which stands where Algorithm 1 has phi. They differ in what they let through: votes
forget by how much a reward prefers (a 0.001 counts as a 1.0), z-scores keep it and with it a reward's outliers.

Shapes: B prompts (any leading dimensions), K candidates, N rewards. NaN is a reward that failed for a candidate: it is
left out of that reward's votes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def win_probability(scores: npt.ArrayLike) -> Floats:
    """phi = C / (n * (k - 1)): the share of comparisons that a candidate wins (Algorithm 1).

    A win is strict, so a tie gives neither side one. A comparison with a NaN on either side is left out of
    numerator and denominator alike; without NaN the denominator is n * (k - 1).

    Args:
        scores: float[..., K, N], higher is better; NaN where a reward failed.

    Returns:
        float64[..., K] in 0 .. 1; NaN for a candidate with no comparison at all.

    Raises:
        ValueError: fewer than two dimensions.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim < 2:
        raise ValueError(f"scores of shape {values.shape}; give [..., candidates, rewards]")
    ours, theirs = values[..., :, None, :], values[..., None, :, :]  # [..., K, K, N]
    others = ~np.eye(values.shape[-2], dtype=bool)[..., None]
    valid = ~np.isnan(ours) & ~np.isnan(theirs) & others
    wins = ((ours > theirs) & valid).sum(axis=(-2, -1))
    comparisons = valid.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore"):
        return np.asarray(wins / np.where(comparisons == 0, np.nan, comparisons))


def rank(win_probability: npt.ArrayLike) -> Ints:
    """1 = best, by phi descending; ties keep input order; NaN ranks 0, which leaves the candidate out.

    Args:
        win_probability: float[..., K].

    Returns:
        int64[..., K].
    """
    phi = np.asarray(win_probability, dtype=np.float64)
    order = np.argsort(np.where(np.isnan(phi), np.inf, -phi), axis=-1, kind="stable")
    ranks = np.empty(phi.shape, dtype=np.int64)
    places = np.broadcast_to(np.arange(1, phi.shape[-1] + 1), phi.shape)
    np.put_along_axis(ranks, order, places, axis=-1)
    return np.asarray(np.where(np.isnan(phi), 0, ranks))


def admitted(scores: npt.ArrayLike, names: Sequence[str], least: Mapping[str, float]) -> Floats:
    """The scores without those of candidates that a threshold leaves out of the ranking: they are compared with none.

    Args:
        scores: float[..., K, N].
        names: of the N rewards.
        least: of some of them: a candidate that one scores lower, or could not score, is left out.

    Returns:
        float64[..., K, N], NaN for all of a candidate that is left out.
    """
    values = np.asarray(scores, np.float64)
    due = np.array([least.get(name, np.nan) for name in names])
    low = (~(values >= due) & ~np.isnan(due)).any(axis=-1)
    return np.where(low[..., None], np.nan, values)


def weighted_wins(scores: Floats, weights: Floats) -> Floats:
    """Share of comparisons won (paper Algorithm 1), each reward's counting by its weight; with equal weights, exactly
    `win_probability`. A tie gives neither side a win."""
    if (weights == weights[0]).all():
        return win_probability(scores)
    ours, theirs, valid = _compared(scores)
    wins = ((ours > theirs) & valid) @ weights  # [K, K]
    return _share(wins.sum(axis=1), (valid @ weights).sum(axis=1))


def borda(scores: Floats, weights: Floats) -> Floats:
    """Borda count, 0 .. 1: in each reward's list, the share of the others that stand below, ties one half; the weighted
    mean over rewards (de Borda 1781). Unlike `win_probability`, a reward that ties two gives half a win to each."""
    ours, theirs, valid = _compared(scores)
    points = np.where(valid, (ours > theirs) + 0.5 * (ours == theirs), 0.0).sum(axis=1)  # [K, N]
    others = valid.sum(axis=1)
    share = np.divide(points, others, out=np.zeros_like(points), where=others > 0)
    return _share((share * (others > 0)) @ weights, (others > 0) @ weights)


def majority(scores: Floats, weights: Floats) -> Floats:
    """Pairs won by majority, 0 .. 1: i beats j where rewards of more weight prefer it; a draw is half a win (Copeland
    1951). The one that beats all others, where there is one, always stands first, which votes summed do not promise."""
    ours, theirs, valid = _compared(scores)
    votes = (np.sign(np.where(valid, ours - theirs, 0.0))) @ weights  # [K, K]
    met = valid.any(axis=2)
    # Weights are not exact in floating point: 0.1 + 0.2 against 0.3 is a draw.
    won = np.where(np.abs(votes) < 1e-9 * weights.sum(), 0.5, votes > 0)
    return _share((won * met).sum(axis=1), met.sum(axis=1))


def mean_z(scores: Floats, weights: Floats) -> Floats:
    """Weighted mean of each reward's z-scores within the prompt, through the normal distribution function to 0 .. 1.

    A reward that scores all candidates alike says nothing: z = 0. The distribution function is ours: gains want a
    strength between 0 and 1, and it keeps the order.
    """
    present = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        count = present.sum(axis=0)
        mean = np.where(present, scores, 0.0).sum(axis=0) / np.where(count == 0, np.nan, count)
        centred = np.where(present, scores - mean, 0.0)
        deviation = np.sqrt((centred**2).sum(axis=0) / np.where(count == 0, np.nan, count))
    # Rounding alone gives equal scores a deviation of some 1e-16 of their size.
    flat = ~(deviation > 1e-12 * (1.0 + np.abs(mean)))
    z = np.where(flat, 0.0, centred / np.where(flat, 1.0, deviation))
    heard = present & (count > 1)
    mean_of_z = _share((z * heard) @ weights, heard @ weights)
    return np.array(
        [math.nan if math.isnan(v) else 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in mean_of_z]
    )


AGGREGATIONS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "win_probability": weighted_wins,
    "borda": borda,
    "majority": majority,
    "mean_z": mean_z,
}
"""Every aggregation: (scores [K, N], weights [N]) -> strength [K], NaN for a candidate that no reward could compare."""


def strength(name: str, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Floats:
    """The strength of each candidate under an aggregation: float64[K] in 0 .. 1.

    Args:
        name: of `AGGREGATIONS`.
        scores: float[K, N], higher is better; NaN where a reward failed.
        weights: float[N], not negative; None weighs all alike. A weight of 0 leaves a reward out.

    Raises:
        ValueError: an unknown name, or weights that do not fit.
    """
    if name not in AGGREGATIONS:
        raise ValueError(f"aggregation '{name}'; allowed: {', '.join(AGGREGATIONS)}")
    values = np.asarray(scores, np.float64)
    if values.ndim != 2 or not values.shape[1]:
        raise ValueError(f"scores of shape {values.shape}; give [candidates, rewards]")
    given = np.ones(values.shape[1]) if weights is None else np.asarray(weights, np.float64)
    if given.shape != values.shape[1:]:
        raise ValueError(f"{given.size} weights for {values.shape[1]} rewards; give one for each")
    if not np.isfinite(given).all() or (given < 0).any() or not given.any():
        raise ValueError(f"weights {given.tolist()}; give finite ones, not negative, and not all 0")
    return AGGREGATIONS[name](values[:, given > 0], given[given > 0])


def _compared(scores: Floats) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Ours, theirs and whether both are there, each [K, K, N]; nobody is compared with himself."""
    ours, theirs = np.broadcast_arrays(scores[:, None, :], scores[None, :, :])
    others = ~np.eye(len(scores), dtype=bool)[..., None]
    return ours, theirs, ~np.isnan(ours) & ~np.isnan(theirs) & others


def _share(part: Floats, whole: Floats) -> Floats:
    return np.asarray(part / np.where(whole == 0, np.nan, whole))
