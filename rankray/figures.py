"""What a ranked dataset says about its models, as numbers: wins between generators, agreement between rewards.

Everything is added up row by row from scores alone, so a report of 58,000 prompts needs no image but the few it
shows, and the memory of one file's scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


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
