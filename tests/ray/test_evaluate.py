"""Evaluation as users start it: tables of two models, found finished, extended by a third; killed and continued."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import RED, REHEARSE, Ended, left, model, start, wait_for
from ray.cluster_utils import Cluster

from rankray import store

pytestmark = pytest.mark.ray

Job = Callable[..., Ended]


def options(output: Path, log: Path, *names: str) -> list[str]:
    models = ", ".join(model("Noise", name, "num_gpus=1", size=64, log=str(log)) for name in names)
    return [
        *("--output", str(output), "--models", f"[{models}]", "--baseline", names[0], *REHEARSE),
        *("--evals", "shapes", "--metrics", f"[{RED}]"),
        *("--prompts.shapes", "shapes:heldout", "--prompts.shapes.limit", "12"),
        *("--prompts.shapes.samples", "1", "--execution.rows_per_block", "3"),
    ]


def results(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "results.json").read_text())
    return found


def test_two_models_are_one_table_and_are_not_drawn_again(
    job: Job, golden: Callable[..., None], tmp_path: Path
) -> None:
    output, log = tmp_path / "o", tmp_path / "log"
    ended = job("evaluate", *options(output, log, "one", "two"))
    assert ended.code == 0, ended.text
    found = results(output)
    # Equal models draw equal pictures, as they have equal seeds.
    overall = found["evals"][0]["columns"][-1]
    assert (overall["name"], overall["prompts"], overall["difference"]["two"]["gain"]) == ("overall", 12, 0.0)
    assert found["metrics"][0]["wins"][0]["ties"] == 12
    assert found["changed"] == []
    assert found["cost"]["totals"]["gpu_hours"] > 0
    assert "| one (baseline) |" in (output / "results.md").read_text()
    assert (output / "report.html").exists()
    golden("evaluate.json", left(output, "results.json"))
    place = output / "sets" / "one" / "shapes"
    assert store.validate(str(place)).rows == 12
    table = store.read_table(store.read(str(place)).files[0], store.filesystem(str(place))[0], images=True)
    assert all("shapes" in json.loads(text) for row in table["details"].to_pylist() for text in row)
    seeds = log.read_text().split()
    assert len(seeds) == 24
    assert len(set(seeds)) == 12
    again = job("evaluate", *options(output, log, "one", "two"))
    assert (again.code, len(log.read_text().split())) == (0, 24), again.text
    assert "is complete already; nothing to do" in again.text


@pytest.mark.slow
def test_a_kill_repeats_no_finished_row_and_a_third_model_is_measured_alone(
    job: Job, cluster: Cluster, tmp_path: Path
) -> None:
    output, log = tmp_path / "o", tmp_path / "log"
    process = start(cluster.address, "evaluate", *options(output, log, "one", "two"))
    wait_for((output / "sets" / "one" / "shapes" / "dataset.json").exists, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    ended = job("evaluate", *options(output, log, "one", "two"))
    assert ended.code == 0, ended.text
    made = {found["model"]: found["images_made"] for found in results(output)["sets"]}
    assert made["one"] == 12
    drawn = len(log.read_text().split())
    ended = job("evaluate", *options(output, log, "one", "two", "three"))
    assert ended.code == 0, ended.text
    assert len(log.read_text().split()) == drawn + 12
    assert [found["name"] for found in results(output)["models"]] == ["one", "two", "three"]
