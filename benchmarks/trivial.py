"""Models that cost next to nothing, for the half of a pipeline that a benchmark does not measure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from rankray.shapes.renderer import render


class Rendered:
    """Draws true pictures of shapes prompts by the renderer: 0.3 ms each."""

    def __init__(self, device: str) -> None:
        pass

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [
            Image.fromarray(render(p, np.random.default_rng(seed)))
            for p, seed in zip(prompts, seeds, strict=True)
        ]


class Zero:
    """Scores nothing."""

    def __init__(self, device: str) -> None:
        pass

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        return np.zeros(len(images), np.float32)
