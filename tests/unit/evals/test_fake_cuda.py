"""The benchmarks' judges at full size on a fake CUDA device, by their classes and the layout of their files.

Guessed (`rankray.fake_cuda`): every mask holds something, every class is that of number 0, and every answer is the
token of number 0, so that the ways through boxes, masks and colours are all taken; what they find is shown by the
small judges beside this file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rankray.evals import EVALS, EvalSpec
from rankray.fake_cuda import fake_cuda
from rankray.random_weights import full_size_judges
from rankray.targets import Target, load

pytestmark = pytest.mark.slow

CASES: dict[str, Any] = {
    "geneval": {
        "tag": "colors",
        "include": [{"class": "person", "count": 1, "color": "red"}],
        "exclude": [],
        "prompt": "a photo of a red person",
    },
    "dpg": {
        "item_id": "1",
        "questions": {
            "1": {"text": "Is there a bicycle?", "category": "entity - whole", "parents": [0]},
            "2": {"text": "Is it red?", "category": "attribute - color", "parents": [1]},
        },
    },
    "compbench": {
        "category": "complex",
        "kind": "both",
        "phrases": ["a red bicycle", "a blue bird"],
        "spatial": ["bicycle", "on the left of", "bird"],
        "action": "a red bicycle on the left of a blue bird",
    },
}


def pictures(count: int = 2) -> list[Image.Image]:
    return [Image.new("RGB", (1024, 1024), "red")] * count


def hollow(name: str, place: Path) -> EvalSpec:
    return replace(EVALS[name], models=full_size_judges.hollow(name, place))


def judge(name: str, place: Path, item: Any, plant: Any = None) -> tuple[list[Any], int]:
    spec = hollow(name, place)
    with fake_cuda(answer=True) as device:
        made: Any = load(Target(name, spec.target, {"spec": spec, "items": {"p": item}}), "cuda")
        if plant is not None:
            plant(made)
        return made.judge(pictures(), ["p", "p"]), device.peak


@pytest.mark.parametrize("name", CASES)
def test_judges(name: str, tmp_path: Path) -> None:
    found, peak = judge(name, tmp_path, CASES[name])
    assert len(found) == 2
    assert peak < EVALS[name].gpu_memory_gb * 1e9


def clip_left_behind(made: Any) -> None:
    made.clip.model.visual_projection.cpu()


def half_clip(made: Any) -> None:
    made.clip.model.visual_projection.half()


@pytest.mark.parametrize(
    ("plant", "says"), [(clip_left_behind, "devices"), (half_clip, r"float16 and torch\.float32")]
)
def test_a_planted_fault_raises(plant: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=says):
        judge("geneval", tmp_path, CASES["geneval"], plant)
