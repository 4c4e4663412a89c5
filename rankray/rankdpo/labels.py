"""Whose judgement a run learns from: another labelling of a dataset's candidates, made from its stored scores.

A dataset keeps every reward's raw scores, so one set serves every labelling that an ablation compares (paper Table 4):
one reward instead of five, one model's pictures instead of four models', no judgement at all. Pictures are encoded once
for all of them; the cost is a ranking of K candidates for each row that is read, 0.1 ms for eleven.

    K candidates, N rewards
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rankray import ranking
from rankray.config import ConfigError, nearest

MOST = 127
"""Candidates of a row: its ranks are kept in eight bits."""
RANDOM, WIN_PROBABILITY = "random", "win_probability"


@dataclass(frozen=True)
class Labelling:
    """A labelling of one dataset.

    Attributes:
        candidates: places in a row that take part.
        rewards: places among the scores that are asked.
        aggregation: of `rankray.ranking.AGGREGATIONS`, or "random".
        prompt_share: of prompts that take part, 0 to 1.
        seed: of random labels.
        pairs: "all", or those "within" one generator's pictures or "across" two generators' alone.
        generators: of each place in a row, by number.
        weights: of `rewards`; alike where there are none.
    """

    candidates: tuple[int, ...]
    rewards: tuple[int, ...]
    aggregation: str
    prompt_share: float
    seed: int
    pairs: str = "all"
    generators: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    def comparable(self, count: int) -> npt.NDArray[np.bool_] | None:
        """Which of a row's first `count` places may be compared: bool[K, K]; None where all may."""
        if self.pairs == "all":
            return None
        drawn = np.array(self.generators[:count])
        found: npt.NDArray[np.bool_] = (drawn[:, None] == drawn[None, :]) == (self.pairs == "within")
        return found

    def takes(self, prompt_id: str) -> bool:
        """Whether a prompt takes part: its id is a hash, so a share of ids is a random share of prompts."""
        return int(prompt_id[:8], 16) < self.prompt_share * 2**32

    def taken(self, prompt_ids: Iterable[str]) -> list[str]:
        """Those of the prompts that take part.

        Raises:
            ConfigError: none does.
        """
        found = [row_id for row_id in prompt_ids if self.takes(row_id)]
        if not found:
            raise ConfigError(
                f"labels.prompt_share = {self.prompt_share:g} leaves no prompt of the dataset; raise it"
            )
        return found

    def taking(self, rank: npt.NDArray[np.integer]) -> list[int]:
        """Places of a row's candidates that take part, by the dataset's own ranks int[K], whatever rewards say."""
        return [place for place in self.candidates if place < len(rank) and rank[place] > 0]

    def __call__(
        self, prompt_id: str, scores: npt.ArrayLike, rank: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Win probability float32[K] and rank int64[K] of a row's candidates; those left out have NaN and 0.

        Args:
            prompt_id: of the row.
            scores: float[K, N], all of the dataset's rewards.
            rank: int[K], the dataset's own; a candidate that it left out (0) stays so.
        """
        values, old = np.asarray(scores, np.float64), np.asarray(rank)
        strength = np.full(len(old), np.nan)
        ranks = np.zeros(len(old), np.int64)
        taking = self.taking(old)
        if len(taking) > 1:
            strength[taking] = self._strength(prompt_id, values[taking][:, list(self.rewards)])
            ranks[taking] = ranking.rank(strength[taking])
        return strength.astype(np.float32), ranks

    def _strength(self, prompt_id: str, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if self.aggregation == RANDOM:
            digest = hashlib.sha256(f"random label\0{self.seed}\0{prompt_id}".encode()).digest()
            drawn = np.random.default_rng(int.from_bytes(digest[:8], "big")).random((len(scores), 1))
            return ranking.win_probability(drawn)
        return ranking.strength(self.aggregation, scores, self.weights or None)


def resolve(
    info: Mapping[str, Any],
    seed: int,
    *,
    rewards: Sequence[str] = (),
    aggregation: str | None = None,
    samples: Mapping[str, int] | None = None,
    prompt_share: float = 1.0,
    pairs: str = "all",
) -> Labelling | None:
    """The labelling that these settings (`[labels]`) mean on the dataset whose `dataset.json` is `info`; None for the
    dataset's own. What names neither rewards nor another aggregation ranks as the dataset does, by its aggregation and
    weights: a filter that has no vote there gets none here.

    Raises:
        ConfigError: a name that the dataset lacks (nearest named), more samples than it has, one candidate alone, or no
            pair that may be compared.
    """
    if (aggregation, prompt_share, pairs) == (None, 1.0, "all") and not rewards and not samples:
        return None
    names = [item["name"] for item in info["rewards"]]
    for name in rewards:
        if name not in names:
            raise ConfigError(
                f"labels.rewards: the dataset has no reward '{name}'{nearest(name, names)}; it has {', '.join(names)}"
            )
    if info.get("imported") and (samples or pairs != "all"):
        raise ConfigError(
            "labels.samples and labels.pairs go by a generator's place in the row, and rows that were imported have no "
            "such places; leave them out"
        )
    places = tuple(range(MOST)) if info.get("imported") else _places(samples or {}, info["generators"])
    if len(places) < 2:
        raise ConfigError(
            "labels.samples leave one candidate a prompt, and a preference takes two; name more of them"
        )
    columns = tuple(names.index(name) for name in rewards or names)
    drawn = tuple(n for n, item in enumerate(info["generators"]) for _ in range(int(item.get("samples", 1))))
    how: Mapping[str, Any] = {"aggregation": aggregation or WIN_PROBABILITY, "weights": {}}
    if not rewards and aggregation is None:
        how = info.get("ranking", how)
    weights = tuple(float(how["weights"].get(name, 1.0)) for name in rewards or names)
    found = Labelling(places, columns, how["aggregation"], prompt_share, seed, pairs, drawn, weights)
    comparable, same = found.comparable(len(drawn)), np.eye(len(drawn), dtype=bool)
    if comparable is not None and not (comparable & ~same)[np.ix_(places, places)].any():
        needed = "two samples of one generator" if pairs == "within" else "samples of two generators"
        raise ConfigError(
            f"labels.pairs = '{pairs}' compares {needed}, and none take part; name more of them"
        )
    return found


def _places(samples: Mapping[str, int], generators: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Candidates' places: of each named generator the first so many samples, of all where none is named."""
    there = {item["name"]: int(item.get("samples", 1)) for item in generators}
    for name, count in samples.items():
        if name not in there:
            known = ", ".join(there)
            raise ConfigError(
                f"labels.samples: the dataset has no generator '{name}'{nearest(name, there)}; it has {known}"
            )
        if not 1 <= count <= there[name]:
            raise ConfigError(
                f"labels.samples.{name} = {count}; the dataset has {there[name]} a prompt, take 1 to {there[name]}"
            )
    wanted, place = samples or there, 0
    found: list[int] = []
    for name, count in there.items():
        found += range(place, place + wanted.get(name, 0))
        place += count
    return tuple(found)
