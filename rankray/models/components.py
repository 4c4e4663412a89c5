"""What a model is made of: the configurations of its parts, their sizes, and what one forward pass of each costs.

A file of facts a model (`generators/full_size/`, `rewards/full_size/`) names each part's class, configuration and
number of parameters, and what `recipes.meta_run` measured of it: arithmetic and the most elements alive at once.
Reading it takes a millisecond and no model's library, so a job can be planned on a laptop; building a part on the meta
device takes no memory and a second, and is how the facts are checked.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
MEGAPIXEL = 1024 * 1024
"""Unit of a picture's size here: the resolution of the paper's four models."""


@dataclass(frozen=True)
class Component:
    """One part of a model.

    Attributes:
        name: its name in the pipeline.
        kind: "package.module.Class", or a function that builds it.
        config: arguments of the class, or of its configuration in transformers.
        parameters: of the published checkpoint.
        buffers: elements of buffers beside them, such as fixed positions.
        kept_float32: parameters among them that transformers keeps in float32 where the rest is float16: T5's `wo`.
        times: calls of it for one picture: "once", "steps", or the pipeline's argument that says how many.
        guided: guidance doubles its batch.
        tokens: of text that it is given.
        upcast_from: the precision in which its pipeline refuses to run it, and takes float32.
        flops: of one call for one item, as (constant, linear, quadratic) in the picture's megapixels.
        activations: elements alive at once in such a call beside the weights, as (constant, linear).
        kept: of a denoiser, elements alive at once in a forward and backward pass, over `activations`: training by
            "lora" or "full", or either "checkpointed"; counted by `benchmarks/memory_plan`.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    parameters: int
    buffers: int
    kept_float32: int
    times: str
    guided: bool
    tokens: int
    upcast_from: str | None
    flops: tuple[float, ...]
    activations: tuple[float, ...]
    kept: Mapping[str, float]

    def flops_at(self, megapixels: float) -> float:
        """Multiplications and additions of one call for one item of that size."""
        return sum(factor * megapixels**power for power, factor in enumerate(self.flops))

    def activations_at(self, megapixels: float) -> float:
        """Elements alive at once in one call for one item of that size."""
        return sum(factor * megapixels**power for power, factor in enumerate(self.activations))


def read(package: str, model: str) -> list[Component]:
    """The parts in `package`'s file of `model`."""
    text = resources.files(package).joinpath(f"{model}.json").read_text("utf-8")
    return [
        Component(
            name=name,
            kind=part["class"],
            config=part["config"],
            parameters=part["parameters"],
            buffers=part.get("buffers", 0),
            kept_float32=part.get("kept_float32", 0),
            times=part["call"]["times"],
            guided=part["call"]["guided"],
            tokens=part["call"].get("tokens", 0),
            upcast_from=part["call"].get("upcast_from"),
            flops=tuple(part.get("flops", ())),
            activations=tuple(part.get("activations", ())),
            kept=part.get("kept", {}),
        )
        for name, part in json.loads(text).items()
    ]


def build(component: Component, device: str = "meta") -> Any:
    """The module, of random weights, or of none on the meta device."""
    import torch

    module, _, name = component.kind.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    with torch.device(device):
        if module == "transformers":
            return kind(kind.config_class(**component.config))
        return kind(**component.config)
