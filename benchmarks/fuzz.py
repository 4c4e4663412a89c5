"""Hostile inputs at every entry point that needs no Ray: what is neither right nor refused in a line?

python benchmarks/fuzz.py [--cases 10000] [--seed 0] [--only ENTRY ...] [--json FILE]

A case is a valid input (a configuration of `jobs/`, a dataset of three prompts, the golden files of the tests), one to
three changes of it, and a call; all of its number and the seed, to come again (`--first N --cases 1`). Right is exit
code 0, refused is 2 and a line that names what was changed. All else is a fault: another exception, 10 s, 2 GB more
than before, a refusal of 3,000 characters, an output that is marked as finished and is not. Cases run in a child
process under a limit of its address space; one that kills the child is a fault, and the next child goes on behind it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gzip
import io
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_servers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import small_dataset
import torch
from fuzz_changes import (
    BYTES,
    WORDS,
    Case,
    Rng,
    bytes_changed,
    called,
    json_changed,
    picture_changed,
    toml_changed,
    value_changed,
    verb,
)
from provenance import provenance
from safetensors.numpy import save as save_arrays
from safetensors.torch import save

from rankray import cli, config, evals, store, verbs
from rankray.config import EvalChoice, PromptsConfig
from rankray.config.rankdpo import RankDPOConfig
from rankray.data import place as places
from rankray.data import prompts, running, webdataset
from rankray.evals import models as evaluated
from rankray.evals import prompt_lists
from rankray.models import loading, weights
from rankray.models.rewards import mps_convert
from rankray.rankdpo import encoded, encoding, train_job, zero
from rankray.rankdpo import job as rankdpo
from rankray.rankdpo.feed import Rows

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S, LIMIT_BY_CLOCK_S = 10.0, 60.0
"""Of one core's time, and by the clock of a machine that does other work too."""
LIMIT_BYTES = 2 * 2**30
CHILD_CASES = 1000
"""Of one process, which keeps what libraries cache."""
LINE = 3000
"""Characters that a line of a refusal may have."""
LINES = 25
"""Lines that a refusal may have: `store.MAX_FAULTS` of a dataset, and more for a configuration's keys are too many."""
JOBS = {
    "synpic": "synpic-shapes",
    "extend": "extend-shapes",
    "rankdpo": "rankdpo-shapes",
    "align": "align-shapes",
    "evaluate": "evaluate-shapes",
    "ablate": "ablate-shapes",
}
PAGES = {"run.json": "rankdpo", "align.json": "align", "results.json": "evaluate", "ablation.json": "ablate"}
"""What `rankray report` is made of: the file, and the golden file that has an example."""


class Hang(BaseException):
    """A case takes longer than `LIMIT_S`."""


# Where it is thrown


@functools.cache
def _job(name: str) -> tuple[dict[str, Any], bytes]:
    text = (ROOT / "jobs" / f"{JOBS[name]}.toml").read_bytes()
    return config.parse_toml(text, name), text


@functools.cache
def _golden(name: str, file: str) -> Any:
    def plain(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {key: plain(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item, key) for item in value]
        text = "2026-01-01T00:00:00+00:00" if key == "created" else "text"
        return {"<number>": 1.5, "<text>": text}.get(value, value) if isinstance(value, str) else value

    found = plain(json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text())[file])
    return store.sealed(found) if file.endswith(".json") else found


def toml(rng: Rng, place: Path) -> Case:
    """A job's configuration file."""
    job = rng.choice(sorted(JOBS))
    data, told = toml_changed(rng, *_job(job))
    file = place / "job.toml"
    file.write_bytes(data)
    return Case(lambda: called(lambda: cli.JOBS[job].parse(["--config", str(file)])), f"{job}: {told}", ())


def options(rng: Rng, place: Path) -> Case:
    """Options behind a valid configuration."""
    job = rng.choice(sorted(JOBS))
    keys = [option.key for option in config.options(cli.JOBS[job].model)]
    words = ["--config", str(ROOT / "jobs" / f"{JOBS[job]}.toml")]
    for _ in range(rng.choice((1, 1, 2))):
        key = (
            rng.choice(keys)
            if rng.random() < 0.9
            else rng.choice((*keys, "x", "a.b", "")) + rng.choice(WORDS)
        )
        value = rng.choice(WORDS)
        words += rng.choice(([f"--{key}={value}"], [f"--{key}", value], [f"--{key}"], [value]))
    return Case(lambda: called(lambda: cli.JOBS[job].parse(words)), f"{job} {words[2:]!r:.200}", ())


def dry_run(rng: Rng, place: Path) -> Case:
    """A plan of a changed configuration."""
    tables, text = _job("synpic")
    data, told = toml_changed(rng, tables, text)
    file = place / "job.toml"
    file.write_bytes(data)
    words = ["synpic", "--config", str(file), "--dry-run"]
    if rng.random() < 0.4:
        words += [rng.choice(("--gpus", "--gpu-type", "--measured")), rng.choice(WORDS)]
    return Case(verb(rng, words), f"{told} {words[4:]!r:.80}", ())


_LINES = ["a cat", 'a "dog", red', "猫と犬", "x", "", "a cat"]
PROMPTS: dict[str, bytes] = {
    "txt": "\n".join(_LINES).encode(),
    "csv": b'prompt,n\na cat,1\n"a ""dog"", red",2\n\nlast,3\n',
    "tsv": b'prompt\tn\na cat\t1\na "dog"\t2\n',
    "json": json.dumps([{"prompt": line} for line in _LINES]).encode(),
    "jsonl": "\n".join(json.dumps({"prompt": line}) for line in _LINES).encode(),
    "txt.gz": gzip.compress("\n".join(_LINES).encode()),
    "json.gz": gzip.compress(json.dumps(_LINES).encode()),
}


@functools.cache
def _bomb() -> bytes:
    """4 GB of one line in 4 MB."""
    return gzip.compress(b"a" * 2**26, 9) * 64


@functools.cache
def _prompts_parquet() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"prompt": _LINES, "n": list(range(6))}), stream)
    return stream.getvalue()


def prompt_files(rng: Rng, place: Path) -> Case:
    """Prompts of every format, in every encoding."""
    end = rng.choice((*sorted(PROMPTS), "parquet"))
    data = _prompts_parquet() if end == "parquet" else PROMPTS[end]
    kind = rng.random()
    if kind < 0.01:
        end, data, told = rng.choice(("txt.gz", "jsonl.gz", "csv.gz", "json.gz")), _bomb(), "4 GB of one line"
    elif kind < 0.15 and not end.endswith(("gz", "parquet")):
        text = data.decode() * rng.choice((1, 50))
        encoding = rng.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"))
        data, told = bytes_changed(rng, text.encode(encoding))
        told = f"{encoding}, {told}"
    elif kind < 0.2 and not end.endswith(("gz", "parquet")):
        data, told = data + rng.choice(BYTES) * 300_000 + data, "300,000 of a byte"
    elif kind < 0.35 and end == "json":
        data, told = json_changed(rng, [{"prompt": line} for line in _LINES])
    else:
        data, told = bytes_changed(rng, data)
    file = place / f"prompts.{end}"
    file.write_bytes(data)
    asked = PromptsConfig(path=str(file), block=str(file) if rng.random() < 0.05 else None)
    return Case(lambda: called(lambda: prompts.read_prompts(asked)), f".{end}: {told}", ("prompts",))


@functools.cache
def _dataset() -> Path:
    place = Path(tempfile.mkdtemp(prefix="rankray-fuzz-")) / "dataset"
    small_dataset.write(place)
    return place


FORMATS = ("pairs", "all-pairs", "pickapic", "webdataset")


def _verb_on(rng: Rng, dataset: Path, told: str, named: Sequence[str]) -> Case:
    """One of the verbs that read a dataset."""
    output = dataset.parent / "output"
    name = rng.choice(("validate", "report", "rerank", "export", "import", "status"))
    words = [name, str(dataset)]
    if name == "import" and rng.random() < 0.5:
        words.append(str(_dataset()))
    if name in ("rerank", "export", "import"):
        words += ["--output", str(output)]
    form = rng.choice(FORMATS)
    if name == "export":
        words += ["--to", form]
    if name == "rerank":
        words += rng.choice(([], ["--rewards", "r,s"], ["--weights", "r=2"], ["--aggregation", "borda"]))
    named = (*named, "weight for")  # which is of `--weights`
    marker = f"{form}.json" if name == "export" else "dataset.json"
    writes = output if name in ("rerank", "export", "import") else None
    return Case(verb(rng, words), f"{' '.join([name, *words[4:]])}: {told}", tuple(named), writes, marker)


def dataset_json(rng: Rng, place: Path) -> Case:
    """What a dataset says of itself."""
    dataset = place / "dataset"
    shutil.copytree(_dataset(), dataset)
    data, told = json_changed(rng, json.loads((dataset / "dataset.json").read_bytes()))
    (dataset / "dataset.json").write_bytes(data)
    return _verb_on(rng, dataset, told, ("dataset",))


def _rows_changed(rng: Rng, file: Path) -> str:
    """Writes a Parquet file with other values, under its schema or what pyarrow makes of them; says which."""
    table = pq.read_table(file)
    rows, told = value_changed(rng, table.to_pylist())
    try:
        made = pa.Table.from_pylist(rows, table.schema if rng.random() < 0.7 else None)
        pq.write_table(made, file)
    except (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError, UnicodeError):
        file.write_bytes(b"")
        return "empty"
    return told


def _picture_put(rng: Rng, file: Path) -> str:
    """Puts a changed picture into a Parquet file's first row; says which."""
    table = pq.read_table(file)
    rows = table.to_pylist()
    data, told = picture_changed(rng)
    rows[0]["candidates"][0]["image"]["bytes"] = data
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file)
    return told


def parquet(rng: Rng, place: Path) -> Case:
    """Other bytes, values and columns in a dataset's rows."""
    dataset = place / "dataset"
    shutil.copytree(_dataset(), dataset)
    file = dataset / "data" / rng.choice(("0", "1"))
    file = file.with_suffix(".parquet")
    kind = rng.random()
    if kind < 0.5:
        data, told = bytes_changed(rng, file.read_bytes())
        file.write_bytes(data)
    elif kind < 0.9:
        told = _rows_changed(rng, file)
    else:
        made = pq.read_table(file)
        odd = rng.choice(("a column gone", "another column", "no metadata", "no rows"))
        if odd == "a column gone":
            made = made.drop_columns([rng.choice(made.column_names)])
        elif odd == "another column":
            made = made.append_column("prompt", made["prompt"])
        made = made.slice(0, 0) if odd == "no rows" else made
        pq.write_table(made.replace_schema_metadata(None) if odd == "no metadata" else made, file)
        told = odd
    return _verb_on(rng, dataset, f"{file.name}: {told}", ("dataset", file.name))


def dataset_pictures(rng: Rng, place: Path) -> Case:
    """A picture in a dataset's row."""
    dataset = place / "dataset"
    shutil.copytree(_dataset(), dataset)
    told = _picture_put(rng, dataset / "data" / "0.parquet")
    return _verb_on(rng, dataset, told, ("dataset", "0.parquet"))


def pages(rng: Rng, place: Path) -> Case:
    """What a finished job left, read again."""
    file = rng.choice(sorted(PAGES))
    output = place / "output"
    output.mkdir()
    data, told = json_changed(rng, _golden(PAGES[file], file))
    lines = _golden("rankdpo", "metrics.jsonl")
    if file == "run.json":
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        if rng.random() < 0.4:
            data, (text, told) = json.dumps(_golden("rankdpo", file)).encode(), bytes_changed(rng, text)
            file = rng.choice((file, "metrics.jsonl"))
        (output / "metrics.jsonl").write_bytes(text)
    if file != "metrics.jsonl":
        (output / file).write_bytes(data)
    name = rng.choice(("report", "report", "status"))
    return Case(verb(rng, [name, str(output)]), f"{name} {file}: {told}", ("output",))


def begun(rng: Rng, place: Path) -> Case:
    """What a job at work leaves about it."""
    output = place / "output"
    work = output / "_work"
    work.mkdir(parents=True)
    model = {
        "kind": "generator",
        "model": "a",
        "done": 4,
        "failures": 1,
        "total": 10,
        "rate_per_s": 2.0,
        "waits_s": 0.0,
    }
    files: dict[str, Any] = {
        "_work/staged.json": {"rows": 50},
        "_work/progress.json": {"at": time.time(), "models": [model]},
        "config.toml": "steps = 4\n[prices]\ngpu_usd_per_hour = 1.5\n",
        "metrics.jsonl": "",
    }
    mark = {
        "kind": "synpic",
        "host": "a",
        "machine": "b",
        "pid": 1,
        "begun": 5,
        "since": "2026-01-01",
        "job": "",
        "submission": "",
    }
    files["_owner.0.json"], files["_owner.0.beat"] = mark, "1 owns"
    if rng.random() < 0.5:
        files["metrics.jsonl"] = '{"step": 1, "loss": 0.5, "step_s": 2.0, "usd": 0.2, "prompts_per_s": 8.0}\n'
    else:
        del files["metrics.jsonl"]
    name = rng.choice(sorted(files))
    told = ""
    for file, value in files.items():
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        if file == name and not isinstance(value, str):
            data, told = json_changed(rng, value)
        elif file == name and file == "metrics.jsonl":
            data, told = json_changed(rng, json.loads(value))
        elif file == name:
            data, told = bytes_changed(rng, data)
        (output / file).write_bytes(data)
    return Case(verb(rng, ["status", str(output)]), f"{name}: {told}", ("output",))


def vote_files(rng: Rng, place: Path) -> Case:
    """A line among votes."""
    pair = [{"place": k, "generator": "one", "seed": k} for k in (0, 1)]
    rows = small_dataset.row("a")
    for k in (0, 1):
        pair[k]["seed"] = rows["candidates"][k]["seed"]
    vote = {
        "at": "2026-01-01",
        "voter": "me",
        "prompt_id": rows["prompt_id"],
        "pair": pair,
        "left": 0,
        "win": 1.0,
    }
    data, told = json_changed(rng, vote)
    file = place / "votes.jsonl"
    file.write_bytes(
        json.dumps(vote).encode()
        + b"\n"
        + data
        + rng.choice((b"\n", b""))
        + json.dumps(vote).encode()
        + b"\n"
    )
    words = ["rerank", str(_dataset()), "--output", str(place / "output"), "--votes", str(file)]
    return Case(verb(rng, words), told, ("votes.jsonl",), place / "output")


@functools.cache
def _shards() -> Path:
    place = Path(tempfile.mkdtemp(prefix="rankray-fuzz-")) / "shards"
    assert (
        run_quietly(
            lambda: verbs.main(["export", str(_dataset()), "--output", str(place), "--to", "webdataset"])
        )[0]
        == 0
    )
    return place


def shards(rng: Rng, place: Path) -> Case:
    """Shards, their members, and what stands beside them."""
    found = place / "shards"
    shutil.copytree(_shards(), found)
    kind = rng.random()
    if kind < 0.3:
        file = found / webdataset.MARKER
        data, told = json_changed(rng, json.loads(file.read_bytes()))
        file.write_bytes(data)
    elif kind < 0.6:
        file = found / "000000.tar"
        data, told = bytes_changed(rng, file.read_bytes())
        file.write_bytes(data)
    else:
        file = found / "000000.tar"
        parts: list[tuple[tarfile.TarInfo, bytes]] = []
        with tarfile.open(file) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                parts.append((member, b"" if stream is None else stream.read()))
        n = rng.randrange(len(parts))
        member, content = parts[n]
        if member.name.endswith(".json"):
            content, told = json_changed(rng, json.loads(content))
        elif member.name.endswith(".png"):
            content, told = picture_changed(rng)
        else:
            content, told = bytes_changed(rng, content)
        member.size = len(content)
        parts[n] = member, content
        told = f"{member.name[-8:]}: {told}"
        with tarfile.open(file, "w") as tar:
            for member, content in parts:
                tar.addfile(member, io.BytesIO(content))
    output = place / "output"
    words = ["import", str(found), "--output", str(output)]
    return Case(verb(rng, words), f"{file.name}: {told}", ("shards",), output)


def tables(rng: Rng, place: Path) -> Case:
    """Others' rankings: a table of pictures and scores, and what stands in it."""
    end = rng.choice(("csv", "tsv", "json", "jsonl", "parquet"))
    (place / "a.png").write_bytes(small_dataset.picture("a", 0))
    data, told = picture_changed(rng) if rng.random() < 0.3 else (small_dataset.picture("b", 1), "")
    (place / "b.png").write_bytes(data)
    rows = [{"prompt": "a cat", "image_path": f"{n}.png", "score": float(k)} for k, n in enumerate("ab")]
    ranking: Any = [{"prompt": "a cat", "image_path": ["a.png", "b.png"], "human_preference": [1, 0]}]
    imagereward: Any = [{"id": "1", "prompt": "a cat", "generations": ["a.png", "b.png"], "ranking": [1, 2]}]
    if end == "parquet":
        pixels = {f"jpg_{k}": [small_dataset.picture("a", k)] for k in (0, 1)}
        names = {**{f"image_{k}_uid": [f"u{k}"] for k in (0, 1)}, **{f"label_{k}": [1.0 - k] for k in (0, 1)}}
        models = {f"model_{k}": ["m"] for k in (0, 1)}
        stream = io.BytesIO()
        pq.write_table(
            pa.table({"caption": ["a cat"], **pixels, **names, **models, "has_label": [True]}), stream
        )
        data = stream.getvalue()
    elif end in ("csv", "tsv"):
        by = "," if end == "csv" else "\t"
        data = "\n".join([by.join(rows[0]), *(by.join(map(str, row.values())) for row in rows)]).encode()
    else:
        chosen = rng.choice((rows, ranking, imagereward))
        if not told and rng.random() < 0.6:
            chosen, told = value_changed(rng, chosen)
        lines = chosen if isinstance(chosen, list) else [chosen]
        data = json.dumps(chosen).encode() if end == "json" else "\n".join(map(json.dumps, lines)).encode()
    if not told:
        data, told = bytes_changed(rng, data)
    file = place / f"table.{end}"
    file.write_bytes(data)
    words = ["import", str(file), "--output", str(place / "output")]
    words += rng.choice(([], ["--ties", "half"], ["--pairs", "one"], ["--ties", rng.choice(WORDS)]))
    return Case(
        verb(rng, words),
        f".{end}: {told}",
        ("table", "png", "ties", "no ranking", "no pair"),
        place / "output",
    )


@functools.cache
def _tensors() -> bytes:
    return save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)})


def weight_files(rng: Rng, place: Path) -> Case:
    """Safetensors of a model and of a checkpoint, and their index."""
    data = _tensors()
    size = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.6:
        header, told = json_changed(rng, json.loads(data[8 : 8 + size]))
        data = (
            struct.pack("<Q", rng.choice((len(header), len(header), len(header), 2**62, 0)))
            + header
            + data[8 + size :]
        )
    else:
        data, told = bytes_changed(rng, data)
    if rng.random() < 0.4:  # a checkpoint's
        (place / "weights.safetensors").write_bytes(data)
        return Case(
            lambda: called(lambda: dict(zero.Stored(place, "weights"))),
            f"checkpoint: {told}",
            ("weights.safetensors",),
        )
    (place / "model.safetensors").write_bytes(data)
    if rng.random() < 0.3:
        index = {"metadata": {}, "weight_map": {"a": "model.safetensors"}}
        (place / "model.safetensors").write_bytes(_tensors())
        found, told = json_changed(rng, index)
        (place / "model.safetensors.index.json").write_bytes(found)

    def work() -> None:
        weights.check(str(place), pickles=False)
        loading.read_plain(place / "model.safetensors")

    return Case(lambda: called(work), f"weights: {told}", (place.name,))


def checkpoints(rng: Rng, place: Path) -> Case:
    """`rankray evaluate --model DIRECTORY`: what the files of a run and of a checkpoint say of themselves."""
    run = place / "run"
    checkpoint = run / "checkpoints" / "checkpoint_000001"
    checkpoint.mkdir(parents=True)
    (run / "pipeline").mkdir()
    (run / "pipeline" / "model_index.json").write_text("{}")
    (run / "config.toml").write_bytes(_job("rankdpo")[1])
    texts = {
        run / "run.json": _golden("rankdpo", "run.json"),
        checkpoint / "state.json": {
            "run": {"step": 3, "skipped": 0},
            "optimizer_tensors": [],
            "optimizer_scalars": {},
        },
    }
    file = rng.choice([*sorted(texts), run / "config.toml"])
    for each, value in texts.items():
        each.write_text(json.dumps(value))
    if file.suffix == ".json":
        data, told = json_changed(rng, texts[file])
    else:
        data, told = toml_changed(rng, *_job("rankdpo"))
    file.write_bytes(data)
    asked = evaluated.parse(str(checkpoint if file.name == "state.json" else run))

    def work() -> None:
        if file.name == "state.json":  # as a training's workers take it up
            train_job.checkpoint_state(*store.filesystem(str(checkpoint)))
        evaluated.resolve(asked, {})

    return Case(lambda: called(work), f"{file.name}: {told}", ("run",))


def _training(dataset: Path, place: Path) -> RankDPOConfig:
    """A run on all prompts of a dataset."""
    own = {"dataset": str(dataset), "output": str(place / "output")}
    return config.build(
        RankDPOConfig,
        config.with_options(_job("rankdpo")[0], {**own, "validation.share": 0.0, "validation.stop": "none"}),
    )


def training_datasets(rng: Rng, place: Path) -> Case:
    """A changed dataset to train on: what a run looks at before it begins, and the pictures that it encodes."""
    dataset = place / "dataset"
    shutil.copytree(_dataset(), dataset)
    kind = rng.random()
    file = dataset / ("dataset.json" if kind < 0.4 else "data/0.parquet")
    if kind < 0.4:
        data, told = json_changed(rng, json.loads(file.read_bytes()))
        file.write_bytes(data)
    else:
        told = _rows_changed(rng, file) if kind < 0.8 else _picture_put(rng, file)
    asked = _training(dataset, place)

    def work() -> None:
        plan = rankdpo.check(asked)
        for dataset in (source.dataset for source in plan.sources):
            for row in dataset.rows(images=True):
                for k, candidate in enumerate(row["candidates"]):
                    if candidate["image"] is not None:
                        encoding.picture_of(row, k, dataset.path, (8, 8))

    return Case(lambda: called(work), f"{file.name}: {told}", ("dataset", "labels"))


@functools.cache
def _encoded() -> Path:
    """An encoded set of three prompts, with reference errors, as actors leave them."""
    place = Path(tempfile.mkdtemp(prefix="rankray-fuzz-")) / "encoded"
    for part in ("data", "reference/data"):
        (place / part).mkdir(parents=True)
    rows = [small_dataset.row(prompt) for prompt in "abc"]
    latents = [
        [None if one["image"] is None else (np.ones((1, 2, 2)),) * 2 for one in row["candidates"]]
        for row in rows
    ]
    layout = encoded.Layout((1, 2, 2), {"text": (3, 4)}, "float32", (8, 8))
    table = encoded.encoded_table(rows, latents, {"text": np.zeros((3, 3, 4))}, layout)
    pq.write_table(table, place / "data" / "0.parquet", row_group_size=1)
    (place / "encoded.json").write_text(json.dumps({"version": 2, "rows": 3, **dataclasses.asdict(layout)}))
    (place / "empty.safetensors").write_bytes(save_arrays({"text": np.zeros((3, 4), np.float32)}))
    errors = [{"prompt_id": row["prompt_id"], "ref_error": [[0.5, 0.5, 0.5]]} for row in rows]
    reference = pa.Table.from_pylist(errors, encoding.REFERENCE_SCHEMA)
    pq.write_table(reference, place / "reference" / "data" / "0.parquet")
    return place


def encoded_sets(rng: Rng, place: Path) -> Case:
    """An encoded set as a training takes it up: its head, rows, reference errors, the empty prompt's embeddings."""
    found = place / "encoded"
    shutil.copytree(_encoded(), found)
    name = rng.choice(("encoded.json", "empty.safetensors", "data/0.parquet", "reference/data/0.parquet"))
    file = found / name
    if name == "encoded.json":
        data, told = json_changed(rng, json.loads(file.read_bytes()))
        file.write_bytes(data)
    elif name.endswith("parquet") and rng.random() < 0.5:
        told = _rows_changed(rng, file)
    else:
        data, told = bytes_changed(rng, file.read_bytes())
        file.write_bytes(data)

    asked = _training(place, place)

    def work() -> None:
        output = places.open_output(str(found), in_job=False)
        taken = encoding.finished_set(output, store.read_json(output.at("encoded.json"), output.fs))
        job = train_job.TrainJob(
            **dict.fromkeys(field.name for field in dataclasses.fields(train_job.TrainJob))
            | {
                "config": asked,
                "encoders": (),
                "sets": (train_job.RowSet(taken.files, taken.uri, taken.layout),),
            }
        )
        rows = Rows(job)
        rows.read(rows.places[0])
        encoded.read_empty(taken.uri)
        encoded.read_reference(f"{taken.uri}/reference")

    return Case(lambda: called(work), f"{name}: {told}", ("encoded",))


def outputs_gone_on_with(rng: Rng, place: Path) -> Case:
    """What a job reads of its own output when the same command is given again."""
    output = place / "output"
    (output / "_work").mkdir(parents=True)
    identity = {"seed": 3, "prompts.path": "p.txt"}
    read = prompts.PromptsRead(["a", "b"], 2, 0, 0, 0, "p.txt")
    digest = places.prompts_digest(read.rows)
    usage = {"usage": [dataclasses.asdict(small_dataset.USAGE)]}
    files: dict[str, Any] = {
        "_work/identity.json": {"identity": identity},
        "_work/staged.json": {"sha256": digest, "rows": 2, "reused": None},
        "_work/usage-1.json": usage,
        "dataset.json": {"identity": identity, "prompts": {"sha256": digest}, "rows": 2},
    }
    name = rng.choice(sorted(files))
    if name != "dataset.json":
        del files["dataset.json"]
    told = ""
    for file, value in files.items():
        data = json.dumps(value).encode()
        if file == name:
            data, told = json_changed(rng, value)
        (output / file).write_bytes(data)

    def work() -> None:
        found = places.open_output(str(output), in_job=False)
        done = places.complete(
            found,
            "dataset.json",
            identity,
            lambda line: None,
            lambda info: places.require_prompts(found, read, info),
        )
        if done is None:
            places.claim(found, "dataset.json", identity)
            places.claimed(found)
            places.stage_prompts(found, read, 16)
            running.all_usage(found)

    return Case(lambda: called(work), f"{name}: {told}", ("output",))


_GENEVAL = {
    "tag": "position",
    "prompt": "a dog",
    "include": [{"class": "dog", "count": 1}] * 2,
    "exclude": [],
}
_GENEVAL["include"] = [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}]
_DPG = b"item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question\n"
BENCHMARKS: dict[str, tuple[str, bytes]] = {
    "geneval": ("geneval.jsonl", json.dumps(_GENEVAL).encode() + b"\n"),
    "dpg": (
        "dpg.csv",
        _DPG.replace(b"question", b"question_natural_language")
        + b'x,"a, b",k,1,0,entity,whole,t,Is it?\n' * 2,
    ),
    "compbench": ("color_val.txt", b"a red dog and a blue cat\n"),
}


def benchmark_lists(rng: Rng, place: Path) -> Case:
    """A benchmark's published file."""
    model = rng.choice(sorted(BENCHMARKS))
    name, text = BENCHMARKS[model]
    if model == "geneval" and rng.random() < 0.7:
        data, told = json_changed(rng, _GENEVAL)
    else:
        data, told = bytes_changed(rng, text)
    (place / name).write_bytes(data)
    choice = EvalChoice(model=model)
    return Case(
        lambda: called(lambda: prompt_lists._items(choice, evals.spec_of(choice), str(place / name))),
        f"{name}: {told}",
        (model,),
    )


class _Runs:
    """Whose pickle runs a command."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


def pickles(rng: Rng, place: Path) -> Case:
    """`rankray convert-mps` of a file that is no MPS: refused, and nothing of it is run."""
    file, ran = place / "mps.pth", place / "ran"
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    kind = rng.random()
    torch.save(_Runs(ran) if kind < 0.1 else module, file)
    if kind < 0.5:
        data, told = bytes_changed(rng, file.read_bytes())
        file.write_bytes(data)
    else:
        with zipfile.ZipFile(file) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        name = next(name for name in parts if name.endswith("data.pkl"))
        told = "a pickle that runs a command"
        if kind < 0.6:
            parts[name] = pickle.dumps({"_modules": _Runs(ran)}, rng.randrange(5))
        else:
            parts[name], told = bytes_changed(rng, parts[name])
        with zipfile.ZipFile(file, "w") as archive:
            for part, content in parts.items():
                archive.writestr(part, content)

    def work() -> None:
        try:
            mps_convert.convert(file, place / "output")
        finally:
            assert not ran.exists(), "it ran"

    return Case(lambda: called(work), told, ("mps.pth",))


ENVIRONMENT = (
    *(
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_DEFAULT_REGION",
        "AWS_PROFILE",
        "RANKRAY_ENVS",
        "HF_HOME",
    ),
    *(
        "RANKRAY_WEIGHTS",
        "RAY_ADDRESS",
        "NO_COLOR",
        "TERM",
        "COLUMNS",
        "LANG",
        "LC_ALL",
        "HOME",
        "TMPDIR",
        "XDG_CACHE_HOME",
    ),
    *("OMP_NUM_THREADS", "AWS_ENDPOINT_URL", "HF_TOKEN", "RAY_JOB_CONFIG_JSON_ENV_VAR", "PYTHONUTF8", "USER"),
)


def environment(rng: Rng, place: Path) -> Case:
    """Variables that we or our libraries read."""
    names = rng.sample(ENVIRONMENT, rng.choice((1, 2)))
    values = {
        name: rng.choice([word for word in WORDS if "\0" not in word and word != "\ud800"]) for name in names
    }
    job = str(ROOT / "jobs" / "synpic-shapes.toml")
    calls = (
        ["validate", str(_dataset())],
        ["rerank", str(_dataset()), "--output", str(place / "output")],
        ["status", str(_dataset())],
        ["report", str(_shards().parent)],
        ["envs", "check"],
        ["init", "shapes", str(place / "init")],
        ["synpic", "--config", job, "--dry-run"],
        ["synpic", "--help"],
    )
    words = rng.choice(calls)

    def call() -> int:
        os.environ.update(values)
        code = verbs.main(words)
        return 0 if words == ["envs", "check"] and code == 1 else code  # 1 says that some are not built

    return Case(call, f"{words[0]}, {values!r:.160}", ())


def command_lines(rng: Rng, place: Path) -> Case:
    """Words in any order."""
    word = rng.choice(
        ("validate", "rerank", "export", "report", "import", "status", "init", "completion", "envs", "", "x")
    )
    if rng.random() < 0.1:
        word = rng.choice(WORDS)
    flags = (
        "--output",
        "--to",
        "--rewards",
        "--weights",
        "--aggregation",
        "--votes",
        "--ties",
        "--json",
        "--private",
    )
    words = [word]
    for _ in range(rng.randrange(6)):
        words.append(
            rng.choice((str(_dataset()), str(place / "o"), *flags, rng.choice(WORDS), rng.choice(FORMATS)))
        )

    def call() -> int:
        here = os.getcwd()
        os.chdir(place)
        try:
            return verbs.main(words)
        finally:
            os.chdir(here)

    return Case(call, f"{words!r:.300}", ())


ENTRIES: dict[str, tuple[int, Callable[[Rng, Path], Case]]] = {
    "TOML of the six jobs": (12, toml),
    "dotted options of the six jobs": (12, options),
    "synpic --dry-run": (4, dry_run),
    "prompts files": (14, prompt_files),
    "dataset.json, six verbs": (10, dataset_json),
    "Parquet of a dataset, six verbs": (10, parquet),
    "pictures of a dataset, six verbs": (4, dataset_pictures),
    "run, align, results, ablation.json: report, status": (10, pages),
    "an output at work, its owner marks: status": (5, begun),
    "votes: rerank": (4, vote_files),
    "WebDataset shards: import": (5, shards),
    "tables and choices: import": (6, tables),
    "weights and their headers": (5, weight_files),
    "runs and checkpoints as models": (4, checkpoints),
    "a dataset to train on": (6, training_datasets),
    "encoded sets": (5, encoded_sets),
    "an output that is gone on with": (4, outputs_gone_on_with),
    "benchmarks' prompt lists": (4, benchmark_lists),
    "a pickle: convert-mps": (3, pickles),
    "answers to HTTP rewards": (5, fuzz_servers.rewards),
    "the hub's answers: commits": (3, fuzz_servers.hub_commits),
    "the hub's answers: export": (2, lambda rng, place: fuzz_servers.hub_uploads(rng, place, _dataset())),
    "hub: of a directory": (
        2,
        lambda rng, place: fuzz_servers.hub_directories(rng, place, _prompts_parquet()),
    ),
    "requests to browse": (4, lambda rng, place: fuzz_servers.browser(rng, place, _dataset())),
    "environment": (4, environment),
    "command lines": (5, command_lines),
}
"""Weight and maker of each."""


# The judge


def run_quietly(work: Callable[[], int]) -> tuple[int, str]:
    """(exit code, what was said on stderr)."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = work()
    said = err.buffer
    assert isinstance(said, io.BytesIO)
    return code, said.getvalue().decode()


def _hang(number: int, frame: Any) -> None:
    raise Hang


def _alarms(clock_s: float, core_s: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, clock_s)
    signal.setitimer(signal.ITIMER_PROF, core_s)


@dataclass(frozen=True)
class Found:
    """What became of a case: "right", "refused" or "fault", and what distinguishes the fault."""

    case: int
    entry: str
    state: str
    changed: str = ""
    fault: str = ""
    seconds: float = 0.0
    """Of processor time."""


def _raised(error: BaseException) -> str:
    """Kind of error and the last place of ours that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}rankray{os.sep}" in frame.filename]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "nowhere of ours"
    return f"{type(error).__name__} at {where}: {str(error)[:120]!r}"


def _refusal(case: Case, said: str) -> str:
    """What is wrong with how a case is refused; empty where nothing is."""
    lines = [line for line in said.splitlines() if line.strip()]
    if not lines or "Traceback" in said:
        return "refused without a word" if not lines else "a traceback"
    if max(map(len, lines)) > LINE or len(lines) > LINES:
        return f"a refusal of {len(lines)} lines, the longest of {max(map(len, lines))} characters"
    if case.named and not any(word in said for word in case.named):
        return f"the refusal names no place: {lines[0][:120]}"
    if any(ord(char) < 32 for line in lines for char in line if char != "\t"):
        return f"control characters in the refusal: {lines[0][:120]!r}"
    if case.output is not None and (case.output / case.marker).exists():
        return "refused, and the output is marked as finished"
    return ""


def judge(number: int, seed: int, only: Sequence[str] = ()) -> Found:
    """Makes a case, runs it, and says what became of it."""
    rng = random.Random(f"{seed}:{number}")
    names = [name for name in ENTRIES if not only or name in only]
    entry = rng.choices(names, [ENTRIES[name][0] for name in names])[0]
    before, path = dict(os.environ), list(sys.path)
    place = Path(tempfile.mkdtemp(prefix="rankray-fuzz-"))
    old = [(each, signal.signal(each, _hang)) for each in (signal.SIGALRM, signal.SIGPROF)]
    try:
        case = ENTRIES[entry][1](rng, place)
        found = functools.partial(Found, number, entry, changed=case.changed)
        begin_s = time.process_time()
        _alarms(LIMIT_BY_CLOCK_S, LIMIT_S)
        try:
            code, said = run_quietly(case.call)
        except (Exception, Hang, SystemExit) as error:  # noqa: BLE001 - what it may be is the question
            _alarms(0, 0)
            return found("fault", fault=_raised(error), seconds=time.process_time() - begin_s)
        _alarms(0, 0)
        fault = "" if code == 0 else _refusal(case, said) if code == 2 else f"exit code {code}: {said[:120]}"
        state = "fault" if fault else "right" if code == 0 else "refused"
        return found(state, fault=fault, seconds=time.process_time() - begin_s)
    finally:
        _alarms(0, 0)
        for each, handler in old:
            signal.signal(each, handler)
        os.environ.clear()
        os.environ.update(before)
        sys.path[:] = path
        shutil.rmtree(place, ignore_errors=True)


# The children and the table


def _child(first: int, last: int, seed: int, only: Sequence[str], limit: bool) -> None:
    """Runs cases and writes a line before and after each."""
    stream = os.fdopen(os.dup(1), "w")
    for prepared in (_shards, _bomb, _encoded, fuzz_servers.spaces):  # at no case's expense
        prepared()
    if limit:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + LIMIT_BYTES, now + LIMIT_BYTES))
    for number in range(first, last):
        print(json.dumps({"begins": number}), file=stream, flush=True)
        print(json.dumps(dataclasses.asdict(judge(number, seed, only))), file=stream, flush=True)
    for made in (_dataset(), _shards(), _encoded()):
        shutil.rmtree(made.parent, ignore_errors=True)


def founds(first: int, cases: int, seed: int, only: Sequence[str], within_s: float) -> Iterator[Found]:
    """What became of the cases, each child as far as it comes, and of those alone that end `within_s` seconds."""
    last, until_s = first + cases, time.monotonic() + within_s
    while first < last:
        count = min(last - first, CHILD_CASES)
        words = [sys.executable, __file__, "--child", "--first", str(first), "--cases", str(count)]
        words += ["--seed", str(seed), *(["--only", *only] if only else [])]
        begun = first
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                found = json.loads(line)
                if "begins" in found:
                    begun = found["begins"]
                    continue
                first = begun + 1
                yield Found(**found)
                if time.monotonic() > until_s:
                    child.kill()
                    return
        if child.returncode:
            yield Found(begun, "the child died", "fault", fault=f"ended by {child.returncode}")
            first = begun + 1


def main() -> int:
    """Runs the cases and prints the table; 1 where there are faults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="ENTRY")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then, wherever it is")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options.first, options.first + options.cases, options.seed, options.only, True)
        return 0
    begin_s = time.monotonic()
    counts: dict[str, dict[str, int]] = {}
    faults: dict[tuple[str, str], Found] = {}
    slowest = 0.0
    for found in founds(options.first, options.cases, options.seed, options.only, options.minutes * 60):
        row = counts.setdefault(found.entry, {"cases": 0, "right": 0, "refused": 0, "fault": 0})
        row["cases"] += 1
        row[found.state] += 1
        slowest = max(slowest, found.seconds)
        key = found.entry, found.fault.partition(": ")[0]
        if found.state == "fault":
            told = f"{found.entry}, case {found.case}: {found.fault}: {found.changed}"
            print(told.encode("ascii", "backslashreplace").decode(), file=sys.stderr, flush=True)
        if found.state == "fault" and (key not in faults or len(found.changed) < len(faults[key].changed)):
            faults[key] = found
    print("| entry point | cases | right | refused | faults |\n|---|---|---|---|---|")
    total = {key: sum(row[key] for row in counts.values()) for key in ("cases", "right", "refused", "fault")}
    for name, row in [
        *((name, counts[name]) for name in (*ENTRIES, "the child died") if name in counts),
        ("all", total),
    ]:
        print(f"| {name} | {row['cases']:,} | {row['right']:,} | {row['refused']:,} | {row['fault']:,} |")
    wall_s = time.monotonic() - begin_s
    print(f"{wall_s:.0f} s; the slowest case took {slowest:.1f} s")
    for found in faults.values():
        print(f"\n{found.entry}, case {found.case}: {found.fault}\n    {found.changed}")
    if options.json:
        told = {
            "seed": options.seed,
            "first": options.first,
            "wall_s": wall_s,
            "slowest_s": slowest,
            "rows": counts,
        }
        kept = [dataclasses.asdict(found) for found in faults.values()]
        options.json.write_text(
            json.dumps({**provenance(), **told, "total": total, "faults": kept}, indent=1) + "\n"
        )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
