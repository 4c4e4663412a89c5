"""Prompts from wherever users keep them: text, tables, JSON lines, Parquet, a hub dataset, the shapes world.

What cannot be used is counted and said, never silently dropped: empty lines, repeats, bytes that are not UTF-8.
A prompt is stripped of surrounding white space and otherwise kept as it is, HTML, emoji and NUL bytes included.
Lines are read one at a time; the distinct prompts are held in memory, about 10 MB for the paper's 58,000.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rankray import store
from rankray.config import ConfigError, PromptsConfig, nearest

SHAPES = "shapes:"
HUB = "hub:"

Raw = bytes | str | None
"""A prompt as it is found: bytes are decoded here, None is a missing value and counts as empty."""


@dataclass(frozen=True)
class PromptsRead:
    """The prompts of a source, and what became of everything in it.

    `read` counts entries up to `limit`'s last: read = len(rows) + empty + duplicates + undecodable. `cut`: there
    were more of them.
    """

    rows: list[str]
    read: int
    empty: int
    duplicates: int
    undecodable: int
    source: str
    cut: bool = False


def read_prompts(config: PromptsConfig) -> PromptsRead:
    """The distinct usable prompts of `config.path`, in their order, the first `config.limit` of them.

    Raises:
        ConfigError: nothing is there, nothing is in it, its format is unknown, or it lacks the column.
    """
    source, entries = _open(config)
    rows: dict[str, None] = {}
    read = empty = duplicates = undecodable = 0
    cut = False
    for entry in entries:
        cut = len(rows) == config.limit
        if cut:
            break
        read += 1
        try:
            text = (entry.decode("utf-8") if isinstance(entry, bytes) else entry or "").strip()
            text.encode("utf-8")  # a lone surrogate, as JSON can spell it, is no text either
        except UnicodeError:
            undecodable += 1
            continue
        if not text:
            empty += 1
        elif text in rows:
            duplicates += 1
        else:
            rows[text] = None
    if not rows:
        raise ConfigError(
            f"{source} is empty: {read} entries, {empty} of them blank, {undecodable} not UTF-8; "
            "give a file with prompts"
        )
    return PromptsRead(list(rows), read, empty, duplicates, undecodable, source, cut)


def _open(config: PromptsConfig) -> tuple[str, Iterable[Raw]]:
    """(absolute name of the source, its entries)."""
    if config.path.startswith(SHAPES):
        return config.path, _shapes(config.path.removeprefix(SHAPES))
    if config.path.startswith(HUB):
        return config.path, _hub(config)
    source = store.absolute(config.path)
    suffix = source.rpartition("/")[2].rpartition(".")[2].lower()
    if suffix not in FORMATS:
        raise ConfigError(
            f"prompts file {source} ends in no known format; allowed: {', '.join(f'.{name}' for name in FORMATS)}, "
            f"{SHAPES}SPLIT, {HUB}OWNER/NAME"
        )
    return source, _file(source, config, FORMATS[suffix])


def _file(
    source: str, config: PromptsConfig, parse: Callable[[BinaryIO, PromptsConfig], Iterator[Raw]]
) -> Iterator[Raw]:
    try:
        fs, path = store.filesystem(source)
        kind = fs.get_file_info(path).type
    except (OSError, ValueError) as error:
        raise ConfigError(f"prompts file {source} cannot be opened: {str(error).splitlines()[0]}") from None
    if kind == pafs.FileType.NotFound:
        hint = (
            ""
            if "://" in config.path or config.path.startswith(("/", "~"))
            else (
                "; a relative path is looked up in the current directory, which in a submitted job is the uploaded copy"
            )
        )
        raise ConfigError(f"no prompts file at {source}{hint}")
    if kind == pafs.FileType.Directory:
        raise ConfigError(f"prompts path {source} is a directory; name a file in it")
    try:
        with fs.open_input_file(path) as stream:
            yield from parse(stream, config)
    except (PermissionError, pa.ArrowInvalid, csv.Error) as error:
        raise ConfigError(f"prompts file {source} cannot be read: {str(error).splitlines()[0]}") from None


def _lines(stream: BinaryIO, config: PromptsConfig | None = None) -> Iterator[bytes]:
    """Lines without their ends or a byte-order mark; the end of the last line opens no further one."""
    first = True
    for line in io.BufferedReader(stream):  # type: ignore[type-var]
        yield (line.removeprefix(b"\xef\xbb\xbf") if first else line).rstrip(b"\r\n")
        first = False


def _table(delimiter: str) -> Callable[[BinaryIO, PromptsConfig], Iterator[Raw]]:
    def parse(stream: BinaryIO, config: PromptsConfig) -> Iterator[Raw]:
        # Bytes that are not UTF-8 pass as surrogates, so that they cost their own row and not the file.
        text = (line.decode("utf-8", "surrogateescape") + "\n" for line in _lines(stream))
        rows = csv.reader(text, delimiter=delimiter)
        header = next(rows, [])
        if not header:
            return
        place = _column(header, config.column)
        for row in rows:
            yield row[place] if place < len(row) else None

    return parse


def _json_lines(stream: BinaryIO, config: PromptsConfig) -> Iterator[Raw]:
    """Objects with the column, or bare strings, one a line."""
    for number, line in enumerate(_lines(stream), 1):
        if not line.strip():
            yield None
            continue
        try:
            value = json.loads(line)
        except UnicodeDecodeError:
            yield line
            continue
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"line {number} of the prompts file is no JSON: {error.msg}; one object a line is due"
            ) from None
        if isinstance(value, Mapping):
            value = value[_name(list(value), config.column)]
        yield _text(value, config.column, f"line {number}")


def _parquet(stream: BinaryIO, config: PromptsConfig) -> Iterator[Raw]:
    file = pq.ParquetFile(stream)
    name = _name(file.schema_arrow.names, config.column)
    for batch in file.iter_batches(columns=[name]):
        for value in batch.column(0).to_pylist():
            yield _text(value, name, "a row")


FORMATS: dict[str, Callable[[BinaryIO, PromptsConfig], Iterator[Raw]]] = {
    "txt": _lines,
    "csv": _table(","),
    "tsv": _table("\t"),
    "jsonl": _json_lines,
    "parquet": _parquet,
}


def _shapes(split: str) -> Iterable[str]:
    shapes = importlib.import_module(
        "rankray.shapes"
    )  # by its name, as a model is: neither room knows the other

    if split not in shapes.SPLITS:
        raise ConfigError(
            f"no shapes split '{split}'{nearest(split, shapes.SPLITS)}; there are {', '.join(shapes.SPLITS)}"
        )
    found: Iterable[str] = shapes.prompts(split)
    return found


def _hub(config: PromptsConfig) -> Iterator[Raw]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise ConfigError(
            f"'{config.path}' needs the package `datasets`; install it: pip install 'rankray[hub]'"
        ) from None

    name = config.path.removeprefix(HUB)
    try:
        rows = datasets.load_dataset(name, split=config.split, streaming=True)
    except (ConnectionError, FileNotFoundError, ValueError) as error:
        raise ConfigError(
            f"hub dataset '{name}', split '{config.split}': {str(error).splitlines()[0]}"
        ) from None
    for row in rows:
        yield _text(row[_name(list(row), config.column)], config.column, "a row")


def _name(names: list[str], column: str) -> str:
    if column not in names:
        raise ConfigError(
            f"the prompts have no column '{column}'{nearest(column, names)}; there are {', '.join(names) or 'none'}; "
            "choose by --prompts.column"
        )
    return column


def _column(header: list[str], column: str) -> int:
    return header.index(_name(header, column))


def _text(value: Any, column: str, place: str) -> Raw:
    if value is None or isinstance(value, (str, bytes)):
        return value
    raise ConfigError(f"column '{column}' holds {type(value).__name__} in {place}; prompts are text")
