"""Reading and checking a ranked dataset on any Arrow filesystem: a directory, s3://, gs://.

Scores are read without the images beside them (Parquet keeps nested columns apart): 58,000 rows of four
candidates are 20 MB of scores under 420 GB of pictures. `validate` reads everything once, file by file.
"""

from __future__ import annotations

import io
import json
import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rankray import ranking, schema

if TYPE_CHECKING:
    from PIL import Image

IMAGES = "images"
"""The directory within a dataset that holds its pictures, where rows name them and do not hold them."""

MAX_FAULTS = 20
"""Faults that a `DatasetError` lists; the rest is a number."""

_PLAIN = tuple(field.name for field in schema.CANDIDATE_TYPE if field.name != "image")


class DatasetError(ValueError):
    """A dataset that is not what it says: one line a fault."""


def absolute(path: str) -> str:
    """An URI as it is; a path with `~` expanded, from the root."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a path or URI, and the path within it.

    Raises:
        OSError, ValueError: pyarrow knows no such scheme, or cannot reach the place.
    """
    place = absolute(path)
    found: tuple[pafs.FileSystem, str]
    found = pafs.FileSystem.from_uri(place) if "://" in place else (pafs.LocalFileSystem(), place)
    return found[0], found[1].rstrip("/")


def read_json(path: str, fs: pafs.FileSystem) -> dict[str, Any]:
    """The object in a JSON file."""
    with fs.open_input_stream(path) as stream:
        value: dict[str, Any] = json.loads(stream.read())
    return value


def write_text(path: str, text: str, fs: pafs.FileSystem) -> None:
    """Writes a file whole: under a passing name first, so that no reader sees half of it."""
    passing = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    with fs.open_output_stream(passing) as stream:
        stream.write(text.encode("utf-8"))
    fs.move(passing, path)


def write_json(path: str, value: dict[str, Any], fs: pafs.FileSystem) -> None:
    """Writes an object as JSON, whole."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", fs)


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
        """A table a file, with columns prompt_id, prompt, candidates; candidates without `image` unless asked."""
        for file in self.files:
            yield read_table(file, self.fs, images)

    def rows(self, images: bool = False) -> Iterator[dict[str, Any]]:
        """Every row as Python values."""
        for table in self.tables(images):
            yield from located(table.to_pylist(), self.path)


def read_table(file: str, fs: pafs.FileSystem, images: bool = False) -> pa.Table:
    """One file of a ranked dataset; its candidates without `image` unless asked."""
    columns = None
    if not images:
        columns = ["prompt_id", "prompt", *(f"candidates.list.element.{name}" for name in _PLAIN)]
    return pq.ParquetFile(file, filesystem=fs).read(columns)


def data_files(fs: pafs.FileSystem, path: str) -> tuple[str, ...]:
    """The Parquet files of the dataset at `path` within `fs`, sorted."""
    selector = pafs.FileSelector(f"{path}/data", allow_not_found=True)
    return tuple(sorted(info.path for info in fs.get_file_info(selector) if info.path.endswith(".parquet")))


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
            else ("no dataset there")
        )
        raise DatasetError(f"{absolute(path)}: {state}")
    return RankedDataset(absolute(path), read_json(f"{place}/dataset.json", fs), data_files(fs, place), fs)


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
    imported: two candidates a row, of the models that are named, their seeds unknown); win probability (or what
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
    for file in dataset.files:
        table = read_table(file, dataset.fs, images=True)
        name = file.rpartition("/")[2]
        faults += _schema_faults(table.schema, dataset.info, name)
        if table.schema.names[:3] != ["prompt_id", "prompt", "candidates"]:
            continue
        for row in located(table.to_pylist(), dataset.path):
            if row["prompt_id"] in seen:
                faults.append(f"{name}: prompt_id {row['prompt_id']} stands twice")
            seen.add(row["prompt_id"])
            faults += [f"{name}: {row['prompt_id']}: {fault}" for fault in _row_faults(row, dataset.info)]
            rows += 1
            candidates += len(row["candidates"])
            images += sum(candidate["image"] is not None for candidate in row["candidates"])
            failures += _failures(row["candidates"])
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


def _failures(candidates: Sequence[dict[str, Any]]) -> int:
    """A candidate without an image is one failure; one with an image, one for each NaN score."""
    return sum(
        1 if candidate["image"] is None else sum(math.isnan(score) for score in candidate["scores"])
        for candidate in candidates
    )


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
        yield from (f"{name}: {fault}" for fault in _candidate_faults(candidate))
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
    """Generators in the dataset's order, each as often as it drew; of an imported pair, any two of them."""
    if not info.get("imported"):
        return [item["name"] for item in info["generators"] for _ in range(item["samples"])]
    names = {item["name"] for item in info["generators"]}
    given = [candidate["generator"] for candidate in row["candidates"]]
    return [name if name in names else f"one of {sorted(names)}" for name in given[:2]]


def _due_seeds(row: dict[str, Any], info: dict[str, Any]) -> list[int | None]:
    """Seeds that identify what was drawn here; nothing is known of imported pictures'."""
    if info.get("imported"):
        return [None] * len(row["candidates"])
    return [
        schema.candidate_seed(info["seed"], row["prompt_id"], item.get("seed_name") or item["name"], sample)
        for item in info["generators"]
        for sample in range(item["samples"])
    ]


def _ranking_faults(candidates: list[dict[str, Any]], info: dict[str, Any]) -> Iterator[str]:
    scores = np.array([candidate["scores"] for candidate in candidates], np.float32)
    how = info.get("ranking", {"aggregation": "win_probability", "weights": {}})
    weights = [how["weights"].get(reward["name"], 1.0) for reward in info["rewards"]]
    phi = ranking.strength(how["aggregation"], scores, weights)
    stored = np.array([candidate["win_probability"] for candidate in candidates], np.float32)
    if not np.array_equal(stored, phi.astype(np.float32), equal_nan=True):
        yield f"win_probability {stored.tolist()}, the scores make it {phi.astype(np.float32).tolist()}"
    ranks = [candidate["rank"] for candidate in candidates]
    if ranks != ranking.rank(phi).tolist():
        yield f"rank {ranks}, the scores make it {ranking.rank(phi).tolist()}"


def _candidate_faults(candidate: dict[str, Any]) -> Iterator[str]:
    failed = [math.isnan(score) for score in candidate["scores"]]
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
        yield f"the image cannot be read: {str(error).splitlines()[0]}"
        return
    if size != (candidate["width"], candidate["height"]):
        yield f"the image is {size[0]}x{size[1]}, stated are {candidate['width']}x{candidate['height']}"


def image_place(path: str, dataset: str) -> str:
    """Where the picture is that a row of the dataset at `dataset` calls `path`, which is relative to the dataset.

    In datasets from before that it is from the root: of one that was moved or copied it is in its `images` now.
    """
    if "://" not in path and not path.startswith("/"):
        return f"{dataset.rstrip('/')}/{path}" if dataset else path
    own = f"{dataset.rstrip('/')}/{IMAGES}/{path.rpartition('/')[2]}"
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


def require_images(dataset: RankedDataset) -> None:
    """Refuses a dataset whose rows name pictures that are not there.

    Raises:
        DatasetError: so it is.
    """
    missing = missing_images(dataset)
    if missing:
        raise DatasetError(
            f"{dataset.path}: {len(missing):,} images are missing, the first is {missing[0]}; put its {IMAGES} "
            "directory back"
        )


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
    from PIL import Image

    with Image.open(io.BytesIO(image_bytes(image))) as picture:
        width, height = shown(picture).size
    return width, height
