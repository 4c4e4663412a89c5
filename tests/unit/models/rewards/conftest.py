"""Tiny models and pictures for the rewards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from recipes.random_weights.rewards import clip_config, save_processor


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    CLIPModel(clip_config()).save_pretrained(place)
    save_processor(place)
    return place


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Seven pictures of other sizes and modes."""
    rng = np.random.default_rng(0)
    made = [
        Image.fromarray(rng.integers(0, 255, (30 + 9 * i, 64 - 3 * i, 3), dtype=np.uint8)) for i in range(6)
    ]
    return [*made, made[0].convert("L")]
