"""Choices between two pictures, as Pick-a-Pic v2 keeps them, as a ranked dataset: pairs as rows, one reward, `human`.

A caption stands there in many rows, with other pictures each time. Each pair that somebody compared becomes a row of
its own, so that whatever trains on the dataset learns from pairs that people saw side by side and from no others. A
caption's pictures merged into one row would be fewer rows and more pairs, most of which nobody compared: a share of
wins orders pictures that never met, and RankDPO would take that order for a preference. `pairs = "one"` keeps a
caption's first pair alone, a row a prompt as in any other dataset, for a comparison at equal prompts.

Pictures stay as they are stored. They are decoded once, to find those that cannot be: 10 ms for a pair of 1024-pixel
JPEGs on one core, by far the most of the work. A kill costs the input file that was being read.

`write` is what every import of others' judgements goes through (`rankray.data.rankings` has the other formats).
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rankray import ranking, schema, store
from rankray.config import ConfigError, PricesConfig, nearest
from rankray.data import choices, owner, pictures
from rankray.data.cost import ledger
from rankray.data.place import Output, Publish, claim, claimed, complete, count_failures, head, open_output
from rankray.words import Say

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
class Seen:
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


Judged = Iterator[tuple[Counter[str], dict[str, Any] | None, str]]
"""Of each item of a file: why it or a part of it is left out (`choices.REASONS`), its row if it is kept, and the id of
its pictures. The caller adds a row to `Seen` before it asks for the next."""


@dataclass(frozen=True)
class Form:
    """What is imported.

    Attributes:
        name: in `dataset.json`.
        things: what a row of it is, in words.
        generators, rewards: all that the files name.
        comparable: whether scores mean the same in every row, as ranks and choices do not.
        judged: reads one file.
    """

    name: str
    things: str
    generators: Sequence[str]
    rewards: Sequence[str]
    comparable: bool
    judged: Callable[[choices.Source, Importing, Seen, ThreadPoolExecutor], Judged]


def run(
    inputs: Sequence[str], output: str, how: Importing, say: Say, report: Publish | None = None
) -> dict[str, Any]:
    """Writes the ranked dataset of `inputs` (Parquet files, or directories of them) to `output`; its `dataset.json`.

    Raises:
        ConfigError: as `write`; an input is missing or has other columns (nothing is written).
    """
    check(how)
    sources = [source for name in inputs for source in choices.find(name)]
    form = Form("pickapic", "pairs", choices.models_of(sources), [REWARD], False, _judged)
    return write(form, sources, output, how, say, report)


def check(how: Importing) -> None:
    """Refuses what is not understood.

    Raises:
        ConfigError: so it is.
    """
    for key, value, allowed in (("ties", how.ties, [*TIES]), ("pairs", how.pairs, [*PAIRS])):
        if value not in allowed:
            raise ConfigError(f"{key} '{value}'{nearest(value, allowed)}; allowed: {', '.join(allowed)}")


def write(
    form: Form,
    sources: Sequence[choices.Source],
    output: str,
    how: Importing,
    say: Say,
    report: Publish | None = None,
) -> dict[str, Any]:
    """Writes the ranked dataset of `sources` to `output`; its `dataset.json`.

    A run that was killed goes on with the input file that it was in; one that is complete does nothing.

    Raises:
        ConfigError: `output` holds something else, a file is damaged, or no row of the inputs can be used.
    """
    made = open_output(output, in_job=False)
    identity = _identity(sources, how)

    def make() -> dict[str, Any]:
        claim(made, "dataset.json", identity)
        return _write(form, sources, made, how, say)

    found = functools.partial(complete, made, "dataset.json", identity, say)
    return owner.once(made, "import", "dataset.json", found, make, report)


def _write(
    form: Form, sources: Sequence[choices.Source], made: Output, how: Importing, say: Say
) -> dict[str, Any]:
    """Writes what is left of the rows, by input file; the contents of `dataset.json`."""
    made.make("data")
    made.make("_work", "read")
    begin_s, seen, counts, candidates = time.perf_counter(), Seen(), Counter[str](), 0
    names = {
        "generators": dict.fromkeys(form.generators, "unrecorded"),
        "rewards": {name: _revision(name) for name in form.rewards},
    }
    for number, source in enumerate(sources):
        note = made.at("_work", "read", f"{number:05}.json")
        if not made.exists("_work", "read", f"{number:05}.json"):
            store.write_json(note, _read(form, source, number, made, names, how, seen), made.fs)
        found = store.read_json(note, made.fs)
        seen.add(found["ids"])
        counts.update(found["counts"])
        candidates += found["candidates"]
        say(
            f"{number + 1} of {len(sources)} files: {counts['read']:,} {form.things} read, {counts['kept']:,} kept"
        )
    if not counts["kept"]:
        thing = form.things.removesuffix("s")
        raise ConfigError(f"no {thing} of {counts['read']:,} can be used: {left_out(counts, how.ties)}")
    return _summary(form, made, how, counts, candidates, seen.rows, time.perf_counter() - begin_s)


def left_out(counts: dict[str, int] | Counter[str], ties: str) -> str:
    """In words how many rows were left out and why: `3 tied, 1 without a label`."""
    told = [
        f"{counts[reason]:,} {words}"
        for reason, words in choices.REASONS.items()
        if counts.get(reason) and not (reason == "ties" and ties == "half")
    ]
    return ", ".join(told) or "none"


def _identity(sources: Sequence[choices.Source], how: Importing) -> dict[str, Any]:
    return {
        "import.files": [f"{source.uri} of {source.size} bytes" for source in sources],
        "import.ties": how.ties,
        "import.pairs": how.pairs,
        "images.store": "inline",
    }


def _read(
    form: Form,
    source: choices.Source,
    number: int,
    output: Output,
    names: Mapping[str, Mapping[str, str]],
    how: Importing,
    seen: Seen,
) -> dict[str, Any]:
    """Writes the rows of one input; what is noted of it: counts, and [row's id, pair's id] of each row."""
    counts, candidates = Counter[str](), 0
    ids: list[list[str]] = []
    waiting: list[dict[str, Any]] = []
    parts = 0

    def write(rows: list[dict[str, Any]]) -> None:
        place = output.at("data", f"{number:05}-{parts:05}.parquet")
        store.write_rows(place, rows, names, output.fs)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for reasons, row, pair in form.judged(source, how, seen, pool):
            counts["read"] += 1
            counts.update(reasons)
            if row is None:
                continue
            seen.add([(row["prompt_id"], pair)])
            ids.append([row["prompt_id"], pair])
            waiting.append(row)
            counts["kept"] += 1
            candidates += len(row["candidates"])
            if len(waiting) == ROWS_PER_FILE:
                write(waiting)
                parts, waiting = parts + 1, []
    if waiting:
        write(waiting)
    return {"counts": dict(counts), "ids": ids, "candidates": candidates}


def _judged(source: choices.Source, how: Importing, seen: Seen, pool: ThreadPoolExecutor) -> Judged:
    """What becomes of each pair of a file."""
    out = {"ties"} if how.ties == "drop" else set()
    for items in choices.items(source):
        reasons = [choices.reason_against(item) for item in items]
        good = [n for n, reason in enumerate(reasons) if reason in {"", "ties"} - out]
        sizes = dict(zip(good, pool.map(_sizes, [items[n] for n in good]), strict=True))
        for n, (item, reason) in enumerate(zip(items, reasons, strict=True)):
            if n not in sizes:
                yield Counter([reason]), None, ""
                continue
            caption = item["caption"].strip()
            pair = schema.pair_id(caption, [item["jpg_0"], item["jpg_1"]])
            row_id, size = seen.new_id(caption, pair, how.pairs), sizes[n]
            if row_id is None:
                yield Counter(["repeated"]), None, pair
            elif size is None:
                yield Counter(["undecodable"]), None, pair
            else:
                yield Counter([reason] if reason else []), _row(item, row_id, size, how), pair


def _sizes(item: dict[str, Any]) -> list[tuple[int, int]] | None:
    """(width, height) of both pictures, None where one cannot be decoded."""
    try:
        return [pictures.imported(item[name])[1] for name in ("jpg_0", "jpg_1")]
    except (OSError, ValueError, SyntaxError):
        return None


def _row(
    item: dict[str, Any], row_id: str, sizes: Sequence[tuple[int, int]], how: Importing
) -> dict[str, Any]:
    """A dataset's row of two candidates."""
    seen = [(item[f"jpg_{k}"], sizes[k]) for k in (0, 1)]
    names = [item[f"model_{k}"] or choices.UNNAMED for k in (0, 1)]
    labels = [[float(item[f"label_{k}"])] for k in (0, 1)]
    return ranked_row(row_id, item["caption"].strip(), list(zip(names, seen, labels, strict=True)), how.ties)


def ranked_row(
    row_id: str,
    prompt: str,
    candidates: Sequence[tuple[str, tuple[bytes, tuple[int, int]], Sequence[float]]],
    ties: str,
    rewards: Sequence[str] = (REWARD,),
) -> dict[str, Any]:
    """A dataset's row of others' pictures, whose seeds are not known.

    Args:
        row_id, prompt: its own.
        candidates: (generator, (bytes, (width, height)), scores) of each; NaN is "not scored".
        ties: of `TIES`.
        rewards: what the scores are called.
    """
    phi = ranking.strength(TIES[ties], [list(scores) for _, _, scores in candidates])
    ranks = ranking.rank(phi)
    found = []
    for k, (generator, (data, (width, height)), scores) in enumerate(candidates):
        errors = ["not scored" if math.isnan(score) else None for score in scores]
        found.append(
            {
                "generator": generator,
                "seed": None,
                "image": {"bytes": data, "path": None},
                "width": width,
                "height": height,
                "scores": list(scores),
                "win_probability": phi[k],
                "rank": int(ranks[k]),
                "error": schema.joined_errors(rewards, errors),
                "score_errors": errors,
            }
        )
    return {"prompt_id": row_id, "prompt": prompt, "candidates": found}


def _revision(reward: str) -> str:
    """What is known of a reward: people's judgements are labels, and of scores nobody knows the weights."""
    return "labels" if reward == REWARD else "unrecorded"


def _summary(
    form: Form,
    output: Output,
    how: Importing,
    counts: Counter[str],
    candidates: int,
    ids: Iterable[str],
    wall_s: float,
) -> dict[str, Any]:
    """The contents of `dataset.json`: a job's, as far as there was one."""
    read, files = counts["read"], len(claimed(output)["import.files"])
    own = {"format": form.name, "ties": how.ties, "pairs": how.pairs, "comparable": form.comparable}
    return {
        **head(output, None),
        "imported": {**own, "counts": dict(counts)},
        "prompts": imported_prompts(f"{files} files of {form.things}", counts, ids),
        # No fixed number of samples: a row's two pictures are of any of them.
        "generators": [
            {"name": name, "model": name, "revision": "unrecorded", "samples": 0} for name in form.generators
        ],
        "rewards": [{"name": name, "model": name, "revision": _revision(name)} for name in form.rewards],
        "ranking": {"aggregation": TIES[how.ties], "weights": dict.fromkeys(form.rewards, 1.0)},
        "candidates": candidates,
        "images": candidates,
        "failures": {**count_failures(output, form.rewards), "tolerance": 0.0},
        "throughput": {
            "wall_s": wall_s,
            "images_per_s": candidates / wall_s,
            "rows_per_s": read / wall_s,
        },
        **no_job(counts["kept"]),
    }


def imported_prompts(source: str, counts: Counter[str], ids: Iterable[str]) -> dict[str, Any]:
    """`prompts` of a `dataset.json` that no job made: how many were kept, of these ids, and what became of others."""
    sha = hashlib.sha256("".join(sorted(ids)).encode()).hexdigest()
    left = {"empty": counts["empty"], "duplicates": counts["repeated"], "undecodable": 0}
    return {"source": source, "read": counts["read"], **left, "rows": counts["kept"], "sha256": sha}


def no_job(rows: int) -> dict[str, Any]:
    """What a `dataset.json` says of the job that made the rows, where there was none."""
    made = {"images_made": 0, "layout": "imported", "runs": 1}
    return {"rows": rows, **made, "cost": ledger([], PricesConfig())}
