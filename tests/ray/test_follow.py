"""An evaluation that follows a training run: every checkpoint that stays is measured, and it ends with the run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import JOB_TIMEOUT_S, REPOSITORY, Ended, environment, run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

STEPS, EVERY = 6, 2


def words(job: str, output: Path, **options: object) -> list[str]:
    pairs = [(f"--{key.replace('__', '.')}", str(value)) for key, value in options.items()]
    script = str(REPOSITORY / "jobs" / f"{job}.py")
    return [sys.executable, script, "--output", str(output), *(word for pair in pairs for word in pair)]


def test_checkpoints_are_measured_as_they_come(job: Callable[..., Ended], tmp_path: Path) -> None:
    dataset, trained, output = tmp_path / "dataset", tmp_path / "run", tmp_path / "evaluation"
    ended = job(
        dataset,
        *("--prompts.path", "shapes:train", "--prompts.limit", "8", "--rewards", '[{model="shapes-mps"}]'),
        *("--generators", '[{model="shapes-sdxl", samples=3, steps=4}]'),
    )
    assert ended.code == 0, ended.text
    training = subprocess.Popen(
        words(
            "rankdpo",
            trained,
            dataset=dataset,
            model__model="shapes-sdxl",
            steps=STEPS,
            batch_size=4,
            workers__num_cpus=0.5,
            checkpoints__every=EVERY,
            checkpoints__keep=5,
            checkpoints__sample_every=0,
        ),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while not (trained / "config.toml").exists():
        assert training.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    options = {
        "follow": trained,
        "follow_interval_s": 1,
        "baseline": "shapes-sdxl",
        "evals": "shapes",
        "prompts.shapes": "shapes:heldout",
        "prompts.shapes.limit": 4,
        "prompts.shapes.samples": 1,
    }
    ended = run(words("evaluate", output, **options), tmp_path)
    assert ended.code == 0, ended.text
    assert training.wait(JOB_TIMEOUT_S) == 0
    found = json.loads((output / "results.json").read_text())
    assert [model["step"] for model in found["models"]] == [None, *range(EVERY, STEPS + 1, EVERY)]
    assert found["models"][0]["name"] == found["baseline"] == "shapes-sdxl"
    assert len({model["revision"] for model in found["models"]}) == len(found["models"]), "weights differ"
    assert all(entry["rows"] == 4 for entry in found["sets"])
    again = run(words("evaluate", output, **options), tmp_path)
    assert again.code == 0, again.text
    assert "is complete already; nothing to do" in again.text
