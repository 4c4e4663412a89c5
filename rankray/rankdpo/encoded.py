"""Encoded candidates: latents and text embeddings of a ranked dataset, as they are kept and as they are read.

    PLACE/data/*.parquet     one row a prompt, one row group a row: any row can be read alone
    PLACE/empty.safetensors  the empty prompt's embeddings, for prompt dropout
    PLACE/encoded.json       written last: the set is complete

A row group a row costs some 2 KB of footer for each, beside 1 MB of SDXL latents and embeddings; in return a training
run reads its rows in any order from any Arrow filesystem, and never a row that belongs to another worker.

    K candidates, N rewards, latents [C, H, W]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.numpy import load

from rankray import store
from rankray.data.place import as_written
from rankray.rankdpo.labels import Labelling
from rankray.schema import prompt_id

ENCODED_VERSION = 2
"""Of what encoders make; 1 was encoded on GPUs with an autoencoder rounded to bfloat16."""
IO_THREADS = 8
OPEN_FILES = 64
"""Parquet files whose footers a reader keeps: at 256 rows each, those of 16,000 prompts."""

Array = npt.NDArray[Any]

_LATENT = pa.struct([pa.field("mean", pa.binary()), pa.field("std", pa.binary())])


@dataclass(frozen=True)
class Layout:
    """Shapes and precision of an encoded set.

    Attributes:
        latent: (C, H, W).
        text: name of each embedding -> its shape.
        dtype: "float32" or "float16".
        size: (height, width) of the pictures, in pixels.
    """

    latent: tuple[int, int, int]
    text: Mapping[str, tuple[int, ...]]
    dtype: Literal["float32", "float16"]
    size: tuple[int, int]

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Layout:
        """The reverse of `asdict`, from the schema's metadata or `encoded.json`."""
        found: Layout = TypeAdapter(Layout).validate_python(value)
        return found


@dataclass(frozen=True)
class EncodedRow:
    """A prompt as training sees it. Candidates without a picture have zeros and rank 0.

    Attributes:
        mean, std: float32[K, C, H, W], of the autoencoder's posterior.
        win_probability: float32[K].
        rank: int64[K].
        scores: float32[K, N].
        text: name -> float32 array, one embedding a prompt.
        ref_error: [E][K], of each epoch in which the row will be read; empty where nothing is computed ahead.
    """

    prompt_id: str
    mean: Array
    std: Array
    win_probability: Array
    rank: Array
    scores: Array
    text: Mapping[str, Array]
    ref_error: Sequence[Sequence[float]] = ()


def arrow_schema(layout: Layout) -> pa.Schema:
    """Columns of an encoded set; the layout stands in the metadata."""
    text = pa.struct([pa.field(name, pa.binary()) for name in layout.text])
    return pa.schema(
        [
            pa.field("prompt_id", pa.string(), nullable=False),
            pa.field("prompt", pa.string(), nullable=False),
            pa.field("latents", pa.list_(_LATENT)),
            pa.field("win_probability", pa.list_(pa.float32())),
            pa.field("rank", pa.list_(pa.int8())),
            pa.field("scores", pa.list_(pa.list_(pa.float32()))),
            pa.field("text", text),
        ],
        metadata={"rankray.encoded": json.dumps({"version": ENCODED_VERSION, **asdict(layout)})},
    )


def layout_of(schema: pa.Schema) -> Layout:
    """The layout that an encoded table's metadata states."""
    return Layout.from_json(json.loads(schema.metadata[b"rankray.encoded"]))


def encoded_table(
    rows: Sequence[Mapping[str, Any]],
    latents: Sequence[Sequence[tuple[Array, Array] | None]],
    text: Mapping[str, Array],
    layout: Layout,
) -> pa.Table:
    """Rows of a ranked dataset with what encoders made of them.

    Args:
        rows: of a ranked dataset, as Python values.
        latents: (mean, std) [C, H, W] of each row's candidates, None where there is no picture.
        text: name -> embeddings [B, ...].
        layout: shapes and precision.
    """

    def stored(array: Array) -> bytes:
        return np.ascontiguousarray(array, dtype=layout.dtype).tobytes()

    found = []
    for b, row in enumerate(rows):
        pairs = [
            None if pair is None else {"mean": stored(pair[0]), "std": stored(pair[1])} for pair in latents[b]
        ]
        candidates = row["candidates"]
        found.append(
            {
                "prompt_id": row["prompt_id"],
                "prompt": row["prompt"],
                "latents": pairs,
                "win_probability": [c["win_probability"] for c in candidates],
                "rank": [0 if pair is None else c["rank"] for c, pair in zip(candidates, pairs, strict=True)],
                "scores": [c["scores"] for c in candidates],
                "text": {name: stored(array[b]) for name, array in text.items()},
            }
        )
    return pa.Table.from_pylist(found, schema=arrow_schema(layout))


def decoded_row(row: Mapping[str, Any], layout: Layout) -> EncodedRow:
    """One stored row as arrays."""

    def part(data: bytes | None, shape: tuple[int, ...]) -> Array:
        if data is None:
            return np.zeros(shape, np.float32)
        return np.frombuffer(data, layout.dtype).reshape(shape).astype(np.float32)

    pairs = [pair or {"mean": None, "std": None} for pair in row["latents"]]
    phi = [np.nan if value is None else value for value in row["win_probability"]]
    return EncodedRow(
        prompt_id=row["prompt_id"],
        mean=np.stack([part(pair["mean"], layout.latent) for pair in pairs]),
        std=np.stack([part(pair["std"], layout.latent) for pair in pairs]),
        win_probability=np.asarray(phi, np.float32),
        rank=np.asarray(row["rank"], np.int64),
        scores=np.asarray(row["scores"], np.float32),
        text={name: part(row["text"][name], shape) for name, shape in layout.text.items()},
    )


def relabelled(row: EncodedRow, labelling: Labelling) -> EncodedRow:
    """The row with another labelling's win probabilities and ranks; candidates that it leaves out have rank 0."""
    phi, rank = labelling(row.prompt_id, row.scores, row.rank)
    return replace(row, win_probability=phi, rank=rank)


@dataclass(frozen=True)
class RowPlace:
    """Where a row stands: the number of its set, file, row group, and the row's number within it.

    `prompt` is `schema.prompt_id` of its text: the row's own id, but of a prompt's further pairs in imported datasets.
    """

    prompt_id: str
    prompt: str
    number: int
    file: str
    group: int
    offset: int


def index(files: Sequence[str], fs: pafs.FileSystem, number: int = 0) -> list[RowPlace]:
    """Every row's place in set `number`, sorted by prompt id, whatever the files are called."""

    def places(file: str) -> list[RowPlace]:
        found: list[RowPlace] = []
        with as_written(file):
            parquet = pq.ParquetFile(file, filesystem=fs)
            table = parquet.read(["prompt_id", "prompt"], use_threads=False)  # as `store.read_columns`
            ids, prompts = table["prompt_id"].to_pylist(), table["prompt"].to_pylist()
            if not all(isinstance(one, str) for one in (*ids, *prompts)):
                raise TypeError("a prompt or its id is no text")
            for group in range(parquet.num_row_groups):
                for offset in range(parquet.metadata.row_group(group).num_rows):
                    row = len(found)
                    found.append(RowPlace(ids[row], prompt_id(prompts[row]), number, file, group, offset))
        return found

    with ThreadPoolExecutor(IO_THREADS) as pool:
        return sorted(
            (p for part in pool.map(places, files) for p in part), key=lambda place: place.prompt_id
        )


class RowReader:
    """Reads single rows of Parquet files by their places, a row group at a time, several at once.

    `filesystems` are the sets', by their numbers.
    """

    def __init__(self, filesystems: Sequence[pafs.FileSystem]) -> None:
        self._filesystems, self._pool = filesystems, ThreadPoolExecutor(IO_THREADS)
        self._open: dict[tuple[int, str], pq.FileMetaData] = {}

    def read(self, places: Sequence[RowPlace]) -> list[dict[str, Any]]:
        """The rows at `places`, in their order."""
        return list(self._pool.map(self._one, places))

    def _one(self, place: RowPlace) -> dict[str, Any]:
        key = place.number, place.file
        known = self._open.get(key)
        with as_written(place.file), self._filesystems[place.number].open_input_file(place.file) as source:
            parquet = pq.ParquetFile(source, metadata=known)
            if known is None:
                if len(self._open) >= OPEN_FILES:
                    self._open.pop(next(iter(self._open)), None)
                self._open[key] = parquet.metadata
            table = parquet.read_row_group(place.group, use_threads=False)
            row: dict[str, Any] = table.slice(place.offset, 1).to_pylist()[0]
        return row


def read_empty(uri: str) -> dict[str, Array]:
    """The empty prompt's embeddings of the encoded set at `uri`."""
    fs, path = store.filesystem(uri)
    file = f"{path}/empty.safetensors"
    with as_written(file), fs.open_input_stream(file) as stream:
        try:
            found: dict[str, Array] = load(stream.read())
        except SafetensorError as error:
            raise ValueError(str(error)) from None
    return found


def read_reference(uri: str) -> dict[str, list[list[float]]]:
    """prompt_id -> errors [E][K] of the reference errors at `uri`; 58,000 prompts x 7 epochs x 4 are 7 MB."""
    fs, path = store.filesystem(uri)

    def errors(file: str) -> dict[str, list[list[float]]]:
        with as_written(file):
            table = store.read_columns(file, fs)
            return dict(zip(table["prompt_id"].to_pylist(), table["ref_error"].to_pylist(), strict=True))

    with ThreadPoolExecutor(IO_THREADS) as pool:
        parts = pool.map(errors, store.data_files(fs, path))
        return {row_id: found for part in parts for row_id, found in part.items()}
