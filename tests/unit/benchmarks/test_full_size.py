"""The benchmark for a lent GPU on small weights: a generator, a reward and RankDPO, without Ray or DeepSpeed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rankray.config import ConfigError, SynPicConfig
from rankray.plan.measured import read_measured

ROOT = Path(__file__).parents[3]
BLOCKED = """
import sys
for name in ("ray", "deepspeed"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv.pop(1))
import full_size
full_size.main()
"""
PARTS = ["pixart-sigma", "pickscore", "hpsv2.1", "vqascore", "rankdpo-sdxl-2"]


def measure(path: Path, *more: str) -> str:
    command = [sys.executable, "-c", BLOCKED, str(ROOT / "benchmarks"), *PARTS, "--json", str(path)]
    command += ["--tiny", "--device", "cpu", "--batches", "1", *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_parts_are_measured_without_ray_and_resumed(tmp_path: Path) -> None:
    path = tmp_path / "full-size.json"
    said = measure(path)
    parts = json.loads(path.read_text())["parts"]
    assert set(parts) == set(PARTS)
    assert not [row["error"] for row in parts.values() if "error" in row]
    assert parts["pixart-sigma"]["images_per_s"] > 0
    assert parts["pixart-sigma"]["steps"] == 20
    assert parts["pickscore"]["images_per_s"] > 0
    trained = parts["rankdpo-sdxl-2"]
    assert (trained["batch_size"], trained["micro_batch"], len(trained["waits_s"])) == (4, 2, 1)
    assert 0 < trained["losses"][0] < 10
    assert "left_out" in parts["vqascore"] or "images_per_s" in parts["vqascore"]
    assert "pixart-sigma: " in said
    assert measure(path) == "", "what is there is not measured again"
    config = {
        "prompts": {"path": "p.txt"},
        "generators": [{"model": "pixart-sigma", "samples": 2}],
        "output": "/o",
    }
    settings = SynPicConfig.model_validate({**config, "rewards": [{"model": "pickscore"}]})
    with pytest.raises(
        ConfigError, match="'pixart-sigma' was measured with other settings: size: 'tiny' there"
    ):
        read_measured(str(path), settings)
