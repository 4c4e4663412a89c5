"""The models on a GPU: what CPUs hold of them holds there, and the full-size benchmark runs.

pytest -m gpu tests/gpu
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rankray.models.generators import GENERATORS
from rankray.models.generators.diffusers_pipeline import DiffusersGenerator
from rankray.models.rewards import REWARDS
from rankray.models.targets import Target, load
from recipes.random_weights.__main__ import GENERATORS as MADE
from recipes.random_weights.__main__ import main as write_weights
from recipes.random_weights.rewards import sizes

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "pixart-sigma": {"call": {**GENERATORS["pixart-sigma"].call, "use_resolution_binning": False}},
    "stable-cascade": {
        "after_load": {
            "prior_pipe": {"resolution_multiple": 8.0},
            "decoder_pipe": {"latent_dim_scale": 2.0},
        }
    },
}
PROMPTS = ["a red circle", "two stars", "a blue square left of a star", "three triangles", "one circle"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny")
    assert write_weights([str(place), *MADE, "pickscore", "mps"]) == 0
    return place


@pytest.mark.parametrize("name", ["sdxl", "sd3-medium"])
def test_a_picture_does_not_depend_on_its_neighbours(tiny: Path, name: str, device: str) -> None:
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
    model = DiffusersGenerator(spec, device)
    together = model.generate(PROMPTS, range(5))
    alone = [model.generate([prompt], [seed])[0] for seed, prompt in enumerate(PROMPTS)]
    turned = model.generate(PROMPTS[::-1], range(4, -1, -1))[::-1]
    for first, second, third in zip(together, alone, turned, strict=True):
        assert np.array_equal(np.asarray(first), np.asarray(second))
        assert np.array_equal(np.asarray(first), np.asarray(third))


@pytest.mark.parametrize("name", ["pickscore", "mps"])
@pytest.mark.parametrize(("dtype", "due"), [("float32", 1e-3), ("bfloat16", 0.3), ("float16", 0.1)])
def test_scores_are_the_cpu_s(tiny: Path, name: str, dtype: str, due: float, device: str) -> None:
    """Scores are exp(logit_scale) = 14 times a cosine; float32 on a GPU may round products to TF32."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (70, 64, 3), dtype=np.uint8)) for _ in PROMPTS]
    options = {**REWARDS[name].options, **sizes(name, tiny / name)}
    spec = replace(REWARDS[name], source=str(tiny / name), batch_size=2, options=options)
    target = Target(name, spec.target, {"spec": spec})
    cpu = load(target, "cpu").score(pictures, PROMPTS)
    gpu = load(Target(name, spec.target, {"spec": replace(spec, dtype=dtype)}), device).score(
        pictures, PROMPTS
    )
    assert np.abs(cpu - gpu).max() < due
    assert np.ptp(cpu) > 1e-3


@pytest.mark.parametrize("name", MADE)
def test_pictures_are_the_cpu_s(tiny: Path, name: str, device: str) -> None:
    """In float32, with noise drawn on the CPU: pictures differ by roundings (a GPU may round products to TF32)."""
    spec = replace(
        GENERATORS[name], source=str(tiny / name), variant=None, connected={}, dtype="float32", height=64, width=64,
        steps=2, batch_size=2, **SMALL.get(name, {}),
    )  # fmt: skip
    due, found = (DiffusersGenerator(spec, kind).generate(PROMPTS[:2], [0, 1]) for kind in ("cpu", device))
    for one, other in zip(due, found, strict=True):
        difference = np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16))
        assert difference.mean() < 3.0
        assert np.asarray(one).std() > 1.0


@pytest.mark.timeout(900)
def test_the_full_size_benchmark(device: str, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    names = ["pixart-sigma", "mps", "rankdpo-sd3-medium-1"]
    command = [sys.executable, str(ROOT / "benchmarks" / "full_size.py"), *names, "--batches", "1"]
    command += ["--json", str(result), *(["--tiny", "--device", "cpu"] if device == "cpu" else [])]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    found = json.loads(result.read_text())["parts"]
    assert set(found) == set(names)
    for row in found.values():
        assert "error" not in row, row["error"]
        assert row["batches_s"][0] > 0
        if device == "cuda":
            assert 1.0 < row["peak_memory_gb"] < torch.cuda.get_device_properties(0).total_memory / 1e9
