"""An ablation, whole and small: tuning, rows of two seeds, a curve, a run measured as it goes; and both its ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from conftest import REPOSITORY, Ended, left

from rankray import config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(2400)]

FILE = REPOSITORY / "jobs" / "ablate-shapes.toml"
ROWS = ("rank-random", "rank", "sft", "rank-reencoded", "prompts-half")
ONCE = ("rank-reencoded", "prompts-half")


def small(output: Path, trials: str) -> Path:
    """The shapes ablation on 40 prompts, two steps, five rows."""
    tables = config.read_toml(FILE)
    tables |= {
        "output": str(output),
        "trials": trials,
        "rehearse": True,
        "seeds": 2,
        "generators": [{"model": "shapes-sdxl", "samples": 3, "pool": {"num_gpus": 1}}],
        "labels": {"samples": {"shapes-sdxl": 3}},
        "objectives": [one for one in tables["objectives"] if one["name"] in {"rank_dpo", "sft"}],
        "tuning": {"trainings": 3, "seeds": 2, "every": 1},
        "rows": [row for row in tables["rows"] if row["name"] in ROWS],
        "curves": [one for one in tables["curves"] if one["name"] == "prompts"],
        "along": {"row": "rank", "steps": 4, "every": 2},
    }
    tables["curves"][0]["points"] = [{"x": 0.5, "row": "prompts-half"}, {"x": 1, "row": "rank"}]
    for one in tables["rewards"]:
        one["pool"] = {"num_gpus": 0.5}
    tables["training"] |= {"steps": 2, "batch_size": 8, "encoding": {"num_gpus": 0.5}}
    tables["training"]["workers"]["num_gpus"] = 1
    for part, limit in (("prompts", 40), ("validation", 6), ("held_out", 8)):
        place = tables[part] if part == "prompts" else tables[part]["prompts"]
        place["limit"] = limit
    for one in tables["objectives"]:
        one["learning_rates"] = one["learning_rates"][:2]
        one.pop("betas", None)
    for one in tables["rows"]:
        if one["name"] == "rank-random":
            one["labels"]["pairs"] = "within"
        if one["name"] in ONCE:
            one["seeds"] = 1
    file = output.with_suffix(".toml")
    file.write_text(tomli_w.dumps(tables))
    return file


def figures(job: Callable[..., Ended], output: Path, trials: str) -> dict[str, Any]:
    ended = job("ablate", "--config", str(small(output, trials)))
    assert ended.code == 0, ended.text
    found: dict[str, Any] = json.loads((output / "ablation.json").read_text())
    return found


def test_actors_and_jobs_come_to_the_same_figures(
    job: Callable[..., Ended], golden: Callable[..., None], tmp_path: Path
) -> None:
    by_actors = figures(job, tmp_path / "actors", "actors")
    assert [row["name"] for row in by_actors["rows"]] == sorted(
        ROWS, key=[row["name"] for row in config.read_toml(FILE)["rows"]].index
    )
    assert all(len(row["seeds"]) == (1 if row["name"] in ONCE else 2) for row in by_actors["rows"])
    assert [found["trainings"] for found in by_actors["sweep"]] == [3, 3], "equal purses"
    assert all(row["step"] in (1, 2) for row in by_actors["rows"])
    power = json.loads((tmp_path / "actors" / "power.json").read_text())
    assert by_actors["power"] == power
    assert power["planned"] == {"seeds": 2, "prompts": 8, "pictures": 4}
    assert [point["step"] for point in by_actors["along"]["points"]] == [2, 4]
    assert set(by_actors["rows"][0]["rewards"]) == {"shapes-pickscore", "shapes-clipscore", "shapes-mps"}
    tables = (tmp_path / "actors" / "tables.md").read_text()
    assert "RankDPO, all rewards" in tables
    assert "## Along the training of rank\n\n| step | checker | shapes-" in tables

    golden("ablate.json", left(tmp_path / "actors", "ablation.json"), abs=5e-3)  # AdamW enlarges rounding

    # The same again finds everything finished and does nothing.
    before = (tmp_path / "actors" / "ablation.json").stat().st_mtime_ns
    assert job("ablate", "--config", str(tmp_path / "actors.toml")).code == 0
    assert (tmp_path / "actors" / "ablation.json").stat().st_mtime_ns == before

    by_jobs = figures(job, tmp_path / "jobs", "jobs")
    for actor, run in zip(by_actors["rows"], by_jobs["rows"], strict=True):
        assert actor["seeds"] == run["seeds"]
        assert actor["categories"] == run["categories"]
        for name, found in actor["rewards"].items():
            assert found["after"] == pytest.approx(run["rewards"][name]["after"], rel=3e-4, abs=2e-3)
