"""Pools on clusters that change while a job runs: `benchmarks/elastic.py` on few nodes, held to what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, environment

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

LEAST, MOST = 0.85, 1.15
"""Of the GPUs that are there, at work."""


def measured(what: str, place: Path, *options: str) -> Any:
    """What the benchmark found."""
    file = place / "result.json"
    command = [
        sys.executable,
        str(REPOSITORY / "benchmarks" / "elastic.py"),
        what,
        *options,
        "--json",
        str(file),
    ]
    ended = subprocess.run(
        command,
        env={**environment(), "RAY_ADDRESS": ""},
        cwd=place,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=540,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
    return json.loads(file.read_text())[what]["result"]


@pytest.mark.slow
def test_pools_follow_nodes_that_join_and_are_lost(tmp_path: Path) -> None:
    found = measured("follow", tmp_path)
    assert {name: at["at_work"] / at["gpus"] for name, at in found["gpus_at_work"].items()} == {
        name: pytest.approx(1.0, abs=1 - LEAST) for name in found["gpus_at_work"]
    }
    assert found["counted_twice"] == {}
    assert found["equal_to_undisturbed"]


@pytest.mark.slow
def test_an_autoscaler_brings_nodes_and_has_them_back(tmp_path: Path) -> None:
    found = measured("autoscale", tmp_path)
    assert found["nodes"][0][1] == 0, "a head alone"
    assert found["most"] == 3, "up to the greatest size"
    assert found["refused"].startswith(
        "the pool of 'a' needs 3 GPU of 0 that the cluster has, and the autoscaler can"
    )
    assert found["refused_after_s"] < 60
    ended = [count for at_s, count in found["nodes"] if at_s < found["ended_at_s"]]
    assert ended[-1] < 3, (
        "what the second phase has no use for goes at once: its two actors sit on one node or two"
    )
    assert found["given_back_at_s"] is not None


@pytest.mark.slow
def test_nine_unequal_pools_share_eight_gpus(tmp_path: Path) -> None:
    (found,) = measured("nine", tmp_path, "--gpus", "8")
    assert found["ratio"] < MOST


@pytest.mark.slow
def test_a_start_is_told_part_by_part_and_nobody_waits_for_the_slowest_to_load(tmp_path: Path) -> None:
    found = measured("start", tmp_path)
    assert list(found["steps"]) == ["Ray", "nodes and plan", "environments and prompts"]
    load_s = {model: row["load_s"] for model, row in found["models"].items()}
    assert all(load_s[model] >= sleep_s for model, sleep_s in {"a": 2, "b": 2, "r": 20}.items()), load_s
    assert max(load_s["a"], load_s["b"]) < 18, "and not what others do"
    assert all(row["start_s"] > row["load_s"] for row in found["models"].values()), (
        "processes and imports too"
    )
    assert found["first_block"] - sum(found["steps"].values()) < found["models"]["r"]["start_s"]
