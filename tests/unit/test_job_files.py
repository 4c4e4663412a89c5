"""The job files beside each other: the tiny one is the paper's, but for locations, sizes and the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankray import config
from rankray.config import SynPicConfig

JOBS = Path(__file__).parents[2] / "jobs"
MAY_DIFFER = {
    "source",
    "height",
    "width",
    "dtype",
    "options",
}


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
