"""An evaluation that follows a training run: every checkpoint that stays is measured, and it ends with the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REHEARSE, Ended, finish, start, wait_for
from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

STEPS, EVERY = 6, 2


def words(output: Path, **options: object) -> list[str]:
    pairs = [(f"--{key.replace('__', '.')}", str(value)) for key, value in options.items()]
    return ["--output", str(output), *(word for pair in pairs for word in pair), *REHEARSE]


def test_checkpoints_are_measured_as_they_come(
    job: Callable[..., Ended], cluster: Cluster, dataset: Path, tmp_path: Path
) -> None:
    trained, output = tmp_path / "run", tmp_path / "evaluation"
    training = start(
        cluster.address,
        "rankdpo",
        *words(
            trained,
            dataset=dataset,
            model__model="shapes-sdxl",
            steps=STEPS,
            batch_size=4,
            workers__num_cpus=0.5,
            workers__num_gpus=1,
            checkpoints__every=EVERY,
            checkpoints__keep=5,
            checkpoints__sample_every=0,
            validation__share=0.0,
        ),
    )
    wait_for((trained / "config.toml").exists, training)
    options = {
        "follow": trained,
        "follow_interval_s": 1,
        "baseline": "shapes-sdxl",
        "evals": "shapes",
        "prompts.shapes": "shapes:heldout",
        "prompts.shapes.limit": 4,
        "prompts.shapes.samples": 1,
    }
    ended = job("evaluate", *words(output, **options))
    assert ended.code == 0, ended.text
    run = finish(training)
    assert run.code == 0, run.text
    found = json.loads((output / "results.json").read_text())
    assert [model["step"] for model in found["models"]] == [None, *range(EVERY, STEPS + 1, EVERY)]
    assert found["models"][0]["name"] == found["baseline"] == "shapes-sdxl"
    assert len({model["revision"] for model in found["models"]}) == len(found["models"]), "weights differ"
    assert all(entry["rows"] == 4 for entry in found["sets"])
    again = job("evaluate", *words(output, **options))
    assert again.code == 0, again.text
    assert "is complete already; nothing to do" in again.text
