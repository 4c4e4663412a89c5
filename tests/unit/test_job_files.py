"""The job files beside each other: the tiny one is the paper's, but for locations, sizes and the machine."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from rankray import config
from rankray.config import PromptsConfig, SynPicConfig
from rankray.config.ablate import AblationConfig
from rankray.config.evaluate import EvaluateConfig
from rankray.config.rankdpo import AlignConfig, RankDPOConfig
from rankray.data import place
from rankray.data.place import open_output
from rankray.data.prompts import read_prompts
from rankray.evals import EVALS, items_and_repeats

JOBS = Path(__file__).parents[2] / "jobs"
MAY_DIFFER = {"source", "height", "width", "steps", "dtype", "options", "models"}
MODELS = {"generators", "rewards", "model", "models", "evals", "metrics"}
TRAINING = {
    "steps",
    "batch_size",
    "checkpoints.every",
    "checkpoints.sample_every",
    "validation.every",
    "validation.min_prompts",
}
REHEARSED = {
    "synpic": {"execution.rows_per_block"},
    "rankdpo-sdxl": TRAINING,
    "rankdpo-sd3": TRAINING,
    "evaluate": {f"prompts.{name}.samples" for name in ("geneval", "dpg", "compbench")},
}
JOB = {"synpic": SynPicConfig, "evaluate": EvaluateConfig}


@pytest.fixture(scope="module")
def rehearse() -> ModuleType:
    place = JOBS.parent / "scripts" / "rehearse.py"
    specification = importlib.util.spec_from_file_location("rankray_rehearse", place)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # its dataclasses look themselves up
    specification.loader.exec_module(module)
    return module


KINDS = {
    "synpic": SynPicConfig,
    "extend": SynPicConfig,
    "rankdpo": RankDPOConfig,
    "align": AlignConfig,
    "evaluate": EvaluateConfig,
    "ablate": AblationConfig,
}


@pytest.mark.parametrize("name", sorted(path.name for path in JOBS.glob("*.toml")))
def test_the_configuration_that_a_job_writes_is_the_one_it_had(name: str, tmp_path: Path) -> None:
    """Every setting, resolved: whoever runs it again has the same job."""
    kind = KINDS[name.removesuffix(".toml").partition("-")[0]]
    given = config.build(kind, config.read_toml(JOBS / name))
    place.write_config(open_output(str(tmp_path), in_job=False), given)
    again = config.build(kind, config.read_toml(tmp_path / "config.toml"))
    assert again == given
    if not isinstance(given, AlignConfig):  # its parts have identities
        assert again.identity() == given.identity()


@pytest.mark.parametrize("name", list(REHEARSED))
def test_a_rehearsal_is_the_shipped_file_but_for_places_and_sizes(rehearse: ModuleType, name: str) -> None:
    """Pools, fractions, waiting, environments, workers, ZeRO: whatever is not named here is as shipped."""
    shipped = dict(config.flatten(config.read_toml(JOBS / f"{name}.toml")))
    tables = rehearse.rehearsal(name, Path("/place"), Path("/weights"))
    config.build(JOB.get(name, RankDPOConfig), tables)
    ours = dict(config.flatten(tables))
    assert set(shipped) - set(ours) == set()
    assert ours.pop("rehearse") is True
    differs = {key for key, value in ours.items() if key not in shipped or value != shipped[key]}
    models = {key for key in differs if key.split(".")[0] in MODELS and MAY_DIFFER & set(key.split("."))}
    moved = {key for key in differs - models if str(ours[key]).startswith("/place/")}
    assert {key: ours[key].removeprefix("/place") for key in moved} == {
        key: shipped[key].removeprefix("/mnt/cluster_storage") for key in moved
    }
    assert differs - models - moved == REHEARSED[name]
    sources = [ours[key] for key in models if key.endswith(".source")]
    assert sources
    assert all(place.startswith("/weights/") for place in sources)


def test_prompts_of_a_rehearsal_are_read_by_their_benchmarks(rehearse: ModuleType, tmp_path: Path) -> None:
    rehearse.write_prompts(tmp_path)
    counts = {"geneval": "evaluation_metadata.jsonl", "dpg": "dpg_bench.csv", "compbench": "compbench"}
    found = {
        name: len(items_and_repeats(EVALS[name], str(tmp_path / "prompts" / file))[0])
        for name, file in counts.items()
    }
    assert found == {
        "geneval": 2,
        "dpg": 2,
        "compbench": 6,
    }  # DPG-Bench's reader drops its first line's prompt
    captions = PromptsConfig(path=str(tmp_path / "prompts.parquet"), column="caption")
    assert len(read_prompts(captions).rows) == 16


@pytest.mark.parametrize("kind", ["generators", "rewards"])
def test_the_tiny_job_is_the_papers_but_for_locations_and_sizes(kind: str) -> None:
    paper, tiny = (config.read_toml(JOBS / f"{name}.toml") for name in ("synpic", "synpic-tiny"))
    assert len(tiny[kind]) == len(paper[kind]) == {"generators": 4, "rewards": 5}[kind]
    for ours, theirs in zip(tiny[kind], paper[kind], strict=True):
        assert {key: value for key, value in ours.items() if key not in MAY_DIFFER} == theirs
        assert ours["source"].startswith("~/rankray/tiny/")


def test_all_else_is_the_machines() -> None:
    paper, tiny = (config.read_toml(JOBS / f"{name}.toml") for name in ("synpic", "synpic-tiny"))
    assert set(paper) == set(tiny)
    assert tiny["prices"] == paper["prices"]
    differs = {
        key
        for key in {*tiny["execution"], *paper["execution"]}
        if tiny["execution"].get(key) != paper["execution"].get(key)
    }
    assert differs == {"device", "wait_for_nodes_s"}


@pytest.mark.parametrize(
    "path", [*sorted(JOBS.glob("synpic*.toml")), JOBS / "extend-shapes.toml"], ids=lambda p: p.stem
)
def test_job_files_are_valid(path: Path) -> None:
    config.build(SynPicConfig, config.read_toml(path))


def test_generators_may_have_every_gpu_of_the_launchers_cluster_and_a_list_has_blocks_for_them() -> None:
    """One generator draws at a time; GenEval's list is the shortest of those that are published, 553 prompts."""
    cluster = yaml.safe_load((JOBS.parent / "cluster" / "aws.yaml").read_text())
    gpus = sum(
        node["max_workers"] * node["resources"].get("GPU", 0)
        for name, node in cluster["available_node_types"].items()
        if name != cluster["head_node_type"]
    )
    assert gpus == 32
    drawn = config.build(SynPicConfig, config.read_toml(JOBS / "synpic.toml"))
    measured = config.build(EvaluateConfig, config.read_toml(JOBS / "evaluate.toml"))
    assert [choice.pool.max_size for choice in (*drawn.generators, *measured.models)] == [gpus] * 6
    assert 553 / measured.execution.rows_per_block >= 4 * gpus
