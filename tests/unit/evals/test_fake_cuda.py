"""The benchmarks' judges at full size on a fake CUDA device, by their classes and the layout of their files.

What they find is guessed; the small judges beside this file show it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs


@pytest.mark.parametrize("name", [pytest.param("geneval", marks=pytest.mark.slow), "dpg", "compbench"])
def test_it_judges_in_the_memory_that_is_stated(name: str, tmp_path: Path) -> None:
    found = runs.judge(name, tmp_path)
    assert len(found.made) == 2
    assert found.off == pytest.approx(1.0, abs=0.25)


def left_behind(judge: Any) -> None:
    judge.clip.model.visual_projection.cpu()


def half_clip(judge: Any) -> None:
    judge.clip.model.visual_projection.half()


@pytest.mark.parametrize(
    ("fault", "says"), [(left_behind, "devices"), (half_clip, r"float16 and torch\.float32")]
)
def test_a_planted_fault_raises(fault: runs.Plant, says: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=says):
        runs.judge("compbench", tmp_path, fault)
