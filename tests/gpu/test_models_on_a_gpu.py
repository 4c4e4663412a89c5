"""The models on a GPU: what CPUs hold of them holds there, and the full-size benchmark runs.

pytest -m gpu tests/gpu
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rankray.generators import GENERATORS
from rankray.generators.diffusers_pipeline import DiffusersGenerator
from rankray.random_weights.__main__ import GENERATORS as MADE
from rankray.random_weights.__main__ import main as write_weights
from rankray.random_weights.rewards import sizes
from rankray.rewards import REWARDS
from rankray.targets import Target, load

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
PROMPTS = ["a red circle", "two stars", "a blue square left of a star", "three triangles", "one circle"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny")
    assert write_weights([str(place), "sdxl", "sd3-medium", "pickscore", "mps"]) == 0
    return place


@pytest.mark.parametrize("name", ["sdxl", "sd3-medium"])
def test_a_picture_does_not_depend_on_its_neighbours(tiny: Path, name: str) -> None:
    """As on CPUs: bit for bit, in bfloat16, at one batch size."""
    spec = replace(
        GENERATORS[name],
        source=str(tiny / name),
        variant=None,
        dtype="bfloat16",
        height=64,
        width=64,
        steps=4,
        batch_size=4,
    )
    model = DiffusersGenerator(spec, "cuda")
    together = model.generate(PROMPTS, range(5))
    alone = [model.generate([prompt], [seed])[0] for seed, prompt in enumerate(PROMPTS)]
    turned = model.generate(PROMPTS[::-1], range(4, -1, -1))[::-1]
    for first, second, third in zip(together, alone, turned, strict=True):
        assert np.array_equal(np.asarray(first), np.asarray(second))
        assert np.array_equal(np.asarray(first), np.asarray(third))


@pytest.mark.parametrize("name", ["pickscore", "mps"])
@pytest.mark.parametrize(("dtype", "due"), [("float32", 1e-3), ("bfloat16", 0.3), ("float16", 0.1)])
def test_scores_are_the_cpu_s(tiny: Path, name: str, dtype: str, due: float) -> None:
    """Scores are exp(logit_scale) = 14 times a cosine; float32 on a GPU may round products to TF32."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (70, 64, 3), dtype=np.uint8)) for _ in PROMPTS]
    options = {**REWARDS[name].options, **sizes(name, tiny / name)}
    spec = replace(REWARDS[name], source=str(tiny / name), batch_size=2, options=options)
    target = Target(name, spec.target, {"spec": spec})
    cpu = load(target, "cpu").score(pictures, PROMPTS)
    gpu = load(Target(name, spec.target, {"spec": replace(spec, dtype=dtype)}), "cuda").score(
        pictures, PROMPTS
    )
    assert np.abs(cpu - gpu).max() < due
    assert np.ptp(cpu) > 1e-3


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [*MADE, "pickscore", "hpsv2.1"])
def test_the_full_size_benchmark(name: str, tmp_path: Path) -> None:
    """Disk: up to 16 GB for a model, given back at the end."""
    result = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "full_size.py"), name, "--batches", "1"]
    command += ["--weights", str(tmp_path), "--json", str(result)]
    subprocess.run(command, check=True, cwd=ROOT)
    found = json.loads(result.read_text())["models"][name]
    assert found["images_per_s"] > 0
    assert 1.0 < found["peak_memory_gb"] < torch.cuda.get_device_properties(0).total_memory / 1e9
