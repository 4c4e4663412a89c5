"""Training that grows onto a node that joins, goes on when the node is lost, and ends with the same weights.

Workers claim a (logical) GPU each, as they do on a cluster, and compute on the CPU.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import tomli_w
from conftest import REPOSITORY, environment
from ray.cluster_utils import Cluster

from rankray import config
from rankray.config import SynPicConfig
from rankray.config.rankdpo import RankDPOConfig
from rankray.rankdpo import job as rankdpo
from rankray.rankdpo.zero import Stored
from rankray.synpic import job as synpic

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 300


def settings(dataset: Path, output: Path, **changes: Any) -> RankDPOConfig:
    tables: dict[str, Any] = {
        "dataset": str(dataset),
        "output": str(output),
        "model": {"model": "shapes-sdxl"},
        "steps": STEPS,
        "batch_size": 8,
        "objective": {"beta": 200.0},
        "optimizer": {"name": "sgd", "learning_rate": 1e-4},
        "workers": {"count": 1, "num_cpus": 1.0, "num_gpus": 1, "zero_stage": 2, "resize_every_s": 5.0},
        "rehearse": True,
        "encoding": {"num_cpus": 0.5},
        "checkpoints": {"every": 5},
        "validation": {"share": 0.0},
    }
    return config.build(RankDPOConfig, config.with_options(tables, changes))


def lines(run: Path) -> list[dict[str, Any]]:
    place = run / "metrics.jsonl"
    text = place.read_text() if place.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def weights(run: Path) -> dict[str, Any]:
    last = sorted(place for place in (run / "checkpoints").glob("checkpoint_*") if place.is_dir())[-1]
    return dict(Stored(last, "weights"))


def start(settings_: RankDPOConfig, file: Path, address: str) -> subprocess.Popen[str]:
    file.write_text(tomli_w.dumps(settings_.model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, str(REPOSITORY / "jobs" / "rankdpo.py"), "--config", str(file)]
    with file.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            command, env={**environment(), "RAY_ADDRESS": address}, stdout=log, stderr=subprocess.STDOUT
        )


def wait_for_steps(run: Path, workers: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while sum(line["workers"] == workers for line in lines(run)) < 20:
        assert time.monotonic() < deadline, f"never 20 steps with {workers} workers"
        assert process.poll() is None
        time.sleep(0.2)


def test_a_node_joins_and_is_lost(tmp_path: Path) -> None:
    # Room for one worker on each node.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "num_gpus": 1})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        tables = {
            "prompts": {"path": "shapes:train", "limit": 24},
            "generators": [{"model": "shapes-sdxl", "samples": 3, "steps": 4}],
            "rewards": [{"model": "shapes-pickscore"}],
            "output": str(tmp_path / "dataset"),
        }
        synpic.run(config.build(SynPicConfig, tables), say=lambda line: None)
        grown = settings(tmp_path / "dataset", tmp_path / "elastic", **{"workers.max_count": 2})
        process = start(grown, tmp_path / "elastic.toml", cluster.address)
        wait_for_steps(tmp_path / "elastic", 1, process)
        joined = cluster.add_node(num_cpus=2, num_gpus=1)
        wait_for_steps(tmp_path / "elastic", 2, process)
        cluster.remove_node(joined, allow_graceful=False)
        assert process.wait(400) == 0, (tmp_path / "elastic.log").read_text()[-4000:]
        rankdpo.run(settings(tmp_path / "dataset", tmp_path / "fixed"), say=lambda line: None)
    finally:
        ray.shutdown()
        cluster.shutdown()
    found = lines(tmp_path / "elastic")
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    counts = [line["workers"] for line in found]
    changes = [counts[0], *(b for a, b in itertools.pairwise(counts) if a != b)]
    assert changes == [1, 2, 1]
    ours, theirs = weights(tmp_path / "elastic"), weights(tmp_path / "fixed")
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5
