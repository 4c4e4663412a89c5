"""The paper's four models at full size, without a weight: what they are made of, how many parameters, how much memory.

    python -m rankray.generators.full_size

Each file beside this one holds the configurations of a model's components, facts of its own `config.json` files, and
the parameter counts of the published checkpoints; built on the meta device they take no memory and two seconds. A
row's `gpu_memory_gb` can be held against the bytes that its weights alone need.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

MODELS = ("sdxl", "sd3-medium", "pixart-sigma", "stable-cascade")
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Component:
    """One part of a pipeline.

    Attributes:
        name: its name in the pipeline.
        kind: "package.module.Class".
        config: arguments of the class, or of its configuration in transformers.
        parameters: of the published checkpoint.
        buffers: elements of buffers beside them, such as fixed positions.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    parameters: int
    buffers: int


def components(model: str) -> list[Component]:
    """The parts of a model that have weights.

    Raises:
        KeyError: it is none of `MODELS`.
    """
    if model not in MODELS:
        raise KeyError(f"{model}; there are {', '.join(MODELS)}")
    text = resources.files("rankray.generators.full_size").joinpath(f"{model}.json").read_text("utf-8")
    return [
        Component(name, part["class"], part["config"], part["parameters"], part.get("buffers", 0))
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


def weights_gb(model: str, dtype: str) -> float:
    """Gigabytes (1e9 bytes) of all weights and buffers at one precision; activations come on top."""
    return sum(part.parameters + part.buffers for part in components(model)) * BYTES[dtype] / 1e9
