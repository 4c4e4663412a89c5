"""`report.html` of a dataset: what a person looks at first. No script.

Numbers come from all rows, read without their pictures; pictures from a sample of 24 prompts, spread from those on
which the rewards are of one mind to those on which they are not.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rankray import store
from rankray.data.cost import PAPER_PROMPTS, usd_for_prompts
from rankray.report.charts import Floats, ratio
from rankray.report.pages import PICTURE_BYTES, picture, spread, write_page

SHOWN_PROMPTS = 24
_BINS = 24
_ROWS_AT_ONCE = 16
_FILES_AT_ONCE = 16
"""An object store takes 50 ms for a request, and 58,000 prompts are 3,625 files."""


class Figures:
    """Sums over a dataset, row by row from scores alone. G generators, N rewards.

    A report of 58,000 prompts needs no picture but the few it shows, and the memory of one file's scores.

    Attributes:
        wins: float[G, G], how often a picture of the row's generator beat one of the column's (prompt by
            prompt, reward by reward); ties count in `compared` alone.
        compared: float[G, G], how many such comparisons there were.
        agreed: float[N, N], pairs of candidates that both rewards order alike, out of
        judged: float[N, N], pairs that both rewards order at all (ties and failures left out).
        phi_sum, firsts, counted: float[G], sum of win probabilities, first ranks, ranked candidates.
        scores: [G][N] lists of raw scores, NaN left out.
        unanimity: prompt id -> `unanimity` of its scores.
        failed: ids of prompts with a failure.
        prompts: text of those prompts whose ids are `wanted`.
    """

    def __init__(self, generators: Sequence[str], rewards: Sequence[str], wanted: Iterable[str] = ()) -> None:
        """Nothing yet."""
        g, n = len(generators), len(rewards)
        self.wins, self.compared = np.zeros((g, g)), np.zeros((g, g))
        self.agreed, self.judged = np.zeros((n, n)), np.zeros((n, n))
        self.phi_sum, self.firsts, self.counted = np.zeros(g), np.zeros(g), np.zeros(g)
        self.scores: list[list[list[float]]] = [[[] for _ in rewards] for _ in generators]
        self.unanimity: dict[str, float] = {}
        self.failed: set[str] = set()
        self.prompts = dict.fromkeys(wanted, "")
        self._places = {name: i for i, name in enumerate(generators)}

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts one row, as `rankray.store.RankedDataset.rows` gives it."""
        row_id, candidates = row["prompt_id"], row["candidates"]
        owners = np.array([self._places[candidate["generator"]] for candidate in candidates])
        scores = np.array([candidate["scores"] for candidate in candidates], np.float64)  # [K, N]
        self.unanimity[row_id] = unanimity(scores)
        if any(candidate["error"] for candidate in candidates):
            self.failed.add(row_id)
        if row_id in self.prompts:
            self.prompts[row_id] = row["prompt"]
        self._compare(owners, scores)
        for owner, candidate in zip(owners, candidates, strict=True):
            if candidate["rank"] > 0:
                self.phi_sum[owner] += candidate["win_probability"]
                self.firsts[owner] += candidate["rank"] == 1
                self.counted[owner] += 1
            for reward, score in enumerate(candidate["scores"]):
                if not np.isnan(score):
                    self.scores[owner][reward].append(score)

    def _compare(self, owners: npt.NDArray[np.int64], scores: Floats) -> None:
        """Candidates with each other; a generator's own samples are not compared in `wins`."""
        order = np.sign(scores[:, None, :] - scores[None, :, :])  # [K, K, N]; NaN where one is missing
        others, cells = owners[:, None] != owners, (owners[:, None], owners[None, :])
        np.add.at(self.wins, cells, others * (order > 0).sum(-1))
        np.add.at(self.compared, cells, others * np.count_nonzero(~np.isnan(order), -1))
        pairs = order[np.triu_indices(len(order), 1)]  # [pairs, N]
        ordered = ~np.isnan(pairs) & (pairs != 0)
        both = ordered[:, :, None] & ordered[:, None, :]
        self.judged += both.sum(0)
        self.agreed += (both & (pairs[:, :, None] == pairs[:, None, :])).sum(0)

    @property
    def win_share(self) -> Floats:
        """float[G, G]: share of comparisons that the row's generator wins; NaN where there were none."""
        return ratio(self.wins, self.compared)

    @property
    def agreement(self) -> Floats:
        """float[N, N]: share of candidate pairs that two rewards order alike; 0.5 is chance."""
        return ratio(self.agreed, self.judged)


def write_report(path: str, info: dict[str, Any]) -> None:
    """Writes `report.html` into the dataset at `path`.

    Args:
        path: the dataset's directory or URI; its data files are there.
        info: what its `dataset.json` says or will say.
    """
    fs, place = store.filesystem(path)
    files = store.data_files(fs, place)
    names = [item["name"] for item in info["generators"]]
    rewards = [item["name"] for item in info["rewards"]]
    examples = info["failures"]["examples"]
    figures = Figures(names, rewards, (fault["prompt_id"] for fault in examples))
    for row in _rows(files, fs):
        figures.add(row)
    chosen = choose(figures.unanimity, figures.failed)
    pictures = len(chosen) * max(1, info["candidates"] // max(info["rows"], 1))
    blocks = {
        row["prompt_id"]: shown(row, rewards, PICTURE_BYTES // max(1, pictures))
        for row in _with_images(path, files, fs, chosen)
    }
    values = {
        "info": info,
        "rewards": rewards,
        "standings": standings(names, figures),
        "win_matrix": [(name, figures.win_share[i].tolist()) for i, name in enumerate(names)],
        "ties": tie_share(figures),
        "agreement": [(name, figures.agreement[i].tolist()) for i, name in enumerate(rewards)],
        "histograms": histograms(names, rewards, figures),
        "shown": [blocks[row_id] for row_id in chosen],
        "usd_paper": usd_for_prompts(info["cost"]["totals"], info["candidates"] // max(info["rows"], 1)),
        "paper_prompts": PAPER_PROMPTS,
        "failures": sorted(info["failures"]["by_model"].items()),
        "examples": [{**fault, "prompt": figures.prompts[fault["prompt_id"]]} for fault in examples],
        "identity": sorted(info["identity"].items()),
    }
    write_page(path, "report.html.j2", values)


def _rows(files: Sequence[str], fs: pafs.FileSystem) -> Iterator[dict[str, Any]]:
    """All rows without their images, in the files' order."""
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for start in range(0, len(files), _FILES_AT_ONCE):
            batch = files[start : start + _FILES_AT_ONCE]
            for table in pool.map(functools.partial(store.read_table, fs=fs), batch):
                yield from table.to_pylist()


def _with_images(
    path: str, files: Sequence[str], fs: pafs.FileSystem, chosen: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The chosen rows with their images, in the files' order, from 16 rows at a time."""
    wanted = pa.array(chosen, pa.string())
    for file in files:
        ids = pq.read_table(file, columns=["prompt_id"], filesystem=fs)["prompt_id"]
        if not pc.any(pc.is_in(ids, wanted)).as_py():
            continue
        for batch in pq.ParquetFile(file, filesystem=fs).iter_batches(batch_size=_ROWS_AT_ONCE):
            for row in pc.indices_nonzero(pc.is_in(batch["prompt_id"], wanted)).to_pylist():
                yield from store.located(batch.slice(row, 1).to_pylist(), path)


def unanimity(scores: npt.ArrayLike) -> float:
    """How far the rewards are of one mind about a prompt's candidates.

    The mean over pairs of candidates of |votes for one - votes for the other| / votes: 1 where all rewards order
    every pair alike, 0 where they cancel out. A tie is a vote for neither; pairs without votes are left out.

    Args:
        scores: float[K, N], NaN where a reward failed.

    Returns:
        0 .. 1, or NaN where no pair has two scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    first, second = np.triu_indices(values.shape[0], 1)
    ours, theirs = values[first], values[second]  # [pairs, N]
    cast = np.count_nonzero(~np.isnan(ours) & ~np.isnan(theirs), axis=-1)
    margin = np.abs((ours > theirs).sum(axis=-1) - (ours < theirs).sum(axis=-1))  # NaN compares as no vote
    balance = margin[cast > 0] / cast[cast > 0]
    return float(balance.mean()) if balance.size else float("nan")


def choose(unanimity: Mapping[str, float], failed: Iterable[str], count: int = SHOWN_PROMPTS) -> list[str]:
    """Ids of the prompts to show, from those that the rewards agree on most to those that they agree on least.

    At most a quarter are prompts with failures; the others are spread evenly over the order by unanimity, both
    ends included. A function of the ids and their unanimity alone, whatever the rows' order.
    """

    def key(row_id: str) -> tuple[float, str]:
        value = unanimity[row_id]
        return (-1.0 if np.isnan(value) else value, row_id)

    order = sorted(unanimity, key=key, reverse=True)
    faulty = set(failed)
    chosen = spread([row_id for row_id in order if row_id in faulty], max(1, count // 4))
    chosen += spread([row_id for row_id in order if row_id not in faulty], count - len(chosen))
    return sorted(chosen, key=key, reverse=True)


def tie_share(figures: Figures) -> float | None:
    """The share of comparisons between generators that neither wins; None where there are none."""
    compared = figures.compared.sum() / 2  # each stands in two cells
    return float(1.0 - figures.wins.sum() / compared) if compared else None


def standings(names: Sequence[str], figures: Figures) -> list[dict[str, Any]]:
    """A row a generator, best first: mean win probability, and its share of first ranks."""
    prompts = figures.firsts.sum()
    rows = [
        {
            "name": name,
            "phi": figures.phi_sum[i] / figures.counted[i] if figures.counted[i] else None,
            "firsts": figures.firsts[i] / prompts if prompts else None,
        }
        for i, name in enumerate(names)
    ]
    return sorted(rows, key=lambda row: -(row["phi"] if row["phi"] is not None else -1.0))


def histograms(names: Sequence[str], rewards: Sequence[str], figures: Figures) -> list[dict[str, Any]]:
    """For each reward, each generator's scores as the points of a 100 x 24 SVG area over one common axis."""
    found = []
    for j, reward in enumerate(rewards):
        columns = [np.array(owner[j], np.float64) for owner in figures.scores]
        columns = [
            column[np.isfinite(column)] for column in columns
        ]  # an infinite score has no place on an axis
        every = np.concatenate(columns)
        if not every.size:
            continue
        low, high = float(every.min()), float(every.max())
        edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
        series = []
        for i, name in enumerate(names):
            counts, _ = np.histogram(columns[i], edges)
            top = counts.max() or 1
            points = " ".join(
                f"{100 * (b + 0.5) / _BINS:.1f},{24 - 22 * c / top:.1f}" for b, c in enumerate(counts)
            )
            mean = float(columns[i].mean()) if columns[i].size else None
            series.append({"name": name, "points": f"0,24 {points} 100,24", "mean": mean})
        found.append({"reward": reward, "low": low, "high": high, "series": series})
    return found


def shown(row: dict[str, Any], rewards: Sequence[str], picture_bytes: int) -> dict[str, Any]:
    """A row as the template shows it: candidates in rank order, failed ones last."""
    candidates = sorted(row["candidates"], key=lambda c: c["rank"] or len(row["candidates"]) + 1)
    return {
        "id": row["prompt_id"],
        "prompt": row["prompt"],
        "unanimity": unanimity([candidate["scores"] for candidate in candidates]),
        "candidates": [
            {
                **{key: candidate[key] for key in ("generator", "rank", "seed", "error", "win_probability")},
                **picture(candidate["image"], picture_bytes),
                "scores": list(zip(rewards, candidate["scores"], strict=True)),
            }
            for candidate in candidates
        ],
    }
