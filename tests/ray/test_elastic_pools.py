"""Pools on clusters that change while a job runs: `benchmarks/elastic.py` on few nodes, held to what it promises."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import REHEARSE, REPOSITORY, environment, model, python_path, start, wait_for
from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

LEAST, MOST = 0.85, 1.15
"""Of the GPUs that are there, at work."""

PROMPTS = 200
"""By a generator that takes a second for each: longer than two more pools take to start."""


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


@pytest.mark.slow
def test_halves_of_a_gpu_leave_a_whole_one_on_another_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spread over the nodes, as Ray Data has it, two halves would sit on two GPUs, and the third pool wait until one of
    theirs had nothing left to do."""
    home, log = tempfile.mkdtemp(prefix="tests-"), tmp_path / "drawn"
    monkeypatch.setenv("PYTHONPATH", python_path())
    monkeypatch.setenv("RAY_TMPDIR", home)
    monkeypatch.setenv("RAY_prestart_worker_first_driver", "0")
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 3, "num_gpus": 0, "include_dashboard": False}
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, num_gpus=1)
        (tmp_path / "prompts.txt").write_text("\n".join(f"prompt number {n}" for n in range(PROMPTS)))
        half, whole = "num_gpus=0.5, max_size=1", "num_gpus=1, max_size=1"
        noise = model("Noise", "noise", half, delay_s=1.0, log=str(log))
        rewards = f"[{model('Brightness', 'half', half)}, {model('Brightness', 'whole', whole)}]"
        words = ["--generators", f"[{noise}, {model('Noise', 'more', 'max_size=1')}]", "--rewards", rewards]
        words += ["--prompts.path", str(tmp_path / "prompts.txt"), "--output", str(tmp_path / "o")]
        words += ["--execution.mode", "streaming", "--execution.rows_per_block", "2", *REHEARSE]
        job = start(cluster.address, "synpic", *words)
        try:
            wait_for(lambda: any((tmp_path / "o" / "data").glob("*.parquet")), job, 300)
            assert len(log.read_text().splitlines()) < PROMPTS
        finally:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    finally:
        cluster.shutdown()
        shutil.rmtree(home, ignore_errors=True)
