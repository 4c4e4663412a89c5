"""Ranked dataset -> latents and text embeddings, once; encoded set -> reference errors of coming epochs, once.

Both are Ray Data stages of their own pool, both resume by row, and both are kept under a hash of everything that
decides their content, so a second run with the same encoders finds them and starts at once. What it saves is measured
in `benchmarks/training.py`; what it costs is disk: about 1 MB for each of SDXL's candidates, or nothing with
`encoding.mode = "stream"`, where trainers ask the same encoders for single prompts while they train: three times the
encoding in three epochs.

An encoder holds text encoders and autoencoder, a reference holds the untrained denoiser; neither holds the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from safetensors.numpy import save

from rankray import store
from rankray.cluster.actors import Actors
from rankray.cluster.progress import counted
from rankray.cluster.streaming import pooled, stream
from rankray.config.rankdpo import EncodingConfig, RankDPOConfig, WorkersConfig
from rankray.data import owner
from rankray.data import place as outputs
from rankray.data.place import Output, as_written
from rankray.models import hardware
from rankray.models.generators import GeneratorSpec
from rankray.rankdpo import nodes as training_nodes
from rankray.rankdpo.encoded import (
    ENCODED_VERSION,
    EncodedRow,
    Layout,
    decoded_row,
    encoded_table,
    layout_of,
    read_empty,
)
from rankray.rankdpo.feed import Reads
from rankray.rankdpo.labels import Labelling
from rankray.words import Say

if TYPE_CHECKING:
    from PIL import Image

REFERENCE_SCHEMA = pa.schema(
    [pa.field("prompt_id", pa.string()), pa.field("ref_error", pa.list_(pa.list_(pa.float32())))]
)
"""ref_error[E][K]: of each epoch in which the prompt will be read, of each candidate."""

REFERENCE_PROMPTS = 8
"""Prompts at once in a forward pass without gradient: 32 predictions of SDXL at 1024 x 1024 are 5 GB of activations.
What is beside a prompt changes its errors by rounding alone (kernels differ by batch: 2e-6 in float32)."""


@dataclass(frozen=True)
class EncodeJob:
    """What an encoding actor needs.

    Attributes:
        spec: the row of the model that is tuned; pictures are cut to its height and width.
        device: "cpu" or "cuda".
        dtype: how text encoders compute.
        stored_dtype: how results are kept.
        batch_size: pictures encoded at once.
        encoded: URI of the encoded set, where the empty prompt's embeddings go.
        reencode: whether pictures are first replaced by what the autoencoder makes of them.
        dataset: URI of the ranked dataset, whose rows may name their pictures within it.
    """

    spec: GeneratorSpec
    device: str
    dtype: str
    stored_dtype: Literal["float32", "float16"]
    batch_size: int
    encoded: str
    reencode: bool = False
    dataset: str = ""


class EncodeActor:
    """Ranked rows in, encoded rows out."""

    def __init__(self, job: EncodeJob) -> None:
        import torch

        from rankray.models.denoisers import parts

        torch.set_num_threads(1)
        hardware.require_device(job.device)
        self._job, self._parts = job, parts
        self._pipe = parts.load_encoders(job.spec, job.device, getattr(torch, job.dtype))
        self._empty = {name: np.ascontiguousarray(value[0]) for name, value in self._text([""]).items()}
        fs, place = store.filesystem(job.encoded)
        fs.create_dir(place, recursive=True)
        store.write_bytes(f"{place}/empty.safetensors", save(self._empty), fs)

    def empty(self) -> dict[str, np.ndarray]:
        """The empty prompt's embeddings."""
        return self._empty

    def rows(self, rows: Sequence[dict[str, Any]]) -> list[EncodedRow]:
        """Encoded rows of ranked ones, for a trainer that streams."""
        table = self.encode(list(rows))
        layout = layout_of(table.schema)
        return [decoded_row(row, layout) for row in table.to_pylist()]

    def __call__(self, table: pa.Table) -> pa.Table:
        return self.encode(table.to_pylist())

    def encode(self, rows: list[dict[str, Any]]) -> pa.Table:
        """The encoded table of ranked rows."""
        job, spec = self._job, self._job.spec
        rows = store.located(rows, job.dataset)
        drawn = [
            (b, k)
            for b, row in enumerate(rows)
            for k, candidate in enumerate(row["candidates"])
            if candidate["image"] is not None
        ]
        latents: list[list[Any]] = [[None] * len(row["candidates"]) for row in rows]
        batches = [drawn[start : start + job.batch_size] for start in range(0, len(drawn), job.batch_size)]

        def decoded(batch: list[tuple[int, int]]) -> list[Image.Image]:
            return [picture_of(rows[b], k, job.dataset, (spec.height, spec.width)) for b, k in batch]

        shape = (1, 1, 1)
        with ThreadPoolExecutor(1) as ahead:  # of the device: 33 ms a 1024-pixel PNG, in which it would wait
            for batch, pictures in store.one_ahead(decoded, batches, ahead):
                given = self._parts.reconstructed(self._pipe, pictures) if job.reencode else pictures
                mean, std = (value.cpu().numpy() for value in self._parts.encode_images(self._pipe, given))
                shape = mean.shape[1:]
                for n, (b, k) in enumerate(batch):
                    latents[b][k] = (mean[n], std[n])
        text = self._text([row["prompt"] for row in rows])
        shapes = {name: value.shape[1:] for name, value in text.items()}
        layout = Layout(shape, shapes, job.stored_dtype, (spec.height, spec.width))
        return encoded_table(rows, latents, text, layout)

    def _text(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        import torch

        spec = self._job.spec
        with torch.no_grad():
            found = self._parts.module_of(spec).encode_prompts(self._pipe, prompts, spec.call)
        return {name: value.float().cpu().numpy() for name, value in found.items()}


def picture_of(row: Mapping[str, Any], k: int, dataset: str, size: tuple[int, int]) -> Image.Image:
    """The picture of a row's candidate `k` at the model's size (height, width).

    Raises:
        DatasetError: it is missing or damaged.
    """
    with as_written(f"{dataset}: picture {k + 1} of prompt {row['prompt_id']}"):
        return picture(row["candidates"][k]["image"], *size)


def picture(image: dict[str, Any], height: int, width: int) -> Image.Image:
    """A candidate's picture at the model's size: cut to its aspect ratio about the middle, then resized."""
    from PIL import Image, ImageOps

    with store.opened(store.image_bytes(image)) as stored:
        found = store.shown(stored)
    if found.size != (width, height):
        found = ImageOps.fit(found, (width, height), Image.Resampling.LANCZOS)
    return found


@dataclass(frozen=True)
class ReferenceJob:
    """What a reference actor needs: the model, the run's configuration, the encoded set's URI, what will be read.

    `labelling` says which candidates and prompts take part; others' errors are 0, prompts left out have none. What its
    rewards say has no part in it: labellings that differ in that alone share the errors.
    """

    spec: GeneratorSpec
    device: str
    config: RankDPOConfig
    encoded: str
    reads: Reads
    labelling: Labelling | None = None


class ReferenceActor:
    """Encoded rows in, the untrained model's errors out (Algorithm 2, line 6, computed ahead)."""

    def __init__(self, job: ReferenceJob) -> None:
        import torch

        from rankray.models.denoisers import parts
        from rankray.rankdpo import batches

        torch.set_num_threads(1)
        hardware.require_device(job.device)
        self._job, self._batches = job, batches
        self._dtype = getattr(torch, job.config.tuned.dtype)
        self._noising = batches.noising(job.spec, job.config)
        self._predict = parts.module_of(job.spec).predict
        self._denoiser = parts.load_denoiser(job.spec, job.device, self._dtype).requires_grad_(False)
        self._empty = read_empty(job.encoded)
        self._at_once = REFERENCE_PROMPTS

    def __call__(self, table: pa.Table) -> pa.Table:
        layout, labelling = layout_of(table.schema), self._job.labelling
        found: dict[str, list[list[float]]] = {}
        seen: list[tuple[EncodedRow, int]] = []
        for stored in table.to_pylist():
            with as_written(self._job.encoded):
                row = decoded_row(stored, layout)
            found[row.prompt_id] = []
            if labelling is not None:
                if not labelling.takes(row.prompt_id):
                    continue
                row = replace(row, rank=_only(labelling.taking(row.rank), row.rank))
            seen += [(row, epoch) for epoch in self._job.reads.epochs(row.prompt_id)]
        for (row, _), errors in zip(seen, self._all_errors(seen, layout.size), strict=True):
            found[row.prompt_id].append(errors)
        rows = [{"prompt_id": name, "ref_error": errors} for name, errors in found.items()]
        return pa.Table.from_pylist(rows, schema=REFERENCE_SCHEMA)

    def _all_errors(self, seen: Sequence[tuple[EncodedRow, int]], size: tuple[int, int]) -> list[list[float]]:
        """Errors [K] of each (row, epoch), `_at_once` together; half as many from where memory runs out, for good."""
        import torch

        found: list[list[float]] = []
        while len(found) < len(seen):
            try:
                found += self._errors(seen[len(found) : len(found) + self._at_once], size)
            except torch.OutOfMemoryError:
                if self._at_once == 1:
                    raise
                self._at_once //= 2
        return found

    def _errors(self, seen: Sequence[tuple[EncodedRow, int]], size: tuple[int, int]) -> list[list[float]]:
        import torch

        rows, epochs = zip(*seen, strict=True)
        batch = self._batches.make_batch(rows, epochs, self._noising, self._empty, self._job.device)
        with torch.no_grad():
            errors = self._batches.errors(
                self._denoiser, self._predict, batch, batch.mask, self._noising, size, self._dtype
            )
        return [line[: len(row.rank)] for row, line in zip(rows, errors.tolist(), strict=True)]


def _only(places: Sequence[int], rank: np.ndarray) -> np.ndarray:
    """Ranks int[K], 0 at all but these places."""
    found = np.zeros_like(rank)
    found[places] = rank[places]
    return found


@dataclass(frozen=True)
class EncodedSet:
    """A finished encoded set: its URI and files, and what it holds."""

    uri: str
    files: tuple[str, ...]
    layout: Layout
    rows: int


def encoded_uri(dataset: store.RankedDataset, job: EncodeJob, revision: str, config: EncodingConfig) -> str:
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
        **({"reencode": True} if job.reencode else {}),
    }
    root = (config.place or f"{dataset.path}/encoded").rstrip("/")
    return f"{root}/{_key(content)}"


def reference_uri(encoded: EncodedSet, job: ReferenceJob, revision: str) -> str:
    """Where the reference errors belong: beside the encoded set, by the hash of model, noise and what is read."""
    config = job.config
    content: dict[str, Any] = {
        "revision": revision,
        "dtype": config.tuned.dtype,
        "seed": config.seed,
        "read": [job.reads.whole, len(job.reads.last)],
        "noise": config.noise.model_dump(),
        "held_out": len(job.reads.held_out),
    }
    if job.labelling is not None:  # labels do not matter to the reference, only whom it is asked about
        content["asked_of"] = [job.labelling.candidates, job.labelling.prompt_share]
    return f"{encoded.uri}/reference/{_key(content)}"


def _key(content: dict[str, Any]) -> str:
    """16 hex digits that name whatever `content` decides."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encode(
    dataset: store.RankedDataset, job: EncodeJob, config: EncodingConfig, say: Say, wait_s: float = 0.0
) -> EncodedSet:
    """Encodes what is left of `dataset` into `job.encoded`.

    Raises:
        ConfigError: the place cannot be written, or no node has room for an encoder within `wait_s`.
    """
    output, rows = outputs.open_output(job.encoded, in_job=False), dataset.info["rows"]

    def make() -> dict[str, Any]:
        training_nodes.require(training_nodes.encoders(config), wait_s, say)
        say(f"encoding {rows:,} prompts into {output.uri}")
        most = config.max_size or config.min_size
        actors = Actors(config.min_size, most, config.num_cpus, config.num_gpus)
        _stream(dataset.files, dataset.fs, output, rows, (EncodeActor, job, actors))
        layout = layout_of(pq.read_schema(output.tables("data")[0], filesystem=output.fs))
        return {"version": ENCODED_VERSION, "rows": rows, **asdict(layout)}

    found = _shared(output, "encoded.json", "encoded already", make, say)
    return finished_set(output, found)


def finished_set(output: Output, found: Mapping[str, Any]) -> EncodedSet:
    """The encoded set in `output`, whose `encoded.json` says `found`.

    Raises:
        DatasetError: it was damaged.
    """
    with as_written(output.uri_of("encoded.json")):
        return EncodedSet(
            output.uri, tuple(output.tables("data")), Layout.from_json(found), int(found["rows"])
        )


def precompute(
    encoded: EncodedSet, job: ReferenceJob, uri: str, workers: WorkersConfig, say: Say, forecast: str
) -> str:
    """Computes what is left of the reference errors at `uri`, with as many actors as trainers; returns where they are.

    `forecast` is said before, where anything is left.
    """
    output = outputs.open_output(uri, in_job=False)

    def make() -> dict[str, Any]:
        say(forecast)
        most = workers.max_count or workers.count
        actors = Actors(workers.count, most, workers.num_cpus, workers.num_gpus)
        fs, _ = store.filesystem(encoded.uri)
        pool = (ReferenceActor, job, actors)
        _stream(encoded.files, fs, output, encoded.rows, pool, schema=REFERENCE_SCHEMA)
        return {"whole_epochs": job.reads.whole, "rows": encoded.rows}

    _shared(output, "reference.json", "reference errors already there", make, say)
    return output.uri


def _shared(
    output: Output, marker: str, already: str, make: Callable[[], dict[str, Any]], say: Say
) -> dict[str, Any]:
    """The contents of `marker`, made now where it is missing; who else makes it, for another run, is waited for.

    Raises:
        ConfigError: the place cannot be written.
    """

    def found() -> dict[str, Any] | None:
        if not output.exists(marker):
            return None
        say(f"{already}: {output.uri}")
        return store.read_json(output.at(marker), output.fs)

    return owner.once(output, "encoding", marker, found, make, wait=say)


def _stream(
    files: tuple[str, ...],
    fs: Any,
    output: Output,
    rows: int,
    pool: tuple[type, EncodeJob | ReferenceJob, Actors],
    **parquet: Any,
) -> None:
    """Streams what is not finished of `rows` rows through a pool of (class, its job, actors), one row group a row.

    Raises:
        RuntimeError: rows are missing although Ray Data says that it wrote them.
    """
    actor, job, actors = pool

    def build(dataset: ray.data.Dataset) -> ray.data.Dataset:
        return pooled(dataset, actor, {"job": job}, actors)

    output.make("data")
    output.make("_work", "checkpoint")
    checkpoint = ("_work", "checkpoint")
    if len(set(outputs.mended_ids(output, ("data",), checkpoint))) < rows:
        name = "encoding" if isinstance(job, EncodeJob) else "reference"
        with counted(output.uri, name, lambda: len(output.tables("data")), len(files)):
            stream(files, fs, output, ("data",), checkpoint, build, {**parquet, "row_group_size": 1})
    outputs.require_rows(output, rows, row_group_size=1)
