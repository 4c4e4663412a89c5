"""Trained weights in a pipeline that draws."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from rankray.config import GeneratorChoice
from rankray.config.rankdpo import RankDPOConfig
from rankray.models.denoisers import parts
from rankray.models.generators import GENERATORS
from rankray.models.generators.diffusers_pipeline import DiffusersGenerator
from rankray.rankdpo.samples import draw_grid, place_weights

PROJECTIONS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")


@pytest.mark.parametrize("name", ["shapes-sdxl", "shapes-sd3", "shapes-pixart"])
def test_fused_projections_are_of_the_trained_weights(name: str) -> None:
    """Trained to nothing, attention adds its output's bias alone, fused or not: both draw the same to the bit."""
    settings = RankDPOConfig(dataset="/d", output="/o", model=GeneratorChoice(model=name))
    drawn: dict[bool, np.ndarray] = {}
    for fused in (False, True):
        spec = replace(GENERATORS[name], steps=2, batch_size=1, fused=fused)
        generator = DiffusersGenerator(spec, "cpu")
        (before,) = generator.generate(["a red circle"], [1])
        denoiser = getattr(generator.pipe, parts.row_of(spec).denoiser)
        trained = {
            key: torch.zeros_like(value)
            for key, value in denoiser.named_parameters()
            if key.rpartition(".")[0].endswith(PROJECTIONS)
        }
        place_weights(generator.pipe, spec, settings, trained.items())
        (after,) = generator.generate(["a red circle"], [1])
        drawn[fused] = np.asarray(after)
        assert np.abs(drawn[fused].astype(int) - np.asarray(before).astype(int)).max() > 1
    assert np.array_equal(drawn[True], drawn[False])


@dataclass
class Small:
    """A device with memory for so many pictures at once."""

    most: int
    batch_size: int = 8

    def generate(self, prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        if self.batch_size > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [Image.new("RGB", (8, 8), (255, 255, 255)) for _ in prompts]


@pytest.mark.parametrize("world", [1, 8])
@pytest.mark.parametrize(("most", "white"), [(8, 1.0), (2, 1.0), (0, 0.0)])
def test_a_grid_takes_the_memory_that_is_left_and_ends_no_training(
    most: int, white: float, world: int, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = replace(GENERATORS["shapes-sdxl"], height=8, width=8)
    grid = draw_grid(spec, Small(most), ["a red circle", "a blue ring"], 0, world)
    assert float((grid == 255).float().mean()) == white / world
    assert ("checkpoints.sample_every = 0" in capsys.readouterr().out) == (most == 0)
