"""How a job ends on a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import small_dataset

from rankray.report import summary

GOLDEN = Path(__file__).parents[2] / "golden"
INFO: dict[str, Any] = {
    "steps": 40,
    "batch_size": 16,
    "throughput": {"prompts_per_s": 2.133, "data_wait_share": 0.0125},
    "skipped_steps": 1,
    "validation": {
        "exported": {"step": 30, "implicit_accuracy": 0.625},
        "warnings": {"memorising": "88.0 % of the training pairs are right"},
    },
    "cost": {"usd": 0.25, "gpu_hours": 0.0833, "cpu_hours": 0.5},
}


def gain(before: float, by: float, low: float, high: float) -> dict[str, Any]:
    named = {"before": before, "after": before + by, "gain": by, "low": low, "high": high}
    return {**named, "wins": 8, "losses": 1, "p_value": 0.0391}


def benchmark(name: str) -> dict[str, Any]:
    models = {model: {"mean": mean} for model, mean in (("base", 0.65), ("tuned", 0.725))}
    overall = {"name": "overall", "models": models, "difference": {"tuned": gain(0.65, 0.075, 0.01, 0.14)}}
    return {"name": name, "benchmark": name, "columns": [overall]}


RESULTS: dict[str, Any] = {
    "baseline": "base",
    "models": [{"name": "base"}, {"name": "tuned"}],
    "evals": [benchmark("geneval")],
    "failures": {"by_model": {"tuned": {"generator": 1, "geneval": 0}}},
    "sets": [{"images_made": 80}, {"images_made": 80}],
    "cost": {"totals": {"gpu_hours": 1.0, "cpu_hours": 1.0, "usd": 2.5}},
    "published": {},
}


def test_a_dataset(tmp_path: Path) -> None:
    """Mean win probabilities by hand: one has 4/6, 4/6, 0, 2/5, 0, 0, two has 1/6 and 2/5 (its third is no picture)."""
    path = small_dataset.write(tmp_path / "d")
    info = json.loads((tmp_path / "d" / "dataset.json").read_text())
    assert summary.dataset(info, path, 61.0) == [
        "  made     3 rows, 8 of 9 images, 1.0 images/s",
        "  failed   t 1, two 1",
        "  won      of comparisons: one 28.9 %, two 28.3 %",
        "  took     61.0 s, 0.02 CPU hours, $0.017",
        f"  dataset  {path}",
        f"  report   {path}/report.html",
        f"  next     rankray rankdpo --dataset {path} --output ...",
    ]


def test_a_run() -> None:
    assert summary.run(INFO, "/r", 301.0) == [
        "  made     40 steps of 16 prompts, 2.1 prompts/s, 1.2% of the time waiting for data, 1 skipped",
        "  learnt   62.5 % of held-out pairs right after step 30, which is exported",
        "  warning  memorising: 88.0 % of the training pairs are right",
        "  took     5.0 min, 0.08 GPU hours, 0.50 CPU hours, $0.25",
        "  model    /r/pipeline",
        "  report   /r/report.html",
        "  next     rankray evaluate --model after=/r ...",
    ]
    without = {**INFO, "validation": None}
    assert summary.run(without, "/r", 301.0)[1] == "  learnt   no prompts were held out to say so"


def test_an_alignment() -> None:
    rounds = [
        {"images": 800, "steps": 100, "gain": {}},
        {"images": 800, "steps": 20, "gain": {"checker": gain(0.5, 0.2, 0.1, 0.3)}},
    ]
    failures = {"by_part": {"round-1/synpic": {"t": 1}, "round-2/synpic": {"t": 1, "two": 2}}}
    info = {
        "rounds": rounds,
        "failures": failures,
        "cost": {"usd": 4.5, "before_usd": 0.5},
        "pipeline": "/a/p",
    }
    assert summary.aligned(info, "/a", 60.0) == [
        "  made     1,600 images, 120 steps",
        "  failed   round-2/synpic 3, round-1/synpic 1",
        "  gained   checker: 50.0% before, 70.0% after: better",
        "  took     60.0 s, $4.50",
        "  model    /a/p",
        "  report   /a/report.html",
    ]


def test_an_evaluation() -> None:
    assert summary.measured(RESULTS, "/e", 60.0) == [
        "  made     2 models measured, 160 images drawn",
        "  failed   tuned 1",
        "  found    geneval, tuned: 0.650 → 0.725, better (+0.075, 95 % +0.010 to +0.140)",
        "  took     60.0 s, 1.00 GPU hours, 1.00 CPU hours, $2.50",
        "  results  /e/results.md",
        "  report   /e/report.html",
    ]


def test_an_ablation_of_many_rows_names_the_best() -> None:
    info = json.loads((GOLDEN / "ablate.json").read_text())["ablation.json"] | {"cpu_minutes": 3.0}
    row: dict[str, Any] = info["rows"][0]
    info["rows"] = [{**row, "label": f"row {n}", "gain": gain(0.5, n / 100, -0.1, 0.3)} for n in range(40)]
    lines = summary.ablated(info, "/a", 60.0)
    assert len(lines) <= summary.LINES
    assert lines[1] == "           +0.390 (-0.100 to +0.300)  row 39"
    assert lines[7] == "           ... and 34 more rows"
    assert not any("failed" in line for line in lines)
    failures = {"by_part": {"trials/rank-seed0": {"sdxl": 2}}}
    assert "  failed   trials/rank-seed0 2" in summary.ablated({**info, "failures": failures}, "/a", 60.0)


def test_nothing_is_longer_than_the_screen_allows() -> None:
    """More warnings, benchmarks and models than anybody has."""
    many = {**INFO["validation"], "warnings": {f"kind {n}": "x" for n in range(40)}}
    assert len(summary.run({**INFO, "validation": many}, "/r", 1.0)) <= summary.LINES
    results = {**RESULTS, "evals": RESULTS["evals"] * 40}
    lines = summary.measured(results, "/e", 1.0)
    assert len(lines) <= summary.LINES
    assert lines[-1] == "  report   /e/report.html"
