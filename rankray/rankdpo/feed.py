"""What a trainer reads: its rows of each step's global batch, fetched ahead by a thread.

Each worker reads its own rows and no others, straight from the Arrow filesystem, in an order that is a function of seed
and epoch; the place in the data is the step's number, so a resumed run goes on where it was and sees each prompt of an
epoch once. Two steps are kept ahead, so reading is hidden unless it takes longer than a step; what is not hidden is
measured as the wait for data.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rankray import store
from rankray.config import ConfigError
from rankray.config.rankdpo import ValidationConfig
from rankray.rankdpo.encoded import EncodedRow, RowPlace, RowReader, decoded_row, index, relabelled
from rankray.rankdpo.train_job import TrainJob

STEPS_AHEAD = 2
PAPER_EPOCHS = 7.0
"""400 steps of 1,024 prompts over 58,000 (paper section 4.1)."""
MANY_EPOCHS = 50.0
"""In the shapes world 60 epochs of Eq. 7 alone ended 4 points below the start, and 57 with `nll` 15 above it; at 100
epochs of 32 prompts the error on held-out preferred candidates had risen by 5 %, at 250 by 27 %, and 6 points were
lost."""


def epoch_order(rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation of the rows that is a function of seed and epoch: int64[rows]."""
    digest = hashlib.sha256(f"order\0{seed}\0{epoch}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(rows)


def step_rows(step: int, batch_size: int, rows: int, seed: int) -> list[tuple[int, int]]:
    """(epoch, row) of each prompt of a step's global batch.

    Batches are cut from one endless row of epochs, so each epoch holds each prompt once even where `batch_size` does
    not divide the dataset, and the place in the data is the step's number alone.
    """
    found: list[tuple[int, int]] = []
    position, end = step * batch_size, (step + 1) * batch_size
    while position < end:
        epoch, start = divmod(position, rows)
        take = min(end - position, rows - start)
        found += [(epoch, int(row)) for row in epoch_order(rows, seed, epoch)[start : start + take]]
        position += take
    return found


def epochs_line(steps: int, batch_size: int, rows: int) -> str:
    """How often a run sees each of its prompts, said before it begins, with a warning above `MANY_EPOCHS`."""
    epochs = steps * batch_size / rows
    said = (
        f"{steps:,} steps of {batch_size:,} over {rows:,} prompts are {epochs:.1f} epochs "
        f"(the paper: {PAPER_EPOCHS:g})"
    )
    if epochs <= MANY_EPOCHS:
        return said
    return (
        f"{said}; warning: above {MANY_EPOCHS:g} runs began to remember their prompts instead of learning from them. "
        "Take fewer steps or more prompts, or leave the end to validation.stop = 'patience'"
    )


def held_out(prompt_ids: Iterable[str], config: ValidationConfig) -> frozenset[str]:
    """The prompts that a run validates on instead of learning from: those with the least hashes.

    Neither seed nor order has a part in it, so runs that differ in anything else hold out the same prompts, and a
    dataset that grows by a tenth holds out nine tenths of them again.

    Raises:
        ConfigError: fewer would be left to learn from than are held out.
    """
    if not config.share:
        return frozenset()
    ids = sorted(prompt_ids, key=lambda one: hashlib.sha256(f"held out\0{one}".encode()).digest())
    count = min(max(round(config.share * len(ids)), config.min_prompts), config.max_prompts)
    if 2 * count > len(ids):
        raise ConfigError(
            f"validation would hold {count:,} of {len(ids):,} prompts out and leave {max(0, len(ids) - count):,} to "
            "learn from; give more prompts, a lower validation.share or validation.min_prompts, or "
            "validation.share = 0 to train without"
        )
    return frozenset(ids[:count])


@dataclass(frozen=True)
class Reads:
    """What a run reads of an encoded set: each row in epochs 0 to `whole` - 1, and those of `last` once more.

    400 steps of 1,024 prompts are 7.06 epochs of 58,000: the eighth reads 3,600 prompts, not all of them.
    """

    whole: int
    last: frozenset[str]
    held_out: frozenset[str] = frozenset()

    def epochs(self, prompt_id: str) -> range:
        """The epochs in which a row that takes part is read: none, where it is held out."""
        return range(0 if prompt_id in self.held_out else self.whole + (prompt_id in self.last))


def reads(
    prompt_ids: Iterable[str],
    steps: int,
    batch_size: int,
    seed: int,
    held_out: frozenset[str] = frozenset(),
) -> Reads:
    """What `step_rows` gives to a run of so many steps over the rows of these prompts, of which none is held out."""
    ids = sorted(prompt_ids)
    whole, rest = divmod(steps * batch_size, len(ids))
    last = frozenset(ids[row] for row in epoch_order(len(ids), seed, whole)[:rest])
    return Reads(whole, last, held_out)


def share(rows: Sequence[Any], rank: int, world: int) -> list[Any]:
    """A worker's part of a global batch: consecutive, and equal to within one."""
    return [rows[i] for i in np.array_split(np.arange(len(rows)), world)[rank]]


class Rows:
    """The rows that a run learns from, under its labelling: of the encoded set, or of the ranked dataset, encoded by
    actors when they are asked for.

    Attributes:
        places: of those that are learnt from, by prompt id.
        held_out: of those that are validated on, by prompt id.
    """

    def __init__(self, job: TrainJob) -> None:
        fs, _ = store.filesystem(job.files_uri)
        taking = [
            place
            for place in index(job.files, fs)
            if job.labelling is None or job.labelling.takes(place.prompt_id)
        ]
        away = held_out([place.prompt_id for place in taking], job.config.validation)
        self.places = [place for place in taking if place.prompt_id not in away]
        self.held_out = [place for place in taking if place.prompt_id in away]
        self._reader, self._layout, self._labelling = RowReader(fs), job.layout, job.labelling
        self._encoders: list[Any] = []
        self._turn = 0
        if job.encoders:
            import ray  # a step that reads what is stored runs without it

            self._encoders = [ray.get_actor(name) for name in job.encoders]

    def read(self, places: Sequence[RowPlace]) -> list[EncodedRow]:
        """The rows at `places`, in their order."""
        stored = self._reader.read(places)
        rows = (
            self._streamed(stored)
            if self._layout is None
            else [decoded_row(row, self._layout) for row in stored]
        )
        return rows if self._labelling is None else [relabelled(row, self._labelling) for row in rows]

    def _streamed(self, rows: Sequence[dict[str, Any]]) -> list[EncodedRow]:
        """Cuts the rows into as many parts as there are encoders, so that all of them work on every step."""
        import ray

        parts = [part for part in np.array_split(np.arange(len(rows)), len(self._encoders)) if len(part)]
        self._turn += 1
        coming = [
            self._encoders[(self._turn + n) % len(self._encoders)].rows.remote([rows[i] for i in part])
            for n, part in enumerate(parts)
        ]
        return [row for part in ray.get(coming) for row in part]


@dataclass(frozen=True)
class Loaded:
    """A worker's share of a step: rows, the epoch in which each is seen, and how long the trainer waited for them."""

    step: int
    rows: tuple[EncodedRow, ...]
    epochs: tuple[int, ...]
    wait_s: float


def feed(
    source: Rows, start: int, steps: int, batch_size: int, seed: int, rank: int, world: int
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
            put((step, tuple(rows), tuple(epoch for epoch, _ in mine)))
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
            yield Loaded(step, rows, epochs, time.perf_counter() - begin_s)
    finally:
        stop.set()
