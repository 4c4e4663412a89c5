"""Steps of Algorithm 2, with or without Ray Train's workers around them: read this from `Training` downwards.

A step's loss is the mean over the global batch's usable prompts. Each worker sums the losses of its own prompts,
divides by that global count and multiplies by the number of workers, as DeepSpeed averages gradients over them: the
weights do not depend on how a batch is split. All randomness of a step is a function of (seed, epoch, prompt), so a
checkpoint carries none. The price of both is one small all-reduce a step before the first backward pass.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankray.config.rankdpo import REFERENCE_FREE, OptimizerConfig, RankDPOConfig
from rankray.losses import loss_parts, metric_sums, needed
from rankray.models import hardware
from rankray.models.denoisers import parts
from rankray.models.generators import GeneratorSpec
from rankray.rankdpo import batches, zero
from rankray.rankdpo.batches import Batch
from rankray.rankdpo.encoded import EncodedRow, read_empty
from rankray.rankdpo.feed import Loaded, Rows, feed
from rankray.rankdpo.train_job import TrainJob

TRIAL_ROWS = 32
"""Of each dataset that a trial pass takes the largest of: candidates fail, and labels leave some out."""
MEMORY_SHARE = 0.6
"""Of a GPU that a trial pass may take: optimizer state comes on top of its peak."""


@dataclass(frozen=True)
class Step:
    """A step that was taken.

    Attributes:
        number: steps done with it.
        sums: of the global batch, as `losses.metric_sums` names them.
        learning_rate: what it was taken with.
        gradient_norm: before clipping; None where DeepSpeed left the step out.
        step_s, wait_s: how long it took, and how long of that the trainer waited for its rows.
        bad: left out, for a loss or gradient that was not finite, or a loss that exploded.
    """

    number: int
    sums: dict[str, float]
    learning_rate: float
    gradient_norm: float | None
    step_s: float
    wait_s: float
    bad: bool


@dataclass(frozen=True)
class Training:
    """A model that is being trained: all of it in this process, or one worker's part.

    Attributes:
        model: what is trained, and its reference.
        engine: DeepSpeed's, around it.
        micro_batches: that a step's share is cut into.
        average: of the weights, where the run keeps one.
    """

    job: TrainJob
    model: TrainedModel
    engine: Any
    micro_batches: int
    average: zero.Average | None = None
    rank: int = 0
    world: int = 1

    def steps(self, rows: Rows, start: int = 0) -> Iterator[Step]:
        """Takes the steps that are left after `start`, one after another."""
        config, engine = self.job.config, self.engine
        for loaded in feed(rows, start, config.steps, config.batch_size, config.seed, self.rank, self.world):
            begin_s = time.perf_counter()
            rate = learning_rate(config.optimizer, loaded.step, config.steps)
            for group in engine.optimizer.param_groups:
                group["lr"] = rate
            sums, norm = self.step(loaded)
            bad = bool(getattr(engine.optimizer, "overflow", False)) or not math.isfinite(sums["loss"])
            bad |= norm is not None and not math.isfinite(norm)
            if self.average is not None and not bad:
                self.average.follow()
            step_s = time.perf_counter() - begin_s + loaded.wait_s
            yield Step(loaded.step + 1, sums, rate, norm, step_s, loaded.wait_s, bad)

    def averaged(self, computing: bool = False) -> AbstractContextManager[None]:
        """Within, the engine holds the weights that are the result: their average, where there is one; with
        `computing` it also predicts with them."""
        if self.average is None:
            return contextlib.nullcontext()
        return self.average.computing() if computing else self.average.swapped()

    def step(self, loaded: Loaded) -> tuple[dict[str, float], float | None]:
        """Forward, backward and update over a worker's share; the global batch's metric sums and its gradient's norm.

        Where the batch's loss is not finite, or explodes, the gradient is made NaN before the last backward pass:
        DeepSpeed then skips the step on every worker, by its own check.
        """
        job, model, objective = self.job, self.model, self.job.config.objective
        micro = [
            self._micro_batch(loaded, start, end) for start, end in _cut(len(loaded.rows), self.micro_batches)
        ]
        usable_prompts = sum(batch.without_errors().usable.any(-1).sum().item() for batch in micro)
        count = torch.tensor(float(usable_prompts), device=model.device)
        _all_reduce(count)
        total: dict[str, Tensor] = {}
        found: dict[str, float] = {}
        for batch in micro:
            computed = some(needed(objective.name, batch.without_errors(), objective.options))
            ref_error = model.ref_errors(self.engine, batch, computed)
            model_error = model.errors(self.engine, batch, computed)
            inputs = batch.inputs(model_error, ref_error)
            apart = loss_parts(objective.name, inputs, beta=objective.beta, options=objective.options)
            loss = torch.stack(tuple(apart.values())).sum(0)
            sums = metric_sums(inputs, loss, beta=objective.beta, computed=computed, parts=apart)
            total = {key: value + total.get(key, 0.0) for key, value in sums.items()}
            if batch is micro[-1]:
                found = _all_reduced(total)
                if not found["loss"] <= job.config.checkpoints.explode_at * max(found["prompts"], 1.0):
                    # By the errors themselves: of a micro-batch without a pair no parameter hears through its loss.
                    loss, found["loss"] = loss + math.nan * model_error.sum(), math.nan
            self.engine.backward(loss.sum() * (self.world / max(count.item(), 1.0)), scale_wrt_gas=False)
            if batch is not micro[-1]:
                self.engine.step()
        return found, self._update()

    def _micro_batch(self, loaded: Loaded, start: int, end: int) -> Batch:
        """A part of a share. Elastic workers' shares differ by one, and all cut them alike: a part without rows is a
        row that nobody ranked, as every worker must take part in every pass."""
        if start < end:
            return self.model.batch(loaded.rows[start:end], loaded.epochs[start:end], self.job.reward)
        filler = self.model.batch(loaded.rows[:1], loaded.epochs[:1], self.job.reward)
        return replace(filler, mask=torch.zeros_like(filler.mask), rank=torch.zeros_like(filler.rank))

    def _update(self) -> float | None:
        """The optimizer's step; the gradient's norm before clipping. ZeRO clips by itself, and leaves out a step whose
        gradient is not finite; at stage 0 both are done here."""
        if self.engine.zero_optimization_stage():
            self.engine.step()
            norm = self.engine.get_global_grad_norm()
            return None if norm is None else float(norm)
        clip = self.job.config.optimizer.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.engine.module.parameters(), clip))
        if not math.isfinite(norm):
            self.engine.zero_grad()
        self.engine.step()
        return norm


def begin(job: TrainJob, rows: Rows, rank: int = 0, world: int = 1) -> Training:
    """A model as it is published, with DeepSpeed around it, in the process group that is there."""
    if job.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed looks at it when it is first imported
    config, model = job.config, TrainedModel(job)
    share = -(-config.batch_size // world)  # the largest, where elastic workers do not divide the batch
    micro = min(share, config.workers.micro_batch or _micro_batch(model, job, rows, share))
    micro_batches = -(-share // micro)
    settings = zero.deepspeed_config(
        config.workers, config.tuned, config.optimizer.clip, micro, micro_batches, world
    )
    learnt = [p for p in model.module.parameters() if p.requires_grad]
    optimizer = zero.optimizer_for(learnt, config.optimizer)
    engine = zero.start(model.module, optimizer, settings, weights=model.start)
    model.start = {}
    average = zero.Average(engine, config.tuned.ema) if config.tuned.ema else None
    return Training(job, model, engine, micro_batches, average, rank, world)


def train_alone(job: TrainJob, every: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """A whole run in this process and without checkpoints: (step, weights by name), every `every` steps and after the
    last.

    For runs of a minute or two that are repeated rather than resumed, one after another in a process that has imported
    everything already: of a run of 150 steps in the shapes world, starting workers is the larger part.

    Raises:
        FloatingPointError: more than `checkpoints.bad_steps` steps were not finite, or exploded.
    """
    zero.alone()
    rows, skipped = Rows(job), 0
    training = begin(job, rows)
    for step in training.steps(rows):
        skipped += step.bad
        if skipped > job.config.checkpoints.bad_steps:
            raise FloatingPointError(f"{skipped} of {step.number} steps were not finite, or exploded")
        if step.number % every == 0 or step.number == job.config.steps:
            with training.averaged():
                yield step.number, zero.gather(training.engine)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: linear warm-up, then the schedule; a resume needs no state."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return config.learning_rate * warm
    span = max(1, steps - config.warmup_steps)
    share = min(1.0, max(0.0, (step - config.warmup_steps) / span))
    fall = 1.0 - share if config.schedule == "linear" else 0.5 + 0.5 * math.cos(math.pi * share)
    return config.learning_rate * warm * fall


class TrainedModel:
    """The denoiser that is trained, its reference, and how both are asked."""

    def __init__(self, job: TrainJob) -> None:
        config = job.config
        torch.set_num_threads(max(1, int(config.workers.num_cpus)))
        self.dtype: torch.dtype = getattr(torch, config.tuned.dtype)
        hardware.require_device(job.device)
        self.device = f"cuda:{torch.cuda.current_device()}" if job.device == "cuda" else "cpu"
        denoiser = tuned_denoiser(job.spec, config)
        learnt = {name: p.detach() for name, p in denoiser.named_parameters() if p.requires_grad}
        # What the masters start from: kept until the engine has taken its slices, where the model rounds it.
        self.start = learnt if self.dtype != torch.float32 else {}
        self.module = parts.cast(denoiser, self.device, self.dtype)
        self.noising, self.labelling = batches.noising(job.spec, config), job.sets[0].labelling
        self.predict = parts.module_of(job.spec).predict
        if job.encoders:
            import ray  # a step that reads what is stored runs without it

            encoder: Any = ray.get_actor(job.encoders[0])
            found: Any = ray.get(encoder.empty.remote())
        else:
            found = read_empty(job.encoded)
        self.empty: Mapping[str, np.ndarray] = found
        self.size = (job.spec.height, job.spec.width)
        self.mode = "none" if config.objective.name in REFERENCE_FREE else config.objective.reference
        self.copy = None
        if self.mode == "copy":
            self.copy = parts.load_denoiser(job.spec, self.device, self.dtype).requires_grad_(False)
        own = sum(p.numel() for p in self.module.parameters())
        copied = sum(p.numel() for p in self.copy.parameters()) if self.copy is not None else 0
        trained = sum(value.numel() for value in learnt.values())
        self.parameters = {"trained": trained, "total": own, "held": own + copied}

    def batch(self, rows: Any, epochs: Any, reward: int | None) -> Batch:
        """Rows as a micro-batch on the model's device."""
        batch = batches.make_batch(rows, epochs, self.noising, self.empty, self.device, reward)
        return replace(batch, comparable=self.comparable(batch.mask.shape[1], self.device))

    def comparable(self, count: int, device: str) -> Tensor | None:
        """Which of `count` candidates may be compared: bool[K, K]; None where all may."""
        found = self.labelling.comparable(count) if self.labelling else None
        return None if found is None else torch.from_numpy(found).to(device)

    def errors(self, denoiser: Any, batch: Batch, computed: Tensor) -> Tensor:
        """A denoiser's error on each candidate that is needed: float32[B, K]."""
        return batches.errors(denoiser, self.predict, batch, computed, self.noising, self.size, self.dtype)

    def ref_errors(self, engine: Any, batch: Batch, computed: Tensor) -> Tensor:
        """The reference's error on each candidate that is needed, without gradient: float32[B, K]."""
        if self.mode == "precomputed":
            return torch.where(computed, batch.ref_error, 0.0)
        if self.mode == "none":
            return torch.zeros(computed.shape, device=self.device)
        with torch.no_grad():
            if self.copy is not None:
                return self.errors(self.copy, batch, computed)
            parts.enable_lora(engine.module, False)
            try:
                return self.errors(engine, batch, computed)
            finally:
                parts.enable_lora(engine.module, True)


def tuned_denoiser(spec: GeneratorSpec, config: RankDPOConfig) -> Any:
    """The denoiser as published, in float32 on the CPU, with what is trained of it set to require gradients.

    Raises:
        ValueError: no module's name holds any of `tuned.train`.
    """
    torch.manual_seed(config.seed)  # adapters start at random
    tuned = config.tuned
    denoiser: Any = parts.load_denoiser(spec, "cpu", torch.float32).train()
    if tuned.activation_checkpointing:
        denoiser.enable_gradient_checkpointing()
    if tuned.train == "lora":
        parts.add_lora(denoiser, spec, tuned.lora_rank, tuned.lora_alpha or tuned.lora_rank)
    elif tuned.train == "full":
        denoiser.requires_grad_(True)
    else:
        for name, parameter in denoiser.named_parameters():
            parameter.requires_grad_(any(part in name for part in tuned.train))
        if not any(parameter.requires_grad for parameter in denoiser.parameters()):
            raise ValueError(f"tuned.train {list(tuned.train)}: no parameter's name holds one of these")
    return denoiser


def _micro_batch(model: TrainedModel, job: TrainJob, rows: Rows, share: int) -> int:
    """Prompts at once: all of the worker's, up to 16, on CPU; on a GPU as many as a trial pass has memory for.

    A pass costs a second or two at the start of a run; a guess from parameter counts is off by a factor of two between
    attention kernels. Sizes double from 1, so that a trial that fails is at most twice one that fits; every worker must
    call it.
    """
    if job.device == "cpu":
        return min(share, 16)
    row = largest(rows)
    total = torch.cuda.get_device_properties(model.device).total_memory

    def passes(size: int) -> bool:
        torch.cuda.reset_peak_memory_stats()
        trial(model, row, size, job.reward).backward()
        return bool(torch.cuda.max_memory_allocated() < MEMORY_SHARE * total)

    found = double_while(passes, share)
    model.module.zero_grad(set_to_none=True)
    return least_of_all(found, model.device)


def largest(rows: Rows) -> EncodedRow:
    """Of `TRIAL_ROWS` rows of each set, spread over it, the one with the most ranked candidates."""
    taken = [
        places[n] for places in rows.places for n in range(0, len(places), -(-len(places) // TRIAL_ROWS))
    ]
    return max(rows.read(taken), key=lambda one: int((one.rank > 0).sum()))


def trial(model: TrainedModel, row: EncodedRow, size: int, reward: int | None) -> Tensor:
    """The errors of `size` times a row, summed up, as a step's first half; of a row that nobody ranked as of a pass
    without a pair."""
    batch = model.batch([row] * size, [0] * size, reward)
    return model.errors(model.module, batch, some(batch.mask)).sum()


def double_while(passes: Callable[[int], bool], most: int) -> int:
    """The last of 1, 2, 4, ... and `most` that passes; running out of memory counts as not passing; at least 1."""
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    found, size = 1, 1
    while size <= most:
        try:
            if not passes(size):
                break
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            break
        found, size = size, min(2 * size, most) if size < most else most + 1
    clear_device_cache(garbage_collection=True)
    return found


def least_of_all(size: int, device: str) -> int:
    """The least of what all workers found: those that cut a batch differently would wait for each other until NCCL
    gives up, half an hour later."""
    found = torch.tensor(size, device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN)
    return int(found.item())


def some(computed: Tensor) -> Tensor:
    """At least one candidate: every worker must take part in every pass. An unusable row's loss is 0 all the same."""
    if not computed.any():
        computed = computed.clone()
        computed[0, 0] = True
    return computed


def _cut(rows: int, count: int) -> Iterator[tuple[int, int]]:
    """Where each of `count` consecutive micro-batches, equal to within one, starts and ends."""
    return itertools.pairwise(rows * n // count for n in range(count + 1))


def _all_reduced(sums: Mapping[str, Tensor]) -> dict[str, float]:
    vector = torch.stack(list(sums.values()))
    _all_reduce(vector)
    return dict(zip(sums, vector.tolist(), strict=True))


def _all_reduce(values: Tensor) -> None:
    """Sums over workers. An engine of several of them has made a group; one alone is the sum."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
