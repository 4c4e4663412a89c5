"""Every large row of GENERATORS at full size on a fake CUDA device, by its class, its files' layout and its own call.

What is guessed (`rankray.fake_cuda`): pixels are zeros, so that they are finite is not shown here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rankray import demand
from rankray.fake_cuda import fake_cuda
from rankray.generators import GENERATORS, GeneratorSpec
from rankray.generators.diffusers_pipeline import DiffusersGenerator
from rankray.random_weights import full_size
from rankray.targets import Target

pytestmark = pytest.mark.slow

PAPER = ("sdxl", "sd3-medium", "pixart-sigma", "stable-cascade")
OTHERS = tuple(name for name, row in GENERATORS.items() if row.full_size and name not in PAPER)


def hollow(name: str, place: Path) -> GeneratorSpec:
    """The row on a checkpoint without numbers, drawing in few steps: the shapes of a step are those of all."""
    row = GENERATORS[name]
    full_size.generator(row.full_size, place, hollow=True)
    call = {key: 2 if key == "num_inference_steps" else value for key, value in row.call.items()}
    return replace(row, source=str(place), variant=None, steps=min(row.steps, 2), call=call)


def check(name: str, place: Path) -> None:
    spec = hollow(name, place)
    with fake_cuda(answer=True) as device:
        model = DiffusersGenerator(spec, "cuda")
        weights = device.now
        pictures = model.generate(["a red kite over an old mill"] * 3, [1, 2, 3])
    assert [picture.size for picture in pictures] == [(spec.width, spec.height)] * 3
    plan = demand.footprint(Target(name, spec.target, {"spec": spec}))
    assert weights == pytest.approx(plan.weights_gb * 1e9, rel=0.25)
    assert device.peak == pytest.approx(plan.allocated_gb(spec.batch_size) * 1e9, rel=0.25)


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_generators_draw(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_others_draw(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)
