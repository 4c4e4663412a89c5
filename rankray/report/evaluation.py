"""`report.html` of an evaluation: every benchmark's table as the paper prints it, models against a baseline, pictures.

Published rows stand in the same table, marked as quoted. Every difference has its 95 % interval, as a bar on the
table's common axis, and its sign test; it is called better or worse only where the interval leaves out zero. Pictures
that changed share 4 MB. Tables sort where the browser runs the page's one script, and read the same where it does not.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rankray.evals import published
from rankray.report.charts import Point, bars, point_chart
from rankray.report.pages import PICTURE_BYTES, difference, picture, write_page
from rankray.words import MISSING, compact, short

OVERALL = "overall"
DETAIL_CHARACTERS = 300


def write_evaluation_report(uri: str, results: dict[str, Any]) -> None:
    """Writes `report.html` into the evaluation at `uri`.

    Args:
        uri: its directory or URI; the pictures that `results["changed"]` names are there.
        results: the contents of its `results.json`.
    """
    values = {
        "results": results,
        "headlines": headlines(results),
        "sections": [_section(entry, results) for entry in (*results["evals"], *results["metrics"])],
        "changed": changed(uri, results),
        "failures": _failures(results["failures"]),
        "identity": sorted(results.get("identity", {}).items()),
    }
    write_page(uri, "evaluation.html.j2", values)


def headlines(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One for each benchmark and each model: its headline figure, against the baseline where there is one.

    Returns:
        name, model, sign (1 better, -1 worse, 0), text.
    """
    found = []
    for entry in results["evals"]:
        column = next((column for column in entry["columns"] if column["name"] == OVERALL), None)
        times = _times(_quoted(entry, results), OVERALL, 1)
        if column is None:
            continue
        for model in results["models"]:
            mean, gain = column["models"][model["name"]]["mean"], column["difference"].get(model["name"])
            if gain is None and results["baseline"] is not None:
                continue
            shown = difference(gain, functools.partial(figure, times=times))
            between = ", 95 % {interval}" if gain and gain["low"] is not None else ""
            words = "{before} → {after}, {verdict} ({gain}" + between + ")"
            text = words.format(**shown) if gain else figure(mean, times)
            found.append({"name": entry["name"], "model": model["name"], "sign": shown["sign"], "text": text})
    return found


def _section(entry: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """A benchmark, or a prompt set's metrics, as the template shows it; the headline column comes first."""
    columns = sorted(entry["columns"], key=lambda column: column["name"] != OVERALL)
    quoted = _quoted(entry, results)
    if quoted is not None and not any(column["name"] in quoted["columns"] for column in columns):
        quoted = None
    models, is_eval = [model["name"] for model in results["models"]], "overall" in entry
    headline = _times(quoted, OVERALL, 1) if is_eval else 1
    times = {column["name"]: _times(quoted, column["name"], headline) for column in columns}
    return {
        "entry": entry,
        "is_eval": is_eval,
        "departures": entry.get("departures", ""),
        "heads": [{"name": c["name"], "printed": _printed_name(c["name"], quoted)} for c in columns],
        "rows": _quoted_rows(quoted, times) + _own_rows(columns, times, models),
        "quoted": quoted,
        "compared": compared(columns, times, models, one_axis=is_eval),
        "wins": entry.get("wins", []),
        "charts": _charts(columns[:1] if is_eval else columns, times, results),
    }


def _quoted(entry: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The published rows that belong beside it: those that the results name, else the paper's."""
    name = entry.get("benchmark") or entry.get("set") or entry["name"]
    found = (results.get("published") or {}).get(name)
    return found if isinstance(found, dict) else published.beside(name)


def _times(quoted: Mapping[str, Any] | None, column: str, default: int) -> int:
    """What a figure is multiplied by to be printed as the paper prints it: 1 or 100."""
    return int(quoted["printed_times"].get(column, default)) if quoted else default


def _printed_name(column: str, quoted: Mapping[str, Any] | None) -> str:
    """The paper's name of a column, where it says more than ours."""
    printed = str(quoted["columns"].get(column, "")) if quoted else ""
    return "" if printed.lower() == column.replace("_", "-") else printed


def _quoted_rows(quoted: Mapping[str, Any] | None, times: Mapping[str, int]) -> list[dict[str, Any]]:
    """Rows that have a figure in any of the columns, in the paper's own two digits."""
    found = []
    for row in quoted["rows"] if quoted else []:
        values = {name: row["values"].get(name) for name in times}
        if any(value is not None for value in values.values()):
            cells = [
                {"text": "" if value is None else f"{times[name] * value:.2f}", "value": value, "range": ""}
                for name, value in values.items()
            ]
            found.append({"model": row["model"], "table": row["table"], "cells": cells})
    return found


def _own_rows(
    columns: Sequence[Mapping[str, Any]], times: Mapping[str, int], models: Sequence[str]
) -> list[dict[str, Any]]:
    def cell(column: Mapping[str, Any], model: str) -> dict[str, Any]:
        found, by = column["models"].get(model, {}), times[column["name"]]
        low, high = (found.get(key) for key in ("low", "high"))
        between = "" if low is None or high is None else f"{figure(low, by)} to {figure(high, by)}"
        return {"text": figure(found.get("mean"), by), "value": found.get("mean"), "range": between}

    return [
        {"model": model, "table": None, "cells": [cell(column, model) for column in columns]}
        for model in models
    ]


def compared(
    columns: Sequence[Mapping[str, Any]],
    times: Mapping[str, int],
    models: Sequence[str],
    one_axis: bool,
) -> list[dict[str, Any]]:
    """A row for each column and each model that was compared with the baseline, with its bar.

    Args:
        one_axis: the columns are of one unit, and their bars share an axis; else each column has its own.
    """
    rows: list[dict[str, Any]] = []
    for group in [columns] if one_axis else [[column] for column in columns]:
        found = [(c, model) for c in group for model in models if model in c["difference"]]
        drawn = bars([column["difference"][model] for column, model in found])
        rows += [
            {
                **difference(
                    column["difference"][model], functools.partial(figure, times=times[column["name"]])
                ),
                "column": column["name"],
                "prompts": column["prompts"],
                "model": model,
                "bar": bar,
            }
            for (column, model), bar in zip(found, drawn, strict=True)
        ]
    return rows


def _charts(
    columns: Sequence[Mapping[str, Any]], times: Mapping[str, int], results: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Each column along the steps of each run of which two checkpoints or more were evaluated."""
    runs: dict[str, dict[str, int]] = {}
    for model in results["models"]:
        if model.get("run") is not None:
            runs.setdefault(model["run"], {})[model["name"]] = model["step"]
    found = []
    for column, steps in itertools.product(columns, runs.values()):
        if len(set(steps.values())) < 2:
            continue
        by, points = times[column["name"]], []
        for name, step in steps.items():
            own = column["models"].get(name, {})
            mean, low, high = (
                None if own.get(key) is None else by * own[key] for key in ("mean", "low", "high")
            )
            if mean is not None:
                points.append(
                    Point(step, mean, low, high, f"{name}, step {step:,}: {figure(own['mean'], by)}")
                )
        base = column["models"].get(results["baseline"] or "", {}).get("mean")
        chart = point_chart(points, None if base is None else by * base)
        if chart is not None:
            found.append({"title": column["name"], "chart": chart, "base": base is not None})
    return found


def changed(uri: str, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pictures that gained and those that lost, each in the order of the results, as two galleries.

    Returns:
        title, and pairs: before and after (`pages.picture`), what to say of them.
    """
    rows = results["changed"]
    limit = PICTURE_BYTES // max(1, 2 * len(rows))

    def shown(row: Mapping[str, Any], moment: str) -> dict[str, Any]:
        place = f"{uri.rstrip('/')}/{row[f'{moment}_image']}"
        told = {"value": compact(row[moment]), "detail": detail(row.get(f"{moment}_detail"))}
        return picture({"bytes": None, "path": place}, limit) | told

    galleries = []
    for title, sign in (("What gained most", 1), ("What lost most", -1)):
        chosen = [row for row in rows if sign * (row["after"] - row["before"]) > 0]
        pairs = [{**row, "before": shown(row, "before"), "after": shown(row, "after")} for row in chosen]
        if pairs:
            galleries.append({"title": title, "pairs": pairs})
    return galleries


def detail(found: Mapping[str, Any] | None) -> str:
    """What a judge made its verdict from: its reason, else all that it says, in at most 300 characters."""
    if not found:
        return ""
    text = str(found["reason"]) if "reason" in found else json.dumps(found, ensure_ascii=False)
    return short(text, DETAIL_CHARACTERS)


def _failures(failures: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """(model, stage, count) of what failed."""
    return [
        (model, stage, count)
        for model, stages in sorted(failures["by_model"].items())
        for stage, count in sorted(stages.items())
        if count
    ]


def figure(value: float | None, times: int = 1) -> str:
    """A mean as it is printed: per cent with two digits, a share or a score with three, a dash for none."""
    if value is None:
        return MISSING
    text = f"{times * value:.2f}" if times > 1 or abs(value) >= 10 else f"{value:.3f}"
    return text.replace("-", "−")
