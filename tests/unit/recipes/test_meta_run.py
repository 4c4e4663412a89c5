"""Counting on the meta device, against what can be worked out by hand, and against the facts that the files hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rankray.models.footprint import Component, components, full_size
from recipes import meta_run

ALL = [
    pytest.param(part, id=f"{model}-{part.name}")
    for family in ("generators", "rewards")
    for model in full_size(family)
    for part in components(family, model)
]
QUICK = [
    next(part for part in components("generators", "sdxl") if part.name == "text_encoder"),
    next(part for part in components("rewards", "clip-flant5-xl") if part.name == "projector"),
    *components("rewards", "clip-b"),
]


def component(**changes: object) -> Component:
    projector = next(part for part in components("rewards", "clip-flant5-xl") if part.name == "projector")
    return replace(projector, **changes)  # type: ignore[arg-type]


def test_two_linear_layers_by_hand() -> None:
    """5 tokens through 3 -> 7, GELU, 7 -> 7: 2 FLOPs a weight and token; 5 x (3 + 7) alive, then 5 x (7 + 7), ..."""
    part = component(config={"width": 3, "out": 7}, tokens=5)
    flops, activations = meta_run.polynomials(part)
    assert flops == [2 * 5 * (3 * 7 + 7 * 7)]
    assert 5 * (7 + 7) <= activations[0] <= 5 * (3 + 7 + 7 + 7)


def test_attention_is_counted_and_its_scores_are_not_held() -> None:
    query = torch.empty(2, 4, 1000, 16, device="meta")
    fused, counted = meta_run._FusedAttention(), meta_run.Counted()
    with torch.no_grad(), fused, counted:
        attended = torch.nn.functional.scaled_dot_product_attention(query, query, value=query)
    assert attended.shape == query.shape
    assert fused.flops == 2 * (2 * 4 * 1000) * 1000 * (16 + 16)
    assert counted.peak == query.numel() * 4, "its result, in float32, and no 1000 x 1000"


def test_what_is_dropped_is_no_longer_alive() -> None:
    counted = meta_run.Counted()
    with counted:
        for _ in range(3):
            torch.empty(100, dtype=torch.uint8, device="meta")
        kept = torch.empty(40, dtype=torch.uint8, device="meta")
        view = kept[10:]
    assert (counted.peak, view.numel()) == (100, 30), "one at a time, and a view is no copy"


@pytest.mark.parametrize("part", QUICK, ids=lambda part: part.kind.rpartition(".")[2])
def test_facts_of_small_parts_are_what_is_measured(part: Component) -> None:
    flops, activations = meta_run.polynomials(part)
    assert part.flops == pytest.approx(flops)
    assert part.activations == pytest.approx(activations, rel=0.05)  # torch's versions differ in a copy


@pytest.mark.slow
@pytest.mark.parametrize("part", ALL)
def test_facts_are_what_is_measured(part: Component) -> None:
    flops, activations = meta_run.polynomials(part)
    assert sum(part.flops) == pytest.approx(sum(flops), rel=0.01)
    assert sum(part.activations) == pytest.approx(sum(activations), rel=0.1)


def test_every_part_has_its_facts() -> None:
    for family in ("generators", "rewards"):
        for model in full_size(family):
            for part in components(family, model):
                assert part.flops_at(1.0) > 0, f"{model} {part.name}"
                assert part.activations_at(1.0) > 0
                assert part.activations_at(0.25) > 0
