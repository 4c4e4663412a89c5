"""The training loop of the shapes world: seeded, resumable to the bit, logged as JSON lines.

One process trains on one torch thread: two processes with two threads each on two cores are 3 to 5 times
slower. All randomness comes from one generator whose state is saved with the weights, so a run that was
stopped and resumed ends with the weights of one that was not, at the price of a checkpoint of four times the
parameters (weights, average, two moments).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes.shapes.muon import Muon

EMA_DECAY = 0.999
WARM_UP_STEPS = 100
SMALLEST = 24
"""Muon takes matrices whose smaller side is at least this: projections to and from latents stay with AdamW."""


@dataclass(frozen=True)
class Budget:
    """When training ends: after so many steps, or after so many minutes of computing where steps is None.

    `decay` is the share of the budget over which the learning rate falls. `stop_at` leaves after that step as a kill
    would, with a checkpoint. A line is logged every `log_steps`.
    """

    steps: int | None = None
    minutes: float = 25.0
    decay: float = 0.5
    stop_at: int | None = None
    log_steps: int = 100

    def progress(self, step: int, elapsed_s: float) -> float:
        """Share of the budget that is used up, from 0 to 1."""
        share = step / self.steps if self.steps is not None else elapsed_s / (60.0 * self.minutes)
        return min(1.0, share)

    def rate(self, step: int, elapsed_s: float) -> float:
        """Factor of the learning rate: linear warm-up, constant, then a half cosine to zero over `decay`."""
        left = (1.0 - self.progress(step, elapsed_s)) / self.decay
        fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, left))
        return min(1.0, (step + 1) / WARM_UP_STEPS) * fall


@dataclass
class Training:
    """Everything that changes while a model trains; `save` and `restore` carry all of it."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    generator: torch.Generator
    average: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    elapsed_s: float = 0.0

    def save(self, path: Path) -> None:
        """Writes the checkpoint beside its place first and renames it, so that a kill never leaves half of one."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "average": self.average,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def restore(self, path: Path) -> None:
        """Continues from a checkpoint of the same model and optimizers."""
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"])
        self.average = state["average"]
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]

    def follow(self) -> None:
        """Moves the average of the weights towards them: decay 0.999, faster in the first steps."""
        decay = min(EMA_DECAY, (1.0 + self.step) / (10.0 + self.step))
        parameters = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        if not self.average:
            self.average = {name: value.clone() for name, value in parameters.items()}
            return
        names = list(parameters)
        torch._foreach_lerp_([self.average[n] for n in names], [parameters[n] for n in names], 1.0 - decay)

    def load_average(self) -> dict[str, Tensor]:
        """Puts the averaged weights into the model and returns the ones that were there."""
        kept = {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}
        self.load(self.average)
        return kept

    def load(self, weights: dict[str, Tensor]) -> None:
        """Overwrites trained parameters by name."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])


def optimizers_for(
    model: nn.Module, learning_rate: float, muon: float | None = None, weight_decay: float = 0.01
) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for hidden matrices and kernels and AdamW for the rest.

    Args:
        muon: learning rate of Muon, or None for AdamW alone.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    hidden = [
        p for p in trained if muon is not None and p.ndim in (2, 4) and min(p.flatten(1).shape) >= SMALLEST
    ]
    taken = {id(p) for p in hidden}
    rest = [p for p in trained if id(p) not in taken]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, foreach=True)
    ]
    if muon is not None and hidden:
        found.append(Muon(hidden, lr=muon, weight_decay=weight_decay))
    return found


def fit(
    training: Training,
    loss: Callable[[torch.Generator], Tensor],
    budget: Budget,
    directory: Path,
    measure: Callable[[], dict[str, float]] | None = None,
    measure_minutes: float = 4.0,
    save_minutes: float = 2.0,
) -> None:
    """Trains until the budget is used up, logging to `directory/curve.jsonl`, with checkpoints.

    Args:
        loss: draws one batch with the generator and returns its scalar loss.
        measure: called with the averaged weights in place, every `measure_minutes` and at the end.

    Raises:
        FloatingPointError: the loss is not finite; the last checkpoint is from before.
    """
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in training.optimizers]
    trained = [p for p in training.model.parameters() if p.requires_grad]
    recent: list[float] = []
    measured = saved = training.elapsed_s
    while training.step != budget.stop_at and budget.progress(training.step, training.elapsed_s) < 1.0:
        start = time.process_time()
        factor = budget.rate(training.step, training.elapsed_s)
        _set_rates(training.optimizers, base, factor)
        value = loss(training.generator)
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
        for optimizer in training.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        training.step += 1
        training.follow()
        recent.append(value.item())
        if not math.isfinite(recent[-1]):
            raise FloatingPointError(
                f"the loss became {recent[-1]} at step {training.step}: lower the learning rate"
            )
        training.elapsed_s += time.process_time() - start
        if training.step % budget.log_steps == 0:
            due = measure is not None and training.elapsed_s - measured >= 60.0 * measure_minutes
            _log(training, directory, recent, measure if due else None)
            recent = []
            measured = training.elapsed_s if due else measured
            if training.elapsed_s - saved >= 60.0 * save_minutes:
                _set_rates(training.optimizers, base, 1.0)
                training.save(directory / "state.pt")
                saved = training.elapsed_s
    _set_rates(training.optimizers, base, 1.0)
    training.save(directory / "state.pt")
    if training.step != budget.stop_at:
        _log(training, directory, recent, measure)


def _set_rates(optimizers: list[torch.optim.Optimizer], base: list[list[float]], factor: float) -> None:
    """Learning rates are the base ones times a factor; checkpoints are written with the base ones."""
    for optimizer, rates in zip(optimizers, base, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor


def _log(
    training: Training, directory: Path, recent: list[float], measure: Callable[[], dict[str, float]] | None
) -> None:
    line: dict[str, float] = {"step": training.step, "minutes": round(training.elapsed_s / 60.0, 3)}
    if recent:
        line["loss"] = round(sum(recent) / len(recent), 5)
    if measure is not None:
        kept = training.load_average()
        with torch.no_grad():
            line |= measure()
        training.load(kept)
    with (directory / "curve.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)
