"""Parquet files of pairs: found, checked before anything is written, and streamed; under Pick-a-Pic v2's columns, or
as `prompt`, `chosen` and `rejected`, as sets of preferences have them and `rankray export --to pairs` writes them.

One row: a caption, two pictures as bytes, the model of each, and a label for each: 1 for the one that somebody chose
and 0 for the other, or one half each where they were alike. What is in memory is decided by the file: a page has at
least 1,024 rows where a row group has as many, so it is twice the pictures of a row group, or of so many of its rows
(measured: 1.0 GB for 600 rows of two pictures of 460 KB in one group; files made by `datasets` have 100 a group).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rankray import store
from rankray.config import ConfigError
from rankray.words import first_line

ROWS_AT_ONCE = 64
BUFFER_BYTES = 1024**2
"""Read at once of a column; without it pyarrow holds a row group's columns whole."""
UNNAMED = "unknown"
"""The generator of a picture whose model the file does not say."""

_KINDS: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "text": ("string", lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind)),
    "bytes": ("binary", lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind)),
    "number": ("float", lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind)),
    "truth": ("bool", pa.types.is_boolean),
}
COLUMNS = {
    "caption": "text",
    "jpg_0": "bytes",
    "jpg_1": "bytes",
    "label_0": "number",
    "label_1": "number",
    "has_label": "truth",
    "model_0": "text",
    "model_1": "text",
}
"""The columns that are read, and what each holds; others may be there."""

REASONS = {
    "empty": "without a caption",
    "unlabelled": "without a label",
    "bad_labels": "with labels that are no choice",
    "ties": "tied",
    "same_picture": "of a picture with itself",
    "repeated": "of captions or pairs that were there already",
    "undecodable": "with a picture that cannot be decoded",
    "few": "with fewer than two pictures left",
    "many": "of more than 127 pictures",
    "pictures": "single pictures that are missing or cannot be decoded",
}
"""Why a row of the file is left out."""


@dataclass(frozen=True)
class Source:
    """One input file."""

    uri: str
    path: str
    size: int
    fs: pafs.FileSystem

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Its rows, a few at a time, of these columns alone.

        Raises:
            ConfigError: it is damaged.
        """
        rows = 0
        try:
            with self.fs.open_input_file(self.path) as stream:
                parquet = pq.ParquetFile(stream, buffer_size=BUFFER_BYTES)
                for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=list(columns)):
                    yield batch
                    rows += batch.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise ConfigError(
                f"{self.uri} cannot be read beyond row {rows:,} ({first_line(error)}); get it again"
            ) from None


def find(name: str) -> list[Source]:
    """The file of that name, or the Parquet files in the directory of that name, sorted.

    Raises:
        ConfigError: there is nothing there.
    """
    try:
        fs, path = store.filesystem(name)
        found = [fs.get_file_info(path)]
        if found[0].type == pafs.FileType.Directory:
            inside = fs.get_file_info(pafs.FileSelector(path, recursive=True))
            found = sorted((i for i in inside if i.path.endswith(".parquet")), key=lambda info: info.path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"input '{name}' cannot be opened: {first_line(error)}") from None
    if found and found[0].type == pafs.FileType.NotFound:
        raise ConfigError(f"input '{name}' is not there; look at how it is written")
    if not found or found[0].type != pafs.FileType.File:
        raise ConfigError(f"input '{name}': no Parquet file is there; give files, or a directory of them")
    root = store.absolute(name)
    return [Source(root + info.path[len(path) :], info.path, info.size, fs) for info in found]


PREFERENCE = ("prompt", "chosen", "rejected")
"""The columns of the other form: text, and two pictures as `datasets` keeps them; `*_generator` may be there."""


def items(source: Source) -> Iterator[list[dict[str, Any]]]:
    """The rows of a file, a few at a time, under the names of `COLUMNS`.

    Raises:
        ConfigError: it is damaged.
    """
    names = _columns(source).names
    if not set(names) >= set(PREFERENCE):
        for batch in source.batches(tuple(COLUMNS)):
            yield batch.to_pylist()
        return
    models = tuple(f"{side}_generator" for side in PREFERENCE[1:] if f"{side}_generator" in names)
    for batch in source.batches((*PREFERENCE, *models)):
        yield [_named(row) for row in batch.to_pylist()]


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    found = {"caption": row["prompt"], "label_0": 1.0, "label_1": 0.0, "has_label": True}
    for n, side in enumerate(PREFERENCE[1:]):
        found[f"jpg_{n}"] = (row[side] or {}).get("bytes")
        found[f"model_{n}"] = row.get(f"{side}_generator")
    return found


def _columns(source: Source) -> pa.Schema:
    try:
        return pq.read_schema(source.path, filesystem=source.fs)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(
            f"{source.uri} is no Parquet file ({first_line(error)}); get it again. Tables end in .parquet, "
            ".json, .jsonl, .csv or .tsv"
        ) from None


def _require_pictures(source: Source, found: pa.Schema) -> None:
    for side in PREFERENCE[1:]:
        kind = found.field(side).type
        if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise ConfigError(f"{source.uri}: {side} is {kind}; a picture with its bytes is due")


def models_of(sources: Sequence[Source]) -> list[str]:
    """The models of all files, sorted; looks at every file's columns before anything is written.

    Raises:
        ConfigError: a file is no Parquet file, or lacks a column, or holds something else in it.
    """
    models: set[str] = set()
    for source in sources:
        found = _columns(source)
        if set(found.names) >= set(PREFERENCE):
            _require_pictures(source, found)
            sides = [f"{side}_generator" for side in PREFERENCE[1:] if f"{side}_generator" in found.names]
            models |= _distinct(source, sides) if sides else {UNNAMED}
            continue
        missing = [name for name in COLUMNS if name not in found.names]
        if missing:
            raise ConfigError(
                f"{source.uri} lacks {', '.join(missing)}; Pick-a-Pic v2's columns are due: {', '.join(COLUMNS)}"
            )
        for name, kind in COLUMNS.items():
            words, fits = _KINDS[kind]
            if not fits(found.field(name).type):
                raise ConfigError(f"{source.uri}: {name} is {found.field(name).type}; {words} is due")
        models |= _distinct(source, ("model_0", "model_1"))
    return sorted(models)


def _distinct(source: Source, columns: Sequence[str]) -> set[str]:
    """What stands in some columns."""
    return {
        name or UNNAMED
        for batch in source.batches(columns)
        for column in batch.columns
        for name in column.to_pylist()
    }


def reason_against(item: Mapping[str, Any]) -> str:
    """Why a row is left out, as far as its pictures need not be decoded to know; "" where it is not."""
    labels = (item["label_0"], item["label_1"])
    if not (item["caption"] or "").strip():
        return "empty"
    if not item["has_label"]:
        return "unlabelled"
    if labels not in ((1, 0), (0, 1), (0.5, 0.5)):
        return "bad_labels"
    if not item["jpg_0"] or not item["jpg_1"]:
        return "undecodable"
    if item["jpg_0"] == item["jpg_1"]:
        return "same_picture"
    return "ties" if labels[0] == labels[1] else ""
