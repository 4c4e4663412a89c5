"""results.md: an evaluation's tables in the paper's layout, the paper's own figures beside them, marked as quoted.

A pure function of results.json, so that the tables can be written again from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

QUOTED = "quoted"


def markdown(info: Mapping[str, Any]) -> str:
    """The contents of results.md, from those of results.json."""
    parts = ["# Results", _models(info)]
    for entry in info["evals"]:
        parts += [
            f"## {entry['name']}",
            _said(entry),
            _layout(info, entry),
            *_differences(info, entry["columns"], _times(info, entry)),
        ]
    for entry in info["metrics"]:
        parts += [f"## metrics on {entry['name']}", _size(entry), _figures(info, entry["columns"])]
        parts += [*_differences(info, entry["columns"]), *_wins(entry["wins"])]
    parts += ["## failures", _failures(info["failures"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _models(info: Mapping[str, Any]) -> str:
    rows = [
        [
            model["name"] + (" (baseline)" if model["name"] == info["baseline"] else ""),
            model["model"],
            model["source"] or "",
            "" if model["step"] is None else str(model["step"]),
            f"`{model['revision'][:19]}`",
        ]
        for model in info["models"]
    ]
    return _table(["model", "row", "weights", "step", "revision"], rows)


def _size(entry: Mapping[str, Any]) -> str:
    many = "s" if entry["samples"] > 1 else ""
    return f"{entry['prompts']:,} prompts, {entry['samples']} picture{many} each; intervals of 95 % over prompts."


def _said(entry: Mapping[str, Any]) -> str:
    return _size(entry) + (f" Departures: {entry['departures']}." if entry["departures"] else "")


def _layout(info: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """A benchmark's table as the paper prints it: columns, units and rows; then the benchmark's further columns."""
    published = info["published"].get(entry["name"])
    beside = [row for other in info["metrics"] if other["set"] == entry["set"] for row in other["columns"]]
    columns = {row["name"]: row for row in (*beside, *entry["columns"])}
    printed = published["columns"] if published else {}
    own = [row["name"] for row in entry["columns"]]
    names = [name for name in printed if name in columns] + [name for name in own if name not in printed]
    times = {**dict.fromkeys(names, 1), **_times(info, entry)}
    rows = [
        [model["name"], *(_figure(columns[name]["models"][model["name"]], times[name]) for name in names)]
        for model in info["models"]
    ]
    for quoted in published["rows"] if published else ():
        cells = [_number(quoted["values"].get(name), times[name]) for name in names]
        rows.append([f"*{quoted['model']}, {QUOTED} from Table {quoted['table']}*", *cells])
    notes = [table["note"] for table in published["tables"] if table["note"]] if published else []
    source = (
        f"{QUOTED.capitalize()} figures: {published['source']}, by its authors' judges. " if published else ""
    )
    return _table(["model", *(printed.get(name, name) for name in names)], rows) + (
        f"\n\n{source}{' '.join(notes)}".rstrip() if published else ""
    )


def _times(info: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, int]:
    """What the paper multiplies a benchmark's figures by, by column; those that it does not print, as its headline."""
    published = info["published"].get(entry["name"])
    printed = published["printed_times"] if published else {}
    own = (row["name"] for row in entry["columns"])
    return {**dict.fromkeys(own, printed.get("overall", 1)), **printed}


def _figures(info: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [model["name"], *(_figure(column["models"][model["name"]]) for column in columns)]
        for model in info["models"]
    ]
    return _table(["model", *(column["name"] for column in columns)], rows)


def _differences(
    info: Mapping[str, Any], columns: Sequence[Mapping[str, Any]], times: Mapping[str, int] | None = None
) -> Iterator[str]:
    """A table a model that is compared with the baseline; `times`: each column's unit, by its name."""
    for model in info["models"]:
        rows = []
        for column in columns:
            row, by = column["difference"].get(model["name"]), (times or {}).get(column["name"], 1)
            if row is None:
                continue
            numbers = [_number(row[key], by) for key in ("before", "after")]
            gain = [_number(row["gain"], by, "+"), _interval(row, by, "+")]
            counts = [f"{row['wins']} : {row['losses']}", f"{row['p_value']:.2g}"]
            rows.append([column["name"], *numbers, *gain, *counts])
        if rows:
            heads = [
                model["name"],
                info["baseline"],
                model["name"],
                "gain",
                "95 % interval",
                "wins : losses",
                "p",
            ]
            yield _table(heads, rows)


def _wins(wins: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [
        [
            row["metric"],
            f"{row['first']} over {row['second']}",
            f"{row['win_rate']:.1%}",
            f"{row['wins']} : {row['losses']} : {row['ties']}",
            f"{row['p_value']:.2g}",
        ]
        for row in wins
    ]
    if rows:
        yield _table(["metric", "", "win rate", "wins : losses : ties", "p"], rows)


def _failures(failures: Mapping[str, Any]) -> str:
    if not failures["total"]:
        return "None."
    lines = [
        f"- {model}: " + ", ".join(f"{stage} {count:,}" for stage, count in stages.items())
        for model, stages in failures["by_model"].items()
        if stages
    ]
    return "\n".join(
        ["Failed items are in no figure, nor in the difference where either model's failed.", "", *lines]
    )


def _figure(found: Mapping[str, Any], times: int = 1) -> str:
    """`"0.65 [0.55, 0.75]"`; the mean alone where there is no interval."""
    return f"{_number(found['mean'], times)} {_interval(found, times)}".rstrip()


def _interval(found: Mapping[str, Any], times: int = 1, sign: str = "") -> str:
    if found["low"] is None:
        return ""
    return f"[{_number(found['low'], times, sign)}, {_number(found['high'], times, sign)}]"


def _number(value: float | None, times: int = 1, sign: str = "") -> str:
    return "–" if value is None else f"{times * value:{sign}.{2 if times != 1 else 4}f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
