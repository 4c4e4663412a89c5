"""What a trainer reads: its rows of each step's global batch, fetched ahead by a thread.

Each worker reads its own rows and no others, straight from the Arrow filesystem, in an order that is a function of seed
and epoch; the place in the data is the step's number, so a resumed run goes on where it was and sees each prompt of an
epoch once. Two steps are kept ahead, so reading is hidden unless it takes longer than a step; what is not hidden is
measured as the wait for data.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from rankray.rankdpo.encoded import (
    EncodedRow,
    Layout,
    Place,
    RowReader,
    decoded_row,
    index,
    relabelled,
    step_rows,
)
from rankray.rankdpo.labels import Labelling

STEPS_AHEAD = 2


@dataclass(frozen=True)
class Loaded:
    """A worker's share of a step: rows, the epoch in which each is seen, and how long the trainer waited for them."""

    step: int
    rows: tuple[EncodedRow, ...]
    epochs: tuple[int, ...]
    wait_s: float


class StoredRows:
    """Rows of an encoded set."""

    def __init__(self, files: Sequence[str], fs: pafs.FileSystem, layout: Layout) -> None:
        self.places = index(files, fs)
        self._reader, self._layout = RowReader(fs), layout

    def read(self, places: Sequence[Place]) -> list[EncodedRow]:
        return [decoded_row(row, self._layout) for row in self._reader.read(places)]


class StreamedRows:
    """Rows of a ranked dataset, encoded by actors when they are asked for."""

    def __init__(self, files: Sequence[str], fs: pafs.FileSystem, encoders: Sequence[Any]) -> None:
        self.places = index(files, fs)
        self._reader, self._encoders, self._turn = RowReader(fs), list(encoders), 0

    def read(self, places: Sequence[Place]) -> list[EncodedRow]:
        """Cuts the rows into as many parts as there are encoders, so that all of them work on every step."""
        import ray  # a step that reads what is stored runs without it

        rows = self._reader.read(places)
        parts = [part for part in np.array_split(np.arange(len(rows)), len(self._encoders)) if len(part)]
        self._turn += 1
        asked = [
            self._encoders[(self._turn + n) % len(self._encoders)].rows.remote([rows[i] for i in part])
            for n, part in enumerate(parts)
        ]
        return [row for part in ray.get(asked) for row in part]


class LabelledRows:
    """Rows of either kind under another labelling, and only those of prompts that it takes."""

    def __init__(self, source: StoredRows | StreamedRows, labelling: Labelling) -> None:
        self.places = [place for place in source.places if labelling.takes(place.prompt_id)]
        self._source, self._labelling = source, labelling

    def read(self, places: Sequence[Place]) -> list[EncodedRow]:
        return [relabelled(row, self._labelling) for row in self._source.read(places)]


Rows = StoredRows | StreamedRows | LabelledRows


def share(rows: Sequence[Any], rank: int, world: int) -> list[Any]:
    """A worker's part of a global batch: consecutive, and equal to within one."""
    return [rows[i] for i in np.array_split(np.arange(len(rows)), world)[rank]]


def feed(
    source: Rows,
    start: int,
    steps: int,
    batch_size: int,
    seed: int,
    rank: int,
    world: int,
) -> Iterator[Loaded]:
    """The worker's share of each step from `start` on, read ahead by a thread.

    What goes wrong in the thread is raised here, at the step that it was reading for.
    """
    ahead: queue.Queue[Any] = queue.Queue(maxsize=STEPS_AHEAD)
    stop = threading.Event()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                ahead.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    def fetch() -> None:
        for step in range(start, steps):
            mine = share(step_rows(step, batch_size, len(source.places), seed), rank, world)
            try:
                rows = source.read([source.places[row] for _, row in mine])
            except BaseException as error:  # noqa: BLE001 - carried to the trainer, which raises it
                put(error)
                return
            put((step, rows, [epoch for epoch, _ in mine]))
            if stop.is_set():
                return

    threading.Thread(target=fetch, name="rankray-feed", daemon=True).start()
    try:
        for _ in range(start, steps):
            begin_s = time.perf_counter()
            item = ahead.get()
            if isinstance(item, BaseException):
                raise item
            step, rows, epochs = item
            yield Loaded(step, tuple(rows), tuple(epochs), time.perf_counter() - begin_s)
    finally:
        stop.set()


def reference_of(
    errors: Mapping[str, Sequence[Sequence[float]]], rows: Sequence[EncodedRow], epochs: Sequence[int]
) -> np.ndarray:
    """Precomputed reference errors of rows in their epochs, padded with zeros: float32[B, K]."""
    k = max(len(row.rank) for row in rows)
    found = np.zeros((len(rows), k), np.float32)
    for b, (row, epoch) in enumerate(zip(rows, epochs, strict=True)):
        found[b, : len(row.rank)] = errors[row.prompt_id][epoch]
    return found
