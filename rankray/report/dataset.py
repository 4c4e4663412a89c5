"""`report.html` of a dataset: what a person looks at first.

Numbers come from all rows, read without their pictures. Pictures are of all prompts up to 1,000, as thumbnails that
share 16 MB, in the one file: a page that is opened from a disk may fetch nothing beside it. Of more prompts, or of more
than 2 GB, they are a sample: 24 prompts, spread from those on which the rewards are of one mind to those on which they
are not, and what else is in the files that hold them, which are read anyway. Where its script does not run, the page
reads the same, without finding and enlarging. `rankray browse` shows all, whatever the size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rankray import ranking, store
from rankray.data.cost import PAPER_PROMPTS, usd_for_prompts
from rankray.report.charts import Floats, ratio
from rankray.report.pages import picture, spread, write_page

SPREAD_PROMPTS = 24
"""Prompts that are sought out where not all can be shown."""
_BINS = 24
_ROWS_AT_ONCE = 16
_PICTURES_AT_ONCE = 16


@dataclass(frozen=True)
class Bounds:
    """What a page may take.

    Attributes:
        prompts: shown.
        read_bytes: read for the sake of pictures; 24 files of the paper's 58,000 prompts are 2.8 GB, and are read.
        picture_bytes: of all thumbnails together (21 MB as base64): 4 KB each of 1,000 prompts' four, which is 64 to
            128 pixels.
    """

    prompts: int = 1000
    read_bytes: int = 2_000_000_000
    picture_bytes: int = 16_000_000


BOUNDS = Bounds()


class Figures:
    """Sums over a dataset, row by row from scores alone. G generators, N rewards.

    A report of 58,000 prompts needs no picture but the few it shows, and the memory of one file's scores.

    What the dataset's ranking did not compare counts in no win and no unanimity (`compared`).

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

    def __init__(
        self,
        generators: Sequence[str],
        rewards: Sequence[str],
        how: Mapping[str, Any],
        wanted: Iterable[str] = (),
    ) -> None:
        """Nothing yet; `how` as `compared` has it."""
        self._rewards, self._how = rewards, how
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
        told = compared(scores, self._rewards, self._how)
        self.unanimity[row_id] = float(unanimity(told))
        if any(bool(c["error"]) and bool(np.isnan(c["scores"]).any()) for c in candidates):
            self.failed.add(row_id)
        if row_id in self.prompts:
            self.prompts[row_id] = row["prompt"]
        self._compare(owners, told)
        self._agree(scores)
        for owner, candidate in zip(owners, candidates, strict=True):
            if candidate["rank"] > 0:
                self.phi_sum[owner] += candidate["win_probability"]
                self.firsts[owner] += candidate["rank"] == 1
                self.counted[owner] += 1
            for reward, score in enumerate(candidate["scores"]):
                if not np.isnan(score):
                    self.scores[owner][reward].append(score)

    def _compare(self, owners: npt.NDArray[np.int64], scores: Floats) -> None:
        """Generators with each other; a generator's own samples are not."""
        order = _order_of(scores)
        others, cells = owners[:, None] != owners, (owners[:, None], owners[None, :])
        np.add.at(self.wins, cells, others * (order > 0).sum(-1))
        np.add.at(self.compared, cells, others * np.count_nonzero(~np.isnan(order), -1))

    def _agree(self, scores: Floats) -> None:
        """Rewards with each other, whatever the ranking made of them."""
        order = _order_of(scores)
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


def _order_of(scores: Floats) -> Floats:
    """float[K, K, N]: 1 where a reward prefers the first, -1 the second, 0 a tie; NaN where a score is missing."""
    found: Floats = np.sign(scores[:, None, :] - scores[None, :, :])
    return found


def compared(scores: npt.ArrayLike, rewards: Sequence[str], how: Mapping[str, Any]) -> Floats:
    """The scores that a dataset's ranking compares, float64[..., K, N]: NaN in place of those of candidates that a
    threshold left out, and of rewards that weigh nothing.

    Args:
        scores: float[..., K, N].
        rewards: names of the N.
        how: `ranking` of `dataset.json`; of a dataset that has none, empty.
    """
    weights = np.array([how.get("weights", {}).get(name, 1.0) for name in rewards])
    return np.where(weights > 0, ranking.admitted(scores, rewards, how.get("least", {})), np.nan)


RANKED_BY = {
    "win_probability": "the share of comparisons won",
    "borda": "the share of comparisons won, with half a win for a tie",
    "majority": "the pairs won by most of the rewards' weight",
    "mean_z": "the mean of z-scores within the prompt",
}


def ranked_by(how: Mapping[str, Any], rewards: Sequence[str]) -> str:
    """How a dataset was ranked, in words, with the weights of its rewards where they are not all alike."""
    name = str(how.get("aggregation", "win_probability"))
    weights = {reward: float(how.get("weights", {}).get(reward, 1.0)) for reward in rewards}
    told = ", ".join(f"{reward} {weight:g}" for reward, weight in weights.items())
    return RANKED_BY.get(name, name) + (f", by weight: {told}" if len({*weights.values()}) > 1 else "")


def drawn_with(item: Mapping[str, Any]) -> str:
    """How a generator of `dataset.json` drew: "50 steps, guidance 5, 1024 x 1024, float16"; empty where nothing tells,
    as of a class of the user's, and of what earlier versions drew."""
    how = item.get("run_with", {})
    if not {"steps", "guidance", "height", "width", "dtype"} <= how.keys():
        return ""
    size = f"{how['width']} x {how['height']}"
    return f"{how['steps']} steps, guidance {how['guidance']:g}, {size}, {how['dtype']}"


def write_report(path: str, info: dict[str, Any], bounds: Bounds = BOUNDS) -> None:
    """Writes `report.html` into the dataset at `path`.

    Args:
        path: the dataset's directory or URI; its data files are there.
        info: what its `dataset.json` says or will say.

    Raises:
        DatasetError: other rows are there than it says.
    """
    fs, place = store.filesystem(path)
    dataset = store.RankedDataset(path, info, store.data_files(fs, place), fs)
    names = [item["name"] for item in info["generators"]]
    rewards = [item["name"] for item in info["rewards"]]
    examples = info["failures"]["examples"]
    how = info.get("ranking", {})
    figures = Figures(names, rewards, how, (fault["prompt_id"] for fault in examples))
    held: dict[str, list[str]] = {}
    for file, table in zip(dataset.files, dataset.tables(), strict=True):
        for row in table.to_pylist():
            figures.add(row)
            held.setdefault(file, []).append(row["prompt_id"])
    store.require_rows(dataset, sum(map(len, held.values())))
    sought = choose(figures.unanimity, figures.failed)
    chosen = sample(sought, held, _sizes(dataset, held), bounds)
    count = sum(map(len, chosen.values()))
    limit = bounds.picture_bytes // max(1, count * max(1, info["candidates"] // max(info["rows"], 1)))
    blocks = [block for file, ids in chosen.items() for block in _blocks(dataset, file, ids, limit)]
    values = {
        "info": info,
        "rewards": rewards,
        "ranked_by": ranked_by(how, rewards),
        "standings": standings(names, figures),
        "win_matrix": [(name, figures.win_share[i].tolist()) for i, name in enumerate(names)],
        "ties": tie_share(figures),
        "agreement": [(name, figures.agreement[i].tolist()) for i, name in enumerate(rewards)],
        "histograms": histograms(names, rewards, figures),
        "shown": sorted(blocks, key=lambda block: _order(block["unanimity"], block["id"]), reverse=True),
        "usd_paper": _usd_paper(info),
        "paper_prompts": PAPER_PROMPTS,
        "failures": sorted(info["failures"]["by_model"].items()),
        "examples": [{**fault, "prompt": figures.prompts[fault["prompt_id"]]} for fault in examples],
        "drawn_with": {item["name"]: drawn_with(item) for item in info["generators"]},
        "identity": sorted(info["identity"].items()),
    }
    write_page(path, "report.html.j2", values)


def _usd_paper(info: Mapping[str, Any]) -> float | None:
    """What the paper's prompts would cost at a dataset's rate; None where the bill is not of all of its pictures and
    scores, as of one that took some from another."""
    totals = info["cost"]["totals"]
    if "reused" in info or totals["images"] < info["images"]:
        return None
    return usd_for_prompts(totals, info["candidates"] // max(info["rows"], 1))


def _sizes(dataset: store.RankedDataset, held: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Bytes of each file with its pictures, those beside the rows shared out among all rows alike."""
    each = dataset.bytes_beside(sum(map(len, held.values())))
    own = {info.path: info.size or 0 for info in dataset.fs.get_file_info(list(dataset.files))}
    return {file: own[file] + each * len(ids) for file, ids in held.items()}


def sample(
    sought: Sequence[str],
    held: Mapping[str, Sequence[str]],
    sizes: Mapping[str, float],
    bounds: Bounds = BOUNDS,
) -> dict[str, list[str]]:
    """The prompts to show, by the file that holds them: all where they are within the bounds, else those that are
    `sought` and what is in their files.

    Args:
        held: the prompts of each file.
        sizes: each file's bytes.
    """
    files = sorted(held, key=lambda file: min(held[file]))  # names tell of a run, not of what is in them
    if sum(map(len, held.values())) <= bounds.prompts and sum(sizes.values()) <= bounds.read_bytes:
        return {file: list(held[file]) for file in files}
    chosen = {file: [row_id for row_id in held[file] if row_id in sought] for file in files}
    chosen = {file: ids for file, ids in chosen.items() if ids}
    room = bounds.prompts - len(sought)
    read = sum(sizes[file] for file in chosen)
    for file in [*chosen, *spread([file for file in files if file not in chosen], bounds.prompts)]:
        if file not in chosen:
            read += sizes[file]
            if not room or read > bounds.read_bytes:
                break
        more = sorted(set(held[file]) - set(sought))[:room]
        chosen.setdefault(file, []).extend(more)
        room -= len(more)
    return chosen


def _blocks(
    dataset: store.RankedDataset, file: str, chosen: Sequence[str], limit: int
) -> Iterator[dict[str, Any]]:
    """The chosen rows of a file as the template shows them, from 16 rows at a time."""
    wanted = pa.array(chosen, pa.string())
    rewards, how = [item["name"] for item in dataset.info["rewards"]], dataset.info.get("ranking", {})

    def block(row: dict[str, Any]) -> dict[str, Any]:
        images = [candidate["image"] for candidate in row["candidates"]]
        return shown(row, rewards, how, lambda k: picture(images[k], limit))

    parquet = pq.ParquetFile(file, filesystem=dataset.fs)
    with ThreadPoolExecutor(_PICTURES_AT_ONCE) as pool:
        for group in range(parquet.num_row_groups):
            ids = parquet.read_row_group(group, columns=["prompt_id"])["prompt_id"]
            if not pc.any(pc.is_in(ids, wanted)).as_py():
                continue
            for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[group]):
                rows = batch.filter(pc.is_in(batch["prompt_id"], wanted)).to_pylist()
                yield from pool.map(block, store.located(rows, dataset.path))


def unanimity(scores: npt.ArrayLike) -> Floats:
    """How far the rewards are of one mind about a prompt's candidates.

    The mean over pairs of candidates of |votes for one - votes for the other| / votes: 1 where all rewards order
    every pair alike, 0 where they cancel out. A tie is a vote for neither; pairs without votes are left out.

    Args:
        scores: float[..., K, N], NaN where a reward failed.

    Returns:
        float64[...] in 0 .. 1, NaN where no pair has two scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    first, second = np.triu_indices(values.shape[-2], 1)
    ours, theirs = values[..., first, :], values[..., second, :]  # [..., pairs, N]
    cast = np.count_nonzero(~np.isnan(ours) & ~np.isnan(theirs), axis=-1)
    margin = np.abs((ours > theirs).sum(axis=-1) - (ours < theirs).sum(axis=-1))  # NaN compares as no vote
    balance = ratio(margin.astype(np.float64), cast.astype(np.float64))
    return ratio(np.nansum(balance, axis=-1), (cast > 0).sum(axis=-1).astype(np.float64))


def _order(unanimity: float, row_id: str) -> tuple[float, str]:
    """By unanimity, then id; NaN below all."""
    return (-1.0 if np.isnan(unanimity) else float(unanimity), row_id)


def choose(unanimity: Mapping[str, float], failed: Iterable[str], count: int = SPREAD_PROMPTS) -> list[str]:
    """Ids of the prompts to show, from those that the rewards agree on most to those that they agree on least.

    At most a quarter are prompts with failures; the others are spread evenly over the order by unanimity, both
    ends included. A function of the ids and their unanimity alone, whatever the rows' order.
    """

    def key(row_id: str) -> tuple[float, str]:
        return _order(unanimity[row_id], row_id)

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
        columns = [column[np.isfinite(column)] for column in columns]  # an axis has no place for others
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


def shown(
    row: Mapping[str, Any],
    rewards: Sequence[str],
    how: Mapping[str, Any],
    picture_of: Callable[[int], dict[str, Any]],
) -> dict[str, Any]:
    """A row as the template shows it: candidates in rank order, failed ones last.

    Args:
        how: as `compared` has it.
        picture_of: a candidate's place in the row -> `src`, `missing` and `pixelated`, as `pages.picture` has them,
            and `full`, the address of the picture in full, where there is one.
    """
    candidates = row["candidates"]
    order = sorted(range(len(candidates)), key=lambda k: candidates[k]["rank"] or len(candidates) + 1)
    scores = compared([candidate["scores"] for candidate in candidates], rewards, how)
    return {
        "id": row["prompt_id"],
        "prompt": row["prompt"],
        "list": row.get("list", ""),
        "unanimity": float(unanimity(scores)),
        "first": next((found["generator"] for found in candidates if found["rank"] == 1), ""),
        "failed": any(found["error"] for found in candidates),
        "candidates": [
            {
                **{
                    key: candidates[k][key]
                    for key in ("generator", "rank", "seed", "error", "win_probability")
                },
                "full": None,
                **picture_of(k),
                "scores": list(zip(rewards, candidates[k]["scores"], strict=True)),
            }
            for k in order
        ],
    }
