"""`report.html` of an ablation: the paper's Tables 4 and 5 on one's own model, and all settings that were tried.

A row's gain is over the model as it starts, prompt by prompt over all its seeds, with its interval as a bar on the
table's common axis; what the paper prints for the same row stands beside it, marked as quoted and in the paper's unit.
Figures draw what was measured, a point each: nothing is smoothed, and a row that diverged is a gap and says so.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rankray import words
from rankray.config.ablate import CHECKER
from rankray.evals import published
from rankray.report import pages
from rankray.report.charts import Point, bars, point_chart
from rankray.report.pages import write_page
from rankray.words import compact

DOUBLING = 1.3
"""From settings that each are so many times the last, the axis is logarithmic."""


def write_ablation_report(uri: str, info: dict[str, Any]) -> None:
    """Writes `report.html` into the ablation at `uri`.

    Args:
        uri: its directory or URI.
        info: the contents of its `ablation.json`.
    """
    metric, start = info["metric"], info["start"]
    values = {
        "info": info,
        "start": {
            "accuracy": level(start["accuracy"], metric),
            "categories": [level(value, metric) for value in start["categories"].values()],
        },
        "unit": unit(metric),
        "power": power(info["power"], metric),
        "tables": [_table(info, name) for name in info["tables"]],
        "rewards": reward_rows(info),
        "sweep": sweep_rows(info),
        "curves": [drawn for curve in info["curves"] if (drawn := _curve(curve, info))],
        "along": along_charts(info),
        "source": published.SOURCE,
    }
    write_page(uri, "ablation.html.j2", values)


def level(value: float | None, metric: str) -> str:
    """A figure of a metric: the checker's is a share."""
    return words.figure(value, metric == CHECKER).replace("-", "−")


def unit(metric: str) -> str:
    """What figures and differences of a metric are in."""
    return "% of held-out prompts that the checker passes" if metric == CHECKER else metric


def power(found: Mapping[str, Any] | None, metric: str) -> dict[str, str] | None:
    """The smallest difference of two rows, and the smallest gain, that could be seen; None where none is known."""
    return None if found is None else {key: level(found[key], metric) for key in ("difference", "gain")}


def difference(found: Mapping[str, Any] | None, metric: str) -> dict[str, Any]:
    """`pages.difference` in the metric's unit."""
    return pages.difference(found, functools.partial(level, metric=metric))


def _table(info: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One of the paper's tables, or one's own: its rows against the start, and each against each."""
    metric = info["metric"]
    rows = [row for row in info["rows"] if name in row["tables"]]
    quoted = published.TABLES.get(int(name)) if name.isdigit() else None
    return {
        "name": name,
        "title": quoted.title if quoted else "",
        "note": quoted.note if quoted else "",
        "rows": [
            {**_row(row, metric), "quoted": quote(quoted, row["paper"].get(name)), "bar": bar}
            for row, bar in zip(rows, bars([row["gain"] for row in rows]), strict=True)
        ],
        "quoted": quoted is not None and any(name in row["paper"] for row in rows),
        "start": quote(quoted, next(iter(quoted.rows))) if quoted else None,
        "against": [
            (row["label"], [_against(row.get("against", {}).get(other["name"]), metric) for other in rows])
            for row in rows
        ]
        if any(row.get("against") for row in rows)
        else [],
    }


def _against(found: Mapping[str, Any] | None, metric: str) -> dict[str, Any]:
    """A row against another: coloured only where that is claimed."""
    cell = difference(found, metric)
    return cell if found is None or found["claimed"] else {**cell, "sign": 0}


def _row(row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    failed = len(row["failed"])
    return {
        "label": row["label"],
        "setting": setting(row),
        "accuracy": level(row["accuracy"], metric),
        "accuracy_value": row["accuracy"],
        "seeds": ", ".join(level(value, metric) for value in row["seeds"]),
        "categories": [level(value, metric) for value in row["categories"].values()],
        "failed": "" if not failed else "diverged" if row["gain"] is None else f"{failed} diverged",
        "why": row["failed"][0] if failed else "",
        **difference(row["gain"], metric),
    }


def setting(row: Mapping[str, Any]) -> str:
    """An objective with its learning rate, its beta where it has one, and its steps."""
    beta = "" if row["beta"] is None else f", β {row['beta']:g}"
    return f"{row['objective']}, rate {row['learning_rate']:g}{beta}, {row['step']:,} steps"


def quote(table: published.Quoted | None, row: str | None) -> dict[str, Any] | None:
    """What the paper prints for a row: its first column, and how far that is above the table's first row.

    Returns:
        label, figure, gain (ours: the difference of two quoted figures), value; None where the paper has no such row.
    """
    if table is None or row is None or row not in table.rows:
        return None
    column, first = table.columns[0], next(iter(table.rows))
    printed, base = table.rows[row][0], table.rows[first][0]
    if printed is None or base is None:
        return None
    try:
        gain = float(printed) - float(base)
    except ValueError:  # "1.0M": no figure of a judge
        return None
    text = "" if row == first else words.signed(gain, f"{abs(gain):.2f}")
    return {"label": row, "column": column, "figure": printed, "gain": text, "value": gain}


def reward_rows(info: Mapping[str, Any]) -> dict[str, Any]:
    """Each row's gain in each other metric, which nobody selected by: names, and rows of cells."""
    names = list(dict.fromkeys(name for row in info["rows"] for name in row["rewards"]))
    rows = [
        {
            "label": row["label"],
            "cells": [difference(row["rewards"].get(name), name) for name in names],
        }
        for row in info["rows"]
        if row["rewards"]
    ]
    return {"names": names, "rows": rows}


def sweep_rows(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every setting that was tried, objective by objective, and which was taken."""
    tried = [(sweep, n, trial) for sweep in info["sweep"] for n, trial in enumerate(sweep["trials"])]
    return [
        {
            "objective": sweep["objective"],
            "learning_rate": trial["learning_rate"],
            "beta": trial["beta"] if sweep["has_beta"] else None,
            "trainings": trial["seeds"],
            "step": trial["step"],
            "taken": "" if number != sweep["chosen"] else "✓" if sweep["inside"] else "✓ at the edge",
            "failed": trial["failed"],
            "bar": bar,
            **difference(trial["gain"], info["metric"]),
        }
        for (sweep, number, trial), bar in zip(
            tried, bars([trial["gain"] for *_, trial in tried]), strict=True
        )
    ]


def _curve(curve: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any] | None:
    """A figure of the metric against a setting; None where no point came through."""
    metric, base = info["metric"], info["start"]["accuracy"]
    measured = [point for point in curve["points"] if point["gain"] is not None]
    points = [_point(p["x"], p["gain"], metric, f"{curve['x_label']}: {compact(p['x'])}") for p in measured]
    chart = point_chart(points, _scaled(base, metric), doubling([point.x for point in points]))
    if chart is None:
        return None
    return {
        "title": curve["title"],
        "x_label": curve["x_label"],
        "chart": chart,
        "missing": len(curve["points"]) - len(measured),
    }


def _point(x: float, found: Mapping[str, Any], metric: str, place: str) -> Point:
    """The level reached, with the interval of its gain: that of the start is not in it, as every row has the same."""
    mean, low, high = (
        None if found[key] is None else _scaled(found["before"] + found[key], metric)
        for key in ("gain", "low", "high")
    )
    words = difference(found, metric)
    return Point(x, mean or 0.0, low, high, f"{place}\n{words['gain']} ({words['interval']})")


def _scaled(value: float, metric: str) -> float:
    return 100 * value if metric == CHECKER else value


def doubling(places: Sequence[float]) -> bool:
    """Whether a logarithmic axis fits the settings: each at least 1.3 times the last, all of them 4 times."""
    ordered = sorted(places)
    if len(ordered) < 3 or ordered[0] <= 0 or ordered[-1] < 4 * ordered[0]:
        return False
    return all(b >= DOUBLING * a for a, b in pairwise(ordered))


def along_charts(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each metric along one row's training, from the start on; the one that was asked for comes first."""
    along = info["along"]
    if not along or not along["points"]:
        return []
    names = sorted(along["points"][0]["metrics"], key=lambda name: name != info["metric"])
    found: list[dict[str, Any]] = []
    for name in names:
        rows = [(p["step"], p["metrics"][name]) for p in along["points"] if name in p["metrics"]]
        before = _scaled(rows[0][1]["before"], name)
        points = [Point(0, before, None, None, "step 0, the starting model")]
        points += [_point(step, row, name, f"step {step:,}") for step, row in rows]
        chart = point_chart(points, before)
        if chart is not None:
            found.append({"title": name, "unit": "%" if name == CHECKER else "mean score", "chart": chart})
    return found
