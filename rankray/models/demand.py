"""What a configured model asks of a GPU: its row and its parts' facts, brought together; no model is imported.

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rankray.config import ConfigError
from rankray.models.components import BYTES, MEGAPIXEL, Component
from rankray.models.footprint import Footprint, Part
from rankray.models.generators import GENERATORS, GeneratorSpec
from rankray.models.generators import full_size as generators_full_size
from rankray.models.rewards import REWARDS, RewardSpec
from rankray.models.rewards import full_size as rewards_full_size
from rankray.models.targets import Target
from rankray.models.weights import is_uri, locate, of_variant

AUTOENCODERS = frozenset({"AutoencoderKL", "AutoencoderDC", "PaellaVQModel"})
"""Convolutions all through: in float32 PyTorch runs them in TF32, matrix products it does not."""

PICKLES = frozenset({".pt", ".pth", ".bin", ".ckpt"})

ALIKE = 0.2
"""Weights of a directory that differ from the row's by less are taken for a model of the same make."""


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
    parts = generators_full_size.components(spec.full_size)
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
            together=not (sliced and component.kind.rpartition(".")[2] in AUTOENCODERS),
        )
        for component in kept
    ]
    return Footprint(tuple(found), bfloat16=spec.dtype == "bfloat16")


def _of_reward(spec: RewardSpec) -> Footprint:
    name = str(spec.options.get("model", spec.full_size))
    if spec.full_size is None or name not in rewards_full_size.MODELS:
        return Footprint((), complete=False)
    components = rewards_full_size.components(name)
    parts = [_part(component, spec.dtype, 1.0, times=1, sides=1, together=True) for component in components]
    return Footprint(tuple(parts), bfloat16=spec.dtype == "bfloat16")


def _times(component: Component, spec: GeneratorSpec) -> int:
    """Calls for one picture."""
    if component.times == "once":
        return 1
    return spec.steps if component.times == "steps" else int(spec.call[component.times])


def _part(component: Component, dtype: str, size: float, *, times: int, sides: int, together: bool) -> Part:
    computed = "float32" if dtype == component.upcast_from else dtype
    convolutions = component.kind.rpartition(".")[2] in AUTOENCODERS
    rate = "half" if computed != "float32" else "tf32" if convolutions else "float32"
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
