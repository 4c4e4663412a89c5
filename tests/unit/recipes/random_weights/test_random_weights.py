"""Checkpoints of random weights: written once, whole, and loaded by the classes that load the real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rankray.evals import EVALS
from rankray.models.generators import GENERATORS
from rankray.models.rewards import REWARDS
from rankray.models.targets import Target, load
from rankray.models.weights import weights_revision
from recipes.random_weights.__main__ import GENERATORS as GENERATORS_MADE
from recipes.random_weights.__main__ import JUDGES, MARKER, main
from recipes.random_weights.__main__ import REWARDS as NAMES
from recipes.random_weights.judges import JUDGES_MADE, small_spec
from recipes.random_weights.rewards import REWARDS_MADE, sizes


def test_they_are_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "pickscore", "mps"]) == 0
    assert f"pickscore: {tmp_path}/pickscore\nmps: {tmp_path}/mps\n" in capsys.readouterr().out
    before = weights_revision(str(tmp_path / "mps"), "main")
    (tmp_path / "pickscore" / MARKER).unlink()  # as a kill leaves it
    (tmp_path / "pickscore" / "model.safetensors").write_bytes(b"half")
    assert main([str(tmp_path), "pickscore", "mps"]) == 0
    assert "mps is there already" in capsys.readouterr().out
    assert weights_revision(str(tmp_path / "mps"), "main") == before
    for name in ("pickscore", "mps"):
        options = {**REWARDS[name].options, **sizes(name, tmp_path / name)}
        spec = replace(REWARDS[name], source=str(tmp_path / name), batch_size=2, options=options)
        reward = load(Target(name, spec.target, {"spec": spec}), "cpu")
        pictures = [Image.new("RGB", (48, 40), (90 * n, 20, 200)) for n in range(3)]
        scores = reward.score(pictures, ["a red circle", "two stars", ""])
        assert np.ptp(scores) > 1e-4
        assert np.isfinite(scores).all()


def test_a_judge_s_parts_are_written_and_load(tmp_path: Path) -> None:
    assert main([str(tmp_path), "dpg"]) == 0
    asked = {
        "a circle": {
            "item_id": "1",
            "questions": {"1": {"text": "a circle?", "category": "x", "parents": []}},
        }
    }
    spec = small_spec("dpg", tmp_path / "dpg")
    judge = load(Target("dpg", spec.target, {"spec": spec, "items": asked}), "cpu")
    (judgement,) = judge.judge([Image.new("RGB", (48, 40), (90, 20, 200))], ["a circle"])
    assert judgement.score == float(judgement.detail["answers"]["1"])


def test_an_unknown_name_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "pickscor"]) == 2
    assert capsys.readouterr().err.startswith(
        "unknown model 'pickscor' (did you mean 'pickscore'?); known: sdxl"
    )


def test_they_are_models_of_the_tables() -> None:
    assert set(GENERATORS_MADE) < set(GENERATORS)
    assert set(NAMES) == set(REWARDS_MADE) < set(REWARDS)
    assert set(JUDGES) == set(JUDGES_MADE) <= set(EVALS)
    for name, (_, environment) in REWARDS_MADE.items():
        assert REWARDS[name].environment == environment
