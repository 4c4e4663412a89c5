"""How a job ends on a terminal: at most `LINES` lines of what was made, how good, how long, for how much, what next.

Made from the JSON that the job writes last, as pages are; of a dataset the columns of ranks are read once more, without
pictures: 0.4 s for 58,000 prompts x 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rankray import store, words
from rankray.report import align, evaluation

LINES = 15
SHOWN = 6
"""Figures of one kind that are listed; the report has all."""


def dataset(info: Mapping[str, Any], path: str, wall_s: float) -> list[str]:
    """Of `dataset.json`."""
    speed = f", {info['throughput']['images_per_s']:,.1f} images/s"
    shares = _standings(path) if len(info["generators"]) > 1 else {}
    won = _listed([f"{name} {words.percent(share)}" for name, share in shares.items()])
    return _lines(
        ("made", f"{info['rows']:,} rows, {info['images']:,} of {info['candidates']:,} images{speed}"),
        ("failed", _failures(info["failures"]["by_model"])),
        ("won", f"of comparisons: {won}" if won else ""),
        ("took", _took(info["cost"]["totals"], wall_s)),
        ("dataset", path),
        ("report", f"{path}/report.html"),
        ("next", f"rankray rankdpo --dataset {path} --output ..."),
    )


def run(info: Mapping[str, Any], path: str, wall_s: float) -> list[str]:
    """Of `run.json`."""
    speed, found = info["throughput"], info.get("validation")
    good = found and (
        f"{words.percent(found['exported']['implicit_accuracy'])} of held-out pairs right after step "
        f"{found['exported']['step']}, which is exported"
    )
    warnings = list(found["warnings"].items()) if found else []
    return _lines(
        (
            "made",
            f"{info['steps']:,} steps of {info['batch_size']:,} prompts, {speed['prompts_per_s']:,.1f} prompts/s, "
            f"{speed['data_wait_share']:.1%} of the time waiting for data, {info['skipped_steps']:,} skipped",
        ),
        ("learnt", good or "no prompts were held out to say so"),
        *(("warning", f"{kind}: {words.short(text, 180)}") for kind, text in warnings[:SHOWN]),
        ("took", _took(info["cost"], wall_s)),
        ("model", f"{path}/pipeline"),
        ("report", f"{path}/report.html"),
        ("next", f"rankray evaluate --model after={path} ..."),
    )


def aligned(info: Mapping[str, Any], path: str, wall_s: float) -> list[str]:
    """Of `align.json`."""
    rounds = info["rounds"]
    return _lines(
        (
            "made",
            f"{sum(found['images'] for found in rounds):,} images, {sum(found['steps'] for found in rounds):,} steps",
        ),
        ("failed", _failures(_by_part(info["failures"]))),
        ("gained", align.verdict(rounds[-1]["gain"])),
        ("took", _took(info["cost"], wall_s)),
        ("model", info["pipeline"]),
        ("report", f"{path}/report.html"),
    )


def measured(info: Mapping[str, Any], path: str, wall_s: float) -> list[str]:
    """Of `results.json`."""
    made = sum(found["images_made"] for found in info["sets"])
    by_model = {name: sum(stages.values()) for name, stages in info["failures"]["by_model"].items()}
    return _lines(
        ("made", f"{len(info['models']):,} models measured, {made:,} images drawn"),
        ("failed", _failures(by_model)),
        *(("found", text) for text in _headlines(info)[:SHOWN]),
        ("took", _took(info["cost"]["totals"], wall_s)),
        ("results", f"{path}/results.md"),
        ("report", f"{path}/report.html"),
    )


def _gained(found: Mapping[str, Any]) -> str:
    """A difference with its interval, where more than one prompt says something of others."""
    ends = "" if found["low"] is None else f" ({found['low']:+.3f} to {found['high']:+.3f})"
    return f"{found['gain']:+.3f}{ends}"


def ablated(info: Mapping[str, Any], path: str, wall_s: float) -> list[str]:
    """Of `ablation.json`."""
    rows = sorted((row for row in info["rows"] if row.get("gain")), key=lambda row: -row["gain"]["gain"])
    shown = [f"{_gained(row['gain'])}  {row['label']}" for row in rows]
    more = [f"... and {len(rows) - SHOWN} more rows"] if len(rows) > SHOWN else []
    return _lines(
        (
            "made",
            f"{len(info['rows']):,} rows of tables {', '.join(info['tables'])}; gain in {info['metric']}, 95 %:",
        ),
        *(("", text) for text in [*shown[:SHOWN], *more]),
        ("failed", _failures(_by_part(info.get("failures", {})))),  # which older files have not
        ("took", f"{words.seconds(wall_s)}, {info['cpu_minutes']:,.1f} CPU minutes of all trainings"),
        ("tables", f"{path}/tables.md"),
        ("report", f"{path}/report.html"),
    )


def _lines(*rows: tuple[str, str]) -> list[str]:
    return [f"  {name:<9}{text}" for name, text in rows if text][:LINES]


def _listed(found: Sequence[str]) -> str:
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def _by_part(failures: Mapping[str, Any]) -> dict[str, int]:
    return {part: sum(counts.values()) for part, counts in failures.get("by_part", {}).items()}


def _failures(by_model: Mapping[str, int]) -> str:
    worst = sorted(((name, count) for name, count in by_model.items() if count), key=lambda one: -one[1])
    return _listed([f"{name} {count:,}" for name, count in worst])


def _took(cost: Mapping[str, Any], wall_s: float) -> str:
    hours = [
        f"{cost[key]:,.2f} {unit}"
        for key, unit in (("gpu_hours", "GPU hours"), ("cpu_hours", "CPU hours"))
        if cost.get(key)
    ]
    return ", ".join([words.seconds(wall_s), *hours, *([words.money(cost["usd"])] if cost["usd"] else [])])


def _headlines(info: Mapping[str, Any]) -> list[str]:
    """A line a benchmark and model, as the page has them on top."""
    return [f"{found['name']}, {found['model']}: {found['text']}" for found in evaluation.headlines(info)]


def _standings(path: str) -> dict[str, float]:
    """Generators by the mean win probability of their ranked candidates, the best first."""
    found, tables = store.read(path), []
    for file in found.files:
        candidates = store.read_table(file, found.fs)["candidates"].combine_chunks().flatten()
        columns = [pc.struct_field(candidates, name) for name in ("generator", "win_probability", "rank")]
        tables.append(pa.table(dict(zip(("generator", "phi", "rank"), columns, strict=True))))
    ranked = pa.concat_tables(tables)
    means = ranked.filter(pc.field("rank") > 0).group_by("generator").aggregate([("phi", "mean")])
    shares = dict(zip(means["generator"].to_pylist(), means["phi_mean"].to_pylist(), strict=True))
    return dict(sorted(shares.items(), key=lambda one: -one[1]))
