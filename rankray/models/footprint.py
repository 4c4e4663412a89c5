"""What a configured model takes of a GPU, memory by batch and seconds an item, from its row and facts of its parts.

A file of facts a model (`generators/full_size/`, `rewards/full_size/`) names each part's class, configuration and
number of parameters, and what `recipes.meta_run` measured of it: arithmetic and the most elements alive at once.
Reading it takes a millisecond and no model's library, so a job can be planned on a laptop. Several rewards stand on one
model: HPSv2, PickScore and MPS on CLIP-H. BLIP, beneath ImageReward, is counted in the classes of transformers, which
come to within 1 % of the package's own file.

    memory = weights of all parts + largest activations of any part x batch x WORKSPACE + CONTEXT_GB
    seconds = sum over parts of FLOPs an item / what the GPU reaches of its peak in that part's precision

All parts stay on the GPU, as the adapters keep them, and run one after another, so the largest activations count and
not their sum. The number of pictures at once changes memory and is assumed not to change a picture's seconds: a single
picture of 1024 x 1024 under guidance keeps an A100 as busy as `GpuType.reached` says.

What is known of a model, from the best source there is:

    a row whose weights are the published ones   its parts, precision, steps, guidance, size: memory and seconds
    another repository of the hub                the same: a fine-tuned model is of the same make
    weights in a directory of the user's         the same where they are as large as the row's; else their size alone
    a directory that is not on this machine,
    a class of the user's, a server              nothing, unless `pool.gpu_memory_gb` says it

Safetensors files are read to the end of their headers, which is a few kilobytes each; of pickles the size is taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rankray.config import ConfigError
from rankray.models.generators import GENERATORS, GeneratorSpec
from rankray.models.hardware import CONTEXT_GB, WORKSPACE, GpuType
from rankray.models.rewards import REWARDS, RewardSpec
from rankray.models.targets import Target
from rankray.models.weights import PICKLES, is_uri, locate, of_variant

Family = Literal["generators", "rewards"]

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
MEGAPIXEL = 1024 * 1024
"""Unit of a picture's size here: the resolution of the paper's four models."""

AUTOENCODERS = frozenset(
    {"AutoencoderKL", "AutoencoderDC", "AutoencoderKLFlux2", "AutoencoderKLQwenImage", "PaellaVQModel"}
)
"""Convolutions all through: in float32 PyTorch runs them in TF32, matrix products it does not."""

ALIKE = 0.2
"""Weights of a directory that differ from the row's by less are taken for a model of the same make."""


@dataclass(frozen=True)
class Component:
    """One part of a model, as its file of facts has it.

    Attributes:
        name: its name in the pipeline.
        kind: "package.module.Class", or a function that builds it (`recipes.full_size`).
        config: arguments of the class, or of its configuration in transformers.
        parameters: of the published checkpoint.
        flops: of one call for one item, as (constant, linear, quadratic) in the picture's megapixels.
        activations: elements alive at once in such a call beside the weights, as (constant, linear).
        times: calls of it for one picture: "once", "steps", or the pipeline's argument that says how many.
        guided: guidance doubles its batch.
        tokens: of text that it is given.
        upcast_from: the precision in which its pipeline refuses to run it, and takes float32.
        buffers: elements of buffers beside the parameters, such as fixed positions.
        kept_float32: parameters among them that transformers keeps in float32 where the rest is float16: T5's `wo`.
        kept: of a denoiser, elements alive at once in a forward and backward pass, over `activations`: training by
            "lora" or "full", or either "checkpointed"; counted by `benchmarks/memory_plan`.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    parameters: int
    flops: Sequence[float]
    activations: Sequence[float]
    times: str
    guided: bool
    tokens: int = 0
    upcast_from: str | None = None
    buffers: int = 0
    kept_float32: int = 0
    kept: Mapping[str, float] = field(default_factory=dict)

    @property
    def convolutions(self) -> bool:
        """Whether it is one of `AUTOENCODERS`."""
        return self.kind.rpartition(".")[2] in AUTOENCODERS

    def flops_at(self, megapixels: float) -> float:
        """Multiplications and additions of one call for one item of that size."""
        return sum(factor * megapixels**power for power, factor in enumerate(self.flops))

    def activations_at(self, megapixels: float) -> float:
        """Elements alive at once in one call for one item of that size."""
        return sum(factor * megapixels**power for power, factor in enumerate(self.activations))


def facts_file(family: Family, model: str) -> Path:
    """Where the facts of a model are, or would be."""
    return Path(__file__).parent / family / "full_size" / f"{model}.json"


def full_size(family: Family) -> list[str]:
    """Names of the models of which there are facts."""
    return sorted(file.stem for file in facts_file(family, "").parent.glob("*.json"))


def components(family: Family, model: str) -> list[Component]:
    """The parts of a model that have weights.

    Raises:
        KeyError: it is none of `full_size(family)`.
    """
    if model not in full_size(family):
        raise KeyError(f"{model}; there are {', '.join(full_size(family))}")
    facts = json.loads(facts_file(family, model).read_text("utf-8"))
    return [
        Component(name=name, kind=part.pop("class"), **part.pop("call"), **part)
        for name, part in facts.items()
    ]


@dataclass(frozen=True)
class Part:
    """One part of a model as a job runs it.

    Attributes:
        name: such as "unet".
        weight_bytes: in the precision it is kept in.
        flops: for one item, over all calls and both sides of guidance.
        activation_bytes: alive at once for one item, both sides of guidance.
        rate: "half", "tf32" or "float32", of `GpuType.flops_per_s`.
        together: the whole batch at once, or an item at a time.
    """

    name: str
    weight_bytes: float
    flops: float
    activation_bytes: float
    rate: str
    together: bool = True


@dataclass(frozen=True)
class Footprint:
    """A model's parts; `complete` is False where only its weights are known."""

    parts: tuple[Part, ...]
    bfloat16: bool = False
    complete: bool = True

    @property
    def weights_gb(self) -> float:
        """1e9 bytes."""
        return sum(part.weight_bytes for part in self.parts) / 1e9

    @property
    def flops(self) -> float:
        """For one item."""
        return sum(part.flops for part in self.parts)

    def memory_gb(self, batch: int) -> float:
        """What an actor needs of a GPU with `batch` items at once, 1e9 bytes."""
        return self.weights_gb + WORKSPACE * self._activations_gb(batch) + CONTEXT_GB

    def allocated_gb(self, batch: int) -> float:
        """The tensors of it alone: what `benchmarks/memory_plan` counts one by one."""
        return self.weights_gb + self._activations_gb(batch)

    def _activations_gb(self, batch: int) -> float:
        each = (part.activation_bytes * (batch if part.together else 1) for part in self.parts)
        return max(each, default=0.0) / 1e9

    def largest_batch(self, room_gb: float, most: int) -> int:
        """The first of most, most/2, ... 1 that fits into `room_gb`; 0 where none does."""
        while most:
            if self.memory_gb(most) <= room_gb:
                return most
            most //= 2
        return 0

    def seconds(self, gpu: GpuType) -> float:
        """Of a whole GPU, for one item."""
        return sum(part.flops / gpu.flops_per_s(part.rate) for part in self.parts)


def footprint(target: Target) -> Footprint:
    """What one item of a model takes: a picture of a generator, a score of a reward."""
    spec = target.kwargs.get("spec")
    if isinstance(spec, GeneratorSpec):
        found = _of_generator(spec)
    elif isinstance(spec, RewardSpec):
        found = _of_reward(spec)
    else:
        return Footprint((), complete=False)
    bfloat16 = spec.dtype == "bfloat16"
    if is_uri(spec.source):  # elsewhere: taken for a model of the row's make
        return found
    try:
        place = Path(locate(spec.source)) if spec.source else Path()
    except ConfigError:  # neither a path that is here nor a repository
        rows = {row.source for row in GENERATORS.values()} | {row.source for row in REWARDS.values()}
        return found if spec.source in rows else Footprint((), bfloat16, complete=False)
    own = own_parameters(place, spec.variant if isinstance(spec, GeneratorSpec) else None)
    if own is None or (found.complete and _alike(own, found, spec.dtype)):
        return found
    return Footprint((Part("weights", own * BYTES[spec.dtype], 0.0, 0.0, "half"),), bfloat16, complete=False)


def batch_size(target: Target) -> int | None:
    """Items computed at once, None for a class of the user's."""
    spec = target.kwargs.get("spec")
    return spec.batch_size if isinstance(spec, GeneratorSpec | RewardSpec) else None


def megapixels(target: Target) -> float:
    """Size of a generator's pictures in units of 1024 x 1024; of a class of the user's it is unknown, and one."""
    spec = target.kwargs.get("spec")
    return spec.height * spec.width / MEGAPIXEL if isinstance(spec, GeneratorSpec) else 1.0


def _of_generator(spec: GeneratorSpec) -> Footprint:
    if spec.full_size is None:
        return Footprint((), complete=False)
    parts = components("generators", spec.full_size)
    kept = [part for part in parts if spec.load.get(part.name, part) is not None]
    size = spec.height * spec.width / MEGAPIXEL
    sliced = spec.vae_slicing or spec.vae_tiling
    found = [
        _part(
            component,
            spec.dtype,
            size,
            times=_times(component, spec),
            sides=2 if component.guided and spec.guidance > 1 else 1,
            together=not (sliced and component.convolutions),
        )
        for component in kept
    ]
    return Footprint(tuple(found), bfloat16=spec.dtype == "bfloat16")


def _of_reward(spec: RewardSpec) -> Footprint:
    name = str(spec.options.get("model", spec.full_size))
    if spec.full_size is None or name not in full_size("rewards"):
        return Footprint((), complete=False)
    parts = (_part(part, spec.dtype, 1.0, times=1, sides=1) for part in components("rewards", name))
    return Footprint(tuple(parts), bfloat16=spec.dtype == "bfloat16")


def _times(component: Component, spec: GeneratorSpec) -> int:
    """Calls for one picture."""
    if component.times == "once":
        return 1
    return spec.steps if component.times == "steps" else int(spec.call[component.times])


def _part(
    component: Component, dtype: str, size: float, *, times: int, sides: int, together: bool = True
) -> Part:
    computed = "float32" if dtype == component.upcast_from else dtype
    rate = "half" if computed != "float32" else "tf32" if component.convolutions else "float32"
    wider = component.kept_float32 * (BYTES["float32"] - BYTES["float16"]) if dtype == "float16" else 0
    return Part(
        name=component.name,
        weight_bytes=(component.parameters + component.buffers) * BYTES[dtype] + wider,
        flops=component.flops_at(size) * times * sides,
        activation_bytes=component.activations_at(size) * BYTES[computed] * sides,
        rate=rate,
        together=together,
    )


def _alike(parameters: int, known: Footprint, dtype: str) -> bool:
    """Whether weights are as many as the row's; half of them are, if a pickle's are of two bytes."""
    expected = known.weights_gb * 1e9 / BYTES[dtype]
    return any(abs(count - expected) <= ALIKE * expected for count in (parameters, 2 * parameters))


def own_parameters(place: Path, variant: str | None) -> int | None:
    """Parameters in the weights of a directory or file; None where there are none, or none that can be read.

    Pickles are never opened: a parameter of theirs is taken for four bytes.
    """
    files = [place] if place.is_file() else sorted(place.rglob("*")) if place.name else []
    tensors = [file for file in files if file.suffix == ".safetensors" and of_variant(file, variant)]
    if not tensors:
        return (
            sum(file.stat().st_size for file in files if file.suffix in PICKLES) // BYTES["float32"] or None
        )
    try:
        return sum(math.prod(shape) for file in tensors for shape in _shapes(file)) or None
    except ValueError:  # a broken file, of which its actor will say more
        return None


def _shapes(file: Path) -> Iterator[Sequence[int]]:
    """Of every tensor in a safetensors file, from its header alone."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    yield from (entry["shape"] for name, entry in header.items() if name != "__metadata__")
