"""Encoding and reference pools that claim GPUs, on logical ones: they start, in whole GPUs and in fractions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from rankray import config
from rankray.config import ConfigError
from rankray.config.rankdpo import RankDPOConfig
from rankray.rankdpo import encoded
from rankray.rankdpo import job as rankdpo

sys.path.append(str(Path(__file__).parents[1] / "unit"))
import small_dataset

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def prepared(root: Path, num_gpus: float, count: int, **changes: Any) -> tuple[list[str], str | None]:
    dataset = small_dataset.write(root / "dataset")
    info = json.loads(Path(dataset, "dataset.json").read_text())
    info["prompts"]["sha256"] = "0"
    Path(dataset, "dataset.json").write_text(json.dumps(info))
    tables = {
        "dataset": dataset,
        "output": str(root / "run"),
        "model": {"model": "shapes-sdxl"},
        "steps": 2,
        "batch_size": 2,
        "rehearse": True,
        "objective": {"reference": "precomputed"},
        "validation": {"share": 0.0},
        "encoding": {"num_gpus": num_gpus, "min_size": count},
        "workers": {"count": 2, "num_gpus": 1, "num_cpus": 0.5},
    }
    said: list[str] = []
    job = rankdpo.prepare(config.build(RankDPOConfig, config.with_options(tables, changes)), said.append)
    return said, job.sets[0].reference


@pytest.mark.slow
@pytest.mark.parametrize(("num_gpus", "count"), [(1.0, 2), (0.5, 1)])
def test_they_start_on_gpus(cluster: Cluster, tmp_path: Path, num_gpus: float, count: int) -> None:
    """Four prompts read of three: each once, and the first of the second epoch."""
    said, place = prepared(tmp_path, num_gpus, count)
    assert place is not None
    found = encoded.read_reference(place)
    assert sorted(len(errors) for errors in found.values()) == [1, 1, 2]
    assert said[0].startswith("on disk: encoded set (")
    assert said[-1] == "reference ahead: 1.33 epochs of 3 prompts, 12 forward passes on 2 actors"


def test_an_encoder_that_no_node_holds_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="9 encoders need 9 GPU, and the cluster has 8; lower encoding"):
        prepared(tmp_path, 1.0, 9)
