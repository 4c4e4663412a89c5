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
            *_differences(info, entry["columns"]),
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
    times = published["printed_times"] if published else {}
    rows = [
        [
            model["name"],
            *(_figure(columns[name]["models"][model["name"]], times.get(name, 1)) for name in names),
        ]
        for model in info["models"]
    ]
    for quoted in published["rows"] if published else ():
        cells = [_number(quoted["values"].get(name), times.get(name, 1)) for name in names]
        rows.append([f"*{quoted['model']}, {QUOTED} from Table {quoted['table']}*", *cells])
    notes = [table["note"] for table in published["tables"] if table["note"]] if published else []
    source = (
        f"{QUOTED.capitalize()} figures: {published['source']}, by its authors' judges. " if published else ""
    )
    return _table(["model", *(printed.get(name, name) for name in names)], rows) + (
        f"\n\n{source}{' '.join(notes)}".rstrip() if published else ""
    )


def _figures(info: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [model["name"], *(_figure(column["models"][model["name"]]) for column in columns)]
        for model in info["models"]
    ]
    return _table(["model", *(column["name"] for column in columns)], rows)


def _differences(info: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A table a model that is compared with the baseline."""
    for model in info["models"]:
        found = [(column["name"], column["difference"].get(model["name"])) for column in columns]
        rows = [
            [
                name,
                _number(row["before"]),
                _number(row["after"]),
                f"{row['gain']:+.4f}",
                _interval(row, "+"),
                f"{row['wins']} : {row['losses']}",
                f"{row['p_value']:.2g}",
            ]
            for name, row in found
            if row is not None
        ]
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


def _figure(found: Mapping[str, Any], times: float = 1) -> str:
    """`"0.65 [0.55, 0.75]"`, and how many pictures or answers it is made of where that is none."""
    return f"{_number(found['mean'], times)} {_interval(found, '', times)}".rstrip()


def _interval(found: Mapping[str, Any], sign: str, times: float = 1) -> str:
    if found["low"] is None:
        return ""
    digits = 2 if times != 1 else 4
    return f"[{times * found['low']:{sign}.{digits}f}, {times * found['high']:{sign}.{digits}f}]"


def _number(value: float | None, times: float = 1) -> str:
    return "–" if value is None else f"{times * value:.{2 if times != 1 else 4}f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
