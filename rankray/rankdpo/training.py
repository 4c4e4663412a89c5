"""Algorithm 2 on Ray Train's workers: read this from `train` downwards.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankray.config.rankdpo import RankDPOConfig
from rankray.models import hardware
from rankray.models.generators import GeneratorSpec
from rankray.rankdpo.labels import Labelling


@dataclass(frozen=True)
class TrainJob:
    """What a worker needs.

    Attributes:
        config: the run's.
        spec: the model's row, its revision resolved.
        revision: identity of its weights.
        files: of the encoded set, or of the ranked dataset where encoders stream.
        files_uri: a URI on the files' filesystem.
        layout: of the encoded set, as JSON; None where encoders stream.
        place: URI of the encoded set (the empty prompt's embeddings).
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
    revision: str
    files: tuple[str, ...]
    files_uri: str
    layout: dict[str, Any] | None
    place: str
    reference: str | None
    encoders: tuple[str, ...]
    reward: int | None
    labelling: Labelling | None
    rows: int
    sample_prompts: tuple[str, ...]
    output: str
    device: str


def train(job: TrainJob) -> None:
    """One worker's run, from its last checkpoint to the last step (Algorithm 2)."""
    if job.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed looks at it when it is first imported
    import ray.train  # only here and where actors are asked: a step and its model run where there is no Ray

    from rankray.rankdpo import checkpoints, run_log, zero
    from rankray.rankdpo.feed import feed
    from rankray.rankdpo.schedules import learning_rate

    config, context = job.config, ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    model = _Model(job)
    engine, accumulation = _engine(job, model, world)
    average = zero.Average(engine, config.tuned.ema) if config.tuned.ema else None
    state = checkpoints.restore(engine, average)
    log = run_log.open_log(job, state, rank, world, model.parameters)
    source = _source(job)
    checkpoints.keep_samples(job, engine, average, state.step, rank, world, log)

    for loaded in feed(source, state.step, config.steps, config.batch_size, config.seed, rank, world):
        begin_s = time.perf_counter()
        zero.set_learning_rate(engine, rate := learning_rate(config.optimizer, loaded.step, config.steps))
        sums = _step(job, model, engine, loaded, accumulation, world)
        bad = zero.skipped(engine) or not math.isfinite(sums["loss"])
        if average is not None and not bad:
            average.follow()
        state = state.after(bad)
        step_s = time.perf_counter() - begin_s + loaded.wait_s
        log.step(state, sums, rate, zero.gradient_norm(engine), step_s, loaded.wait_s, bad)
        if state.skipped > config.checkpoints.bad_steps:
            log.diverged(state)
            return
        checkpoints.keep_samples(job, engine, average, state.step, rank, world, log)
        if state.step % config.checkpoints.every == 0 or state.step == config.steps:
            state = checkpoints.save(job, engine, average, state, rank, world, log)
    log.close()


def train_alone(job: TrainJob, every: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same run as `train` with one worker, in this process and without checkpoints: (step, weights by name), every
    `every` steps and after the last.

    For runs of a minute or two that are repeated rather than resumed, one after another in a process that has imported
    everything already: of a run of 150 steps in the shapes world, starting workers is the larger part.

    Raises:
        FloatingPointError: more than `checkpoints.bad_steps` steps were not finite, or exploded.
    """
    if job.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    from rankray.rankdpo import zero
    from rankray.rankdpo.feed import feed
    from rankray.rankdpo.schedules import learning_rate

    zero.alone()
    config, model = job.config, _Model(job)
    engine, accumulation = _engine(job, model, 1)
    average = zero.Average(engine, config.tuned.ema) if config.tuned.ema else None
    skipped = 0
    for loaded in feed(_source(job), 0, config.steps, config.batch_size, config.seed, 0, 1):
        zero.set_learning_rate(engine, learning_rate(config.optimizer, loaded.step, config.steps))
        sums = _step(job, model, engine, loaded, accumulation, 1)
        bad = zero.skipped(engine) or not math.isfinite(sums["loss"])
        if average is not None and not bad:
            average.follow()
        skipped += bad
        if skipped > config.checkpoints.bad_steps:
            raise FloatingPointError(f"{skipped} of {loaded.step + 1} steps were not finite, or exploded")
        if (loaded.step + 1) % every == 0 or loaded.step + 1 == config.steps:
            with average.swapped() if average is not None else contextlib.nullcontext():
                yield loaded.step + 1, zero.gather(engine)


class _Model:
    """The denoiser that is trained, its reference, and how both are asked."""

    def __init__(self, job: TrainJob) -> None:
        import torch

        from rankray.config.rankdpo import REFERENCE_FREE
        from rankray.models.denoisers import parts
        from rankray.rankdpo.encoded import read_empty, read_reference

        config = job.config
        torch.set_num_threads(max(1, int(config.workers.num_cpus)))
        self.dtype = getattr(torch, config.tuned.dtype)
        hardware.require_device(job.device)
        self.device = f"cuda:{torch.cuda.current_device()}" if job.device == "cuda" else "cpu"
        found = tuned_denoiser(job.spec, config)
        learnt = {name: p.detach() for name, p in found.named_parameters() if p.requires_grad}
        # What the masters start from: kept until the engine has taken its slices, where the model rounds it.
        self.start = learnt if self.dtype != torch.float32 else {}
        self.module = parts.cast(found, self.device, self.dtype)
        self.noising = noising(job.spec, config)
        self.predict = parts.module_of(job.spec).predict
        self.empty = read_empty(job.place) if not job.encoders else _ask(job.encoders[0], "empty")
        self.size = (job.spec.height, job.spec.width)
        self.mode = "none" if config.objective.name in REFERENCE_FREE else config.objective.reference
        self.copy = None
        if self.mode == "copy":
            self.copy = parts.load_denoiser(job.spec, self.device, self.dtype).requires_grad_(False)
        self.ahead = read_reference(job.reference) if self.mode == "precomputed" and job.reference else {}
        own = sum(p.numel() for p in self.module.parameters())
        copied = sum(p.numel() for p in self.copy.parameters()) if self.copy is not None else 0
        trained = sum(value.numel() for value in learnt.values())
        self.parameters = {"trained": trained, "total": own, "held": own + copied}

    def ref_error(
        self, engine: Any, batch: Any, computed: Any, rows: Sequence[Any], epochs: Sequence[int]
    ) -> Any:
        """The reference's error on each candidate that is needed, without gradient: float32[B, K]."""
        import torch

        from rankray.models.denoisers import parts
        from rankray.rankdpo.batches import errors
        from rankray.rankdpo.feed import reference_of

        if self.mode == "precomputed":
            return torch.from_numpy(reference_of(self.ahead, rows, epochs)).to(self.device) * computed
        if self.mode == "none":
            return torch.zeros(computed.shape, device=self.device)
        with torch.no_grad():
            if self.copy is not None:
                return errors(self.copy, self.predict, batch, computed, self.noising, self.size, self.dtype)
            parts.enable_lora(engine.module, False)
            try:
                return errors(engine, self.predict, batch, computed, self.noising, self.size, self.dtype)
            finally:
                parts.enable_lora(engine.module, True)


def tuned_denoiser(spec: GeneratorSpec, config: RankDPOConfig) -> Any:
    """The denoiser as published, in float32 on the CPU, with what is trained of it set to require gradients.

    Raises:
        ValueError: no module's name holds any of `tuned.train`.
    """
    import torch

    from rankray.models.denoisers import parts

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


def noising(spec: GeneratorSpec, config: RankDPOConfig) -> Any:
    """How rows become training examples: the configuration's, or what the model was trained with."""
    from rankray.models.denoisers import parts
    from rankray.rankdpo.batches import Noising

    noise = config.noise
    return Noising(
        parts.load_process(spec),
        parts.time_sampling(spec, noise.distribution, noise.mean, noise.std),
        config.seed,
        noise.prompt_dropout,
        noise.shared,
        noise.sample_latents,
        noise.weighting,
    )


def _engine(job: TrainJob, model: _Model, world: int) -> tuple[Any, int]:
    """DeepSpeed around the model, and the micro-batches that a worker's share is cut into."""
    from rankray.rankdpo import zero

    config = job.config
    local = -(-config.batch_size // world)  # the largest share, where elastic workers do not divide the batch
    micro = min(local, config.workers.micro_batch or _micro_batch(model, job, local))
    accumulation = -(-local // micro)
    settings = zero.deepspeed_config(
        config.workers, config.tuned, config.optimizer.clip, micro, accumulation, world
    )
    learnt = [p for p in model.module.parameters() if p.requires_grad]
    engine = zero.start(
        model.module, zero.optimizer_for(learnt, config.optimizer), settings, weights=model.start
    )
    model.start = {}
    return engine, accumulation


def _micro_batch(model: _Model, job: TrainJob, local: int) -> int:
    """Prompts at once: all of the worker's, up to 16, on CPU; on a GPU as many as a trial pass has memory for."""
    from rankray.rankdpo.memory import largest_that_fits

    if job.device == "cpu":
        return min(local, 16)
    return largest_that_fits(model, job, _source(job), local)


def _source(job: TrainJob) -> Any:
    from rankray.rankdpo.encoded import Layout
    from rankray.rankdpo.feed import LabelledRows, StoredRows, StreamedRows
    from rankray.store import filesystem

    fs, _ = filesystem(job.files_uri)
    rows: StoredRows | StreamedRows
    if job.layout is not None:
        rows = StoredRows(job.files, fs, Layout.from_json(job.layout))
    else:
        import ray

        rows = StreamedRows(job.files, fs, [ray.get_actor(name) for name in job.encoders])
    return rows if job.labelling is None else LabelledRows(rows, job.labelling)


def _ask(actor: str, method: str) -> Any:
    import ray

    return ray.get(getattr(ray.get_actor(actor), method).remote())


def _step(
    job: TrainJob, model: _Model, engine: Any, loaded: Any, accumulation: int, world: int
) -> dict[str, float]:
    """Forward, backward and update over a worker's share; the global batch's metric sums.

    A micro-batch whose loss is not finite, or explodes, makes its gradient NaN: DeepSpeed then skips the step on every
    worker, by its own check.
    """
    import torch

    from rankray.losses import LOSSES, metric_sums, needed, usable
    from rankray.rankdpo.batches import make_batch

    objective = job.config.objective
    places = _cut(len(loaded.rows), accumulation)
    batches = [
        make_batch(
            [loaded.rows[i] for i in part],
            [loaded.epochs[i] for i in part],
            model.noising,
            model.empty,
            model.device,
            job.reward,
        )
        for part in places
    ]
    count = torch.tensor(
        float(sum(usable(b.without_errors()).any(-1).sum().item() for b in batches)), device=model.device
    )
    _all_reduce(count)
    total: dict[str, torch.Tensor] = {}
    for part, batch in zip(places, batches, strict=True):
        rows, epochs = [loaded.rows[i] for i in part], [loaded.epochs[i] for i in part]
        computed = _some(needed(objective.name, batch.without_errors(), objective.options))
        ref_error = model.ref_error(engine, batch, computed, rows, epochs)
        inputs = batch.inputs(_errors(engine, model, batch, computed), ref_error)
        loss = LOSSES[objective.name](inputs, beta=objective.beta, **objective.options)
        mean = loss.sum() / max(float(usable(inputs).any(-1).sum()), 1.0)
        if not float(mean.detach()) <= job.config.checkpoints.explode_at:
            loss = loss * torch.nan
        engine.backward(loss.sum() * (world / max(count.item(), 1.0)), scale_wrt_gas=False)
        sums = metric_sums(inputs, loss, beta=objective.beta, computed=computed)
        total = {key: value + total.get(key, 0.0) for key, value in sums.items()}
        if part is not places[-1]:
            engine.step()
    vector = torch.stack(list(total.values()))
    _all_reduce(vector)
    found = dict(zip(total, vector.tolist(), strict=True))
    _update(engine, found, job.config.optimizer.clip)
    return found


def _update(engine: Any, sums: Mapping[str, float], clip: float) -> None:
    """The optimizer's step. ZeRO clips, and leaves out a step with a NaN, by itself; at stage 0 both are done here."""
    import torch

    if engine.zero_optimization_stage() == 0:
        if not math.isfinite(sums["loss"]):
            engine.zero_grad()
        elif clip:
            torch.nn.utils.clip_grad_norm_(engine.module.parameters(), clip)
    engine.step()


def _errors(engine: Any, model: _Model, batch: Any, computed: Any) -> Any:
    from rankray.rankdpo.batches import errors

    return errors(engine, model.predict, batch, computed, model.noising, model.size, model.dtype)


def _some(computed: Any) -> Any:
    """At least one candidate: every worker must take part in every pass. An unusable row's loss is 0 all the same."""
    if not computed.any():
        computed = computed.clone()
        computed[0, 0] = True
    return computed


def _cut(rows: int, parts: int) -> list[range]:
    """`parts` consecutive micro-batches, equal to within one."""
    edges = [rows * n // parts for n in range(parts + 1)]
    return [range(start, end) for start, end in itertools.pairwise(edges)]


def _all_reduce(values: Any) -> None:
    import torch.distributed

    if (
        torch.distributed.is_initialized()
    ):  # an engine of several workers has seen to that; one alone is the sum
        torch.distributed.all_reduce(values)
