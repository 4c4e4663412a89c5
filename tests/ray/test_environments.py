"""Two versions of one package in one job: rewards in overlays, looked for on each node and built where asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import nothing_left
from ray.cluster_utils import Cluster
from toy_package_wheel import wheel

from rankray import config, store
from rankray.config import ConfigError, SynPicConfig
from rankray.models import environments
from rankray.synpic import job as synpic

pytestmark = pytest.mark.ray


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions of a package as the table's environments; overlays go to the session's own home."""
    table = {f"toy-{version}": wheel(tmp_path / "w", version) for version in ("1.0", "2.0")}
    monkeypatch.setattr(environments, "ENVIRONMENTS", table)


def settings(output: Path, **execution: Any) -> SynPicConfig:
    pool = {"num_cpus": 0.1, "num_gpus": 0.5}
    judges = [
        {
            "model": "toy_models:Versioned",
            "name": f"judge-{version}",
            "pool": {**pool, "environment": f"toy-{version}"},
        }
        for version in ("1.0", "2.0")
    ]
    tables = {
        "prompts": {"path": "shapes:heldout", "limit": 6},
        "generators": [{"model": "toy_models:Noise", "samples": 2, "pool": pool}],
        "rewards": judges,
        "output": str(output),
        "rehearse": True,
        "execution": execution,
    }
    return config.build(SynPicConfig, tables)


def test_versions_side_by_side(cluster: Cluster, wheels: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        synpic.run(settings(tmp_path / "o"), say=lambda line: None)
    lines = str(caught.value).splitlines()
    assert [line.split(": ", 1)[1].split(" at ")[0] for line in lines[:2]] == [
        "environment 'toy-1.0'",
        "environment 'toy-2.0'",
    ]
    assert lines[2].startswith("run `rankray envs build toy-1.0 toy-2.0` on each such node")
    assert not (tmp_path / "o").exists()
    synpic.run(settings(tmp_path / "o", build_environments=True), say=lambda line: None)
    nothing_left()
    scores = {
        tuple(candidate["scores"])
        for row in store.read(str(tmp_path / "o")).rows()
        for candidate in row["candidates"]
    }
    assert scores == {(1.0, 2.0)}
    rewards = store.read(str(tmp_path / "o")).info["rewards"]
    assert [Path(reward["environment"]).parents[1].name.split("-")[1] for reward in rewards] == ["1.0", "2.0"]
    assert store.validate(str(tmp_path / "o")).failures == 0
