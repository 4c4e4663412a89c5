"""Human choices, as Pick-a-Pic v2 keeps them, read as a ranked dataset: two candidates a row, one reward, `human`.

A caption stands there in many rows, with other pictures each time. Each pair that somebody compared becomes a row of
its own, so that whatever trains on the dataset learns from pairs that people saw side by side and from no others. A
caption's pictures merged into one row would be fewer rows and more pairs, most of which nobody compared: a share of
wins orders pictures that never met, and RankDPO would take that order for a preference. `pairs = "one"` keeps a
caption's first pair alone, a row a prompt as in any other dataset, for a comparison at equal prompts.

Pictures stay as they are stored. They are decoded once, to find those that cannot be: 10 ms for a pair of 1024-pixel
JPEGs on one core, by far the most of the work. A kill costs the input file that was being read.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import rankray
from rankray import ranking, schema, store
from rankray.config import ConfigError, PricesConfig, nearest
from rankray.data import choices
from rankray.data.cost import ledger
from rankray.data.place import Output, Publish, claim, claimed, complete, open_output, publish

REWARD = "human"
ROWS_PER_FILE = 128
"""A file is a block when the dataset is encoded: some 100 MB with pictures of 1024 pixels."""
TIES = {"drop": "win_probability", "half": "borda"}
"""What becomes of a tie -> the aggregation that ranks the labels: under Borda's a tie is half a win for each."""
PAIRS = ("all", "one")


@dataclass(frozen=True)
class Importing:
    """How to read.

    Attributes:
        ties: "drop" leaves them out; "half" keeps them, half a win each, which prefers neither.
        pairs: "all", each a row of its own, or "one" a caption, the first.
    """

    ties: str = "drop"
    pairs: str = "all"


@dataclass
class _Seen:
    """What rows there are already: their ids, and the ids of their pairs."""

    rows: set[str] = field(default_factory=set)
    pairs: set[str] = field(default_factory=set)

    def add(self, ids: Iterable[Sequence[str]]) -> None:
        for row, pair in ids:
            self.rows.add(row)
            self.pairs.add(pair)

    def new_id(self, caption: str, pair: str, pairs: str) -> str | None:
        """The id of a new row: the caption's, and the pair's for its further pairs; None where it is no new one."""
        row = schema.prompt_id(caption)
        if row not in self.rows:
            return row
        return pair if pairs == "all" and pair not in self.pairs else None


def run(
    inputs: Sequence[str],
    output: str,
    how: Importing,
    say: Callable[[str], None],
    report: Publish | None = None,
) -> dict[str, Any]:
    """Writes the ranked dataset of `inputs` (Parquet files, or directories of them) to `output`; its `dataset.json`.

    A run that was killed goes on with the input file that it was in; one that is complete does nothing.

    Raises:
        ConfigError: `how` is not understood, an input is missing or has other columns (nothing is written), `output`
            holds something else, or no row of the inputs can be used.
    """
    for key, value, allowed in (("ties", how.ties, [*TIES]), ("pairs", how.pairs, [*PAIRS])):
        if value not in allowed:
            raise ConfigError(f"{key} '{value}'{nearest(value, allowed)}; allowed: {', '.join(allowed)}")
    sources = [source for name in inputs for source in choices.find(name)]
    models = choices.models_of(sources)
    made = open_output(output, in_job=False)
    identity = _identity(sources, how)
    if (already := complete(made, "dataset.json", identity, say)) is not None:
        return already
    claim(made, "dataset.json", identity)
    made.make("data")
    made.make("_work", "read")
    begin_s, seen, counts = time.perf_counter(), _Seen(), Counter[str]()
    due = schema.ranked_schema(dict.fromkeys(models, "unrecorded"), {REWARD: "labels"})
    for number, source in enumerate(sources):
        note = made.at("_work", "read", f"{number:05}.json")
        if not made.exists("_work", "read", f"{number:05}.json"):
            store.write_json(note, _read(source, number, made, due, how, seen), made.fs)
        found = store.read_json(note, made.fs)
        seen.add(found["ids"])
        counts.update(found["counts"])
        say(f"{number + 1} of {len(sources)} files: {counts['read']:,} pairs read, {counts['kept']:,} kept")
    if not counts["kept"]:
        raise ConfigError(f"no pair of {counts['read']:,} can be used: {left_out(counts, how.ties)}")
    info = _summary(made, models, how, counts, seen.rows, time.perf_counter() - begin_s)
    return publish(made, "dataset.json", info, report)


def left_out(counts: dict[str, int] | Counter[str], ties: str) -> str:
    """In words how many rows were left out and why: `3 tied, 1 without a label`."""
    told = [
        f"{counts[reason]:,} {words}"
        for reason, words in choices.REASONS.items()
        if counts.get(reason) and not (reason == "ties" and ties == "half")
    ]
    return ", ".join(told) or "none left out"


def _identity(sources: Sequence[choices.Source], how: Importing) -> dict[str, Any]:
    return {
        "import.files": [f"{source.uri} of {source.size} bytes" for source in sources],
        "import.ties": how.ties,
        "import.pairs": how.pairs,
        "images.store": "inline",
    }


def _read(
    source: choices.Source, number: int, output: Output, due: pa.Schema, how: Importing, seen: _Seen
) -> dict[str, Any]:
    """Writes the rows of one input; what is noted of it: counts, and [row's id, pair's id] of each row."""
    counts = Counter[str]()
    ids: list[list[str]] = []
    waiting: list[dict[str, Any]] = []
    parts = 0

    def write(rows: list[dict[str, Any]]) -> None:
        target = output.at("data", f"{number:05}-{parts:05}.parquet")
        table = pa.Table.from_pylist(rows, due)
        pq.write_table(table, f"{target}.tmp", filesystem=output.fs, row_group_size=choices.ROWS_AT_ONCE)
        output.fs.move(f"{target}.tmp", target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in source.batches(tuple(choices.COLUMNS)):
            for reason, row, pair in _judged(batch.to_pylist(), how, seen, pool):
                counts["read"] += 1
                counts[reason] += 1
                if row is None:
                    continue
                seen.add([(row["prompt_id"], pair)])
                ids.append([row["prompt_id"], pair])
                waiting.append(row)
                counts["kept"] += 1
            while len(waiting) >= ROWS_PER_FILE:
                write(waiting[:ROWS_PER_FILE])
                parts, waiting = parts + 1, waiting[ROWS_PER_FILE:]
    if waiting:
        write(waiting)
    del counts[""]
    return {"counts": dict(counts), "ids": ids}


def _judged(
    items: Sequence[dict[str, Any]], how: Importing, seen: _Seen, pool: ThreadPoolExecutor
) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    """(reason, row, pair's id) of each item: a row where it is kept; the caller adds it to `seen` before the next."""
    reasons = [choices.reason_against(item) for item in items]
    out = {"ties"} if how.ties == "drop" else set()
    good = [n for n, reason in enumerate(reasons) if reason in {"", "ties"} - out]
    sizes = dict(zip(good, pool.map(_sizes, [items[n] for n in good]), strict=True))
    for n, (item, reason) in enumerate(zip(items, reasons, strict=True)):
        if n not in sizes:
            yield reason, None, ""
            continue
        caption = item["caption"].strip()
        pair = schema.pair_id(caption, [item["jpg_0"], item["jpg_1"]])
        row_id, size = seen.new_id(caption, pair, how.pairs), sizes[n]
        if row_id is None:
            yield "repeated", None, pair
        elif size is None:
            yield "undecodable", None, pair
        else:
            yield reason, _row(item, row_id, size, how), pair


def _sizes(item: dict[str, Any]) -> list[tuple[int, int]] | None:
    """(width, height) of both pictures, None where one cannot be decoded."""
    from PIL import Image

    try:
        return [store.image_size({"bytes": item[name], "path": None}) for name in ("jpg_0", "jpg_1")]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _row(
    item: dict[str, Any], row_id: str, sizes: Sequence[tuple[int, int]], how: Importing
) -> dict[str, Any]:
    """A dataset's row of two candidates; their seeds are not known."""
    labels = [float(item["label_0"]), float(item["label_1"])]
    phi = ranking.strength(TIES[how.ties], [[label] for label in labels])
    ranks = ranking.rank(phi)
    candidates = [
        {
            "generator": item[f"model_{k}"] or choices.UNNAMED,
            "seed": None,
            "image": {"bytes": item[f"jpg_{k}"], "path": None},
            "width": sizes[k][0],
            "height": sizes[k][1],
            "scores": [labels[k]],
            "win_probability": phi[k],
            "rank": int(ranks[k]),
            "error": None,
            "score_errors": [None],
        }
        for k in (0, 1)
    ]
    return {"prompt_id": row_id, "prompt": item["caption"].strip(), "candidates": candidates}


def _summary(
    output: Output,
    models: Sequence[str],
    how: Importing,
    counts: Counter[str],
    ids: Iterable[str],
    wall_s: float,
) -> dict[str, Any]:
    """The contents of `dataset.json`: a job's, as far as there was one."""
    rows, read = counts["kept"], counts["read"]
    identity = claimed(output)
    files = identity["import.files"]
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "rankray_version": rankray.__version__,
        "complete": True,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seed": None,
        "identity": identity,
        "imported": {"format": "pickapic", "ties": how.ties, "pairs": how.pairs, "counts": dict(counts)},
        "prompts": {
            "source": f"{len(files)} files of human choices",
            "read": read,
            "empty": counts["empty"],
            "duplicates": counts["repeated"],
            "undecodable": 0,
            "rows": rows,
            "sha256": hashlib.sha256("".join(sorted(ids)).encode()).hexdigest(),
        },
        # No fixed number of samples: a row's two pictures are of any of them.
        "generators": [
            {"name": name, "model": name, "revision": "unrecorded", "samples": 0} for name in models
        ],
        "rewards": [{"name": REWARD, "model": REWARD, "revision": "labels"}],
        "ranking": {"aggregation": TIES[how.ties], "weights": {REWARD: 1.0}},
        "rows": rows,
        "candidates": 2 * rows,
        "images": 2 * rows,
        "images_made": 0,
        "failures": {"total": 0, "by_model": {}, "tolerance": 0.0, "examples": []},
        "layout": "imported",
        "runs": 1,
        "throughput": {
            "wall_s": wall_s,
            "images_per_s": 2 * read / wall_s,
            "rows_per_s": read / wall_s,
        },
        "cost": ledger([], PricesConfig()),
    }
