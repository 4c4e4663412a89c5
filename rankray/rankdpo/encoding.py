"""Ranked dataset -> latents and text embeddings, once; encoded set -> reference errors of coming epochs, once.

Both are Ray Data stages of their own pool, both resume by row, and both are kept under a hash of everything that
decides their content, so a second run with the same encoders finds them and starts at once. What it saves is measured
in `benchmarks/training.py`; what it costs is disk: about 1 MB for each of SDXL's candidates, or nothing with
`encoding.mode = "stream"`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
import ray.data

from rankray import store
from rankray.cluster.actors import Actors
from rankray.cluster.streaming import pooled, stream
from rankray.config import ConfigError
from rankray.config.rankdpo import EncodingConfig, WorkersConfig
from rankray.data import place as outputs
from rankray.data.place import Output
from rankray.rankdpo import nodes as training_nodes
from rankray.rankdpo.encode_actors import (
    REFERENCE_SCHEMA,
    EncodeActor,
    EncodeJob,
    ReferenceActor,
    ReferenceJob,
)
from rankray.rankdpo.encoded import ENCODED_VERSION, Layout, index, layout_of
from rankray.rankdpo.labels import Labelling


@dataclass(frozen=True)
class EncodedSet:
    """A finished encoded set: its place and files, and what it holds."""

    uri: str
    files: tuple[str, ...]
    layout: Layout
    rows: int


def key_of(content: dict[str, Any]) -> str:
    """16 hex digits that name whatever `content` decides."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encoded_place(dataset: store.RankedDataset, job: EncodeJob, revision: str, config: EncodingConfig) -> str:
    """Where the encoded set belongs: DATASET/encoded/KEY, the key being the encoders' hash."""
    spec = job.spec
    content = {
        "version": ENCODED_VERSION,
        "revision": revision,
        "pipeline": spec.pipeline,
        "size": [spec.height, spec.width],
        "call": dict(spec.call),
        "dtype": [job.dtype, job.stored_dtype],
        "dataset": dataset.info["identity"],
        "prompts": dataset.info["prompts"]["sha256"],
    }
    root = (config.place or f"{dataset.path}/encoded").rstrip("/")
    return f"{root}/{key_of(content)}"


def encode(
    dataset: store.RankedDataset,
    job: EncodeJob,
    config: EncodingConfig,
    say: Callable[[str], None],
    wait_s: float = 0.0,
) -> EncodedSet:
    """Encodes what is left of `dataset` into `job.place`.

    Raises:
        ConfigError: the place cannot be written, or no node has room for an encoder within `wait_s`.
    """
    output = _open(job.place)
    if not output.exists("encoded.json"):
        training_nodes.require(training_nodes.encoders(config), wait_s, say)
        say(f"encoding {dataset.info['rows']:,} prompts into {output.uri}")

        def build(rows: ray.data.Dataset) -> ray.data.Dataset:
            return pooled(rows, EncodeActor, {"job": job}, pool_of(config))

        _run(dataset.files, dataset.fs, output, dataset.info["rows"], build)
        layout = layout_of(pq.read_schema(output.files("data")[0], filesystem=output.fs))
        summary = {"version": ENCODED_VERSION, "rows": dataset.info["rows"], **layout.as_json()}
        store.write_json(output.at("encoded.json"), summary, output.fs)
        output.remove("_work")
    else:
        say(f"encoded already: {output.uri}")
    found = store.read_json(output.at("encoded.json"), output.fs)
    return EncodedSet(output.uri, tuple(output.files("data")), Layout.from_json(found), found["rows"])


def prompt_ids(encoded: EncodedSet, labelling: Labelling | None) -> list[str]:
    """Ids of the prompts of an encoded set that take part, in the order of `rankray.rankdpo.encoded.index`."""
    fs, _ = store.filesystem(encoded.uri)
    ids = [place.prompt_id for place in index(encoded.files, fs)]
    return ids if labelling is None else [name for name in ids if labelling.takes(name)]


def reference_place(encoded: EncodedSet, job: ReferenceJob, revision: str) -> str:
    """Where the reference errors belong: beside the encoded set, by the hash of model, noise and what is read."""
    config = job.config
    content: dict[str, Any] = {
        "revision": revision,
        "dtype": config.tuned.dtype,
        "seed": config.seed,
        "read": [job.reads.whole, len(job.reads.last)],
        "noise": config.noise.model_dump(),
    }
    if job.labelling is not None:  # labels do not matter to the reference, only whom it is asked about
        content["asked"] = [job.labelling.candidates, job.labelling.prompt_share]
    return f"{encoded.uri}/reference/{key_of(content)}"


def precompute(
    encoded: EncodedSet,
    job: ReferenceJob,
    place: str,
    workers: WorkersConfig,
    say: Callable[[str], None],
    told: str,
) -> str:
    """Computes what is left of the reference errors, with as many actors as trainers; returns the place.

    `told` is said before, where anything is left.
    """
    output = _open(place)
    if output.exists("reference.json"):
        say(f"reference errors already there: {output.uri}")
        return output.uri
    say(told)
    actors = actors_of(workers.count, workers.max_count, workers.num_cpus, workers.num_gpus)

    def build(rows: ray.data.Dataset) -> ray.data.Dataset:
        return pooled(rows, ReferenceActor, {"job": job}, actors)

    fs, _ = store.filesystem(encoded.uri)
    _run(encoded.files, fs, output, encoded.rows, build, {"schema": REFERENCE_SCHEMA})
    store.write_json(
        output.at("reference.json"), {"whole_epochs": job.reads.whole, "rows": encoded.rows}, output.fs
    )
    output.remove("_work")
    return output.uri


def _run(
    files: tuple[str, ...],
    fs: Any,
    output: Output,
    rows: int,
    build: Callable[[ray.data.Dataset], ray.data.Dataset],
    arrow_args: dict[str, Any] | None = None,
) -> None:
    """Streams what is not finished of `rows` rows, one row group a row.

    Raises:
        RuntimeError: rows are missing although Ray Data says that it wrote them.
    """
    output.make("data")
    output.make("_work", "checkpoint")
    if len(set(outputs.finished_ids(output, "_work", "checkpoint"))) < rows:
        stream(
            files,
            fs,
            output,
            ("data",),
            ("_work", "checkpoint"),
            build,
            {**(arrow_args or {}), "row_group_size": 1},
        )
    outputs.drop_repeats(output, "data", row_group_size=1)
    missing = rows - len(outputs.finished_ids(output, "data"))
    if missing:
        raise RuntimeError(
            f"{missing} of {rows} rows are missing in {output.uri}/data; run the command again"
        )


def _open(uri: str) -> Output:
    output = outputs.open_output(uri, in_job=False)
    try:
        output.make("_work")
    except OSError as error:
        raise ConfigError(
            f"'{output.uri}' cannot be written ({str(error).splitlines()[0]}); set encoding.place to a directory "
            "that can be"
        ) from None
    return output


def pool_of(config: EncodingConfig) -> Actors:
    """The encoding pool that the configuration asks for."""
    return actors_of(config.min_size, config.max_size, config.num_cpus, config.num_gpus)


def actors_of(count: int, most: int | None, num_cpus: float, num_gpus: float) -> Actors:
    """A pool of one kind of actor."""
    return Actors(
        min_size=count,
        max_size=most or count,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        memory_bytes=None,
        resources={},
        runtime_env={},
        device="cuda" if num_gpus else "cpu",
    )
