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
from rankray.shapes.data import Pool
from rankray.shapes.prompts import CATEGORIES, category, prompts

Loss = Callable[[torch.Generator], Tensor]


@dataclass(frozen=True)
class Family:
    """How one family is built, trained, saved and sampled.

    `build(text)` gives the untrained model (a `ModuleDict`) on the text encoders in a directory, `loss(model, pool)`
    the function that draws a batch, `pipeline(model, vae)` the diffusers pipeline.
    `call` holds the arguments of the pipeline's `__call__` beside the prompts; `noise` the false captions.
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
