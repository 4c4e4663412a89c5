"""Finished sets of several models as results: tables, paired differences, wins, what changed, failures, cost.

Nothing is averaged silently: a picture that failed is in no figure and is counted, and a difference is of pictures that
both models have. Everything is read from the sets' scores and details, so results can be made again without a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from rankray import evals, stats
from rankray.config import ModelChoice
from rankray.config.evaluate import LABEL
from rankray.evals import scores as evaluation
from rankray.evals.models import Model, run_of
from rankray.evals.prompt_lists import PromptList
from rankray.evals.scores import Floats, Pictures
from rankray.models.targets import Judgement
from rankray.stats import Column, Difference, win_rate

Judgements = Mapping[str, Sequence[Judgement | None]]

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

    judged = {name: pictures.judgements(label) for name, pictures in own.items()}
    choice = next(choice for choice in prompts.scorers if choice.label == label)
    departures = [spec.departures] if spec.departures else []
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
        "columns": _columns(columns, judged, baseline, spec.overall),
    }


def _metric(label: str, own: Mapping[str, Pictures], baseline: str | None) -> list[dict[str, Any]]:
    judged = {name: pictures.judgements(label) for name, pictures in own.items()}

    def columns(judgements: Judgements) -> dict[str, Column]:
        return {label: Column({p: [one.score for one in found if one] for p, found in judgements.items()})}

    return [row for row in _columns(columns, judged, baseline, (label,)) if row["name"] == label]


def _columns(
    columns: Any, judged: Mapping[str, Judgements], baseline: str | None, overall: Sequence[str]
) -> list[dict[str, Any]]:
    """An entry a column: each model's figure, and each model's difference from the baseline."""
    figures = {name: stats.estimates(columns(found), overall) for name, found in judged.items()}
    gains: dict[str, dict[str, Difference]] = {}
    for name, found in judged.items():
        if baseline is not None and name != baseline:
            before, after = (columns(side) for side in paired(judged[baseline], found))
            gains[name] = stats.differences(before, after, overall)
    has = {
        name: {part for part in overall if part in own and own[part].mean is not None}
        for name, own in figures.items()
    }
    whole = set().union(*has.values())
    for name, own in figures.items():
        if has[name] != whole:  # the mean of fewer categories is another figure
            own.pop(stats.OVERALL, None)
            for gained in gains.values() if name == baseline else [gains.get(name, {})]:
                gained.pop(stats.OVERALL, None)
    labels = list(dict.fromkeys(label for found in figures.values() for label in found))
    if stats.OVERALL in labels and stats.OVERALL not in overall:  # it stands last
        labels.append(labels.pop(labels.index(stats.OVERALL)))
    none = asdict(stats.Estimate())
    return [
        {
            "name": label,
            "prompts": max(found[label].prompts for found in figures.values() if label in found),
            "models": {n: asdict(f[label]) if label in f else dict(none) for n, f in figures.items()},
            "difference": {n: _finite(asdict(g[label])) for n, g in gains.items() if label in g},
        }
        for label in labels
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


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


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
                for p, s in evaluation.most_changed(_change(choice, before, after), count):
                    found.append(_changed(prompts, choice.label, name, before, after, p, s))
    return found


def _change(choice: ModelChoice, before: Pictures, after: Pictures) -> Floats:
    change: Floats = after.scores[choice.label] - before.scores[choice.label]
    return change


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


def described(model: Model, revision: str) -> dict[str, Any]:
    """A model for results.json."""
    return {
        "name": model.name,
        "model": model.choice.model,
        "source": model.choice.source,
        "revision": revision,
        "asked": model.asked,
        "run": run_of(model),
        "step": model.step,
    }
