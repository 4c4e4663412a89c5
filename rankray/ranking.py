"""From scores to a ranking: win probability, rank, gain, discount (paper sections 3.2 and 3.3, Algorithm 1).

Rewards are compared and never added: each reward votes on each pair of a prompt's candidates, so no scale, no
offset and no outlier of one reward can outweigh the others. The price is that a hair's breadth counts as much
as a landslide, and that n rewards over k candidates give at most n*(k-1)+1 distinct values: 16 for the
paper's five rewards and four models.

Shapes: B prompts (any leading dimensions), K candidates, N rewards.
"""

from __future__ import annotations

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


def gain(win_probability: npt.ArrayLike) -> Floats:
    """G = 2**phi - 1 (paper section 3.3): float[..., K] in 0 .. 1; NaN stays NaN."""
    return np.exp2(np.asarray(win_probability, dtype=np.float64)) - 1.0


def discount(rank: npt.ArrayLike) -> Floats:
    """D(tau) = ln(1 + tau) (paper section 3.3): float[..., K]; NaN for rank 0, which is no rank."""
    tau = np.asarray(rank, dtype=np.float64)
    return np.log1p(np.where(tau > 0, tau, np.nan))


def pair_weight(win_probability: npt.ArrayLike, rank: npt.ArrayLike) -> Floats:
    """Delta_ij = |G_i - G_j| * |1/D(tau_i) - 1/D(tau_j)| (paper section 3.3): float[..., K, K].

    0 where either candidate is left out of the ranking.
    """
    gains, inverse = gain(win_probability), 1.0 / discount(rank)
    weight = np.abs(gains[..., :, None] - gains[..., None, :]) * np.abs(
        inverse[..., :, None] - inverse[..., None, :]
    )
    return np.asarray(np.nan_to_num(weight, nan=0.0))
