"""The rows of a finished dataset, or of an evaluation, to look through: found by scores, pictures read when shown.

Everything but pictures is held as Arrow columns, some 0.5 KB a prompt: 60,000 prompts are 30 MB, opened and searched
without a database. A picture costs its row group, which is what Parquet reads (16 prompts as Syn-Pic writes them); the
last few stay in memory. An evaluation is many datasets, one a model and prompt list: they become rows whose candidates
are the models, ranked among each other by the list's judges (Algorithm 1).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rankray import ranking, schema, store
from rankray.config import ConfigError
from rankray.report.charts import Floats
from rankray.report.dataset import compared, unanimity
from rankray.report.pages import THUMBNAIL_PIXELS, thumbnail

Ints = npt.NDArray[np.int64]

ORDERS = {
    "": "as stored",
    "agreed": "rewards agree, first",
    "split": "rewards disagree, first",
    "prompt": "prompt, A to Z",
}
_GROUPS = 8
"""Row groups whose pictures stay: 8 of 16 prompts of four 1024 x 1024 PNG are 0.9 GB."""
_THUMBNAILS = 4000
_THREADS = 16
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Query:
    """What to find.

    Attributes:
        text: words that all stand in the prompt, or a prompt's id.
        first: the generator whose candidate is ranked first.
        mind: "one" where all rewards order all pairs alike, "split" where their unanimity is below one half.
        failed: with failures alone.
        order: of `ORDERS`.
    """

    text: str = ""
    first: str = ""
    mind: str = ""
    failed: bool = False
    order: str = ""


class Gallery:
    """What was opened. R rows; C candidates of all rows.

    Attributes:
        title: what it is, in words.
        generators: in order: generators, or models.
        generator: int[C], of each candidate its place among them.
        pictured: bool[C], whether it has a picture.
        bounds: int[R + 1], where each row's candidates begin and end.
        how: how they were ranked, as `report.dataset.compared` has it.
    """

    def __init__(
        self,
        title: str,
        table: pa.Table,
        rewards: Mapping[str, Sequence[str]],
        files: Sequence[tuple[store.RankedDataset, str]],
        places: Ints,
        how: Mapping[str, Any],
    ) -> None:
        """Counts; reads nothing.

        Args:
            table: prompt_id, prompt, list, candidates without their pictures.
            rewards: by list, the names of its candidates' scores.
            files: (dataset, file).
            places: int[C, 3], of each candidate its place in `files`, its row there, and its place in that row.
        """
        self.title, self.table, self.rewards = title, table.combine_chunks(), rewards
        self._files, self._places, self.how = files, places, how
        rows = table["candidates"].combine_chunks()
        flat = rows.flatten()
        self.bounds = np.concatenate([[0], np.cumsum(pc.list_value_length(rows).to_numpy())]).astype(np.int64)
        names = pc.dictionary_encode(pc.struct_field(flat, "generator"))
        self.generators = [str(name) for name in names.dictionary.to_pylist()]
        self.generator = names.indices.to_numpy()
        self.pictured = pc.is_valid(pc.struct_field(flat, "width")).to_numpy(zero_copy_only=False)
        row_of = np.repeat(np.arange(table.num_rows), np.diff(self.bounds))
        errors = pc.is_valid(pc.struct_field(flat, "error")).to_numpy(zero_copy_only=False)
        self._failed = np.zeros(table.num_rows, bool)
        self._failed[row_of[errors]] = True
        best = pc.struct_field(flat, "rank").to_numpy() == 1
        self._first = np.full(table.num_rows, -1)
        self._first[row_of[best]] = self.generator[best]
        self._unanimity = self._minds(pc.struct_field(flat, "scores"))
        self._groups: dict[tuple[int, int], Future[list[Any]]] = {}
        self._lock, self._pool = Lock(), ThreadPoolExecutor(_THREADS)
        self._ends = functools.lru_cache(maxsize=None)(self._row_groups)
        self.thumbnail = functools.lru_cache(maxsize=_THUMBNAILS)(self._thumbnail)

    def _minds(self, scores: pa.ListArray) -> Floats:
        """float[R]: each row's unanimity; rows of equally many candidates and rewards at once."""
        values, starts = scores.flatten().to_numpy(), np.zeros(len(scores) + 1, np.int64)
        starts[1:] = np.cumsum(pc.list_value_length(scores).to_numpy())
        found = np.full(self.table.num_rows, np.nan)
        lists, count = np.array(self.table["list"].to_pylist()), np.diff(self.bounds)
        for name, k in {(str(name), int(k)) for name, k in zip(lists, count, strict=True)}:
            rows = np.flatnonzero((lists == name) & (count == k))
            for part in np.split(rows, range(_ROWS_AT_ONCE, rows.size, _ROWS_AT_ONCE)):
                candidates = self.bounds[part][:, None] + np.arange(k)
                cells = starts[candidates][..., None] + np.arange(len(self.rewards[name]))
                found[part] = unanimity(compared(values[cells], self.rewards[name], self.how))
        return found

    @property
    def rows(self) -> int:
        """How many."""
        return int(self.table.num_rows)

    def row(self, n: int) -> dict[str, Any]:
        """prompt_id, prompt, list and candidates of one row."""
        found: dict[str, Any] = self.table.slice(n, 1).to_pylist()[0]
        return found

    def named(self) -> Iterator[tuple[dict[str, Any], Sequence[str]]]:
        """Every row with the names of its rewards."""
        for batch in self.table.to_batches(_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                yield row, self.rewards[row["list"]]

    def find(self, asked: Query) -> Ints:
        """Rows that are asked for, in the order that is."""
        prompts, keep = self.table["prompt"], np.ones(self.rows, bool)
        by_id = pc.equal(self.table["prompt_id"], asked.text.strip()).to_numpy()
        for word in () if by_id.any() else asked.text.split():
            keep &= pc.match_substring(prompts, word, ignore_case=True).to_numpy()
        keep &= by_id | ~by_id.any()
        if asked.first:
            place = self.generators.index(asked.first) if asked.first in self.generators else -2
            keep &= self._first == place
        if asked.mind:
            keep &= self._unanimity == 1 if asked.mind == "one" else self._unanimity < 0.5
        if asked.failed:
            keep &= self._failed
        rows: Ints = np.flatnonzero(keep)
        mind = self._unanimity[rows]
        if asked.order == "prompt":
            order = pc.sort_indices(pc.utf8_lower(prompts.take(rows))).to_numpy()
        elif asked.order in ("agreed", "split"):  # NaN goes last, whichever way
            order = np.argsort(-mind if asked.order == "agreed" else mind, kind="stable")
        else:
            return rows
        found: Ints = rows[order]
        return found

    def picture(self, n: int, k: int) -> bytes:
        """The encoded picture of a row's candidate, as it is stored.

        Raises:
            OSError, ValueError: there is none, or it cannot be read.
        """
        file, row, place = self._places[self.bounds[n] + k]
        group = int(np.searchsorted(self._ends(int(file)), row, side="right"))
        start = self._ends(int(file))[group - 1] if group else 0
        image = self._images(int(file), group)[row - start][place]
        if image is None:
            raise ValueError("no picture")
        return store.image_bytes(image)

    def _thumbnail(self, n: int, k: int) -> tuple[str, bytes]:
        kind, data = thumbnail(self.picture(n, k), sides=(THUMBNAIL_PIXELS,))
        return f"image/{kind}", data

    def _row_groups(self, file: int) -> Ints:
        """Where each row group of a file ends."""
        metadata = pq.read_metadata(self._files[file][1], filesystem=self._files[file][0].fs)
        return np.cumsum([metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)])

    def _images(self, file: int, group: int) -> list[Any]:
        """A row group's pictures, by row and candidate; those that ask for it at the same time wait for one reading."""
        key = (file, group)
        with self._lock:
            found = self._groups.pop(key, None) or self._pool.submit(self._read, file, group)
            self._groups[key] = found  # the last used stands last
            while len(self._groups) > _GROUPS:
                self._groups.pop(next(iter(self._groups)))
        try:
            return found.result()
        except (OSError, ValueError):
            with self._lock:
                self._groups.pop(key, None)
            raise

    def _read(self, file: int, group: int) -> list[Any]:
        dataset, name = self._files[file]
        columns = [f"candidates.list.element.image.{leaf}" for leaf in ("bytes", "path")]
        table = pq.ParquetFile(name, filesystem=dataset.fs).read_row_group(group, columns=columns)
        rows = store.located(table.to_pylist(), dataset.path)
        return [[candidate["image"] for candidate in row["candidates"]] for row in rows]


def open_gallery(path: str) -> Gallery:
    """A finished dataset's rows, or those of an evaluation.

    Raises:
        ConfigError: neither is there.
    """
    try:
        fs, place = store.filesystem(path)
        if fs.get_file_info(f"{place}/results.json").type == pafs.FileType.File:
            return _of_evaluation(
                store.absolute(path).rstrip("/"), store.read_json(f"{place}/results.json", fs)
            )
        return _of_dataset(store.read(path))
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} cannot be looked at ({error}); give a dataset or an evaluation") from None


def _of_dataset(dataset: store.RankedDataset) -> Gallery:
    tables = list(dataset.tables())
    store.require_rows(dataset, sum(found.num_rows for found in tables))
    places = []
    for file, found in enumerate(tables):
        counts = pc.list_value_length(found["candidates"]).to_numpy()
        inside = [np.arange(count) for count in counts]
        places.append(np.zeros((int(counts.sum()), 3), np.int64))
        places[-1][:, 0], places[-1][:, 1] = file, np.repeat(np.arange(len(counts)), counts)
        places[-1][:, 2] = np.concatenate([np.zeros(0, np.int64), *inside])
    table = pa.concat_tables([found.select(["prompt_id", "prompt", "candidates"]) for found in tables])
    table = table.append_column("list", pa.array([""] * table.num_rows))
    names = {"": [reward["name"] for reward in dataset.info["rewards"]]}
    files = [(dataset, file) for file in dataset.files]
    how = dataset.info.get("ranking", {})
    return Gallery("Ranked dataset", table, names, files, np.concatenate(places), how)


_EVALUATED = pa.struct([f for f in schema.CANDIDATE_TYPE if f.name not in ("image", "score_errors")])


def _of_evaluation(path: str, results: Mapping[str, Any]) -> Gallery:
    """All lists' prompts, each with all models' pictures of it."""
    files: list[tuple[store.RankedDataset, str]] = []
    rewards: dict[str, list[str]] = {}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for found in results["sets"]:
        name, dataset = found["set"], store.read(f"{path}/sets/{found['model']}/{found['set']}")
        due = rewards.setdefault(name, [reward["name"] for reward in dataset.info["rewards"]])
        own = [reward["name"] for reward in dataset.info["rewards"]]
        for file in dataset.files:
            files.append((dataset, file))
            for n, row in enumerate(store.read_table(file, dataset.fs).to_pylist()):
                key = (name, row["prompt_id"])
                into = rows.setdefault(
                    key,
                    {"prompt_id": key[1], "prompt": row["prompt"], "list": name, "candidates": [], "at": []},
                )
                for k, candidate in enumerate(row["candidates"]):
                    scores = dict(zip(own, candidate["scores"], strict=True))
                    candidate["generator"] = found["model"]
                    candidate["scores"] = [scores.get(reward, float("nan")) for reward in due]
                    into["candidates"].append(candidate)
                    into["at"].append((len(files) - 1, n, k))
    for row in rows.values():
        phi = ranking.win_probability([candidate["scores"] for candidate in row["candidates"]])
        for candidate, value, place in zip(row["candidates"], phi, ranking.rank(phi), strict=True):
            candidate.update(win_probability=float(value), rank=int(place))
    places = np.array([at for row in rows.values() for at in row.pop("at")], np.int64).reshape(-1, 3)
    fields = [("prompt_id", pa.string()), ("prompt", pa.string()), ("list", pa.string())]
    table = pa.Table.from_pylist(
        list(rows.values()), pa.schema([*fields, ("candidates", pa.list_(_EVALUATED))])
    )
    return Gallery("Evaluation", table, rewards, files, places, how={})
