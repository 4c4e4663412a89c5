"""The models at full size, on the meta device: each component has the published number of parameters."""

from __future__ import annotations

import pytest

from rankray.generators import GENERATORS
from rankray.generators.full_size import MODELS, Component, build, components, weights_gb

PUBLISHED = {
    ("sdxl", "unet"): 2_567_463_684,
    ("sd3-medium", "transformer"): 2_028_328_000,
    ("pixart-sigma", "transformer"): 610_856_096,
}
# Files of the published repositories, in GB: 7.18 and 3.13 of bfloat16, 0.0737 of float32.
FILES_GB = {"prior_prior": (7.18, 2), "decoder": (3.13, 2), "vqgan": (0.0737, 4)}
PARTS = [(model, part) for model in MODELS for part in components(model)]


@pytest.mark.parametrize(("model", "part"), PARTS, ids=[f"{model}-{part.name}" for model, part in PARTS])
def test_parameters_are_the_published_ones(model: str, part: Component) -> None:
    module = build(part)
    assert sum(parameter.numel() for parameter in module.parameters()) == part.parameters
    assert all(parameter.device.type == "meta" for parameter in module.parameters())
    assert part.parameters == PUBLISHED.get((model, part.name), part.parameters)
    if part.buffers > 1000:
        assert sum(buffer.numel() for buffer in module.buffers()) == part.buffers


def test_stable_cascade_s_parts_are_as_large_as_their_files() -> None:
    parts = {part.name: part for part in components("stable-cascade")}
    for name, (gb, width) in FILES_GB.items():
        assert parts[name].parameters * width / 1e9 == pytest.approx(gb, rel=2e-3)


@pytest.mark.parametrize("model", MODELS)
def test_what_an_actor_is_given_holds_its_weights(model: str) -> None:
    row = GENERATORS[model]
    assert weights_gb(model, row.dtype) < row.gpu_memory_gb


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(KeyError, match="sdx; there are sdxl, sd3-medium"):
        components("sdx")
