"""What a training will take, before a weight is read: memory of a trainer, bytes on disk, forward passes.

Shapes are the published configurations' (or those of the weights' directory), so bytes on disk are exact but for
Parquet's own (2 %). Memory is a plan's: ZeRO's shards, DeepSpeed's buffer, and what a backward pass keeps, which
`benchmarks/memory_plan` counted on a fake device. Hours of the reference take the share of a GPU's peak that
`rankray.models.hardware` assumes.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rankray import store, words
from rankray.cluster.seats import Node, alive_nodes
from rankray.config import ConfigError
from rankray.config.rankdpo import REFERENCE_FREE, RankDPOConfig, TrainingSettings
from rankray.models import denoisers, hardware
from rankray.models.footprint import BYTES, MEGAPIXEL, Component, components, own_parameters
from rankray.models.generators import GeneratorSpec
from rankray.models.hardware import CONTEXT_GB, WORKSPACE, GpuType
from rankray.models.weights import is_uri, locate
from rankray.rankdpo.encoding import ReferenceJob
from rankray.words import Say

Mode = Literal["copy", "adapter_off", "precomputed"]

BUCKET = 5e8
"""Elements of gradients on their way in ZeRO, DeepSpeed's default; there as long as a backward pass."""

ROW_BYTES = 2_100
"""Of a stored row beside its arrays: a row group's footer, scores, the prompt."""


@dataclass(frozen=True)
class Facts:
    """What a model is to a training.

    Attributes:
        parameters: of the denoiser.
        latent: (C, H, W) of a picture; text: shape of each embedding of a prompt.
        denoiser, autoencoder: measured facts; None for weights of another make than the published ones.
        megapixels: of a picture.
    """

    parameters: int
    latent: tuple[int, int, int]
    text: Mapping[str, tuple[int, ...]]
    denoiser: Component | None
    autoencoder: Component | None
    megapixels: float

    def prompt_bytes(self, candidates: int, dtype: str) -> int:
        """Of one prompt in the encoded set: mean and deviation of each candidate's latents, and the embeddings."""
        text = sum(math.prod(shape) for shape in self.text.values())
        return (2 * candidates * math.prod(self.latent) + text) * BYTES[dtype] + ROW_BYTES


def facts(spec: GeneratorSpec) -> Facts | None:
    """The facts of a row's model, without network or weights; None where its configuration is not there to be read."""
    row = denoisers.DENOISERS[denoisers.family(spec)]
    known = (
        {}
        if spec.full_size is None
        else {part.name: part for part in components("generators", spec.full_size)}
    )
    try:  # a URI is not asked: finding its directory is copying it, which is for those who load it
        place = Path() if not spec.source or is_uri(spec.source) else Path(locate(spec.source))
    except ConfigError:
        place = Path()
    configs: Mapping[str, Mapping[str, Any]]
    if (place / row.denoiser / "config.json").exists():
        configs = {file.parent.name: json.loads(file.read_text()) for file in place.glob("*/config.json")}
        parameters = own_parameters(place / row.denoiser, spec.variant)
    elif known:
        configs = {name: part.config for name, part in known.items()}
        parameters = known[row.denoiser].parameters
    else:
        return None
    if parameters is None or "vae" not in configs:
        return None
    down = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    latent = (configs["vae"]["latent_channels"], spec.height // down, spec.width // down)
    size = spec.height * spec.width / MEGAPIXEL
    part, vae = known.get(row.denoiser), known.get("vae")
    if part is None or abs(parameters - part.parameters) > 0.2 * part.parameters:
        part = vae = None
    left = {name: config for name, config in configs.items() if spec.load.get(name, config) is not None}
    return Facts(parameters, latent, row.text(left, spec.call), part, vae, size)


def candidates_of(dataset: store.RankedDataset) -> int:
    """Candidates of a row; where rows have other numbers of them, as imported ones may, the mean, rounded up."""
    fixed = sum(int(item["samples"]) for item in dataset.info["generators"])
    return fixed or math.ceil(dataset.info["candidates"] / dataset.info["rows"])


def settled(
    config: RankDPOConfig,
    spec: GeneratorSpec,
    datasets: Sequence[store.RankedDataset],
    device: str,
    say: Say,
) -> RankDPOConfig:
    """The configuration with its reference chosen where that was left open; says why, and what will be on disk.

    Ray must be there: the choice is by the memory of the cluster's GPUs.
    """
    found, candidates = facts(spec), max(map(candidates_of, datasets))
    taken = config.objective.reference
    if taken == "auto":
        taken, why = reference(config, found, candidates, device, smallest_gpu(alive_nodes()))
        say(f"reference: {taken}, as {why}")
        objective = config.objective.model_copy(update={"reference": taken})
        config = config.model_copy(update={"objective": objective})
    if found is not None:
        place = config.encoding.place
        sets = [(place or one.path, one.info["rows"], candidates_of(one)) for one in datasets]
        for line in disk_lines(stored(config, found, sets, taken)):
            say(line)
    return config


def ahead_line(job: ReferenceJob, rows: int, dataset: store.RankedDataset) -> str:
    """What computing the reference ahead for `rows` prompts will take, said before it begins."""
    count = job.config.workers.count
    k = candidates_of(dataset)
    if job.labelling is not None:  # which of an imported row takes all that there may be
        k = min(k, len(job.labelling.candidates))
    pairs = job.reads.whole * rows + len(job.reads.last)
    line = (
        f"reference ahead: {pairs / rows:.2f} epochs of {rows:,} prompts, {pairs * k:,} forward passes on "
        f"{words.count(count, 'actor')}"
    )
    found, gpu = facts(job.spec), smallest_gpu(alive_nodes()) if job.device == "cuda" else None
    if found is None or found.denoiser is None or gpu is None:
        return line
    hours = pairs * k * found.denoiser.flops_at(found.megapixels) / gpu.flops_per_s("half") / 3600
    return f"{line}: about {hours / count:.1f} h on {count} x {gpu.name} (assumed speed)"


@dataclass(frozen=True)
class Trainer:
    """What one trainer holds of a GPU, in bytes.

    Attributes:
        weights: of the model, and of the reference's copy.
        states: gradients' sum, masters, the optimizer's state and the average.
        activations: of a forward and backward pass.
        bucket: gradients on their way, beside them.
        stepping: what the optimizer's step takes, when these are gone: one more float32 tensor a trained weight.
    """

    weights: float
    states: float
    activations: float
    bucket: float
    stepping: float

    @property
    def allocated(self) -> float:
        """The tensors alone: what `benchmarks/memory_plan` counts one by one."""
        return self.weights + self.states + max(self.activations + self.bucket, self.stepping)

    @property
    def memory_gb(self) -> float:
        """With workspaces, fragments and CUDA's own, 1e9 bytes."""
        passing = WORKSPACE * self.activations + self.bucket
        return (self.weights + self.states + max(passing, self.stepping)) / 1e9 + CONTEXT_GB


def trainer(config: TrainingSettings, found: Facts, candidates: int, reference: str) -> Trainer:
    """One trainer with the least number of workers and the smallest micro-batch.

    Args:
        reference: "copy", or any other, which holds no second model.
    """
    workers, tuned = config.workers, config.tuned
    size, stage = BYTES[tuned.dtype], workers.zero_stage
    shards = workers.count if stage else 1
    lora = tuned.train == "lora"
    trained = 0 if lora else found.parameters  # adapters are small; of modules by name: as if all
    weights = found.parameters * size / (shards if stage == 3 else 1)
    copy = found.parameters * size if reference == "copy" else 0
    # stages 2 and 3 sum gradients in float32 (`zero.deepspeed_config`)
    states = trained * (4 / shards if stage >= 2 else size)
    if not workers.offload:
        states += 4 * ((stage > 0) + _kept_tensors(config)) * trained / shards
    activations = 0.0
    if found.denoiser is not None and found.denoiser.kept:
        kept = found.denoiser.kept[
            "checkpointed" if tuned.activation_checkpointing else "lora" if lora else "full"
        ]
        one = found.denoiser.activations_at(found.megapixels) * size
        activations = kept * one * candidates * (workers.micro_batch or 1)
    return Trainer(
        weights=weights + copy,
        states=states,
        activations=activations,
        bucket=BUCKET * size if stage else 0.0,
        stepping=0.0 if workers.offload else 4 * trained / shards,
    )


def _kept_tensors(config: TrainingSettings) -> int:
    """Float32 tensors a trained weight that last from step to step: the optimizer's state, and the average."""
    states = 2 if config.optimizer.name == "adamw" else int(config.optimizer.momentum > 0)
    return states + (config.tuned.ema is not None)


def smallest_gpu(nodes: Iterable[Node]) -> GpuType | None:
    """The type with the least memory among the nodes' GPUs, by the resource with which Ray names them; None where any
    node does not say. Of a name that two types have the smaller is taken."""
    found = [hardware.by_resources(node.resources, min) for node in nodes if node.gpus]
    known = [gpu for gpu in found if gpu is not None]
    return min(known, key=lambda gpu: gpu.memory_gb) if known and len(known) == len(found) else None


def reference(
    config: TrainingSettings, found: Facts | None, candidates: int, device: str, gpu: GpuType | None
) -> tuple[Mode, str]:
    """(where reference errors come from, why) where `objective.reference` is "auto".

    Values are the same to rounding, so what is chosen may differ between a run's starts.
    """
    settled_by: tuple[tuple[bool, Mode, str], ...] = (
        (config.objective.name in REFERENCE_FREE, "copy", f"objective {config.objective.name} asks none"),
        (config.tuned.train == "lora", "adapter_off", "with LoRA the model without its adapters is it"),
        (
            config.encoding.mode == "stream",
            "copy",
            "encoding.mode = 'stream' keeps nothing to compute it from",
        ),
        (device == "cpu", "copy", "on CPUs a second model takes host memory alone"),
    )
    for holds, taken, why in settled_by:
        if holds:
            return taken, why
    if found is None or found.denoiser is None or gpu is None:
        what = "the model's size" if found is None or found.denoiser is None else "the GPUs' type"
        return "precomputed", f"{what} is not known, and it takes less memory than a second model"
    needs = trainer(config, found, candidates, "copy").memory_gb
    room = f"{needs:.1f} GB of the {gpu.usable_gb:.1f} usable of {gpu.name}"
    if needs <= gpu.usable_gb:
        return (
            "copy",
            f"a trainer with a second model needs about {room}, and nothing waits for a stage ahead",
        )
    return "precomputed", f"a trainer with a second model would need about {room}"


@dataclass(frozen=True)
class Stored:
    """What a run leaves on disk: bytes, and where."""

    what: str
    size: float
    place: str


def stored(
    config: RankDPOConfig, found: Facts, sets: Sequence[tuple[str, int, int]], taken: str
) -> list[Stored]:
    """What a run writes, before it does.

    Args:
        sets: of each encoded set its place, its prompts, and candidates of each.
        taken: where reference errors come from.
    """
    made = []
    for place, rows, candidates in sets:
        if config.encoding.mode == "store":
            each = found.prompt_bytes(candidates, config.encoding.dtype)
            what = f"encoded set ({each / 1e6:.2f} MB a prompt)"
            made.append(Stored(what, float(rows * each), place))
        if taken == "precomputed":  # of a mixed run at most so many
            errors = config.steps * config.batch_size * candidates * 4 + rows * ROW_BYTES
            made.append(Stored("reference errors", float(errors), place))
    if config.tuned.train == "lora":  # megabytes, which nobody makes room for
        return made
    one = 4.0 * found.parameters * (1 + _kept_tensors(config))
    # the last N, the best, and the one that is being written while its forerunner is still there
    number = config.checkpoints.keep + 2
    what = f"checkpoints (up to {number} of {words.size(one)})"
    return [*made, Stored(what, one * number, config.output)]


def disk_lines(made: Sequence[Stored]) -> list[str]:
    """A line of sizes, and a warning for each local filesystem with less room than will be written to it."""
    sizes = ", ".join(f"{item.what} {words.size(item.size)}" for item in made)
    lines = [f"on disk: {sizes}"] if made else []
    wanted: dict[int, tuple[float, float, str]] = {}
    for item in made:
        place = _existing(item.place)
        if place is None:
            continue
        device = place.stat().st_dev
        size = wanted.get(device, (0.0, 0.0, ""))[0] + item.size
        wanted[device] = (size, float(shutil.disk_usage(place).free), item.place)
    lines += [
        f"warning: {place} has {words.size(free)} free, and up to {words.size(size)} will be written there; "
        "give another place (output, encoding.place), or encoding.dtype = 'float16'"
        for size, free, place in wanted.values()
        if size > free
    ]
    return lines


def _existing(place: str) -> Path | None:
    """The nearest directory of a local path that is there; None of a URI."""
    if "://" in place and not place.startswith("file://"):
        return None
    path = Path(place.removeprefix("file://")).expanduser()
    return next((found for found in (path, *path.parents) if found.exists()), None)
