"""From models' values on the same pictures to the rows of an ablation: gains, intervals, comparisons, Markdown.

A row's gain is taken prompt by prompt over all its seeds' pictures. Its interval is bootstrapped over prompts and over
seeds, both drawn anew each time, since a claim about an objective is one about trainings that nobody has run yet; over
prompts alone the intervals of the shapes ablation are 0.54 to 0.99 times as wide. Three seeds are few: their spread is
estimated a fifth too small on average, so what is near the edge of an interval is open.

What can be told apart is said beforehand, from trainings that chose settings: one row is claimed to be above another
where it is so by at least the smallest difference that a test would find four times in five, and the interval leaves
out zero. Of a hundred pairs that do not differ a test at 5 % would claim five, and this claims one at most; it claims a
true difference of just that size every second time.

    P prompts, S pictures a prompt; a row of three seeds has P x 3S values
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from rankray import words
from rankray.config.ablate import CHECKER
from rankray.evals import published
from rankray.stats import SEED, Components, compare, components, pooled, resamples, smallest_difference

Values = npt.NDArray[np.float64]


def share(values: Values) -> float:
    """Mean over prompts of each prompt's mean over its pictures; pictures without a value are left out."""
    kept = values[~np.isnan(values).all(axis=1)]
    return float(np.nanmean(kept, axis=1).mean()) if len(kept) else float("nan")


def by_category(values: Values, categories: Sequence[str]) -> dict[str, float]:
    """`share` of each category's prompts, in the order in which categories first come."""
    names = list(dict.fromkeys(categories))
    places = {name: [p for p, category in enumerate(categories) if category == name] for name in names}
    return {name: share(values[rows]) for name, rows in places.items()}


def difference(before: Sequence[Values], after: Sequence[Values]) -> dict[str, Any]:
    """`stats.compare` of two models, each of one or more seeds, float[P, S] a seed; intervals are over both.

    A model of fewer seeds than the other is repeated: the start has one, and stands against each of a row's.
    """
    first, second = (np.concatenate(list(side), axis=1) for side in (before, after))
    width = int(np.lcm(first.shape[1], second.shape[1]))
    first, second = (np.tile(side, width // side.shape[1]) for side in (first, second))
    found = asdict(compare(first, second))
    if (
        max(len(before), len(after)) > 1 and found["low"] is not None
    ):  # seeds of one prompt say nothing of others
        found["low"], found["high"] = _interval(before, after)
    return found


def mirrored(found: Mapping[str, Any]) -> dict[str, Any]:
    """The same difference the other way round, to the digit: two bootstraps would differ in their last one."""
    low, high = found["low"], found["high"]
    return {
        "before": found["after"],
        "after": found["before"],
        "gain": -found["gain"],
        "low": None if high is None else -high,
        "high": None if low is None else -low,
        "wins": found["losses"],
        "losses": found["wins"],
        "p_value": found["p_value"],
    }


def _interval(before: Sequence[Values], after: Sequence[Values]) -> tuple[float, float]:
    """95 % bootstrap interval of the gain, where each draw takes prompts and each side's seeds with replacement."""
    means = [_by_seed(side) for side in (before, after)]
    kept = ~np.isnan(means[0]).any(axis=0) & ~np.isnan(means[1]).any(axis=0)
    rng = np.random.default_rng(SEED)
    gains = []
    for taken in resamples([np.arange(int(kept.sum()))]):
        drawn = []
        for side in means:
            seeds = rng.integers(len(side), size=(len(taken), len(side)))
            drawn.append((side[:, kept] @ taken.T / kept.sum())[seeds.T, np.arange(len(taken))].mean(axis=0))
        gains.append(drawn[1] - drawn[0])
    low, high = np.quantile(np.concatenate(gains), [0.025, 0.975])
    return float(low), float(high)


def _by_seed(side: Sequence[Values]) -> Values:
    """float[seeds, P]: each prompt's mean over its pictures; NaN where a seed has none of it."""
    counts = [np.maximum((~np.isnan(values)).sum(axis=1), 1) for values in side]
    sums = [np.nansum(values, axis=1) / count for values, count in zip(side, counts, strict=True)]
    gone = [np.isnan(values).all(axis=1) for values in side]
    return np.where(np.stack(gone), np.nan, np.stack(sums))


def power(
    start: Values | None, models: Sequence[Sequence[Values]], seeds: int, prompts: int, pictures: int
) -> dict[str, Any] | None:
    """The smallest difference between two rows, and the smallest gain of one, that this many would show.

    Args:
        start: float[P, S] of the model as it starts.
        models: float[P, S] of each seed of models that were trained otherwise; those of one seed tell nothing.
        seeds, prompts, pictures: that are planned: trainings of a row, prompts, and pictures a prompt.

    Returns:
        difference, gain (four times in five at 5 % two-sided), their variance components, what is planned; None where
        no two models have two seeds.
    """
    several = [model for model in models if len(model) > 1]
    if start is None or len(several) < 2:
        return None
    pairs = pooled([_parts(one, other) for one, other in combinations(several, 2)])
    gains = pooled([_parts(model, [start] * len(model)) for model in several])
    return {
        "difference": smallest_difference(pairs.error(seeds, prompts, pictures)),
        "gain": smallest_difference(gains.error(seeds, prompts, pictures)),
        "components": {"difference": asdict(pairs), "gain": asdict(gains)},
        "planned": {"seeds": seeds, "prompts": prompts, "pictures": pictures},
        "models": len(several),
    }


def _parts(first: Sequence[Values], second: Sequence[Values]) -> Components:
    """Components of the difference between two models' seeds, of prompts of which every picture has a value."""
    change = np.stack([one - other for one, other in zip(first, second, strict=False)])
    return components(change[:, ~np.isnan(change).any(axis=(0, 2))])


def smallest(power: Mapping[str, Any] | None, one: int, other: int) -> float:
    """The smallest difference that rows of so many seeds each would show; 0 where none was worked out."""
    if power is None:
        return 0.0
    planned, seeds = power["planned"], 2.0 / (1.0 / one + 1.0 / other)
    found = Components(**power["components"]["difference"])
    return smallest_difference(found.error(seeds, planned["prompts"], planned["pictures"]))


def compare_rows(
    rows: Sequence[dict[str, Any]], values: Mapping[str, Sequence[Values]], power: Mapping[str, Any] | None
) -> None:
    """Gives each row its difference from every other row of its tables: `against[other]` is this one less the other.

    It has `smallest`, the difference that could be seen, and `claimed`: whether it is at least that, and its interval
    leaves out zero.
    """
    for row in rows:
        row["against"] = {}
    for one, other in combinations(rows, 2):
        first, second = values[one["name"]], values[other["name"]]
        if set(one["tables"]) & set(other["tables"]) and first and second:
            found, seen = difference(first, second), smallest(power, len(first), len(second))
            apart = found["low"] is not None and found["low"] * found["high"] > 0
            claimed = apart and abs(found["gain"]) >= seen
            told = {"smallest": seen, "claimed": bool(claimed)}
            other["against"][one["name"]] = found | told
            one["against"][other["name"]] = mirrored(found) | told


def row_of(
    metric: str,
    start: Mapping[str, Values],
    seeds: Sequence[Mapping[str, Values]],
    categories: Sequence[str],
) -> dict[str, Any]:
    """A row's figures from its seeds' values by metric: accuracy, gain over the start, rewards, categories.

    Returns:
        accuracy (mean over seeds), seeds (each one's), gain (a `Difference`), rewards (a `Difference` of each other
        metric), categories. None of them where no seed came through.
    """
    if not seeds:
        return {"accuracy": None, "seeds": [], "gain": None, "rewards": {}, "categories": {}}
    values = [seed[metric] for seed in seeds]
    others = [name for name in start if name != metric]
    return {
        "accuracy": float(np.mean([share(value) for value in values])),
        "seeds": [share(value) for value in values],
        "gain": difference([start[metric]], values),
        "rewards": {name: difference([start[name]], [seed[name] for seed in seeds]) for name in others},
        "categories": by_category(np.concatenate(values, axis=1), categories),
    }


def _figure(value: float | None, metric: str) -> str:
    """A figure of a metric: the checker's is a share."""
    return words.figure(value, metric == CHECKER)


def power_line(found: Mapping[str, Any], metric: str) -> str:
    """What an ablation can show, in one line."""
    planned, by = found["planned"], "points " if metric == CHECKER else f"of {metric} "
    difference, gain = (_figure(found[key], metric) for key in ("difference", "gain"))
    return (
        f"with {planned['seeds']} seeds a row on {planned['prompts']:,} prompts with {planned['pictures']} pictures "
        f"each, two rows must be {difference} {by}apart to be told apart four times in five, and a row's gain be {gain}"
    )


def markdown(info: Mapping[str, Any], table: str) -> str:
    """The rows of one table as Markdown, the model as it starts first, and what is claimed of their order, beside what
    the paper prints; the checker's shares in per cent and its gains in points, any other metric as it is.

    Args:
        info: the contents of `ablation.json`.
        table: "4", "5", ...
    """
    rows = [row for row in info["rows"] if table in row["tables"]]
    names = list(info["start"]["categories"])
    quoted = published.TABLES.get(int(table)) if table.isdigit() else None
    head = ["row", *names, "all", "gain, 95 % interval", "wins : losses", "each seed"]
    head += [f"the paper, {quoted.columns[0]}"] if quoted else []
    start, metric = info["start"], info["metric"]
    paper = _quoted(quoted, next(iter(quoted.rows))) if quoted else []
    lines = [_line(metric, "start", start["categories"].values(), start["accuracy"], "", "", "", *paper)]
    for row in rows:
        paper = _quoted(quoted, row["paper"].get(table))
        if row["gain"] is None:
            lines.append(
                _line(metric, row["label"], [None] * len(names), None, row["failed"][0], "", "", *paper)
            )
            continue
        seeds = ", ".join(_figure(value, metric) for value in row["seeds"])
        if row["failed"]:
            seeds += f"; {len(row['failed'])} diverged"
        found = row["gain"]
        cells = row["categories"].values()
        votes = f"{found['wins']} : {found['losses']}"
        lines.append(
            _line(metric, row["label"], cells, row["accuracy"], points(found, metric), votes, seeds, *paper)
        )
    return "\n".join([*words.markdown(head, lines), "", *order(info, rows)])


def _quoted(table: published.Quoted | None, row: str | None) -> list[str]:
    """The paper's figure of a row, where the table is one of its own."""
    return [] if table is None else [table.rows.get(row or "", (None,))[0] or ""]


def order(info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What may be said of the rows' order: above which others each is, as `compare_rows` claims it."""
    labels = {row["name"]: row["label"] for row in rows}
    lines = [f"What can be told: {power_line(info['power'], info['metric'])}."] if info["power"] else []
    for row in sorted((row for row in rows if row["gain"]), key=lambda row: -row["gain"]["gain"]):
        below = [
            f"{labels[name]} ({points(found, info['metric'])})"
            for name, found in row["against"].items()
            if name in labels and found["claimed"] and found["gain"] > 0
        ]
        lines.append(f"- {row['label']}: above {'; '.join(below) or 'no other'}")
    return lines


def points(found: Mapping[str, float | None], metric: str) -> str:
    """A `Difference` of a metric: "+4.2 [+1.0, +7.5]", the checker's in points; of one prompt "+4.2"."""
    values = [found[key] for key in ("gain", "low", "high")]
    gain, *ends = (
        f"{'-' if value < 0 else '+'}{_figure(abs(value), metric)}" for value in values if value is not None
    )
    return f"{gain} [{', '.join(ends)}]" if ends else gain


def _line(metric: str, label: str, categories: Any, accuracy: float | None, *rest: str) -> list[str]:
    cells = ["" if value is None else _figure(value, metric) for value in (*categories, accuracy)]
    return [label, *cells, *rest]


def curves_markdown(info: Mapping[str, Any]) -> str:
    """Rows along a quantity, as Markdown: candidates, rewards, prompts."""
    metric = info["metric"]
    rows = [
        [
            curve["x_label"],
            f"{point['x']:g}",
            _figure(point["accuracy"], metric),
            points(point["gain"], metric),
        ]
        for curve in info["curves"]
        for point in curve["points"]
        if point["gain"] is not None
    ]
    return "\n".join(words.markdown(["along", "at", "all", "gain, 95 % interval"], rows))


def along_markdown(info: Mapping[str, Any]) -> str:
    """One long training, measured as it goes, as Markdown: the metric with its interval, every other's gain."""
    metric, measured = info["metric"], info["along"]["points"]
    others = [name for name in measured[0]["metrics"] if name != metric]
    rows = [
        [
            f"{point['step']}",
            points(point["metrics"][metric], metric),
            *(f"{point['metrics'][name]['gain']:+.3f}" for name in others),
        ]
        for point in measured
    ]
    return "\n".join(words.markdown(["step", metric, *others], rows))


def sweep_markdown(info: Mapping[str, Any]) -> str:
    """Every setting that was tried, and which was taken, as Markdown."""
    head = ["objective", "learning rate", "beta", "trainings", "best step", "gain on validation", "taken"]
    rows = []
    for sweep in info["sweep"]:
        for number, trial in enumerate(sweep["trials"]):
            gain = trial["failed"] or points(trial["gain"], info["metric"])
            beta = f"{trial['beta']:g}" if sweep["has_beta"] else ""
            taken = "" if number != sweep["chosen"] else "yes" if sweep["inside"] else "yes, at the edge"
            cells = [f"{trial['learning_rate']:g}", beta, f"{trial['seeds']}", f"{trial['step']}"]
            rows.append([sweep["objective"], *cells, gain, taken])
    return "\n".join(words.markdown(head, rows))
