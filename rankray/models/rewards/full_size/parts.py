"""Parts of rewards that are no class of a library, for the meta device."""

from __future__ import annotations

from typing import Any


def mps(**config: Any) -> Any:
    """CLIP with the published fusion layers on top."""
    from transformers import CLIPConfig

    from rankray.models.rewards.mps import MpsConfig, MpsModel

    return MpsModel(CLIPConfig(**config), MpsConfig())


def projector(width: int, out: int) -> Any:
    """CLIP-FlanT5's way from image tokens to the language model's: two linear layers with GELU."""
    from torch import nn

    return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))


def flan_t5(**config: Any) -> Any:
    """FLAN-T5 with an output layer of its own, whether or not this version of transformers ties it to the input's."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    model: Any = T5ForConditionalGeneration(T5Config(**config))
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


def owl2(before: int, **config: Any) -> Any:
    """mPLUG-Owl2 as Q-Align has it, for a sentence with `before` tokens before its picture."""
    from rankray.models.rewards.qalign_model import Owl2, Sizes

    return Owl2(Sizes.from_config(config), before)
