"""What the driver tells the workers of a run, and what a run knows of itself beside its tensors.

Nothing here needs torch or Ray: a driver that plans or compares runs makes these and loads no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rankray.config.rankdpo import RankDPOConfig
from rankray.models.generators import GeneratorSpec
from rankray.rankdpo.encoded import Layout
from rankray.rankdpo.labels import Labelling
from rankray.rankdpo.validation import Point

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's own list of the checkpoints that are wholly stored, among them."""


@dataclass(frozen=True)
class TrainJob:
    """What a worker needs.

    Attributes:
        config: the run's.
        spec: the model's row, its revision resolved.
        files: of the encoded set, or of the ranked dataset where encoders stream.
        files_uri: a URI on the files' filesystem.
        layout: of the encoded set; None where encoders stream.
        encoded: URI of the encoded set (the empty prompt's embeddings).
        reference: URI of precomputed reference errors, or None.
        encoders: names of the actors that encode while it trains.
        reward: place of the objective's reward among the scores, or None.
        labelling: another one than the dataset's own, or None.
        rows: prompts that take part.
        sample_prompts: prompts of the picture grids.
        output: URI of the run.
        device: "cpu" or "cuda".
    """

    config: RankDPOConfig
    spec: GeneratorSpec
    files: tuple[str, ...]
    files_uri: str
    layout: Layout | None
    encoded: str
    reference: str | None
    encoders: tuple[str, ...]
    reward: int | None
    labelling: Labelling | None
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
        elapsed_s: time spent on steps, of all starts.
        gpu_s, cpu_s: the same times the workers' GPUs and CPUs.
    """

    step: int = 0
    skipped: int = 0
    points: tuple[Point, ...] = ()
    right: float = 0.0
    pairs: float = 0.0
    elapsed_s: float = 0.0
    gpu_s: float = 0.0
    cpu_s: float = 0.0

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

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> RunState:
        """The reverse of `asdict`."""
        return RunState(**{**value, "points": tuple(Point(**point) for point in value.get("points", ()))})


def best_name(step: int) -> str:
    """The directory, among the checkpoints, of the weights after `step` steps that were once the best."""
    return f"best-{step:06}"
