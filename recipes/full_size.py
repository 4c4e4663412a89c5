"""The models at full size, built without a weight: each part's parameters, and what a picture of each model takes.

    python -m recipes.full_size

Built on the meta device a part takes no memory and a second, and is how the facts in `rankray/models/*/full_size` are
checked. A part that is no class of a library has its function here.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from rankray.config import GeneratorChoice
from rankray.models import footprint
from rankray.models.footprint import Component
from rankray.models.generators import GENERATORS, resolve


def build(component: Component, device: str = "meta") -> Any:
    """The module, of random weights, or of none on the meta device."""
    module, _, name = component.kind.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    with torch.device(device):
        if module == "transformers":
            return kind(kind.config_class(**component.config))
        return kind(**component.config)


def mps(**config: Any) -> Any:
    """CLIP with the published fusion layers on top."""
    from transformers import CLIPConfig

    from rankray.models.rewards.mps import MpsConfig, MpsModel

    return MpsModel(CLIPConfig(**config), MpsConfig())


def projector(width: int, out: int) -> nn.Module:
    """CLIP-FlanT5's way from image tokens to the language model's: two linear layers with GELU."""
    return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))


def flan_t5(**config: Any) -> Any:
    """FLAN-T5 with an output layer of its own, whether or not this version of transformers ties it to the input's."""
    from transformers import T5Config, T5ForConditionalGeneration

    model: Any = T5ForConditionalGeneration(T5Config(**config))
    model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


def owl2(before: int, **config: Any) -> Any:
    """mPLUG-Owl2 as Q-Align has it, for a sentence with `before` tokens before its picture."""
    from rankray.models.rewards.qalign_model import Owl2, Sizes

    return Owl2(Sizes.from_config(config), before)


def _line(model: str, part: Component) -> str:
    return f"| {model} | {part.name} | {part.parameters:,} | {part.flops_at(1.0) / 1e12:.3f} |"


if __name__ == "__main__":
    print("| model | component | parameters | TFLOP a call at 1024 x 1024 |\n|---|---|---|---|")
    for model in footprint.full_size("generators"):
        for part in footprint.components("generators", model):
            print(_line(model, part))
    print("\n| model | dtype | weights, GB | batch | needs, GB | needs for one, GB | TFLOP a picture |")
    print("|---|---|---|---|---|---|---|")
    for name, row in GENERATORS.items():
        if row.full_size is not None:
            found = footprint.footprint(resolve(GeneratorChoice(model=name), look_up=False))
            memory = f"{row.batch_size} | {found.memory_gb(row.batch_size):.1f} | {found.memory_gb(1):.1f}"
            print(f"| {name} | {row.dtype} | {found.weights_gb:.1f} | {memory} | {found.flops / 1e12:,.0f} |")
