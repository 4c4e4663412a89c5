"""What a Syn-Pic job's models take: GPU memory, seconds an item, and with them the work that its layout is planned by.

Seconds are worked out from a model's arithmetic, or taken from what a finished dataset or the job itself measured. An
actor's busy seconds are those inside its model's calls; on a shared GPU they are taken for its share of the GPU: what
two models on one GPU cost each other is in them. A factor of two either way is what to expect of assumed ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rankray import store
from rankray.cluster.actors import Stage
from rankray.cluster.layout import Work
from rankray.cluster.seats import Node
from rankray.config import ConfigError, PricesConfig, SynPicConfig
from rankray.data.cost import ActorUsage, ledger
from rankray.models import footprint, hardware
from rankray.models.footprint import Footprint
from rankray.models.hardware import DECODE_S, ENCODE_S, PICTURE_BYTES, GpuType

NAMELESS = hardware.GPU_TYPES["A100-80"]
"""What speeds are planned for on GPUs that Ray does not name: models' speeds beside each other are what sizes need."""


@dataclass(frozen=True)
class Measured:
    """What a finished job measured of one model: `seconds` an item, of a whole GPU or else of one core."""

    seconds: float
    gpu: GpuType | None = None
    memory_gb: float | None = None


@dataclass(frozen=True)
class Model:
    """One model of a planned job.

    Attributes:
        stage: its pool.
        footprint: what it takes.
        batch: items at once, None where the model decides by itself.
        items: pictures or scores that are made a prompt, on average where an earlier dataset has some.
        stated_gb: `pool.gpu_memory_gb`.
        megapixels: of a picture that it draws or looks at.
        measured: what a finished job says of it.
        row_bytes: what it adds to a row that is written between phases.
        coding_s: of one core, to write or to read a picture of 1024 x 1024.
    """

    stage: Stage
    footprint: Footprint
    batch: int | None
    items: float
    stated_gb: float | None
    megapixels: float
    measured: Measured | None = None
    row_bytes: float = 0.0
    coding_s: float = DECODE_S

    @property
    def name(self) -> str:
        return self.stage.target.name

    @property
    def share(self) -> float:
        """Of one GPU; an actor of several still computes on one of them."""
        return min(1.0, self.stage.actors.num_gpus)

    def needs_gb(self, batch: int | None = None, gpu: GpuType | None = None) -> float | None:
        """GPU memory of an actor, None where nothing is known: stated, else measured on that GPU, else planned."""
        if self.stated_gb is not None:
            return self.stated_gb
        if batch is None and self.measured and self.measured.memory_gb and self.measured.gpu == gpu:
            return self.measured.memory_gb
        return self.footprint.memory_gb(batch or self.batch or 1) if self.footprint.parts else None

    def seconds(self, gpu: GpuType) -> float | None:
        """Of a whole GPU of that type, for one item; None where nothing is known.

        What was measured on another type is scaled by the ratio of the two that the assumptions give.
        """
        assumed = self.footprint.seconds(gpu) if self.footprint.complete else None
        if self.measured is None or self.measured.gpu is None:
            return assumed
        if self.measured.gpu == gpu:
            return self.measured.seconds
        if assumed is None:
            return None
        return self.measured.seconds * assumed / self.footprint.seconds(self.measured.gpu)

    def source(self, gpu: GpuType) -> str:
        """Where `seconds` are from: "measured", "scaled", "assumed" or "unknown"."""
        if self.seconds(gpu) is None:
            return "unknown"
        if self.measured is None or self.measured.gpu is None:
            return "assumed"
        return "measured" if self.measured.gpu == gpu else "scaled"


@dataclass(frozen=True)
class Held:
    """What a finished dataset has of a job: pictures a prompt by generator, rewards, and of which share of prompts."""

    samples: Mapping[str, int]
    rewards: frozenset[str]
    share: float


NOTHING_HELD = Held({}, frozenset(), 0.0)


def models_of(
    config: SynPicConfig,
    stages: Sequence[Stage],
    measured: Mapping[str, Measured],
    held: Held = NOTHING_HELD,
) -> list[Model]:
    """The job's models in its order, without those for which nothing is left to make."""
    drawn = [
        (footprint.megapixels(stage.target), stage.samples) for stage in stages if stage.kind == "generator"
    ]
    mean = sum(size * samples for size, samples in drawn) / config.k
    choices = (*config.generators, *config.scorers)
    models = [
        Model(
            stage=stage,
            footprint=footprint.footprint(stage.target),
            batch=footprint.batch_size(stage.target),
            items=_missing(stage, config, held),
            stated_gb=choice.pool.gpu_memory_gb,
            megapixels=footprint.megapixels(stage.target) if stage.kind == "generator" else mean,
            measured=measured.get(stage.target.name),
            row_bytes=_row_bytes(stage, config),
            coding_s=ENCODE_S[config.images.format] if stage.kind == "generator" else DECODE_S,
        )
        for choice, stage in zip(choices, stages, strict=True)
    ]
    return [model for model in models if model.items > 0]


def _row_bytes(stage: Stage, config: SynPicConfig) -> float:
    """Of pictures in the row; references to files and scores weigh nothing beside them."""
    if stage.kind != "generator" or config.images.store == "files":
        return 0.0
    return stage.samples * footprint.megapixels(stage.target) * PICTURE_BYTES[config.images.format]


def work_of(
    models: Sequence[Model],
    stages: Sequence[Stage],
    gpu: GpuType,
    rows: int,
    block: int,
    own: Mapping[str, float] | None = None,
) -> Work:
    """What a plan needs to know of `models`, each with its stage, for `rows` prompts on GPUs of one type.

    Args:
        own: seconds of one actor for one item where this very job, or one like it, has measured them.
    """
    found = {
        model.name: (own or {}).get(model.name) or item_seconds(model, stage, gpu)
        for model, stage in zip(models, stages, strict=True)
    }
    items = {model.name: model.items for model in models}
    row_s = {name: seconds * items[name] for name, seconds in found.items() if seconds is not None}
    return Work(rows, row_s, {model.name: model.row_bytes for model in models}, block)


def item_seconds(model: Model, stage: Stage, gpu: GpuType) -> float | None:
    """Of one actor for one item: the slower of its share of a GPU, and of the cores that code pictures beside it."""
    whole = model.seconds(gpu)
    if whole is None or not stage.actors.num_gpus:
        return None
    cores = max(1, int(stage.actors.num_cpus))
    return max(whole / min(1.0, stage.actors.num_gpus), model.coding_s * model.megapixels / cores)


def of_actors(path: str | None, usage: Iterable[ActorUsage]) -> tuple[dict[str, float], float | None]:
    """(by label seconds of one actor for one item; of one actor's start): of the dataset at `path`, where there is one,
    and better of the job's earlier runs, which say nothing of starts.

    For a plan on the cluster that measured them, whatever its GPUs are called.

    Raises:
        ConfigError: there is no finished dataset at `path`.
    """
    try:
        info = {} if path is None else store.read(path).info
    except store.DatasetError as error:
        raise ConfigError(f"nothing measured: {error}") from None
    rows = [*info.get("cost", {}).get("models", []), *ledger(usage, PricesConfig())["models"]]
    item_s = {row["model"]: row["busy_s"] / row["items"] for row in rows if row["items"] > row["failures"]}
    starts = info.get("throughput", {}).get("start", {}).get("models", {}).values()
    return item_s, max((row["start_s"] for row in starts), default=None)


def job_work(
    config: SynPicConfig,
    stages: Sequence[Stage],
    rows: int,
    own: Mapping[str, float],
    start_s: float | None,
    planned: Sequence[Stage],
    nodes: Sequence[Node],
) -> Work:
    """`work_of` those of a job's `stages` that are `planned`, on the GPUs that the nodes name, or else `NAMELESS`.

    `own` are seconds of one actor for one item, and `start_s` those of its start, as far as they were measured.
    """
    by_name = {model.name: model for model in models_of(config, stages, {})}
    models = [by_name[stage.target.name] for stage in planned]
    types = [
        gpu for node in nodes if node.gpus and (gpu := hardware.by_resources(node.resources)) is not None
    ]
    gpu = types[0] if types else NAMELESS
    found = work_of(models, planned, gpu, rows, config.execution.rows_per_block, own)
    return found if start_s is None else replace(found, start_s=start_s)


def _missing(stage: Stage, config: SynPicConfig, held: Held) -> float:
    """Items a prompt that a stage has to make, beyond what is held."""
    if stage.kind == "generator":
        return stage.samples - held.share * min(stage.samples, held.samples.get(stage.target.name, 0))
    asked = {choice.label: choice.samples for choice in config.generators}
    known = sum(min(asked[name], samples) for name, samples in held.samples.items() if name in asked)
    return config.k - held.share * known * (stage.target.name in held.rewards)


@dataclass(frozen=True)
class Fit:
    """How one actor sits on a GPU type: as configured where `change` is empty, not at all where `fault` is not.

    Attributes:
        needs_gb: its memory at `batch`, None where it is unknown.
        batch, share: that fit, or those configured where nothing does.
        change: what had to change for it, such as "batch 4" or "share 1".
        fault: why nothing fits, in words.
    """

    needs_gb: float | None
    batch: int | None
    share: float
    change: str = ""
    fault: str = ""


def fit(model: Model, gpu: GpuType) -> Fit:
    """How an actor of `model` sits on `gpu`: as configured, else with a smaller batch, else with a larger share too.

    A batch below a quarter of the configured one would leave the GPU idle: a larger share is taken first.
    """
    share, needs = model.share, model.needs_gb(gpu=gpu)
    if share and model.footprint.bfloat16 and not gpu.bfloat16:
        return Fit(needs, model.batch, share, fault=f"computes in bfloat16, {gpu.name} does not")
    if not share or needs is None or needs <= share * gpu.usable_gb:
        return Fit(needs, model.batch, share)
    shares = sorted({share, *(size for size in (0.5, 1.0) if size > share)})
    if model.batch is None or model.stated_gb is not None:
        wide = next((size for size in shares if needs <= size * gpu.usable_gb), None)
        if wide is None:
            return Fit(
                needs, model.batch, share, fault=f"needs {needs:.1f} GB, {gpu.name} has {gpu.memory_gb:g}"
            )
        return Fit(needs, model.batch, wide, f"share {wide:g}")
    for least in (max(1, model.batch // 4), 1):
        for size in shares:
            batch = model.footprint.largest_batch(size * gpu.usable_gb, model.batch)
            if batch >= least:
                changes = [f"batch {batch}"] if batch != model.batch else []
                changes += [f"share {size:g}"] if size != share else []
                return Fit(model.footprint.memory_gb(batch), batch, size, " ".join(changes))
    fault = f"needs {model.footprint.memory_gb(1):.1f} GB for one at a time, {_room(gpu)}"
    return Fit(needs, model.batch, share, fault=fault)


def _room(gpu: GpuType) -> str:
    return f"{gpu.name} has {gpu.memory_gb:g} ({gpu.usable_gb:.1f} usable)"


def memory_warnings(models: Sequence[Model], nodes: Sequence[Node]) -> list[str]:
    """A line for each pool whose share of the nodes' GPUs is less than its actors need, where both are known."""
    types = {hardware.by_resources(node.resources) for node in nodes if node.gpus}
    known = [gpu for gpu in types if gpu is not None]
    if not known or len(known) < len(types):
        return []
    largest = max(known, key=lambda gpu: gpu.memory_gb)
    lines = []
    for model in models:
        needs = model.needs_gb()
        if not model.share or needs is None or needs <= model.share * largest.usable_gb:
            continue
        lines.append(too_little(model, needs, largest))
    return lines


def too_little(model: Model, needs_gb: float, gpu: GpuType) -> str:
    """One line: what a pool needs, what its share of a GPU holds, and what to change."""
    batch = f" at batch_size {model.batch}" if model.batch and model.stated_gb is None else ""
    found = fit(model, gpu)
    advice = {"share": "pool.num_gpus", "batch": "batch_size"}
    words = found.change.split()
    change = " and ".join(
        f"{advice[key]} = {value}" for key, value in zip(words[::2], words[1::2], strict=True)
    )
    mend = f"; {change} fits" if change else f"; no setting fits: {found.fault}" if found.fault else ""
    return (
        f"'{model.name}' needs about {needs_gb:.1f} GB{batch}, and {model.share:g} of {gpu.name} is "
        f"{model.share * gpu.usable_gb:.3g} GB{mend}"
    )
