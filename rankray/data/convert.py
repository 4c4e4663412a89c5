"""A ranked dataset in other forms: preference pairs, for trainers that know pairs alone, and WebDataset shards.

    pairs       the best against the worst of each prompt
    all-pairs   every pair with a preference, each with Delta, RankDPO's weight (paper section 3.3)
    pickapic    best against worst under Pick-a-Pic v2's columns, which public Diffusion-DPO trainers read
    folders     best against worst as files of one name in two folders, which SimpleTuner's flow-DPO reads
    webdataset  everything, as tar files (`rankray.data.webdataset`)

Rows are streamed, a file at a time. Pictures are copied into each pair as they are stored, so that a file is a whole
answer: all pairs of four candidates hold each picture three times, 6 GB a thousand prompts of 1024-pixel PNGs.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import rankray
from rankray import schema, store
from rankray.config import ConfigError, nearest
from rankray.data import owner, pictures, webdataset
from rankray.data.place import Output, claim, complete, open_output
from rankray.words import Say

MARKER = "pairs.json"

_PAIR = pa.schema(
    [
        ("prompt_id", "string"),
        ("prompt", "string"),
        ("chosen", schema.IMAGE_TYPE),
        ("rejected", schema.IMAGE_TYPE),
        ("chosen_generator", "string"),
        ("rejected_generator", "string"),
        ("chosen_win_probability", "float32"),
        ("rejected_win_probability", "float32"),
        ("weight", "float32"),
    ]
)
PAIR_SCHEMA = _PAIR.with_metadata(schema.hugging_face(_PAIR))
"""One pair; `weight` is Delta."""

PICKAPIC_SCHEMA = pa.schema(
    [
        ("caption", "string"),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("label_0", "float64"),
        ("label_1", "float64"),
        ("has_label", "bool"),
        ("are_different", "bool"),
        ("image_0_uid", "string"),
        ("image_1_uid", "string"),
        ("best_image_uid", "string"),
        ("model_0", "string"),
        ("model_1", "string"),
        ("ranking_id", "int64"),
        ("num_example_per_prompt", "int64"),
    ]
)
"""Pick-a-Pic v2's columns, without those that say who labelled and when. The bytes are of whatever format the dataset
has, PNG or another: its readers look at the bytes and not at the column's name."""


def run(dataset: str, output: str, to: str, say: Say) -> dict[str, Any]:
    """Writes the dataset in the form `to` and, last, the form's marker, which it returns.

    A run that was killed goes on where it was; one that is complete does nothing.

    Raises:
        DatasetError: there is no finished dataset.
        ConfigError: `to` is none of `FORMATS`, or `output` holds something else, or another job is at work there.
    """
    if to not in FORMATS:
        raise ConfigError(f"format '{to}'{nearest(to, FORMATS)}; allowed: {', '.join(FORMATS)}")
    source, form = store.read(dataset), FORMATS[to]
    made = open_output(output, in_job=False)
    identity = {"dataset": source.path, "created": source.info["created"], "format": to}
    if made.uri == source.path:
        raise ConfigError(f"output {made.uri} is the dataset itself; take another output")

    def make() -> dict[str, Any]:
        store.require_whole(source)
        claim(made, form.marker, identity)
        info = {
            "rankray_version": rankray.__version__,
            "identity": identity,
            "prompts": int(source.info["rows"]),
        }
        return {**info, **form.write(source, made)}

    found = functools.partial(complete, made, form.marker, identity, say)
    return owner.once(made, "export", form.marker, found, make)


def _write_pairs(
    pair_schema: pa.Schema,
    pairs_of: Callable[[dict[str, Any]], Iterator[dict[str, Any]]],
    source: store.RankedDataset,
    made: Output,
) -> dict[str, Any]:
    """Writes `made`/data/*.parquet, a file for each of the dataset's; their count of pairs."""
    made.make("data")
    for file in source.files:
        file_out = made.at("data", file.rpartition("/")[2])
        if made.exists("data", file.rpartition("/")[2]):
            continue
        with pq.ParquetWriter(f"{file_out}.tmp", pair_schema, filesystem=made.fs) as writer:
            for rows in source.groups(file):
                found = [pair for row in rows for pair in pairs_of(row)]
                if found:  # `datasets` cannot read an empty row group
                    writer.write_table(pa.Table.from_pylist(found, pair_schema))
        store.settle(f"{file_out}.tmp", file_out, made.fs)
    files = made.tables("data")
    return {"pairs": sum(pq.ParquetFile(path, filesystem=made.fs).metadata.num_rows for path in files)}


def _write_folders(source: store.RankedDataset, made: Output) -> dict[str, Any]:
    """Writes `made`/preferred/ID.png and `made`/rejected/ID.png with the prompt in ID.txt beside each, and what they
    are as HPDv2 has it in rankings.json, which `rankray import` reads; their count of pairs. A kill costs all of it.

    Trainers find a picture's partner by its name, so both end as the preferred one's kind does: they look at the bytes.
    """
    sides = {"preferred": "chosen", "rejected": "rejected"}
    for folder in sides:
        made.make(folder)
    records = []
    for row in source.rows(images=True):
        for pair in best_worst(row):
            name = f"{row['prompt_id']}.{pictures.suffix(pair['chosen']['bytes'])}"
            for folder, side in sides.items():
                text = f"{folder}/{row['prompt_id']}.txt"
                for file, data in ((f"{folder}/{name}", pair[side]["bytes"]), (text, row["prompt"].encode())):
                    with made.fs.open_output_stream(made.at(file)) as stream:
                        stream.write(data)
            places = [f"{folder}/{name}" for folder in sides]
            records.append({"prompt": row["prompt"], "image_path": places, "rank": [1, 2]})
    made.write_text("rankings.json", json.dumps(records))
    return {"pairs": len(records)}


def _ranked(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The candidates that are in the ranking, best first."""
    return sorted((c for c in row["candidates"] if c["rank"] > 0), key=lambda c: int(c["rank"]))


def _pair(row: dict[str, Any], chosen: dict[str, Any], rejected: dict[str, Any]) -> dict[str, Any]:
    weight = _delta(chosen, rejected)
    found = {"prompt_id": row["prompt_id"], "prompt": row["prompt"], "weight": weight}
    for name, candidate in (("chosen", chosen), ("rejected", rejected)):
        found[name] = {"bytes": store.image_bytes(candidate["image"]), "path": None}
        found[f"{name}_generator"] = candidate["generator"]
        found[f"{name}_win_probability"] = candidate["win_probability"]
    return found


def _delta(chosen: dict[str, Any], rejected: dict[str, Any]) -> float:
    import torch

    from rankray.losses import LossInputs, pair_weight  # torch is no matter of the other verbs

    both = (chosen, rejected)
    phi = torch.tensor([[candidate["win_probability"] for candidate in both]], dtype=torch.float64)
    rank = torch.tensor([[candidate["rank"] for candidate in both]])
    return float(pair_weight(LossInputs(phi, phi, phi, rank, torch.ones_like(rank)))[0, 0, 1])


def all_pairs(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every pair of a dataset's row in which one is preferred, the better one's rank ascending; ties have none."""
    for better, worse in combinations(_ranked(row), 2):
        if better["win_probability"] != worse["win_probability"]:
            yield _pair(row, better, worse)


def best_worst(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The best against the worst; none where they tie."""
    ranked = _ranked(row)
    if len(ranked) > 1 and ranked[0]["win_probability"] != ranked[-1]["win_probability"]:
        yield _pair(row, ranked[0], ranked[-1])


def pickapic(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """`best_worst` under Pick-a-Pic's columns; which of them is picture 0 is decided by the prompt's hash, as there the
    better one is either."""
    ranked = _ranked(row)
    if len(ranked) < 2 or ranked[0]["win_probability"] == ranked[-1]["win_probability"]:
        return
    digest = hashlib.sha256(row["prompt_id"].encode()).digest()
    sides = [ranked[0], ranked[-1]] if digest[0] % 2 == 0 else [ranked[-1], ranked[0]]
    images = [store.image_bytes(side["image"]) for side in sides]
    best = sides.index(ranked[0])
    # Seeds of imported pictures are unknown, and two of one model would share a name.
    marks = [
        side["seed"] if side["seed"] is not None else hashlib.sha256(image).hexdigest()
        for side, image in zip(sides, images, strict=True)
    ]
    uids = [f"{row['prompt_id']}-{side['generator']}-{mark}" for side, mark in zip(sides, marks, strict=True)]
    yield {
        "caption": row["prompt"],
        **{f"jpg_{n}": image for n, image in enumerate(images)},
        **{f"label_{n}": float(n == best) for n in (0, 1)},
        **{f"image_{n}_uid": uid for n, uid in enumerate(uids)},
        **{f"model_{n}": side["generator"] for n, side in enumerate(sides)},
        "has_label": True,
        "are_different": True,
        "best_image_uid": uids[best],
        "ranking_id": int.from_bytes(digest[1:8], "big"),
        "num_example_per_prompt": 1,
    }


@dataclass(frozen=True)
class Form:
    """A form: the file that is written last, and who writes the others and counts what there is."""

    marker: str
    write: Callable[[store.RankedDataset, Output], dict[str, Any]]


FORMATS = {
    "pairs": Form(MARKER, partial(_write_pairs, PAIR_SCHEMA, best_worst)),
    "all-pairs": Form(MARKER, partial(_write_pairs, PAIR_SCHEMA, all_pairs)),
    "pickapic": Form(MARKER, partial(_write_pairs, PICKAPIC_SCHEMA, pickapic)),
    "folders": Form(MARKER, _write_folders),
    "webdataset": Form(webdataset.MARKER, webdataset.write),
}
