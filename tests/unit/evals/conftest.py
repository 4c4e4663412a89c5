"""Small judges and pictures for the benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.random_weights.judges import JUDGES_MADE, make


@pytest.fixture(scope="session")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each benchmark, with a folder for each part of its judge."""
    place = tmp_path_factory.mktemp("judges")
    torch.manual_seed(0)
    for name in JUDGES_MADE:
        make(name, place / name)
    return place


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Six pictures of three sizes: noise with a plain patch in it."""
    rng = np.random.default_rng(0)
    made = []
    for n in range(6):
        pixels = rng.integers(0, 255, (56 + 16 * (n % 3), 64, 3), dtype=np.uint8)
        pixels[8 * n : 8 * n + 24, 10:40] = (40 * n, 250 - 30 * n, 128)
        made.append(Image.fromarray(pixels))
    return made
