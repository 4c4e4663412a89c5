"""The models at full size, on the meta device: each component has the published number of parameters."""

from __future__ import annotations

import json

import pytest

from rankray.models.footprint import Component, components, full_size
from rankray.models.generators import GENERATORS
from recipes.full_size import build
from recipes.random_weights.full_size import bytes_of

PUBLISHED = {
    ("sdxl", "unet"): 2_567_463_684,
    ("sd3-medium", "transformer"): 2_028_328_000,
    ("pixart-sigma", "transformer"): 610_856_096,
    ("sd15", "unet"): 859_520_964,
    ("sd3.5-large", "transformer"): 8_056_627_520,
    ("flux-dev", "transformer"): 11_901_408_320,
    ("sana", "transformer"): 1_604_462_752,
    ("sana", "text_encoder"): 2_614_341_888,
    ("qwen-image", "text_encoder"): 8_292_166_656,
    ("z-image-turbo", "text_encoder"): 4_022_468_096,
}
# Billions as their authors state them; of klein, half of the bytes of its one file of bfloat16.
STATED = {
    "chroma": 8.9,
    "lumina2": 2.6,
    "cogview4": 6.4,
    "z-image-turbo": 6.15,
    "flux2-klein": 7.75 / 2,
    "qwen-image": 20.4,
    "ernie-image": 8.0,
    "sana-sprint": 1.6,
}
# Files of the published repositories, in GB: 7.18 and 3.13 of bfloat16, 0.0737 of float32.
FILES_GB = {"prior_prior": (7.18, 2), "decoder": (3.13, 2), "vqgan": (0.0737, 4)}
# Text encoders and VAEs that models share are built once.
PARTS = {
    json.dumps([part.kind, part.config]): (model, part)
    for model in full_size("generators")
    for part in components("generators", model)
}.values()


@pytest.mark.parametrize(("model", "part"), PARTS, ids=[f"{model}-{part.name}" for model, part in PARTS])
def test_parameters_are_the_published_ones(model: str, part: Component) -> None:
    module = build(part)
    assert sum(parameter.numel() for parameter in module.parameters()) == part.parameters
    assert all(parameter.device.type == "meta" for parameter in module.parameters())
    assert part.parameters == PUBLISHED.get((model, part.name), part.parameters)
    if part.buffers > 1000:
        assert sum(buffer.numel() for buffer in module.buffers()) == part.buffers


def test_stable_cascade_s_parts_are_as_large_as_their_files() -> None:
    parts = {part.name: part for part in components("generators", "stable-cascade")}
    for name, (gb, width) in FILES_GB.items():
        assert parts[name].parameters * width / 1e9 == pytest.approx(gb, rel=2e-3)


@pytest.mark.parametrize("model", STATED)
def test_denoisers_are_as_large_as_stated(model: str) -> None:
    (denoiser,) = [part for part in components("generators", model) if part.times == "steps"]
    assert denoiser.parameters / 1e9 == pytest.approx(STATED[model], rel=0.01)


def test_weights_are_parameters_and_buffers_in_their_precision() -> None:
    assert bytes_of("sdxl", "float16") == 2 * (2_567_463_684 + 123_060_480 + 694_659_840 + 83_653_863)
    assert bytes_of("sdxl", "float32") == 2 * bytes_of("sdxl", "float16")


def test_every_large_row_names_its_file() -> None:
    named = {name: row.full_size for name, row in GENERATORS.items() if not name.startswith("shapes-")}
    assert set(named.values()) == set(full_size("generators"))
    assert named["sdxl-turbo"] == "sdxl"
    assert {name for name, place in named.items() if name != place} == {"sdxl-turbo"}


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(KeyError, match="sdx; there are chroma, cogview4"):
        components("generators", "sdx")
