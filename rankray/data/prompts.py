"""Prompts from wherever users keep them: text, tables, JSON, Parquet, directories, a hub dataset, the shapes world.

What cannot be used is counted and said, never silently dropped: empty lines, repeats, text that cannot be decoded; and
what is used and looks like an accident, control characters. A prompt is stripped of surrounding white space and
otherwise kept as it is, HTML, emoji and NUL bytes included. Text is UTF-8, or UTF-16 or UTF-32 where a mark or the
NUL bytes among its first 4,096 say so; an older encoding is nowhere guessed, as a wrong guess looks like prompts.
All but `.json` is read a line at a time; the distinct prompts are held in memory, about 10 MB for the paper's 58,000.
"""

from __future__ import annotations

import codecs
import csv
import fnmatch
import glob
import hashlib
import importlib
import io
import itertools
import json
import lzma
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rankray import store
from rankray.config import ConfigError, PromptsConfig, nearest
from rankray.data.block_list import BlockList
from rankray.words import first_line

SHAPES = "shapes:"
HUB = "hub:"

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Characters that no keyboard writes; a prompt with one was seldom meant so."""
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
"""Byte order marks, those first that begin with another."""
COMPRESSIONS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "lz4": "lz4", "xz": "xz"}
HEAD_BYTES = 4096
PIECE = 2**20
MOST = 2**28
"""Characters of a `.json` file, which is read whole: 500 for each of 500,000 prompts. Of 4 GB that 4 MB of gzip become
this much is read in 2.3 s of one core, and 600 MB of memory."""
MOST_LINE = 2**24
"""Bytes of a line of another file, and characters of a field of a table."""
MOST_UNPACKED = 2**30
"""Bytes of what a compressed file becomes."""
NAMES = 20
HUB_WORDS = 400
"""Of what `datasets` says; it lists configurations, and then gives examples."""

Raw = bytes | str | None
"""A prompt as it is found: bytes are decoded here, None is a missing value and counts as empty."""


@dataclass(frozen=True)
class PromptsRead:
    """The prompts of a source, and what became of everything in it.

    `read` counts entries up to `limit`'s last: read = len(rows) + empty + duplicates + undecodable + len(blocked); by a
    `shuffle_seed` all of them, so that what `limit` leaves out makes up the rest. `cut`: there were more usable ones.
    `blocked`: what the block-list left out, each with the phrase that it holds.
    """

    rows: list[str]
    read: int
    empty: int
    duplicates: int
    undecodable: int
    source: str
    cut: bool = False
    blocked: tuple[tuple[str, str], ...] = ()

    @property
    def with_control(self) -> list[str]:
        """The rows with control characters."""
        return [row for row in self.rows if CONTROL.search(row)]


def read_prompts(config: PromptsConfig) -> PromptsRead:
    """The distinct usable prompts of `config.path`, in their order or a seed's, the first `config.limit` of them.

    A seed orders prompts by a hash of each: a higher limit adds to what a lower one takes, and so does a longer source.

    Raises:
        ConfigError: nothing is there, nothing is in it, its format is unknown, it lacks the column, or there is no
            block-list.
    """
    block = BlockList(()) if config.block is None else _block_list(config.block)
    source, entries = _open(config)
    rows: dict[str, None] = {}
    blocked: dict[str, str] = {}
    read = empty = duplicates = undecodable = 0
    cut = False
    for entry in entries:
        cut = config.shuffle_seed is None and len(rows) == config.limit
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
        elif text in rows or text in blocked:
            duplicates += 1
        elif (phrase := block.found_in(text)) is not None:
            blocked[text] = phrase
        else:
            rows[text] = None
    if not rows:
        raise ConfigError(
            f"{source} is empty: {read} entries, {empty} of them blank, {undecodable} not UTF-8, {len(blocked)} "
            "left out by prompts.block; give a file with prompts, as UTF-8"
        )
    kept = list(rows)
    if config.shuffle_seed is not None:
        kept.sort(key=lambda row: hashlib.sha256(f"{config.shuffle_seed}\0{row}".encode()).digest())
        cut = config.limit is not None and len(kept) > config.limit
        kept = kept[: config.limit]
    return PromptsRead(kept, read, empty, duplicates, undecodable, source, cut, tuple(blocked.items()))


def _block_list(path: str) -> BlockList:
    """The list in a text file, a phrase a line; what stands behind a # is a comment."""
    source = store.absolute(path)
    try:
        fs, place = store.filesystem(source)
        with fs.open_input_file(place) as stream:
            found = BlockList(_lines(open_text(stream)))
    except (OSError, ValueError) as error:
        raise ConfigError(f"prompts.block = {source} cannot be read: {first_line(error)}") from None
    if not len(found):
        raise ConfigError(f"prompts.block = {source} holds no word; give one word or phrase a line")
    return found


def _open(config: PromptsConfig) -> tuple[str, Iterable[Raw]]:
    """(absolute name of the source, its entries)."""
    if config.path.startswith(SHAPES):
        return config.path, _shapes(config.path.removeprefix(SHAPES))
    if config.path.startswith(HUB):
        return config.path, _hub(config)
    source = store.absolute(config.path)
    return source, _found(source, config)


def _found(source: str, config: PromptsConfig) -> Iterator[Raw]:
    """The entries of a file, or of the files of a directory or a pattern, which have one format, by their names."""
    try:
        fs, path = store.filesystem(source)
        several, places = _places(fs, path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"prompts file {source} cannot be opened: {first_line(error)}") from None
    if not places:
        relative = "://" not in config.path and not config.path.startswith(("/", "~"))
        hint = "; a relative path is looked up in the current directory, which in a submitted job is the uploaded copy"
        raise ConfigError(f"no prompts file at {source}{hint if relative else ''}")
    formats = {_format(place)[0] for place in places}
    if several:  # a directory's other files, such as pictures, are none of ours
        formats &= {*FORMATS, PARQUET}
    if len(formats) > 1:
        raise ConfigError(
            f"{source} holds .{', .'.join(sorted(formats))} files; choose by a pattern such as *.{min(formats)}"
        )
    if not formats <= {*FORMATS, PARQUET} or not formats:
        raise ConfigError(
            f"prompts file {source} {'holds' if several else 'ends in'} no known format; allowed: "
            f"{', '.join(f'.{name}' for name in (*FORMATS, PARQUET))}, text also with .{', .'.join(COMPRESSIONS)} "
            f"behind it, directories and patterns of them, {SHAPES}SPLIT, {HUB}OWNER/NAME"
        )
    for place in places:
        if _format(place)[0] in formats:
            yield from _file(fs, place, config, several)


def _places(fs: pafs.FileSystem, path: str) -> tuple[bool, list[str]]:
    """(whether there may be several, the files that are meant)."""
    kind = fs.get_file_info(path).type
    if kind == pafs.FileType.File:
        return False, [path]
    parts = path.split("/")
    plain = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    if kind == pafs.FileType.Directory:
        pattern, plain = [*parts, "*"], len(parts)
    elif plain < len(parts):
        pattern = parts
    else:
        return False, []
    deep = len(pattern) > plain + 1
    selector = pafs.FileSelector("/".join(parts[:plain]) or "/", allow_not_found=True, recursive=deep)
    found = [info.path for info in fs.get_file_info(selector) if info.type == pafs.FileType.File]
    return True, sorted(place for place in found if _matches(place.split("/"), pattern))


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Whether each part of a path is of its pattern, as a shell has it: hidden files are no matter of `*`."""
    return (
        len(parts) == len(pattern)
        and not parts[-1].startswith(".")
        and all(fnmatch.fnmatchcase(*pair) for pair in zip(parts, pattern, strict=True))
    )


def _format(place: str) -> tuple[str, str]:
    """(format, compression) by a file's name, "" for none."""
    *_, inner, outer = ["", "", *place.rpartition("/")[2].lower().split(".")]
    return (inner, outer) if outer in COMPRESSIONS and inner in FORMATS else (outer, "")


def _file(fs: pafs.FileSystem, place: str, config: PromptsConfig, several: bool) -> Iterator[Raw]:
    kind, compression = _format(place)
    try:
        with fs.open_input_file(place) as stream:
            if kind == PARQUET:
                yield from _parquet(stream, config)
                return
            parse = _whole if several and kind == "txt" else FORMATS[kind]
            plain = _Bounded(
                _plain(stream, compression),
                MOST if kind == "json" else MOST_LINE,
                MOST_UNPACKED if compression else None,
            )
            yield from parse(_text_of(plain), config)
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, pa.ArrowInvalid) as error:
        raise ConfigError(f"prompts file {place} cannot be read: {first_line(error)}") from None
    except _Misread as error:
        raise ConfigError(f"prompts file {place}, {error}") from None


def _plain(stream: Any, compression: str) -> Any:
    if compression == "xz":
        return lzma.LZMAFile(stream)  # Arrow reads all of them but this one
    return pa.CompressedInputStream(stream, COMPRESSIONS[compression]) if compression else stream


class _Misread(ValueError):
    """What a line of a file is, in place of what is due."""


class _Bounded(io.RawIOBase):
    """A stream that ends, and whose lines end: what a few megabytes of gzip become may have 4 GB without an end of a
    line."""

    def __init__(self, stream: Any, line: int = MOST_LINE, whole: int | None = None) -> None:
        self._stream, self._most, self._whole = stream, line, whole
        self._bytes = self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        end = max(data.rfind(b"\n"), data.rfind(b"\r"))
        self._bytes = self._bytes + len(data) if end < 0 else len(data) - end
        self._read += len(data)
        if self._bytes > self._most:
            raise _Misread(f"has a line of more than {self._most // 2**20} MB; a prompt a line is due")
        if self._whole is not None and self._read > self._whole:
            raise _Misread(
                f"unpacks to more than {self._whole // 2**20:,} MB; unpack it, or name a part of it"
            )
        return len(data)


def open_text(stream: Any) -> TextIO:
    """A binary stream as text, its lines ending in `\n` whatever they end in, its undecodable bytes lone surrogates.

    Raises:
        UnicodeDecodeError: while it is read, where UTF-16 or UTF-32 ends within a character.
    """
    return _text_of(_Bounded(stream))


def _text_of(plain: _Bounded) -> TextIO:
    buffered = io.BufferedReader(plain, 2**16)
    head = buffered.peek(HEAD_BYTES)[:HEAD_BYTES]
    mark = next((mark for mark in MARKS if head.startswith(mark)), b"")
    buffered.read(len(mark))
    encoding = MARKS[mark] if mark else _unmarked(head)
    # Bytes that are not UTF-8 pass as surrogates, so that they cost their own row and not the file.
    return io.TextIOWrapper(
        buffered, encoding, errors="surrogateescape" if encoding == "utf-8" else "surrogatepass"
    )


def _unmarked(head: bytes) -> str:
    """The encoding of text without a mark: UTF-16 or UTF-32 where NUL bytes stand as these have them about line ends.

    Nine in ten characters are ASCII; or it is no UTF-8, and half of the bytes that are UTF-8's line end are this
    encoding's too; and no character is a control character. Else it is UTF-8, with NUL bytes in it or without.
    """
    narrow = _decoded(head, "utf-8") is not None
    for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be") if 0 in head else ():
        text = _decoded(head, encoding)
        if text is None or CONTROL.search(text):
            continue
        ends = not narrow and 0 < head.count(b"\n") <= 2 * text.count("\n")
        if ends or 10 * sum(map(str.isascii, text)) > 9 * len(text):
            return encoding
    return "utf-8"


def _decoded(head: bytes, encoding: str) -> str | None:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(head)  # its last character may be cut
    except UnicodeDecodeError:
        return None


def _lines(text: TextIO, config: PromptsConfig | None = None) -> Iterator[str]:
    """Lines without their ends; the end of the last line opens no further one."""
    for line in text:
        yield line.rstrip("\n")


def _whole(text: TextIO, config: PromptsConfig) -> Iterator[Raw]:
    """A file of a directory, which is one prompt."""
    lines = (line for line in text if line.strip())
    yield next(lines, None)
    if next(lines, None) is not None:
        raise _Misread(
            "has several lines, and in a directory or a pattern a .txt file is one prompt; name a file that lists "
            "prompts by itself"
        )


def _tsv(text: TextIO, config: PromptsConfig) -> Iterator[Raw]:
    """Tabs between fields, and no quoting: a quotation mark is one."""
    rows = (line.split("\t") for line in _lines(text))
    return _table(enumerate(rows, 1), config)


def _csv(text: TextIO, config: PromptsConfig) -> Iterator[Raw]:
    """Commas between fields, or what else makes the header name the column; quotes as RFC 4180 has them."""
    blank = 0
    header = ""
    for header in text:
        if header.strip():
            break
        blank += 1
        yield None
    else:
        return
    lines = itertools.chain([header], text)
    yield from _table(csv_rows(lines, delimiter_of(header, {config.column}), blank), config)


def delimiter_of(header: str, names: AbstractSet[str]) -> str:
    """What parts a table's fields: what makes its first line hold one of the names of columns, or else commas."""
    for delimiter in (",", ";", "\t", "|"):
        if names & set(next(csv.reader([header], delimiter=delimiter), [])):
            return delimiter
    return ","


def csv_rows(lines: Iterable[str], delimiter: str = ",", before: int = 0) -> Iterator[tuple[int, list[str]]]:
    """(line that it begins in, fields) of each row, quotes as RFC 4180 has them.

    Args:
        before: lines that stood before the first of these.

    Raises:
        ValueError: a quote is not closed, or something stands behind one that is; it names the line.
    """
    csv.field_size_limit(2**31 - 1)  # a prompt may be as long as it likes
    held = 0

    def counted() -> Iterator[str]:
        nonlocal held
        for found in lines:
            held += len(found)
            if held > MOST_LINE:  # of a quote that is never closed
                raise _Misread(
                    f"line {line}: a row of more than {MOST_LINE // 2**20} MB; is a quote left open?"
                )
            yield found

    reader = csv.reader(counted(), delimiter=delimiter, strict=True)
    while True:
        line, held = before + reader.line_num + 1, 0
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = "a quote is opened and never closed" if "end of data" in str(error) else str(error)
            raise _Misread(
                f'line {line}: {what}; a field with quotes is due as "say ""hello"" now"'
            ) from None


def require_fields(line: int, row: list[str], header: list[str]) -> None:
    """Refuses a row with more fields than the header: what it holds would be read as other columns'.

    Raises:
        ValueError: so it is; it names the line.
    """
    if any(row[len(header) :]):
        raise _Misread(
            f"line {line}: {len(row)} fields, and the header has {len(header)}; a field that holds what separates "
            "fields is due in quotes (in .tsv it cannot be)"
        )


def _table(rows: Iterator[tuple[int, list[str]]], config: PromptsConfig) -> Iterator[Raw]:
    header: list[str] | None = None
    place = 0
    for line, row in rows:
        if header is None:
            if any(map(str.strip, row)):
                header = row
                place = header.index(_name(header, config.column))
            else:
                yield None
            continue
        require_fields(line, row, header)
        yield row[place] if place < len(row) else None


def _json_lines(text: TextIO, config: PromptsConfig) -> Iterator[Raw]:
    """Objects with the column, or bare strings, one a line."""
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            yield None
            continue
        yield _entry(
            _parsed(line, f"line {number}: one object a line is due"), config.column, f"line {number}"
        )


def _json(text: TextIO, config: PromptsConfig) -> Iterator[Raw]:
    """An array of what a JSON line may be, under the column's first names where it is within objects; or JSON lines."""
    pieces, length = [], 0  # asked for at once, text makes room for all that there might be
    while piece := text.read(PIECE):
        pieces.append(piece)
        length += len(piece)
        if length > MOST:
            raise _Misread(
                f"has more than {MOST // 2**20} MB; write it as .jsonl, which is read a line at a time"
            )
    whole = "".join(pieces)
    if "\n" in whole.strip() and _is_json(whole.lstrip().partition("\n")[0]):
        yield from _json_lines(io.StringIO(whole), config)
        return
    value, column = _parsed(whole, "an array of prompts is due"), config.column
    while isinstance(value, Mapping) and column:
        name, column = _step(value, column)
        value = value[name]
    if not isinstance(value, (list, Mapping)):
        raise _Misread(f"there is {type(value).__name__} under '{config.column}'; an array of prompts is due")
    for number, item in enumerate(value.values() if isinstance(value, Mapping) else value, 1):
        yield _entry(item, column, f"entry {number}")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(text: str, due: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Misread(f"{due}, and this is no JSON: {first_line(error)}") from None


def _entry(value: Any, column: str, place: str) -> Raw:
    """The prompt of a string or of an object; a name such as `meta.caption` goes into objects within it."""
    rest = column
    while isinstance(value, Mapping):
        name, rest = _step(value, rest)
        value = value[name]
    return _text(value, column, place)


def _step(value: Mapping[str, Any], column: str) -> tuple[str, str]:
    """(a name of the object, what is left of the column's)."""
    name, _, rest = (column, "", "") if column in value else column.partition(".")
    return _name(list(value), name), rest


def _parquet(stream: Any, config: PromptsConfig) -> Iterator[Raw]:
    file = pq.ParquetFile(stream)
    name = _name(file.schema_arrow.names, config.column)
    for batch in file.iter_batches(columns=[name]):
        for value in batch.column(0).to_pylist():
            yield _text(value, name, "a row")


PARQUET = "parquet"
FORMATS: dict[str, Callable[[TextIO, PromptsConfig], Iterator[Raw]]] = {
    "txt": _lines,
    "csv": _csv,
    "tsv": _tsv,
    "jsonl": _json_lines,
    "ndjson": _json_lines,
    "json": _json,
}


def _shapes(split: str) -> Iterable[str]:
    shapes = importlib.import_module("rankray.shapes")  # as a model is: neither room knows the other
    if split not in shapes.SPLITS:
        raise ConfigError(
            f"no shapes split '{split}'{nearest(split, shapes.SPLITS)}; there are {', '.join(shapes.SPLITS)}"
        )
    found: Iterable[str] = shapes.prompts(split)
    return found


def _hub(config: PromptsConfig) -> Iterator[Raw]:
    """The column of a hub dataset, or of a directory that is laid out as one; no other column is decoded."""
    try:
        import datasets
        import yaml  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise ConfigError(
            f"'{config.path}' needs the package `datasets`; install it: pip install 'rankray[hub]'"
        ) from None

    name = config.path.removeprefix(HUB)
    try:
        rows = datasets.load_dataset(name, config.config, split=config.split, streaming=True)
        names = rows.column_names or list(next(iter(rows), {}))  # without declared columns nothing is decoded
        for row in rows.select_columns([_name(names, config.column)]):
            yield _text(row[config.column], config.column, "a row")
    except (OSError, ValueError, RuntimeError, yaml.YAMLError, datasets.exceptions.DatasetsError) as error:
        words = " ".join(str(error).split())
        remedy = (
            "; choose by --prompts.config"
            if "onfig" in words
            else ("; convert it to Parquet" if "script" in words or "custom code" in words else "")
        )
        raise ConfigError(
            f"hub dataset '{name}', split '{config.split}': {words[:HUB_WORDS]}{remedy}"
        ) from None


def _name(names: list[str], column: str) -> str:
    if column not in names:
        more = f" and {len(names) - NAMES:,} more" if len(names) > NAMES else ""
        raise ConfigError(
            f"the prompts have no column '{column}'{nearest(column, names)}; there are "
            f"{', '.join(names[:NAMES]) or 'none'}{more}; choose by --prompts.column"
        )
    return column


def _text(value: Any, column: str, place: str) -> Raw:
    if value is None or isinstance(value, (str, bytes)):
        return value
    raise ConfigError(f"column '{column}' holds {type(value).__name__} in {place}; prompts are text")
