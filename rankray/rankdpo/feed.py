"""What a trainer reads: its rows of each step's global batch, fetched ahead by a thread.

Each worker reads its own rows and no others, straight from the Arrow filesystem, in an order that is a function of seed
and epoch; the place in the data is the step's number, so a resumed run goes on where it was and sees each prompt of an
epoch once. Two steps are kept ahead, so reading is hidden unless it takes longer than a step; what is not hidden is
measured as the wait for data.

Datasets are mixed here and not on disk: each is one endless row of its own epochs, of which every step takes the share
that its weight says. One dataset of both with a column of weights would read simpler, but copies all pictures (some
350 GB of 58,000 prompts with four of 1.5 MB), encodes them again for each mixture, and has to hold people's choices
beside rewards' scores; so each keeps its encoded set, and weights cost nothing to change.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rankray import store
from rankray.config import ConfigError
from rankray.config.rankdpo import ValidationConfig
from rankray.data.place import as_written
from rankray.rankdpo.encoded import (
    EncodedRow,
    RowPlace,
    RowReader,
    decoded_row,
    index,
    read_reference,
    relabelled,
)
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


def taken(count: int, weights: Sequence[float]) -> list[int]:
    """How many of a run's first `count` rows are of each set, by the sets' weights.

    Each set takes its part, rounded, of what those before it left: parts sum to `count`, and none falls as it grows.
    """
    found: list[int] = []
    for n, weight in enumerate(weights):
        left = count - sum(found)
        found.append(math.floor(left * (weight / sum(weights[n:])) + 0.5))
    return found


def step_rows(
    step: int, batch_size: int, sizes: Sequence[int], weights: Sequence[float], seed: int
) -> list[tuple[int, int, int]]:
    """(set, epoch, row) of each prompt of a step's global batch, from sets of these sizes and weights.

    Parts of batches are cut from one endless row of epochs for each set, so each epoch of it holds each of its prompts
    once even where they do not divide it, and the place in the data is the step's number alone. Sets alternate within a
    batch, so that workers, who take consecutive parts of it, have alike to do where rows differ in candidates.
    """
    begin, end = (taken(count * batch_size, weights) for count in (step, step + 1))
    found: list[tuple[float, tuple[int, int, int]]] = []
    for n, rows in enumerate(sizes):
        position, own = begin[n], end[n] - begin[n]
        while position < end[n]:
            epoch, start = divmod(position, rows)
            for row in epoch_order(rows, seed, epoch)[start : start + end[n] - position]:
                found.append(((position - begin[n] + 0.5) / own, (n, epoch, int(row))))
                position += 1
    return [one for _, one in sorted(found)]


def epochs_line(what: str, drawn: int, rows: int, stop: str = "none") -> str:
    """How often a run sees each of `rows` prompts, said before it begins, with a warning above `MANY_EPOCHS`; `stop` is
    `validation.stop`."""
    epochs = drawn / rows
    said = f"{what} over {rows:,} prompts are {epochs:.1f} epochs (the paper: {PAPER_EPOCHS:g})"
    if epochs <= MANY_EPOCHS:
        return said
    remedy = "validation.stop = 'patience' ends it where that shows"
    if stop == "none":
        remedy = "take fewer steps or more prompts, or leave the end to validation.stop = 'patience'"
    return (
        f"{said}; warning: above {MANY_EPOCHS:g} runs began to remember their prompts instead of learning from them: "
        f"{remedy}"
    )


def held_out(prompts: Iterable[str], config: ValidationConfig) -> frozenset[str]:
    """The prompts that a run validates on instead of learning from: those with the least hashes.

    Neither seed nor order has a part in it, so runs that differ in anything else hold out the same prompts, and a
    dataset that grows by a tenth holds out nine tenths of them again. A prompt is out with all its rows, in whichever
    dataset, or with none.

    Args:
        prompts: `RowPlace.prompt` of every row, of all datasets together.

    Raises:
        ConfigError: fewer prompts would be left to learn from than are held out.
    """
    if not config.share:
        return frozenset()
    every = set(prompts)
    total = len(every)
    count = min(max(round(config.share * total), config.min_prompts), config.max_prompts)
    if 2 * count > total:
        raise ConfigError(
            f"validation would hold {count:,} of {total:,} prompts out and leave {max(0, total - count):,} to "
            "learn from; give more prompts, a lower validation.share or validation.min_prompts, or "
            "validation.share = 0 to train without"
        )
    by_hash = sorted(every, key=lambda one: hashlib.sha256(f"held out\0{one}".encode()).digest())
    return frozenset(by_hash[:count])


def validated(rows: Mapping[tuple[int, str], str]) -> set[tuple[int, str]]:
    """Of each held-out prompt the one row that is validated on, again by the least hash.

    Judgements of one prompt are alike: eight of each of eight prompts would be taken for 64 prompts' evidence, and the
    accuracy's standard error come out up to 2.8 times too small. Where people judged a prompt a dozen times, more
    prompts with one row each also say more than as many rows of few.

    Args:
        rows: the prompt (`RowPlace.prompt`) of each held-out row, by its set's number and its id.
    """

    def digest(row: tuple[int, str]) -> bytes:
        return hashlib.sha256(f"validated\0{row[0]}\0{row[1]}".encode()).digest()

    return set({rows[row]: row for row in sorted(rows, key=digest, reverse=True)}.values())


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


def reads(prompt_ids: Iterable[str], drawn: int, seed: int, held_out: frozenset[str] = frozenset()) -> Reads:
    """What `step_rows` gives to a run that draws so many rows of the set of these, of which none is held out."""
    ids = sorted(prompt_ids)
    whole, rest = divmod(drawn, len(ids))
    last = frozenset(ids[row] for row in epoch_order(len(ids), seed, whole)[:rest])
    return Reads(whole, last, held_out)


def share(rows: Sequence[Any], rank: int, world: int) -> list[Any]:
    """A worker's part of a global batch: consecutive, and equal to within one."""
    return [rows[i] for i in np.array_split(np.arange(len(rows)), world)[rank]]


class Rows:
    """The rows that a run learns from, under their labellings: of encoded sets, or of ranked datasets, encoded by
    actors when they are asked for.

    Attributes:
        places: of those that are learnt from, of each set by prompt id.
        weights: of the sets.
        held_out: of those that are validated on, one a prompt, set by set, by prompt id.
    """

    def __init__(self, job: TrainJob) -> None:
        self._sets, self.weights = job.sets, [one.weight for one in job.sets]
        filesystems = [store.filesystem(one.uri)[0] for one in job.sets]
        taking = [
            [
                place
                for place in index(one.files, fs, number)
                if one.labelling is None or one.labelling.takes(place.prompt_id)
            ]
            for number, (one, fs) in enumerate(zip(job.sets, filesystems, strict=True))
        ]
        away = held_out([place.prompt for places in taking for place in places], job.config.validation)
        self.places = [[place for place in places if place.prompt not in away] for places in taking]
        out = {
            (place.number, place.prompt_id): place
            for place in itertools.chain(*taking)
            if place.prompt in away
        }
        judged = validated({row: place.prompt for row, place in out.items()})
        self.held_out = [place for row, place in out.items() if row in judged]
        self._reader = RowReader(filesystems)
        self._ahead = [read_reference(one.reference) if one.reference else None for one in job.sets]
        self._encoders: list[Any] = []
        self._turn = 0
        if job.encoders:
            import ray  # a step that reads what is stored runs without it

            self._encoders = [ray.get_actor(name) for name in job.encoders]

    def read(self, places: Sequence[RowPlace]) -> list[EncodedRow]:
        """The rows at `places`, in their order."""
        stored = self._reader.read(places)
        rows = self._streamed(places, stored) if self._encoders else map(self._decoded, places, stored)
        found = []
        for place, row in zip(places, rows, strict=True):
            labelling, ahead = self._sets[place.number].labelling, self._ahead[place.number]
            labelled = row if labelling is None else relabelled(row, labelling)
            found.append(labelled if ahead is None else replace(labelled, ref_error=ahead[row.prompt_id]))
        return found

    def _decoded(self, place: RowPlace, row: dict[str, Any]) -> EncodedRow:
        layout = self._sets[place.number].layout
        assert layout is not None, "only encoders can read what is not encoded"
        with as_written(place.file):
            return decoded_row(row, layout)

    def _streamed(self, places: Sequence[RowPlace], rows: Sequence[dict[str, Any]]) -> list[EncodedRow]:
        """Cuts the rows into as many parts as there are encoders, so that all of them work on every step."""
        import ray

        for place, row in zip(places, rows, strict=True):
            store.located([row], self._sets[place.number].uri)
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
    stop, sizes = threading.Event(), [len(places) for places in source.places]

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                ahead.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    def fetch() -> None:
        for step in range(start, steps):
            mine = share(step_rows(step, batch_size, sizes, source.weights, seed), rank, world)
            try:
                rows = source.read([source.places[n][row] for n, _, row in mine])
            except BaseException as error:  # noqa: BLE001 - carried to the trainer, which raises it
                put(error)
                return
            put((step, tuple(rows), tuple(epoch for _, epoch, _ in mine)))
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
