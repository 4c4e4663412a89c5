"""Rewards at full size on a fake CUDA device, by their classes and the layout of their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("pickscore", {}, marks=pytest.mark.slow),
        pytest.param("pickscore", {"dtype": "float16"}, marks=pytest.mark.slow),
        pytest.param("mps", {}, marks=pytest.mark.slow),
        ("mps", {"dtype": "bfloat16"}),
        ("clipscore", {}),
        ("aesthetic", {}),
        ("qalign-quality", {}),
        ("hpsv2.1", {}),
        ("imagereward", {}),
        ("vqascore", {"model": "clip-flant5-xl"}),
        pytest.param("vqascore", {}, marks=pytest.mark.slow),
    ],
)
def test_it_scores_in_the_memory_that_is_planned(name: str, changes: Any, tmp_path: Path) -> None:
    found = runs.reward(name, tmp_path, **changes)
    assert (found.made.dtype, found.made.shape) == (np.float32, (3,))
    assert found.weights == pytest.approx(found.planned_weights, rel=0.25)
    assert found.off == pytest.approx(1.0, abs=0.25)
    assert found.loading < found.room, "a file in float32 is cast on the device, once"


def half_projection(reward: Any) -> None:
    reward.clip.model.visual_projection.half()


def left_behind(reward: Any) -> None:
    reward.clip.model.visual_projection.cpu()


@pytest.mark.parametrize(
    ("fault", "says"),
    [(half_projection, r"float16 and torch\.float32; one dtype is due"), (left_behind, "devices")],
)
def test_a_planted_fault_raises(fault: runs.Plant, says: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=says):
        runs.reward("clipscore", tmp_path, fault)
