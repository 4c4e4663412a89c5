"""Reading and checking a ranked dataset on any Arrow filesystem: a directory, s3://, gs://.

Scores are read without the images beside them (Parquet keeps nested columns apart): 58,000 rows of four
candidates are 20 MB of scores under 420 GB of pictures. `validate` reads everything once, file by file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import json
import math
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rankray import ranking, schema, secret
from rankray.words import first_line

if TYPE_CHECKING:
    from PIL import Image

Item = TypeVar("Item")
Result = TypeVar("Result")

IMAGES = "images"
"""The directory within a dataset that holds its pictures, where rows name them and do not hold them."""

MAX_FAULTS = 20
"""Faults that a `DatasetError` lists; the rest is a number."""

FILES_AT_ONCE = 16
"""An object store takes 50 ms for a request, and 58,000 prompts are 3,625 files."""

ROWS_AT_ONCE = 16
"""Of a row group that is written here: 115 MB of four 1024-pixel PNGs each."""

_PLAIN = tuple(field.name for field in schema.CANDIDATE_TYPE if field.name != "image")


class DatasetError(ValueError):
    """A dataset that is not what it says: one line a fault."""


def absolute(path: str) -> str:
    """A URI as it is; a path with `~` expanded, from the root."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


S3_ATTEMPTS = 8
"""Of one request, with pauses that double up to 20 s: a store may be away for ten seconds, of which half a minute on
average is bridged (measured: 3 attempts bridge 2 s, 5 bridge 8 s, 8 bridge 27 s)."""

S3_ANSWER_S = 60.0
"""How long one answer may take: by itself pyarrow gives up after 3 s, and a busy store joins a large file's parts for
longer."""


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a path or URI, and the path within it.

    Raises:
        OSError, ValueError: pyarrow knows no such scheme, or cannot reach the place.
    """
    place = absolute(path)
    if "://" not in place:
        return pafs.LocalFileSystem(), place.rstrip("/")
    if secret.in_address(place):
        raise DatasetError(f"{secret.masked(place)} holds a password or a key; {secret.REMEDY}")
    escaped = _escaped(place)
    if "#" in place:  # pyarrow leaves out what follows, and would read and write another key
        raise DatasetError(f"{place}: a URI ends at '#'; where it is of the name, write {escaped}")
    try:
        fs, within = pafs.FileSystem.from_uri(place)
    except pa.ArrowInvalid as error:
        if escaped == place:
            raise
        raise DatasetError(
            f"{place} is no URI, in which spaces, letters beyond ASCII and such are escaped ({first_line(error)}); "
            f"write {escaped}"
        ) from None
    if not within and not isinstance(fs, pafs.LocalFileSystem):
        raise DatasetError(f"{path} names no bucket; give one, such as {path.rstrip('/')}//BUCKET/NAME")
    if isinstance(fs, pafs.S3FileSystem) and "?" not in place:
        fs = _PatientS3(
            fs.region, os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        )
    return fs, within.rstrip("/")


_OF_NAMES = "/:@!$&'()*+,;=~"
"""What stands for itself in a URI's names, beside letters and digits of ASCII."""


def _escaped(uri: str) -> str:
    """A URI whose name may be written as it is, with all escaped that cannot stand in one."""
    known = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", uri)
    return quote(known, safe=f"%?{_OF_NAMES}")


class _PatientS3(pafs.S3FileSystem):  # type: ignore[misc]
    """A store that is asked `S3_ATTEMPTS` times, by every process that it is sent to: as a URI gives it, pyarrow gives
    up after 6 s without an answer, and what it pickles of a store leaves the attempts out (0.6 s instead of 39).

    What a URI says after "?" cannot be read back from its store, so such a one stays as it is.
    """

    def __init__(self, region: str, endpoint: str | None) -> None:
        self._place = (region, endpoint)
        super().__init__(
            region=region,
            endpoint_override=endpoint,
            request_timeout=S3_ANSWER_S,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        )

    def __reduce__(self) -> tuple[type[_PatientS3], tuple[str, str | None]]:
        return _PatientS3, self._place


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or is nested thousands deep.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(path: str, fs: pafs.FileSystem) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DatasetError: it holds none: cut short, changed, nested thousands deep.
        OSError: it cannot be opened.
    """
    with fs.open_input_stream(path) as stream:
        data = stream.read()
    try:
        value = parse_json(data)
    except ValueError as error:
        raise DatasetError(f"{path} is no JSON ({error}); get it again, or let its job write it") from None
    if not isinstance(value, dict):
        raise DatasetError(f"{path} holds {type(value).__name__}, where an object is due; get it again")
    return value


def read_text(path: str, fs: pafs.FileSystem) -> str | None:
    """A file's text, what is no UTF-8 in it replaced; None where there is no such file."""
    if fs.get_file_info(path).type != pafs.FileType.File:
        return None
    with fs.open_input_stream(path) as stream:
        return bytes(stream.read()).decode("utf-8", "replace")


def read_json_lines(path: str, fs: pafs.FileSystem) -> list[dict[str, Any]]:
    """The objects of a file of ours that has one a line; none where there is no such file.

    Raises:
        DatasetError: a line holds none; it is named.
    """
    found = []
    for number, line in enumerate((read_text(path, fs) or "").splitlines(), 1):
        try:
            value = parse_json(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise DatasetError(f"{path}, line {number}: it is no JSON object; get the file again")
        found.append(value)
    return found


def write_bytes(path: str, data: bytes, fs: pafs.FileSystem) -> None:
    """Writes a file whole: under a passing name first, so that no reader sees half of it (`settle`)."""
    passing = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with fs.open_output_stream(passing) as stream:
            stream.write(data)
        settle(passing, path, fs)
    except OSError:  # as of a full disk, which a half would keep full
        with contextlib.suppress(OSError):
            fs.delete_file(passing)
        raise


def settle(passing: str, path: str, fs: pafs.FileSystem) -> None:
    """Gives a file that is written its own name, once this machine's disk has it: a power cut leaves none empty."""
    if isinstance(fs, pafs.LocalFileSystem):
        with open(passing, "rb") as written:
            os.fsync(written.fileno())
    fs.move(passing, path)


def put(path: str, data: bytes, fs: pafs.FileSystem) -> None:
    """As `write_bytes`; straight to its name in an object store, where one is there whole or not at all, and a renaming
    is a copy and a removal. On a local disk 1.7 MB took 6 to 10 ms, and 1.3 without the disk's word."""
    if isinstance(fs, pafs.LocalFileSystem):
        write_bytes(path, data, fs)
    else:
        with fs.open_output_stream(path) as stream:
            stream.write(data)


def write_text(path: str, text: str, fs: pafs.FileSystem) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode("utf-8"), fs)


def json_text(value: dict[str, Any]) -> str:
    """An object as the text of a file."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def write_json(path: str, value: dict[str, Any], fs: pafs.FileSystem) -> None:
    """Writes an object as JSON, whole."""
    write_text(path, json_text(value), fs)


SEAL = "seal"
"""The key, of what a job writes last, that has the hash of all else there: whether it was changed since can be told."""


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object as JSON has it, with its seal."""
    plain = {key: item for key, item in json.loads(json_text(dict(value))).items() if key != SEAL}
    return {**plain, SEAL: hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]}


def write_rows(
    path: str,
    rows: Iterable[dict[str, Any]],
    names: Mapping[str, Mapping[str, str]],
    fs: pafs.FileSystem,
) -> int:
    """Writes one file of a ranked dataset, whole or not at all, a few rows in memory at a time; how many.

    Args:
        path: of the file, within `fs`.
        rows: as Python values, their pictures inline; all with `details`, or none.
        names: of "generators" and "rewards": label -> revision.
    """
    found, count = iter(rows), 0
    batch = list(itertools.islice(found, ROWS_AT_ONCE))
    details = bool(batch) and "details" in batch[0]
    due = schema.ranked_schema(names["generators"], names["rewards"], details)
    with pq.ParquetWriter(f"{path}.tmp", due, filesystem=fs) as writer:
        while batch:
            writer.write_table(pa.Table.from_pylist(batch, due))
            count += len(batch)
            batch = list(itertools.islice(found, ROWS_AT_ONCE))
    settle(f"{path}.tmp", path, fs)
    return count


def complete(path: str) -> bool:
    """Whether the dataset at `path` is finished: its `dataset.json`, written last, is there."""
    fs, place = filesystem(path)
    return bool(fs.get_file_info(f"{place}/dataset.json").type == pafs.FileType.File)


@dataclass(frozen=True)
class RankedDataset:
    """A finished dataset: `info` is its `dataset.json`, `files` its Parquet files."""

    path: str
    info: dict[str, Any]
    files: tuple[str, ...]
    fs: pafs.FileSystem

    def tables(self, images: bool = False) -> Iterator[pa.Table]:
        """A table a file, with columns prompt_id, prompt, candidates; candidates without `image` unless asked, and then
        `FILES_AT_ONCE` are read side by side."""
        at_once = 1 if images else FILES_AT_ONCE
        read = functools.partial(read_table, fs=self.fs, images=images)
        with ThreadPoolExecutor(at_once) as pool:
            for start in range(0, len(self.files), at_once):
                yield from pool.map(read, self.files[start : start + at_once])

    def rows(self, images: bool = False) -> Iterator[dict[str, Any]]:
        """Every row as Python values."""
        for table in self.tables(images):
            yield from located(table.to_pylist(), self.path)

    def groups(self, file: str) -> Iterator[list[dict[str, Any]]]:
        """A file's rows, pictures and all, a row group in memory at a time."""
        parquet = pq.ParquetFile(file, filesystem=self.fs)
        for group in range(parquet.num_row_groups):
            yield located(parquet.read_row_group(group).to_pylist(), self.path)

    def ids(self, file: str) -> list[str]:
        """The prompt ids of a file's rows, in their order."""
        return row_ids(file, self.fs)

    def bytes_beside(self, rows: int) -> float:
        """Of the pictures that lie beside the dataset's `rows`, for one of them, all rows taken alike; 0.0 where
        pictures are in them."""
        place = f"{filesystem(self.path)[1]}/{IMAGES}"
        found = self.fs.get_file_info(pafs.FileSelector(place, allow_not_found=True))
        return sum(info.size or 0 for info in found) / max(1, rows)


def row_ids(file: str, fs: pafs.FileSystem) -> list[str]:
    """The prompt ids of a Parquet file's rows, in their order; nothing else of it is read."""
    ids: list[str] = read_columns(file, fs, ["prompt_id"])["prompt_id"].to_pylist()
    return ids


def read_columns(file: str, fs: pafs.FileSystem, columns: Sequence[str] | None = None) -> pa.Table:
    """Columns of a Parquet file, all by default, read by the calling thread: where Arrow has one thread of its own, as
    on nodes with OMP_NUM_THREADS=1, it takes all files' requests one after another, an encoded set's one a row."""
    return pq.ParquetFile(file, filesystem=fs).read(columns, use_threads=False)


def read_table(file: str, fs: pafs.FileSystem, images: bool = False) -> pa.Table:
    """One file of a ranked dataset; its candidates without `image` unless asked."""
    columns = None
    if not images:
        columns = ["prompt_id", "prompt", *(f"candidates.list.element.{name}" for name in _PLAIN)]
    return pq.ParquetFile(file, filesystem=fs).read(columns)


def data_files(fs: pafs.FileSystem, path: str) -> tuple[str, ...]:
    """The Parquet files of the dataset at `path` within `fs`, sorted."""
    selector = pafs.FileSelector(f"{path}/data", allow_not_found=True)
    try:
        found = fs.get_file_info(selector)
    except NotADirectoryError:
        found = []
    return tuple(sorted(info.path for info in found if info.path.endswith(".parquet")))


_OTHERS = {
    "run.json": "but a training; give the dataset that it learnt from, or another",
    "align.json": "but an alignment; its datasets are round-1/synpic and so on",
    "results.json": "but an evaluation; give a dataset",
    "ablation.json": "but an ablation; its dataset is synpic",
    "webdataset.json": "but shards; `rankray import` makes them a dataset again",
}
"""What else a directory is, by the file that is written last, and what to do about it."""


def _in_its_place(fs: pafs.FileSystem, place: str) -> str:
    """What is where a dataset was looked for."""
    kind = fs.get_file_info(place).type
    if kind == pafs.FileType.NotFound:
        return "nor anything else; look at how it is written"
    if kind == pafs.FileType.File:
        return "but a file; give the directory that holds dataset.json"
    for marker, words in _OTHERS.items():
        if fs.get_file_info(f"{place}/{marker}").type == pafs.FileType.File:
            return words
    return "as there is no dataset.json; give the output of a finished job"


def read(path: str) -> RankedDataset:
    """Opens a finished dataset; nothing but `dataset.json` is read yet.

    Raises:
        DatasetError: there is none, or it is not finished.
    """
    fs, place = filesystem(path)
    if not complete(path):
        files = data_files(fs, place)
        state = (
            f"{len(files)} data files, but no dataset.json: the job is not finished; run it again"
            if files
            else f"no dataset there, {_in_its_place(fs, place)}"
        )
        raise DatasetError(f"{absolute(path)}: {state}")
    info, files = read_json(f"{place}/dataset.json", fs), data_files(fs, place)
    dataset = RankedDataset(absolute(path), info, files, fs)
    if not files:
        require_rows(dataset, 0)
    return dataset


def require_rows(dataset: RankedDataset, found: int) -> None:
    """Refuses a dataset of which `found` rows are there, and its `dataset.json` names another number.

    Raises:
        DatasetError: so it is.
    """
    due = dataset.info.get("rows", found)
    if due != found:
        there = f"{found:,} rows in data/" if dataset.files else "no file in data/"
        raise DatasetError(f"{dataset.path}: {there}, and rows are due: {due}; copy all of it again")


@dataclass(frozen=True)
class Validation:
    """What `validate` counted."""

    rows: int
    candidates: int
    images: int
    failures: int


def validate(path: str) -> Validation:
    """Checks everything that a finished dataset claims of itself.

    Ids are unique and the prompts' hashes; candidates, seeds and revisions are the configuration's (of what was
    imported: of the models that are named, their seeds unknown, two a pair); win probability (or what
    `rankray.data.rerank` put in its place) and rank, computed again from the stored scores, agree exactly (float32);
    every image decodes to the stated size; failed candidates carry nothing but their error;
    the counts of `dataset.json` hold.

    Raises:
        DatasetError: with every fault, a line each, up to 20.
    """
    dataset = read(path)
    faults: list[str] = []
    if dataset.info.get("schema_version") != schema.SCHEMA_VERSION:
        version = dataset.info.get("schema_version")
        raise DatasetError(
            f"dataset.json: schema version {version}, this rankray reads {schema.SCHEMA_VERSION}"
        )
    seen: set[str] = set()
    rows = candidates = images = failures = 0
    with ThreadPoolExecutor() as pool:
        read_file = functools.partial(read_table, fs=dataset.fs, images=True)
        for file, table in one_ahead(read_file, dataset.files, pool):
            name = file.rpartition("/")[2]
            faults += _schema_faults(table.schema, dataset.info, name)
            if table.schema.names[:3] != ["prompt_id", "prompt", "candidates"]:
                continue
            found = located(table.to_pylist(), dataset.path)
            of_rows = pool.map(lambda row: list(_row_faults(row, dataset.info)), found)
            for row, own in zip(found, of_rows, strict=True):
                if row["prompt_id"] in seen:
                    faults.append(f"{name}: prompt_id {row['prompt_id']} stands twice")
                seen.add(row["prompt_id"])
                faults += [f"{name}: {row['prompt_id']}: {fault}" for fault in own]
                rows += 1
                candidates += len(row["candidates"])
                images += sum(candidate["image"] is not None for candidate in row["candidates"])
                failures += _failures(row["candidates"], dataset.info)
    counted = {"rows": rows, "candidates": candidates, "images": images}
    for key, count in counted.items():
        if dataset.info[key] != count:
            faults.append(f"dataset.json: {key} {dataset.info[key]}, the files hold {count}")
    if dataset.info["failures"]["total"] != failures:
        faults.append(
            f"dataset.json: {dataset.info['failures']['total']} failures, the files hold {failures}"
        )
    if faults:
        more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
        raise DatasetError("\n".join([f"{dataset.path} is not valid:", *faults[:MAX_FAULTS], *more]))
    return Validation(rows, candidates, images, failures)


def one_ahead(
    call: Callable[[Item], Result], items: Sequence[Item], pool: ThreadPoolExecutor
) -> Iterator[tuple[Item, Result]]:
    """Items with what `call` makes of them, the next one's made while one is looked at."""
    due = [pool.submit(call, item) for item in items[:1]]
    for n, item in enumerate(items):
        result = due.pop().result()
        due += [pool.submit(call, following) for following in items[n + 1 : n + 2]]
        yield item, result


def well_formed(dataset: RankedDataset) -> bool:
    """Whether its rows have the columns and the values that a dataset's have, be they true or not, and are as many as
    it says; pictures aside."""
    scores, count = len(dataset.info["rewards"]), 0
    for file in dataset.files:
        if _schema_faults(pq.read_schema(file, filesystem=dataset.fs), dataset.info, file):
            return False
        for row in read_table(file, dataset.fs).to_pylist():
            kept = [row["prompt_id"], row["prompt"], *(row["candidates"] or [None])]
            for one in row["candidates"] or ():
                kept += [one["generator"], one["rank"], one["win_probability"], *(one["scores"] or [None])]
            if None in kept or any(len(one["scores"]) != scores for one in row["candidates"]):
                return False
            count += 1
    return bool(count == dataset.info["rows"])


def partial_rewards(info: dict[str, Any]) -> list[bool]:
    """Of each reward, whether it had no say on some candidates: a NaN of it is no failure (people's votes)."""
    return [bool(reward.get("partial")) for reward in info["rewards"]]


def _failed(candidate: dict[str, Any], info: dict[str, Any]) -> list[bool]:
    """Of each reward, whether it failed for the candidate."""
    due = zip(candidate["scores"], partial_rewards(info), strict=False)  # lengths are checked elsewhere
    return [math.isnan(score) and not partial for score, partial in due]


def _failures(candidates: Sequence[dict[str, Any]], info: dict[str, Any]) -> int:
    """A candidate without an image is one failure; one with an image, one for each reward that failed."""
    return sum(1 if found["image"] is None else sum(_failed(found, info)) for found in candidates)


def _schema_faults(found: pa.Schema, info: dict[str, Any], name: str) -> list[str]:
    try:
        names = schema.schema_names(found)
    except ValueError as error:
        return [f"{name}: {error}"]
    stated = tuple(
        {item["name"]: item["revision"] for item in info[kind]} for kind in ("generators", "rewards")
    )
    faults = []
    if names != stated:
        faults.append(f"{name}: generators and rewards of the file are {names}, of dataset.json {stated}")
    known = (schema.CANDIDATE_TYPE, schema.FIRST_CANDIDATE_TYPE)
    due = [schema.ranked_schema(*names, details="details" in found.names, candidate=kind) for kind in known]
    if not any(found.equals(each) for each in due):
        faults.append(
            f"{name}: columns are not those of schema version {schema.SCHEMA_VERSION}: {found.names}"
        )
    return faults


def _row_faults(row: dict[str, Any], info: dict[str, Any]) -> Iterator[str]:
    candidates = row["candidates"]
    if row.get("details") is not None and len(row["details"]) != len(candidates):
        yield f"details of {len(row['details'])} candidates, there are {len(candidates)}"
    due_id, due_names = _due_id(row, info), _due_names(row, info)
    if row["prompt_id"] != due_id:
        yield f"prompt_id is not the hash of the prompt {row['prompt'][:40]!r}"
    if [candidate["generator"] for candidate in candidates] != due_names:
        yield f"candidates of {[c['generator'] for c in candidates]}, due are {due_names}"
        return
    for candidate, seed in zip(candidates, _due_seeds(row, info), strict=True):
        name = candidate["generator"]
        if candidate["seed"] != seed:
            yield f"{name}: seed {candidate['seed']}, due is {seed}"
        if len(candidate["scores"]) != len(info["rewards"]):
            yield f"{name}: {len(candidate['scores'])} scores for {len(info['rewards'])} rewards"
            return
        yield from (f"{name}: {fault}" for fault in _candidate_faults(candidate, info))
    yield from _ranking_faults(candidates, info)


def _due_id(row: dict[str, Any], info: dict[str, Any]) -> str:
    """The prompt's hash; where a dataset was imported with all of a caption's pairs, that of the pair."""
    due = schema.prompt_id(row["prompt"])
    imported = info.get("imported")
    if imported and imported["pairs"] == "all" and row["prompt_id"] != due:
        pictures = [image_bytes(candidate["image"]) for candidate in row["candidates"] if candidate["image"]]
        return schema.pair_id(row["prompt"], pictures)
    return due


def _due_names(row: dict[str, Any], info: dict[str, Any]) -> list[str]:
    """Generators in the dataset's order, each as often as it drew; of what was imported, any: two of them of a pair."""
    imported = info.get("imported")
    if not imported:
        return [item["name"] for item in info["generators"] for _ in range(item["samples"])]
    names = {item["name"] for item in info["generators"]}
    given = [candidate["generator"] for candidate in row["candidates"]]
    due = given[:2] if imported["format"] == "pickapic" else given
    return [name if name in names else f"one of {sorted(names)}" for name in due]


def _due_seeds(row: dict[str, Any], info: dict[str, Any]) -> list[int | None]:
    """Seeds that identify what was drawn here; nothing is known of imported pictures', and merged ones stay."""
    if imported := info.get("imported"):
        merged = imported["format"] == "merge"
        return [candidate["seed"] if merged else None for candidate in row["candidates"]]
    return [
        schema.candidate_seed(info["seed"], row["prompt_id"], item.get("seed_name") or item["name"], sample)
        for item in info["generators"]
        for sample in range(item["samples"])
    ]


def _ranking_faults(candidates: list[dict[str, Any]], info: dict[str, Any]) -> Iterator[str]:
    scores = np.array([candidate["scores"] for candidate in candidates], np.float32)
    how = info.get("ranking", {"aggregation": "win_probability", "weights": {}})
    names = [reward["name"] for reward in info["rewards"]]
    weights = [how["weights"].get(name, 1.0) for name in names]
    compared = ranking.admitted(scores, names, how.get("least", {}))
    phi = ranking.strength(how["aggregation"], compared, weights)
    stored = np.array([candidate["win_probability"] for candidate in candidates], np.float32)
    if not np.array_equal(stored, phi.astype(np.float32), equal_nan=True):
        yield f"win_probability {stored.tolist()}, the scores make it {phi.astype(np.float32).tolist()}"
    ranks = [candidate["rank"] for candidate in candidates]
    if ranks != ranking.rank(phi).tolist():
        yield f"rank {ranks}, the scores make it {ranking.rank(phi).tolist()}"


def _candidate_faults(candidate: dict[str, Any], info: dict[str, Any]) -> Iterator[str]:
    failed = _failed(candidate, info)
    told = [error is not None for error in candidate.get("score_errors") or ()]
    if any(failed) and not candidate["error"]:
        yield "a score is NaN, and no error says why"
    elif told and candidate["image"] is not None and told != failed:
        yield f"scores {candidate['scores']} and score_errors {candidate['score_errors']} do not go together"
    if candidate["image"] is None:
        if candidate["rank"] != 0 or not all(math.isnan(score) for score in candidate["scores"]):
            yield "there is no image, but a rank or a score"
        if candidate["width"] is not None or candidate["height"] is not None:
            yield "there is no image, but a size"
        return
    try:
        size = image_size(candidate["image"])
    except (OSError, ValueError, SyntaxError) as error:
        yield f"the image cannot be read: {first_line(error)}"
        return
    if size != (candidate["width"], candidate["height"]):
        yield f"the image is {size[0]}x{size[1]}, stated are {candidate['width']}x{candidate['height']}"


def image_place(path: str, dataset: str) -> str:
    """Where the picture is that a row of the dataset at `dataset` calls `path`, which is relative to the dataset.

    In datasets from before that it is from the root: of one that was moved or copied it is in its `images` now. Rows
    have a file's own name, with blanks and all, which is escaped where the dataset is named by a URI.
    """
    within = "://" not in path and not path.startswith("/")
    name = path if within else f"{IMAGES}/{path.rpartition('/')[2]}"
    own = f"{dataset.rstrip('/')}/{quote(name, safe=_OF_NAMES) if '://' in dataset else name}"
    if within:
        return own if dataset else path
    if not dataset or own == path:
        return path
    fs, place = filesystem(own)
    return own if fs.get_file_info(place).type == pafs.FileType.File else path


def located(rows: list[dict[str, Any]], dataset: str) -> list[dict[str, Any]]:
    """The rows, of the dataset at `dataset`, with their pictures' files named from the root."""
    for row in rows:
        for candidate in row["candidates"]:
            image = candidate.get("image")
            if image is not None and image["bytes"] is None and image["path"]:
                image["path"] = image_place(image["path"], dataset)
    return rows


def image_bytes(image: dict[str, Any]) -> bytes:
    """The encoded picture of a candidate's `image`, from the row or from the file that it names from the root."""
    if image["bytes"] is not None:
        return bytes(image["bytes"])
    fs, place = filesystem(image["path"])
    with fs.open_input_stream(place) as stream:
        return bytes(stream.read())


def with_images(row: dict[str, Any]) -> dict[str, Any]:
    """The row, as `located` gave it, with its pictures in it."""
    for candidate in row["candidates"]:
        if candidate["image"] is not None:
            candidate["image"] = {"bytes": image_bytes(candidate["image"]), "path": None}
    return row


def missing_images(dataset: RankedDataset) -> list[str]:
    """Places of pictures that rows name and that are not there; rows that hold their pictures miss none."""
    if dataset.info["identity"].get("images.store") == "inline":
        return []
    missing: list[str] = []
    pictures = pafs.FileSelector(f"{filesystem(dataset.path)[1]}/{IMAGES}", allow_not_found=True)
    there = {info.base_name for info in dataset.fs.get_file_info(pictures)}  # one listing for all of them
    for file in dataset.files:
        table = pq.ParquetFile(file, filesystem=dataset.fs).read(["candidates.list.element.image.path"])
        paths = [
            candidate["image"]["path"]
            for row in table.to_pylist()
            for candidate in row["candidates"]
            if candidate["image"] is not None and candidate["image"]["path"]
        ]
        for path in paths:
            if path.rpartition("/")[2] in there:
                continue
            fs, place = filesystem(image_place(path, dataset.path))
            if fs.get_file_info(place).type == pafs.FileType.NotFound:
                missing.append(path)
    return missing


def require_whole(dataset: RankedDataset) -> None:
    """Refuses a dataset of which rows are not there, or whose rows name pictures that are not.

    Raises:
        DatasetError: so it is.
    """
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        heads = pool.map(functools.partial(pq.read_metadata, filesystem=dataset.fs), dataset.files)
        require_rows(dataset, sum(head.num_rows for head in heads))
    missing = missing_images(dataset)
    if missing:
        raise DatasetError(
            f"{dataset.path}: {len(missing):,} images are missing, the first is {missing[0]}; put its {IMAGES} "
            "directory back"
        )


def opened(data: bytes) -> Image.Image:
    """A stored picture, not decoded yet.

    Raises:
        OSError, SyntaxError: it is none.
        DatasetError: it claims more pixels than Pillow decodes, 179 million.
    """
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise DatasetError(f"a picture cannot be opened ({error}); get its dataset again") from None


def shown(picture: Image.Image) -> Image.Image:
    """The picture as a viewer shows it, RGB: upright as its EXIF says, on white where it is transparent, 16 bits as 8.

    Of an animation it is the frame that is open. Colour profiles are left aside.

    Raises:
        ValueError: its values have no range that is known (modes I and F, but for a PNG's 16 bits).
        OSError, SyntaxError: it is cut short, or no picture (as Pillow says it).
    """
    from PIL import Image, ImageOps

    wide = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG")
    if picture.mode in ("I", "F") and not wide:
        raise ValueError(f"a picture of mode {picture.mode}, whose values have no range that is known")
    upright = ImageOps.exif_transpose(picture)
    if wide:
        values = np.asarray(upright).astype(np.float64)
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    layer = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def image_size(image: dict[str, Any]) -> tuple[int, int]:
    """(width, height) of a candidate's `image` as it is shown, decoded to its last pixel.

    Raises:
        OSError, ValueError, SyntaxError: it is missing, cut short, or none that `shown` takes.
    """
    with opened(image_bytes(image)) as picture:
        width, height = shown(picture).size
    return width, height
