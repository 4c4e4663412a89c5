"""The rewards' models at full size, on the meta device: each part has the published number of parameters."""

from __future__ import annotations

import pytest

from rankray.models.footprint import Component, components, full_size
from rankray.models.rewards import REWARDS
from recipes.full_size import build

PUBLISHED = {
    ("clip-h", "model"): 986_109_441,
    ("clip-l", "model"): 427_616_513,
    ("clip-b", "model"): 151_277_313,
    ("clip-flant5-xxl", "language"): 11_135_332_352,
    ("clip-flant5-xl", "language"): 2_849_757_184,
    ("clip-flant5-xxl", "vision"): 303_507_456,
}
PARTS = [(model, part) for model in full_size("rewards") for part in components("rewards", model)]


@pytest.mark.parametrize(("model", "part"), PARTS, ids=[f"{model}-{part.name}" for model, part in PARTS])
def test_parameters_are_the_published_ones(model: str, part: Component) -> None:
    assert sum(parameter.numel() for parameter in build(part).parameters()) == part.parameters
    assert part.parameters == PUBLISHED.get((model, part.name), part.parameters)


def test_imagereward_is_as_large_as_its_file() -> None:
    parameters = sum(part.parameters for part in components("rewards", "imagereward"))
    assert parameters * 4 / 1e9 == pytest.approx(1.79, rel=0.01), "1.79 GB of float32"


def test_every_large_row_names_its_file() -> None:
    named = {name: row.full_size for name, row in REWARDS.items() if not name.startswith("shapes-")}
    for name in ("http", "vlm-judge", "safety"):  # servers', and one for the CPU
        assert named.pop(name) is None
    assert set(named.values()) <= set(full_size("rewards"))


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(KeyError, match="clip-g; there are clip-b, clip-flant5-xl"):
        components("rewards", "clip-g")
