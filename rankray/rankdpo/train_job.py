"""What the driver tells the workers of a run, and what a run knows of itself beside its tensors.

Nothing here needs torch or Ray: a driver that plans or compares runs makes these and loads no model.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rankray.config.rankdpo import RankDPOConfig
from rankray.models.generators import GeneratorSpec
from rankray.rankdpo.encoded import Layout
from rankray.rankdpo.labels import Labelling


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
        best: highest implicit accuracy between two checkpoints, and the step of the second.
        elapsed_s: time spent on steps, of all starts.
        gpu_s, cpu_s: the same times the workers' GPUs and CPUs.
    """

    step: int = 0
    skipped: int = 0
    best: float | None = None
    best_step: int | None = None
    elapsed_s: float = 0.0
    gpu_s: float = 0.0
    cpu_s: float = 0.0

    def after(self, bad: bool) -> RunState:
        """The state one step later."""
        return dataclasses.replace(self, step=self.step + 1, skipped=self.skipped + bad)
