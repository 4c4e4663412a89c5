"""The shipped GPU configurations on logical GPUs: `make rehearse`, and what of it takes a few minutes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rankray import config
from recipes.random_weights.__main__ import main as write_weights

REPOSITORY = Path(__file__).parents[2]
JOBS = REPOSITORY / "jobs"
SMALL = ("sdxl", "sd3-medium", "pixart-sigma", "stable-cascade", "mps", "pickscore", "dpg", "qalign-quality")
"""Models without an environment of their own, whose packages would be downloaded: `make rehearse` has those too."""

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def rehearse() -> ModuleType:
    place = REPOSITORY / "scripts" / "rehearse.py"
    specification = importlib.util.spec_from_file_location("rankray_rehearse", place)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # its dataclasses look themselves up
    specification.loader.exec_module(module)
    return module


def rows(rehearse: ModuleType, name: str, kind: str, weights: Path) -> list[dict[str, Any]]:
    """The shipped file's models of a kind, without those whose packages are downloaded."""
    tables = rehearse.rehearsal(name, Path("/place"), weights)
    return [row for row in tables[kind] if row["model"] in {*SMALL, "qalign-aesthetic"}]


def smaller(rehearse: ModuleType, weights: Path, workers: int) -> dict[str, dict[str, Any]]:
    """Changes for two cores: fewer judges, prompts and workers; pools, claims, waiting and ZeRO are as shipped."""
    dpg = config.read_toml(JOBS / "evaluate.toml")["prompts"]["dpg"]
    return {
        "synpic": {"rewards": rows(rehearse, "synpic", "rewards", weights), "prompts.limit": 8},
        "rankdpo-sdxl": {"workers.count": workers, "batch_size": 2 * workers, "steps": 2},
        "evaluate": {
            "evals": rows(rehearse, "evaluate", "evals", weights),
            "metrics": rows(rehearse, "evaluate", "metrics", weights),
            "prompts": {"dpg": {**dpg, "samples": 2}},
        },
    }


def test_what_a_job_reads_is_rehearsed_before_it(rehearse: ModuleType) -> None:
    assert rehearse.due(["rankdpo-sd3"]) == ["synpic", "rankdpo-sd3"]
    assert rehearse.due(["evaluate", "synpic"]) == ["synpic", "rankdpo-sdxl", "evaluate"]
    assert rehearse.due(rehearse.SHIPPED) == list(rehearse.SHIPPED)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_shipped_gpu_configurations_on_logical_gpus(rehearse: ModuleType, tmp_path: Path) -> None:
    """Nodes that join late, fractions, a training of two workers with a GPU each, judges; and no GPU at all."""
    assert write_weights([str(tmp_path / "tiny"), *SMALL]) == 0
    place = tmp_path / "p"
    rehearse.write_prompts(place)
    names = ("synpic", "rankdpo-sdxl", "evaluate")
    with rehearse.logical_cluster(place, tmp_path / "tiny", nodes=2, gpus=4) as on:
        on.changes = smaller(rehearse, tmp_path / "tiny", workers=2)
        on.changes["evaluate"]["prompts"]["dpg"]["path"] = str(place / "prompts" / "dpg_bench.csv")
        ended = {name: rehearse.check_job(name, on) for name in names}
        on.leave()
        for name in names:
            rehearse.check_too_few(name, on)
    assert "waiting up to 1800 s for nodes" in ended["synpic"].text
    # Encoders and reference errors ahead of the training, each on GPUs.
    assert "encoding 8 prompts" in ended["rankdpo-sdxl"].text


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("nodes", "names"), [("8x1", []), ("2x4", ["synpic", "rankdpo-sd3"])])
def test_make_rehearse(rehearse: ModuleType, tmp_path: Path, nodes: str, names: list[str]) -> None:
    """All of it, environments and eight workers too."""
    assert write_weights([str(tmp_path / "tiny")]) == 0
    given = ["--nodes", nodes, "--weights", str(tmp_path / "tiny"), "--place", str(tmp_path / "p")]
    assert rehearse.main([*names, *given]) == 0
