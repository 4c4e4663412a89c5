"""What the driver tells the workers of a run, and what a run knows of itself beside its tensors.

Nothing here needs torch or Ray: a driver that plans or compares runs makes these and loads no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.fs as pafs
from pydantic import TypeAdapter

from rankray import store
from rankray.config.rankdpo import RankDPOConfig
from rankray.data.place import as_written
from rankray.models.generators import GeneratorSpec
from rankray.rankdpo.encoded import Layout
from rankray.rankdpo.labels import Labelling
from rankray.rankdpo.validation import Point

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's own list of the checkpoints that are wholly stored, among them."""


@dataclass(frozen=True)
class RowSet:
    """Where a worker reads rows: an encoded set, or a ranked dataset where encoders stream.

    Attributes:
        files: of it.
        uri: of it.
        layout: of the encoded set; None where encoders stream.
        reference: URI of precomputed reference errors, or None.
        labelling: another one than the dataset's own, or None.
        weight: its share of the rows that a run sees, beside other sets' weights.
    """

    files: tuple[str, ...]
    uri: str
    layout: Layout | None
    reference: str | None = None
    labelling: Labelling | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class TrainJob:
    """What a worker needs.

    Attributes:
        config: the run's.
        spec: the model's row, its revision resolved.
        sets: whose rows are read: one, or several that are mixed.
        encoded: URI of an encoded set (the empty prompt's embeddings).
        encoders: names of the actors that encode while it trains.
        reward: place of the objective's reward among the scores, or None.
        rows: prompts that take part.
        sample_prompts: prompts of the picture grids.
        output: URI of the run.
        device: "cpu" or "cuda".
    """

    config: RankDPOConfig
    spec: GeneratorSpec
    sets: tuple[RowSet, ...]
    encoded: str
    encoders: tuple[str, ...]
    reward: int | None
    rows: int
    sample_prompts: tuple[str, ...]
    output: str
    device: str


@dataclass(frozen=True)
class RunState:
    """Where a run is.

    Attributes:
        step: steps done.
        skipped: of these, left out for a loss or gradient that was not finite, or a loss that exploded.
        points: what held-out prompts said, of each validation.
        right, pairs: of the training's pairs, since the last validation.
        elapsed_s: time that workers were held, of all starts, each up to its last checkpoint.
        gpu_s, cpu_s: the same times the workers' GPUs and CPUs.
    """

    step: int
    skipped: int = 0
    points: tuple[Point, ...] = ()
    right: float = 0.0
    pairs: float = 0.0
    elapsed_s: float = 0.0
    gpu_s: float = 0.0
    cpu_s: float = 0.0

    def usd(self, config: RankDPOConfig) -> float:
        """What that cost: GPUs where workers have some, else CPUs."""
        prices = config.prices
        if config.workers.num_gpus:
            return round(self.gpu_s / 3600 * prices.gpu_usd_per_hour, 4)
        return round(self.cpu_s / 3600 * prices.cpu_usd_per_hour, 4)

    def after(self, bad: bool, sums: Mapping[str, float]) -> RunState:
        """The state one step later; `sums` are the step's (`losses.metric_sums`)."""
        counted = {} if bad else {key: getattr(self, key) + sums[key] for key in ("right", "pairs")}
        return dataclasses.replace(self, step=self.step + 1, skipped=self.skipped + bad, **counted)

    def validated(self, point: Point) -> RunState:
        """The state after a validation; `right` and `pairs` start again."""
        return dataclasses.replace(self, points=(*self.points, point), right=0.0, pairs=0.0)

    @property
    def training_accuracy(self) -> float | None:
        """Implicit accuracy of the training's pairs since the last validation."""
        return round(self.right / self.pairs, 6) if self.pairs else None


@dataclass(frozen=True)
class CheckpointState:
    """A checkpoint's `state.json`: where its run was, and what it has of the optimizer beside weights."""

    run: RunState
    optimizer_tensors: tuple[str, ...]
    optimizer_scalars: Mapping[str, float]


def checkpoint_state(fs: pafs.FileSystem, checkpoint: str) -> CheckpointState:
    """What the `state.json` in the directory `checkpoint` says.

    Raises:
        DatasetError: it is damaged.
        OSError: it is not there.
    """
    place = f"{checkpoint}/state.json"
    with as_written(place):
        found: CheckpointState = TypeAdapter(CheckpointState).validate_python(store.read_json(place, fs))
    return found


def best_name(step: int) -> str:
    """The directory, among the checkpoints, of the weights after `step` steps that were once the best."""
    return f"best-{step:06}"
