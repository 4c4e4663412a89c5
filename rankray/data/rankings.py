"""Rankings that others published, and one's own pictures in a table, read as a ranked dataset.

    HPDv2           JSON: prompt, image_path (or file_path), and rank, or human_preference of two    a row a judgement
    ImageReward     JSON: prompt, generations, ranking
    ImageRewardDB   JSON or Parquet: prompt, prompt_id, image_path, rank                             a row a picture
    CSV, TSV        prompt, image, and generator, rank (or ranking) or any columns of numbers        a row a picture

A rank becomes the score of one reward, `human`: its negative, so that less is better; equal ranks tie. Pictures are
files, found where the publishers unpack them: beside the table, in a folder of its name, or from a folder above it. One
that is missing or cannot be decoded is left out of its ranking, counted and said. A table is in memory as a whole (1 GB
for the 645,000 judgements of HPDv2), pictures 64 rankings at a time.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rankray import schema
from rankray.config import ConfigError
from rankray.data import choices, pickapic, pictures
from rankray.data.pickapic import Form, Importing, Judged, Seen
from rankray.data.place import Publish
from rankray.data.prompts import delimiter_of, open_text
from rankray.words import Say, first_line

AT_ONCE = 64
MOST = 127
"""Pictures of a ranking: a rank is kept in eight bits."""
LISTS = (
    ("hpdv2", ("image_path", "file_path"), "rank", -1.0),
    ("hpdv2", ("image_path", "file_path"), "human_preference", 1.0),
    ("imagereward", ("generations",), "ranking", -1.0),
)
"""A ranking a record: (format, names of its paths, name of its judgement, the judgement's sign)."""
SINGLE = ("prompt", "image_path", "rank")
PROMPTS, IMAGES, GENERATORS = (
    ("prompt", "caption", "text"),
    ("image", "file_name", "path"),
    ("generator", "model"),
)
RANKS = ("rank", "ranking")
"""Columns, in letters of any case, that count from the best: the less, the better."""
NO_REWARDS = frozenset({"", "index", "seed", "width", "height", "id"})
"""Columns of numbers that judge nothing, in letters of any case; "" and `index` are pandas' count of rows."""
NO_SCORE = frozenset(
    {"", "nan", "-nan", "na", "n/a", "<na>", "#na", "#n/a", "null", "none", "nil", "-", "--", "?"}
)
"""What stands in a cell without a score, in letters of any case: what spreadsheets and pandas write there."""


@dataclass(frozen=True)
class Ranking:
    """What a table says of one prompt: scores [K][N] of pictures by their paths."""

    prompt: str
    paths: Sequence[str]
    generators: Sequence[str]
    scores: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Table:
    """One file's rankings; `rewards` in the order of their scores, and the columns that nothing is made of."""

    format: str
    rankings: Sequence[Ranking]
    rewards: Sequence[str] = (pickapic.REWARD,)
    unused: Sequence[str] = ()


def run(
    sources: Sequence[choices.Source], output: str, how: Importing, say: Say, report: Publish | None = None
) -> dict[str, Any]:
    """Writes the ranked dataset of the tables `sources` to `output`; its `dataset.json`.

    Raises:
        ConfigError: as `pickapic.write`; a table is none of those that are known, or they are not of one kind.
    """
    pickapic.check(how)
    tables = {source.uri: read(source) for source in sources}
    kinds = {(table.format, tuple(table.rewards)) for table in tables.values()}
    if len(kinds) > 1:
        told = "; ".join(f"{kind} with {', '.join(rewards)}" for kind, rewards in sorted(kinds))
        raise ConfigError(f"the tables are not of one kind ({told}); import them one by one, and then merge")
    ((kind, rewards),) = kinds
    if kind == "csv":  # nobody named the columns that count
        unused = dict.fromkeys(name for table in tables.values() for name in table.unused)
        say(f"rewards: {', '.join(rewards)}; not used: {', '.join(map(repr, unused)) or 'no column'}")
    names = {name for table in tables.values() for each in table.rankings for name in each.generators}
    comparable = kind == "csv" and pickapic.REWARD not in rewards

    def judged(source: choices.Source, how: Importing, seen: Seen, pool: ThreadPoolExecutor) -> Judged:
        return _judged(source, tables[source.uri], how, seen, pool)

    form = Form(kind, "rankings", sorted(names), rewards, comparable, judged)
    return pickapic.write(form, sources, output, how, say, report)


def read(source: choices.Source) -> Table:
    """The rankings of a table.

    Raises:
        ConfigError: it cannot be read, or has none of the columns that are known.
    """
    end = source.path.lower().rpartition(".")[2]
    try:
        with source.fs.open_input_file(source.path) as stream:
            if end in ("csv", "tsv"):
                delimiter = "\t"
                if end == "csv":
                    with source.fs.open_input_file(source.path) as head:
                        delimiter = delimiter_of(open_text(head).readline(), {*IMAGES})
                return _table(source, csv.DictReader(open_text(stream), delimiter=delimiter, strict=True))
            if end == "parquet":
                records = pq.read_table(stream, columns=[*SINGLE, "prompt_id"]).to_pylist()
            else:
                records = _records(open_text(stream).read())
    except ConfigError:  # of its columns
        raise
    except (OSError, ValueError, csv.Error, RecursionError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{source.uri} cannot be read: {first_line(error)}") from None
    first = records[0] if isinstance(records, list) and records and isinstance(records[0], dict) else {}
    for kind, paths, judgement, sign in LISTS:
        if judgement in first and any(isinstance(first.get(name), list) for name in paths):
            return Table(kind, [_listed(record, paths, judgement, sign) for record in records])
    if all(name in first for name in SINGLE):
        return Table("imagerewarddb", list(_grouped(records)))
    known = "; ".join([*(f"{'/'.join(paths)} and {what}" for _, paths, what, _ in LISTS), ", ".join(SINGLE)])
    raise ConfigError(
        f"{source.uri}: no known ranking in its first record ({', '.join(first) or 'there is none'}); due are prompt "
        f"and {known}"
    )


def _records(text: str) -> Any:
    """A JSON array, or JSON lines."""
    if text.lstrip().startswith("["):
        return json.loads(text)
    # Not splitlines(): a prompt may hold any of Unicode's other line ends.
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _listed(record: Any, names: Sequence[str], judgement: str, sign: float) -> Ranking:
    """A record that is a ranking; one of another make has no pictures, and is counted for it."""
    record = record if isinstance(record, dict) else {}
    paths: list[Any] = next((record[name] for name in names if isinstance(record.get(name), list)), [])
    values = record.get(judgement)
    if not isinstance(values, list) or len(values) != len(paths):
        values = [None] * len(paths)
    scores = [[sign * _number(value)] for value in values]
    return Ranking(
        str(record.get("prompt") or ""), list(map(str, paths)), [choices.UNNAMED] * len(paths), scores
    )


def _grouped(records: Sequence[Any]) -> Iterator[Ranking]:
    """Rankings of records that are a picture each, by prompt, in the order of their first."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in filter(lambda record: isinstance(record, dict), records):
        groups.setdefault(str(record.get("prompt_id") or record.get("prompt")), []).append(record)
    for group in groups.values():
        paths = [str(record.get("image_path") or "") for record in group]
        scores = [[-_number(record.get("rank"))] for record in group]
        yield Ranking(str(group[0].get("prompt") or ""), paths, [choices.UNNAMED] * len(group), scores)


def _number(value: Any) -> float:
    """A cell as a number; NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _table(source: choices.Source, rows: csv.DictReader[str]) -> Table:
    """A user's own table: each column of numbers is a reward; a rank, alone or beside others, is people's."""
    columns = list(rows.fieldnames or ())
    chosen = []
    for names in (PROMPTS, IMAGES):
        found = [name for name in names if name in columns]
        if not found:
            raise ConfigError(
                f"{source.uri} has no column {' or '.join(names)}, it has {', '.join(columns) or 'none'}; due are "
                "prompt, image, and rank or columns of scores"
            )
        chosen.append(found[0])
    prompt, image = chosen
    generator = next((name for name in GENERATORS if name in columns), "")
    records = _by_line(source, rows)
    others = [name for name in columns if name not in {*chosen, *filter(None, [generator])}]
    scored = [name for name in others if _may_judge(name) and _is_scored(source, name, records)]
    rewards = _rewards(source, scored)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records.values():
        groups.setdefault((record[prompt] or "").strip(), []).append(record)
    signs = {name: -1.0 for name in scored if _is_rank(name)}
    rankings = [
        Ranking(
            text,
            [record[image] or "" for record in group],
            [(generator and record[generator]) or choices.UNNAMED for record in group],
            [[signs.get(name, 1.0) * _number(record[name]) for name in scored] for record in group],
        )
        for text, group in groups.items()
    ]
    return Table("csv", rankings, rewards, [name for name in others if name not in scored])


def _by_line(source: choices.Source, rows: csv.DictReader[str]) -> dict[int, Mapping[str, Any]]:
    """A table's records by the line that each ends in.

    Raises:
        ConfigError: a quote is not closed, or a record has more fields than there are columns: its scores would be
            others' cells.
    """
    found: dict[int, Mapping[str, Any]] = {}
    last = rows.line_num
    try:
        for record in rows:
            last = rows.line_num
            found[last] = record
            # Under None is what is beyond the columns.
            if any(record.get(None) or ()):
                raise ConfigError(
                    f"{source.uri}, line {last}: more fields than the {len(rows.fieldnames or ())} of the header; a "
                    "field that holds what separates fields is due in quotes"
                )
    except csv.Error as error:
        raise ConfigError(
            f"{source.uri}, line {last + 1}: {error}; is a quote left open? A field with quotes is due as "
            '"say ""hello"" now"'
        ) from None
    return found


def _rewards(source: choices.Source, scored: Sequence[str]) -> tuple[str, ...]:
    """The reward of each column of numbers: people's of a rank, any other's of its own name.

    Raises:
        ConfigError: there is no such column, two of them are of one reward, or nobody can say which end is best.
    """
    if not scored:
        raise ConfigError(
            f"{source.uri} has no column of numbers to rank by; give rank, or scores by any name"
        )
    unclear = next((name for name in scored if "rank" in name.casefold() and not _is_rank(name)), None)
    if unclear is not None:  # read as a score, a rank would turn every preference round
        raise ConfigError(
            f"{source.uri} has a column '{unclear}', and its name does not say whether 1 is best; call it rank if so, "
            "give it a name without 'rank' if more is better, or take it out"
        )
    rewards = tuple(pickapic.REWARD if _is_rank(name) else name for name in scored)
    twice = [name for name, count in Counter(rewards).items() if count > 1]
    if twice:
        raise ConfigError(
            f"{source.uri} has two columns of reward '{twice[0]}' among {', '.join(scored)}, and rank is reward "
            f"'{pickapic.REWARD}'; rename one or take it out"
        )
    return rewards


def _is_rank(column: str) -> bool:
    return column.strip().casefold() in RANKS


def _may_judge(column: str) -> bool:
    plain = column.strip().casefold()
    return plain not in NO_REWARDS and not plain.startswith("unnamed:") and not plain.endswith("_id")


def _is_scored(source: choices.Source, column: str, records: Mapping[int, Mapping[str, Any]]) -> bool:
    """Whether cells of a column are numbers; those without a score do not count.

    Raises:
        ConfigError: more of them are numbers than are text: left out for a cell, a reward would be lost unseen.
    """
    filled = {line: record[column] or "" for line, record in records.items()}
    filled = {line: cell for line, cell in filled.items() if cell.strip().casefold() not in NO_SCORE}
    texts = [line for line, cell in filled.items() if math.isnan(_number(cell))]
    if texts and 2 * len(texts) < len(filled):
        raise ConfigError(
            f"{source.uri}, line {texts[0]}: '{filled[texts[0]][:60]}' in column '{column}', of which "
            f"{len(filled) - len(texts):,} cells are numbers; leave a cell without a score empty, or take the "
            "column out"
        )
    return bool(filled) and not texts


def _judged(
    source: choices.Source, table: Table, how: Importing, seen: Seen, pool: ThreadPoolExecutor
) -> Judged:
    """What becomes of each ranking of a table."""
    rest = iter(table.rankings)
    while batch := list(islice(rest, AT_ONCE)):
        reasons = [_reason_against(ranking) for ranking in batch]
        wanted = [
            path for ranking, out in zip(batch, reasons, strict=True) if not out for path in ranking.paths
        ]
        there = dict(zip(wanted, pool.map(lambda path: _picture(source, path), wanted), strict=True))
        for ranking, reason in zip(batch, reasons, strict=True):
            yield (Counter([reason]), None, "") if reason else _row(ranking, there, table.rewards, how, seen)


def _reason_against(ranking: Ranking) -> str:
    """Why a ranking is left out, as far as its pictures need not be seen to know; "" where it is not."""
    if not ranking.prompt.strip():
        return "empty"
    if len(ranking.paths) < 2:
        return "few"
    if len(ranking.paths) > MOST:
        return "many"
    return "bad_labels" if all(math.isnan(score) for scores in ranking.scores for score in scores) else ""


def _picture(source: choices.Source, path: str) -> tuple[bytes, tuple[int, int]] | None:
    """(bytes, size) of the picture that a table names, None where it is not there or cannot be decoded."""
    for place in _places(source.path, path):
        try:
            info = source.fs.get_file_info(place)
            if info.type != pafs.FileType.File or info.size > pictures.MAX_BYTES:
                continue
            with source.fs.open_input_stream(place) as stream:
                return pictures.imported(stream.read())
        except (OSError, ValueError, SyntaxError):
            return None
    return None


def _places(table: str, path: str) -> Iterator[str]:
    """Where a picture may be: as it is named, beside the table, in a folder of its name, from a folder above it."""
    if path.startswith("/"):
        yield path
        return
    folder, _, name = table.rpartition("/")
    yield f"{folder}/{path}"
    yield f"{folder}/{name.rpartition('.')[0]}/{path}"
    for _ in range(3):
        folder = folder.rpartition("/")[0]
        yield f"{folder}/{path}"


def _row(
    ranking: Ranking,
    there: Mapping[str, tuple[bytes, tuple[int, int]] | None],
    rewards: Sequence[str],
    how: Importing,
    seen: Seen,
) -> tuple[Counter[str], dict[str, Any] | None, str]:
    """One ranking's reasons, row and id of its pictures."""
    prompt = ranking.prompt.strip()
    every = zip(ranking.generators, ranking.paths, ranking.scores, strict=True)
    found = [(name, there[path], scores) for name, path, scores in every]
    candidates = [(name, kept, scores) for name, kept, scores in found if kept is not None]
    reasons = Counter({"pictures": len(found) - len(candidates)})
    images = [kept[0] for _, kept, _ in candidates]
    pair = schema.pair_id(prompt, images)
    row_id = seen.new_id(prompt, pair, how.pairs)
    reason = "few" if len(candidates) < 2 else "same_picture" if len(set(images)) == 1 else ""
    reason = reason or ("repeated" if row_id is None else "")
    if reason or row_id is None:
        return reasons + Counter([reason]), None, pair
    row = pickapic.ranked_row(row_id, prompt, candidates, how.ties, rewards)
    if how.ties == "drop" and len({c["win_probability"] for c in row["candidates"] if c["rank"]}) < 2:
        return reasons + Counter(["ties"]), None, pair
    return +reasons, row, pair
