"""Finished sets of several models as results: tables, paired differences, wins, what changed, failures, cost.

Nothing is averaged silently: a picture that failed is in no figure and is counted, and a difference is of pictures that
both models have. Everything is read from the sets' scores and details, so results can be made again without a model.
`markdown` writes results.md from results.json alone: the paper's layout, its own figures beside them, marked as quoted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from rankray import evals, stats, words
from rankray.config.evaluate import LABEL
from rankray.evals import EvalSpec
from rankray.evals import scores as evaluation
from rankray.evals.models import Model, run_of
from rankray.evals.prompt_lists import PromptList
from rankray.evals.scores import Pictures
from rankray.models.targets import Judgement
from rankray.stats import Column, Difference, win_rate

Judgements = Mapping[str, Sequence[Judgement | None]]

QUOTED = "quoted"
EXAMPLES = 20
"""Failures that are quoted; all of them stand in the sets' rows."""


@dataclass(frozen=True)
class Measured:
    """A finished set: `info` is its `dataset.json`."""

    info: dict[str, Any]
    pictures: Pictures
    failed_share: float


Sets = Mapping[tuple[str, str], Measured]
"""By (model's name, list's name)."""


def tables(
    lists: Sequence[PromptList], names: Sequence[str], baseline: str | None, sets: Sets
) -> dict[str, Any]:
    """`evals` and `metrics` of results.json: an entry a benchmark, and one a list with metrics."""
    benchmarks, metrics = [], []
    for prompts in lists:
        own = {name: sets[name, prompts.name].pictures for name in names}
        for side in own.values():
            evaluation.check_comparable(own[names[0]], side)
        described = {"set": prompts.name, "prompts": len(prompts.prompts.rows), "samples": prompts.samples}
        for label in prompts.benchmarks:
            benchmarks.append(_benchmark(label, prompts, own, baseline) | described)
        rewards = [choice.label for choice in prompts.scorers if choice.label not in prompts.benchmarks]
        if rewards:
            columns = [column for label in rewards for column in _metric(label, own, baseline)]
            wins = [row for label in rewards for row in _wins(label, own)]
            metrics.append({"name": prompts.name, **described, "columns": columns, "wins": wins})
    return {"evals": benchmarks, "metrics": metrics}


def _benchmark(
    label: str, prompts: PromptList, own: Mapping[str, Pictures], baseline: str | None
) -> dict[str, Any]:
    benchmark = prompts.benchmarks[label]
    spec = benchmark.spec

    def columns(judgements: Judgements) -> dict[str, Column]:
        return evals.columns_of(spec, benchmark.items, judgements)

    choice = next(choice for choice in prompts.scorers if choice.label == label)
    departures = _departures(spec, evals.EVALS[choice.model])
    if len(benchmark.items) < benchmark.published:
        departures.append(f"{len(benchmark.items)} of the file's {benchmark.published} prompts")
    usual = evals.EVALS[choice.model].samples
    if prompts.samples != usual:
        many = "s" if prompts.samples > 1 else ""
        departures.append(f"{prompts.samples} picture{many} a prompt in place of {usual}")
    return {
        "name": label,
        "benchmark": choice.model,
        "overall": list(spec.overall),
        "departures": "; ".join(departures),
        "judge": {"models": dict(spec.models), "revision": benchmark.target.revision},
        "columns": _columns(columns, label, own, baseline, spec.overall),
    }


def _departures(spec: EvalSpec, row: EvalSpec) -> list[str]:
    """In which way figures of `spec` are not the published ones': what its row says of the parts that are still the
    row's, then each part and option that is another. Sizes of vocabularies are checked, and decide nothing."""
    parts, options = (
        [key for key in now if now[key] != was.get(key) and not key.endswith("vocabulary")]
        for now, was in ((spec.models, row.models), (spec.options, row.options))
    )
    told = [text for key, text in row.departures.items() if key not in (*parts, *options)]
    told += [f"{key} {spec.models[key]} in place of {row.models[key]}" for key in parts]
    return told + [
        f"{key} = {json.dumps(spec.options[key])} in place of {json.dumps(row.options[key])}"
        for key in options
    ]


def _metric(label: str, own: Mapping[str, Pictures], baseline: str | None) -> list[dict[str, Any]]:
    def columns(judgements: Judgements) -> dict[str, Column]:
        return {label: Column({p: [one.score for one in found if one] for p, found in judgements.items()})}

    return [row for row in _columns(columns, label, own, baseline, (label,)) if row["name"] == label]


def _columns(
    columns: Callable[[Judgements], dict[str, Column]],
    label: str,
    own: Mapping[str, Pictures],
    baseline: str | None,
    overall: Sequence[str],
) -> list[dict[str, Any]]:
    """An entry a column of what `label` says: each model's figure, and each model's difference from the baseline."""
    judged = {name: pictures.judgements(label) for name, pictures in own.items()}
    figures = {name: stats.estimates(columns(found), overall) for name, found in judged.items()}
    gains: dict[str, dict[str, Difference]] = {}
    for name, found in judged.items():
        if baseline is not None and name != baseline:
            before, after = (columns(side) for side in paired(judged[baseline], found))
            gains[name] = stats.differences(before, after, overall)
    has = {
        name: {part for part in overall if part in estimates and estimates[part].mean is not None}
        for name, estimates in figures.items()
    }
    whole = set().union(*has.values())
    # The mean of fewer categories is another figure; of pictures that both have, one may hold none.
    for name, estimates in figures.items():
        if has[name] != whole:
            estimates.pop(stats.OVERALL, None)
    for gained in gains.values():
        if not whole <= gained.keys():
            gained.pop(stats.OVERALL, None)
    names = list(dict.fromkeys(name for found in figures.values() for name in found))
    if stats.OVERALL in names and stats.OVERALL not in overall:  # it stands last
        names.append(names.pop(names.index(stats.OVERALL)))
    none = asdict(stats.Estimate())
    return [
        {
            "name": name,
            "prompts": max(found[name].prompts for found in figures.values() if name in found),
            "models": {n: asdict(f[name]) if name in f else dict(none) for n, f in figures.items()},
            "difference": {n: asdict(g[name]) for n, g in gains.items() if name in g},
        }
        for name in names
    ]


def paired(before: Judgements, after: Judgements) -> tuple[Judgements, Judgements]:
    """Both sides without the pictures that either lacks."""
    sides: tuple[dict[str, list[Judgement | None]], ...] = ({}, {})
    for prompt in before:
        pairs = [
            (one, other) if one is not None and other is not None else (None, None)
            for one, other in zip(before[prompt], after[prompt], strict=True)
        ]
        for side, values in zip(sides, zip(*pairs, strict=True), strict=True):
            side[prompt] = list(values)
    return sides[0], sides[1]


def _wins(label: str, own: Mapping[str, Pictures]) -> Iterator[dict[str, Any]]:
    """Every two models by one metric, the later against the earlier, a prompt's pictures averaged."""
    for earlier, later in combinations(own, 2):
        first, second = own[later].scores[label], own[earlier].scores[label]
        if not np.isnan(first - second).all():
            yield {"metric": label, "first": later, "second": earlier, **asdict(win_rate(first, second))}


@dataclass(frozen=True)
class Change:
    """A pair of pictures of one prompt and seed that changed much, as results.json has it, and where they are."""

    entry: dict[str, Any]
    before: tuple[str, tuple[str, int]]
    after: tuple[str, tuple[str, int]]


def changes(
    lists: Sequence[PromptList], names: Sequence[str], baseline: str | None, sets: Sets, count: int
) -> list[Change]:
    """By each judge and metric of each list, the pictures that changed most from the baseline, up and then down."""
    found = []
    for prompts in lists:
        for name in names:
            if baseline is None or name == baseline:
                continue
            before, after = (sets[side, prompts.name].pictures for side in (baseline, name))
            for choice in prompts.scorers:
                label = choice.label
                for p, s in evaluation.most_changed(after.scores[label] - before.scores[label], count):
                    found.append(_changed(prompts, label, name, before, after, p, s))
    return found


def _changed(
    prompts: PromptList, label: str, model: str, before: Pictures, after: Pictures, p: int, s: int
) -> Change:
    row_id = before.ids[p]
    sides = {"before": before, "after": after}
    entry = {
        "eval": label if label in prompts.benchmarks else prompts.name,
        "column": label,
        "set": prompts.name,
        "model": model,
        "prompt_id": row_id,
        "prompt": before.prompts[p],
        "seed": int(before.seeds[p, s]),
        "sample": s,
        **{side: float(found.scores[label][p, s]) for side, found in sides.items()},
        **{f"{side}_detail": found.details[p][s].get(label) for side, found in sides.items()},
    }
    return Change(entry, (before.path, (row_id, s)), (after.path, (row_id, s)))


def failures(
    names: Sequence[str], lists: Sequence[PromptList], sets: Sets, tolerance: float
) -> dict[str, Any]:
    """What failed, by model and stage, as dataset.json has it for one set."""
    by_model: dict[str, dict[str, int]] = {name: {} for name in names}
    examples: list[dict[str, str]] = []
    for name in names:
        for prompts in lists:
            own = sets[name, prompts.name].info["failures"]
            for label, count in own["by_model"].items():
                stage = _stage(label)
                by_model[name][stage] = by_model[name].get(stage, 0) + count
            for fault in own["examples"]:
                examples.append(
                    {**fault, "model": name, "set": prompts.name, "stage": _stage(fault["model"])}
                )
    return {
        "total": sum(count for stages in by_model.values() for count in stages.values()),
        "by_model": by_model,
        "worst_share": max((measured.failed_share for measured in sets.values()), default=0.0),
        "tolerance": tolerance,
        "examples": examples[:EXAMPLES],
    }


def _stage(label: str) -> str:
    return "generator" if label == LABEL else label


def described(model: Model, drawer: Mapping[str, Any]) -> dict[str, Any]:
    """A model for results.json; `drawer` is what a set of it says of its weights, and of what it was run with."""
    return {
        "name": model.name,
        "model": model.choice.model,
        "source": model.choice.source,
        "revision": str(drawer["revision"]),
        "settings": model.settings,
        **({"run_with": drawer["run_with"]} if "run_with" in drawer else {}),
        "asked": model.asked,
        "run": run_of(model),
        "step": model.step,
    }


def markdown(info: Mapping[str, Any]) -> str:
    """The contents of results.md, from those of results.json."""
    parts = ["# Results", _models(info)]
    for entry in info["evals"]:
        departures = f" Departures: {entry['departures']}." if entry["departures"] else ""
        parts += [f"## {entry['name']}", _size(entry) + departures, _layout(info, entry)]
        parts += _differences(info, entry["columns"], _times(info, entry))
    for entry in info["metrics"]:
        parts += [f"## metrics on {entry['name']}", _size(entry), _figures(info, entry["columns"])]
        parts += [*_differences(info, entry["columns"]), *_wins_table(entry["wins"])]
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
            heads = [model["name"], info["baseline"], model["name"]]
            yield _table([*heads, "gain", "95 % interval", "wins : losses", "p"], rows)


def _wins_table(wins: Sequence[Mapping[str, Any]]) -> Iterator[str]:
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
    return "\n".join(words.markdown(heads, rows))
