"""Every large row of GENERATORS at full size on a fake CUDA device, by its class, files and own call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs
import torch

from rankray.models.generators import GENERATORS

QUICK = ("sd15", "sdxl")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name, row in GENERATORS.items()
        if row.full_size and name not in runs.UNSEEN
    ],
)
def test_it_draws_in_the_memory_that_is_planned(name: str, tmp_path: Path) -> None:
    found, row = runs.generator(name, tmp_path), GENERATORS[name]
    assert [picture.size for picture in found.made] == [(row.width, row.height)] * 3
    assert found.weights == pytest.approx(found.planned_weights, rel=0.25)
    assert found.off == pytest.approx(1.0, abs=0.25)


def on_the_cpu(model: Any) -> None:
    """A layer of the UNet gives what it makes to the CPU."""
    model.pipe.unet.conv_out.register_forward_hook(lambda module, given, made: made.cpu())


def left_behind(model: Any) -> None:
    model.pipe.unet.conv_out.cpu()


def float_layer(model: Any) -> None:
    model.pipe.unet.conv_out.float()


def float_embedding(model: Any) -> None:
    model.pipe.text_encoder.to(torch.float32)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (on_the_cpu, "devices"),
        (float_layer, "should be the same"),
        pytest.param(left_behind, "same device", marks=pytest.mark.slow),
        pytest.param(float_embedding, "one dtype is due", marks=pytest.mark.slow),
    ],
)
def test_a_planted_fault_raises(fault: runs.Plant, says: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=says):
        runs.generator("sd15", tmp_path, fault)
