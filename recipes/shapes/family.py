"""What a family of the shapes world consists of, and how well a pipeline follows prompts.

A family is a frozen table row of functions, no base class: `train.py` asks nothing else of it. Generated pictures
come from the real pipelines, with one seed a picture, so an accuracy here is what a user of the pipeline gets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from rankray.shapes.checker import check
from rankray.shapes.prompts import CATEGORIES, category, prompts
from recipes.shapes.contents import KINDS
from recipes.shapes.data import Pool

Loss = Callable[[torch.Generator], Tensor]
BACKGROUND_WEIGHT = 0.3
"""Three patches in four show nothing."""
READING = 0.3
"""Weight of the reader's loss."""


@dataclass(frozen=True)
class Family:
    """How one family is built, trained, saved and sampled.

    `build(text)` gives the untrained model (a `ModuleDict`) on the text encoders in a directory, `loss(model, pool)`
    the function that draws a batch, `pipeline(model, vae)` the diffusers pipeline.
    `call` holds the arguments of the pipeline's `__call__` beside the prompts; `noise` the false captions, and
    `noise_after` the minutes of true ones before them: drawing is learnt faster from the truth.
    """

    name: str
    build: Callable[[Path], nn.ModuleDict]
    loss: Callable[[nn.ModuleDict, Pool], Loss]
    pipeline: Callable[[nn.ModuleDict, AutoencoderKL], Any]
    call: dict[str, Any]
    learning_rate: float
    minutes: float
    muon: float | None = None
    noise: dict[str, float] = field(default_factory=dict)
    noise_after: float = 0.0


class Reader(nn.Module):
    """Tells from a transformer's image tokens, half-way, what each patch will show; thrown away after training.

    A transformer draws what a sentence says only once its tokens carry what is to be where, and the loss on noise says
    little about that. Asking for it aloud is the idea of REPA (Yu et al. 2024), with exact labels in the place of a
    vision model's features.

    Args:
        width: of the image tokens.
        side: latent cells along a token's side.
    """

    weight: Tensor

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(width)
        self.named = nn.Linear(width, side * side * (len(KINDS) + 1))
        weight = torch.ones(len(KINDS) + 1)
        weight[-1] = BACKGROUND_WEIGHT
        self.register_buffer("weight", weight)

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """Mean cross-entropy of image tokens [B, T, width] against patches uint8[B, 64]."""
        side, number = self.side, len(tokens)
        across = round(tokens.shape[1] ** 0.5)
        told = self.named(self.norm(tokens)).unflatten(-1, (side * side, len(KINDS) + 1))
        cells = patches.long().reshape(number, across, side, across, side).transpose(2, 3)
        return nn.functional.cross_entropy(told.flatten(0, 2), cells.flatten(), weight=self.weight)


def watch(transformer: Any, block: int, image_tokens: Callable[[Any], Tensor]) -> Callable[[], Tensor]:
    """Keeps what a block of a transformer puts out; the function returned gives the image tokens of its last call."""
    kept: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        kept["tokens"] = image_tokens(output)

    transformer.transformer_blocks[block].register_forward_hook(keep)
    return lambda: kept.pop("tokens")


def generate(
    pipeline: Any, texts: Sequence[str], call: dict[str, Any], seed: int, batch: int = 32
) -> np.ndarray:
    """Pictures uint8[n, 64, 64, 3] of the prompts; picture i is drawn with seed `seed + i`."""
    pictures = []
    pipeline.set_progress_bar_config(disable=True)
    for start in range(0, len(texts), batch):
        part = list(texts[start : start + batch])
        seeds = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        pictures += pipeline(part, generator=seeds, output_type="pil", **call).images
    return np.stack([np.asarray(picture) for picture in pictures])


def spread(split: str, number: int) -> list[str]:
    """`number` prompts taken at even distances from a split, again from its start where it is shorter."""
    texts = prompts(split)
    step = max(1.0, len(texts) / number)
    return [texts[int(i * step) % len(texts)] for i in range(number)]


def accuracy(pipeline: Any, texts: Sequence[str], call: dict[str, Any], seed: int) -> dict[str, float]:
    """Share of pictures that pass the checker: under "accuracy", and under each category that occurs."""
    pictures = generate(pipeline, texts, call, seed)
    passed = [check(picture, text) for picture, text in zip(pictures, texts, strict=True)]
    result = {"accuracy": round(float(np.mean(passed)), 4)}
    for name in CATEGORIES:
        own = [ok for ok, text in zip(passed, texts, strict=True) if category(text) == name]
        if own:
            result[name] = round(float(np.mean(own)), 4)
    return result
