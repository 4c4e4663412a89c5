"""The models of the encoding and the reference stage, one in an actor, block by block.

An encoder holds text encoders and autoencoder, a reference holds the untrained denoiser; neither holds the other.
Blocks come and leave as Arrow tables, so the same classes serve Ray Data's pools and, for `encoding.mode = "stream"`,
trainers that ask for single prompts while they train: three times the encoding in three epochs, and nothing stored.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rankray import store
from rankray.models import hardware
from rankray.models.generators import GeneratorSpec
from rankray.rankdpo.encoded import (
    EncodedRow,
    Layout,
    Reads,
    decoded_row,
    encoded_table,
    layout_of,
    read_empty,
    relabelled,
)
from rankray.rankdpo.labels import Labelling

if TYPE_CHECKING:
    from PIL import Image

    from rankray.config.rankdpo import RankDPOConfig


@dataclass(frozen=True)
class EncodeJob:
    """What an encoding actor needs.

    Attributes:
        spec: the row of the model that is tuned; pictures are cut to its height and width.
        device: "cpu" or "cuda".
        dtype: how text encoders compute.
        stored_dtype: how results are kept.
        batch_size: pictures encoded at once.
        place: URI of the encoded set, where the empty prompt's embeddings go.
    """

    spec: GeneratorSpec
    device: str
    dtype: str
    stored_dtype: str
    batch_size: int
    place: str


class EncodeActor:
    """Ranked rows in, encoded rows out."""

    def __init__(self, job: EncodeJob) -> None:
        import torch

        from rankray.models.denoisers import parts

        torch.set_num_threads(1)
        hardware.require_device(job.device)
        self._job = job
        self._pipe = parts.load_encoders(job.spec, job.device, getattr(torch, job.dtype))
        self._empty = self._text([""])
        fs, place = store.filesystem(job.place)
        fs.create_dir(place, recursive=True)
        _write_arrays(f"{place}/empty.safetensors", {k: v[0] for k, v in self._empty.items()}, fs)

    def empty(self) -> dict[str, np.ndarray]:
        """The empty prompt's embeddings."""
        return {name: value[0] for name, value in self._empty.items()}

    def rows(self, rows: Sequence[dict[str, Any]]) -> list[EncodedRow]:
        """Encoded rows of ranked ones, for a trainer that streams."""
        table = self.encode(list(rows))
        layout = layout_of(table.schema)
        return [decoded_row(row, layout) for row in table.to_pylist()]

    def __call__(self, table: pa.Table) -> pa.Table:
        return self.encode(table.to_pylist())

    def encode(self, rows: list[dict[str, Any]]) -> pa.Table:
        """The encoded table of ranked rows."""
        from rankray.models.denoisers import parts

        spec = self._job.spec
        places = [
            (b, k)
            for b, row in enumerate(rows)
            for k, candidate in enumerate(row["candidates"])
            if candidate["image"] is not None
        ]
        latents: list[list[Any]] = [[None] * len(row["candidates"]) for row in rows]
        shape = (1, 1, 1)
        for start in range(0, len(places), self._job.batch_size):
            part = places[start : start + self._job.batch_size]
            pictures = [_picture(rows[b]["candidates"][k]["image"], spec.height, spec.width) for b, k in part]
            mean, std = (value.cpu().numpy() for value in parts.encode_images(self._pipe, pictures))
            shape = mean.shape[1:]
            for n, (b, k) in enumerate(part):
                latents[b][k] = (mean[n], std[n])
        text = self._text([row["prompt"] for row in rows])
        layout = Layout(
            shape,
            {name: value.shape[1:] for name, value in text.items()},
            self._job.stored_dtype,
            (spec.height, spec.width),
        )
        return encoded_table(rows, latents, text, layout)

    def _text(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        import torch

        from rankray.models.denoisers import parts

        with torch.no_grad():
            found = parts.module_of(self._job.spec).encode_prompts(self._pipe, prompts, self._job.spec.call)
        return {name: value.float().cpu().numpy() for name, value in found.items()}


def _picture(image: dict[str, Any], height: int, width: int) -> Image.Image:
    """A candidate's picture at the model's size: cut to its aspect ratio about the middle, then resized."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(store.image_bytes(image))) as picture:
        found = picture.convert("RGB")
    if found.size != (width, height):
        found = ImageOps.fit(found, (width, height), Image.Resampling.LANCZOS)
    return found


@dataclass(frozen=True)
class ReferenceJob:
    """What a reference actor needs: the model, the run's configuration, the encoded set's place, what will be read.

    `labelling` says which candidates the run looks at; others' errors are 0, prompts left out have none.
    """

    spec: GeneratorSpec
    device: str
    config: RankDPOConfig
    place: str
    reads: Reads
    labelling: Labelling | None = None


REFERENCE_SCHEMA = pa.schema(
    [pa.field("prompt_id", pa.string()), pa.field("ref_error", pa.list_(pa.list_(pa.float32())))]
)
"""ref_error[E][K]: of each epoch in which the prompt will be read, of each candidate."""

REFERENCE_PROMPTS = 8
"""Prompts at once in a forward pass without gradient: 32 predictions of SDXL at 1024 x 1024 are 5 GB of activations.
What is beside a prompt changes its errors by rounding alone (kernels differ by batch: 2e-6 in float32)."""


class ReferenceActor:
    """Encoded rows in, the untrained model's errors out (Algorithm 2, line 6, computed ahead)."""

    def __init__(self, job: ReferenceJob) -> None:
        import torch

        from rankray.models.denoisers import parts
        from rankray.rankdpo import training

        torch.set_num_threads(1)
        hardware.require_device(job.device)
        self._job = job
        self._dtype = getattr(torch, job.config.tuned.dtype)
        self._noising = training.noising(job.spec, job.config)
        self._denoiser = parts.load_denoiser(job.spec, job.device, self._dtype).requires_grad_(False)
        self._empty = read_empty(job.place)
        self._at_once = REFERENCE_PROMPTS

    def __call__(self, table: pa.Table) -> pa.Table:
        layout, labelling = layout_of(table.schema), self._job.labelling
        found: dict[str, list[list[float]]] = {}
        seen: list[tuple[EncodedRow, int]] = []
        for stored in table.to_pylist():
            row = decoded_row(stored, layout)
            found[row.prompt_id] = []
            if labelling is None:
                seen += [(row, epoch) for epoch in self._job.reads.epochs(row.prompt_id)]
            elif labelling.takes(row.prompt_id):
                row = relabelled(row, labelling)
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
            part = seen[len(found) : len(found) + self._at_once]
            try:
                found += self._errors(part, size)
            except torch.OutOfMemoryError:
                if self._at_once == 1:
                    raise
                self._at_once //= 2
        return found

    def _errors(self, seen: Sequence[tuple[EncodedRow, int]], size: tuple[int, int]) -> list[list[float]]:
        import torch

        from rankray.models.denoisers import parts
        from rankray.rankdpo import batches

        rows, epochs = [row for row, _ in seen], [epoch for _, epoch in seen]
        batch = batches.make_batch(rows, epochs, self._noising, self._empty, self._job.device)
        predict = parts.module_of(self._job.spec).predict
        with torch.no_grad():
            errors = batches.errors(
                self._denoiser, predict, batch, batch.mask, self._noising, size, self._dtype
            )
        return [line[: len(row.rank)] for row, line in zip(rows, errors.tolist(), strict=True)]


def _write_arrays(path: str, arrays: dict[str, np.ndarray], fs: Any) -> None:
    """A safetensors file, written whole: under a passing name first."""
    import uuid

    from safetensors.numpy import save

    passing = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    with fs.open_output_stream(passing) as stream:
        stream.write(save({name: np.ascontiguousarray(value) for name, value in arrays.items()}))
    fs.move(passing, path)
