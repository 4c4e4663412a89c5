"""Learning rate by step: linear warm-up, then constant, cosine or linear. A pure function: a resume needs no state."""

from __future__ import annotations

import math

from rankray.config.rankdpo import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return config.learning_rate * warm
    span = max(1, steps - config.warmup_steps)
    share = min(1.0, max(0.0, (step - config.warmup_steps) / span))
    fall = 1.0 - share if config.schedule == "linear" else 0.5 + 0.5 * math.cos(math.pi * share)
    return config.learning_rate * warm * fall
