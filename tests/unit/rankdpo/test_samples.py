"""Trained weights in a pipeline that draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rankray.config import GeneratorChoice
from rankray.config.rankdpo import RankDPOConfig
from rankray.models.denoisers import parts
from rankray.models.generators import GENERATORS
from rankray.models.generators.diffusers_pipeline import DiffusersGenerator
from rankray.rankdpo.samples import place_weights

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
