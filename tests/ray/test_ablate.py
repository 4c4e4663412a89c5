"""An ablation, whole and small: the sweep, rows of two seeds, a curve, a run measured as it goes; and both its ways."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from conftest import REPOSITORY, environment

from rankray import config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(2400)]

FILE = REPOSITORY / "jobs" / "ablate-shapes.toml"
ROWS = ("rank-random", "rank", "sft", "prompts-half")


def small(output: Path, trials: str) -> Path:
    """The shapes ablation on 40 prompts, four steps, four rows."""
    tables = config.read_toml(FILE)
    tables |= {
        "output": str(output),
        "trials": trials,
        "seeds": 2,
        "generators": [{"model": "shapes-sdxl", "samples": 3}],
        "labels": {"samples": {"shapes-sdxl": 3}},
        "objectives": [one for one in tables["objectives"] if one["name"] in {"rank_dpo", "sft"}],
        "rows": [row for row in tables["rows"] if row["name"] in ROWS],
        "curves": [one for one in tables["curves"] if one["name"] == "prompts"],
        "along": {"row": "rank", "steps": 4, "every": 2},
    }
    tables["curves"][0]["points"] = [{"x": 0.5, "row": "prompts-half"}, {"x": 1, "row": "rank"}]
    tables["training"] |= {"steps": 2, "batch_size": 8}
    for part, limit in (("prompts", 40), ("validation", 6), ("held_out", 8)):
        place = tables[part] if part == "prompts" else tables[part]["prompts"]
        place["limit"] = limit
    for one in tables["objectives"]:
        for key in {"learning_rates", "betas"} & set(one):
            one[key] = one[key][:2]
    file = output.with_suffix(".toml")
    file.write_text(tomli_w.dumps(tables))
    return file


def run(file: Path) -> None:
    script = REPOSITORY / "jobs" / "ablate.py"
    subprocess.run([sys.executable, str(script), "--config", str(file)], env=environment(), check=True)


def figures(output: Path, trials: str) -> dict[str, Any]:
    run(small(output, trials))
    found: dict[str, Any] = json.loads((output / "ablation.json").read_text())
    return found


def test_actors_and_jobs_come_to_the_same_figures(tmp_path: Path) -> None:
    by_actors = figures(tmp_path / "actors", "actors")
    assert [row["name"] for row in by_actors["rows"]] == sorted(
        ROWS, key=[row["name"] for row in config.read_toml(FILE)["rows"]].index
    )
    assert all(len(row["seeds"]) == (1 if row["name"] == "prompts-half" else 2) for row in by_actors["rows"])
    assert [point["step"] for point in by_actors["along"]["points"]] == [2, 4]
    assert set(by_actors["rows"][0]["rewards"]) == {"shapes-pickscore", "shapes-clipscore", "shapes-mps"}
    tables = (tmp_path / "actors" / "tables.md").read_text()
    assert "RankDPO, all rewards" in tables

    # The same again finds everything finished and does nothing.
    before = (tmp_path / "actors" / "ablation.json").stat().st_mtime_ns
    run(tmp_path / "actors.toml")
    assert (tmp_path / "actors" / "ablation.json").stat().st_mtime_ns == before

    by_jobs = figures(tmp_path / "jobs", "jobs")
    for actor, job in zip(by_actors["rows"], by_jobs["rows"], strict=True):
        assert actor["seeds"] == job["seeds"]
        for name, found in actor["rewards"].items():
            assert found["after"] == pytest.approx(job["rewards"][name]["after"], abs=2e-3)
