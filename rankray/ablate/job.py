"""Ablations as one job (paper Tables 4 and 5): which labels, which objective, how many candidates, rewards and prompts.

    OUTPUT/synpic/               the ranked dataset that every row learns from, with its encoded set beside it
    OUTPUT/trials/NAME/          each training
    OUTPUT/evaluation/KEY/       pictures and scores of models that were measured together (trials = "jobs")
    OUTPUT/ablation.json         written last: every figure; tables.md and report.html beside it

First each objective's settings are tried on validation prompts, equally many for each; then all rows are trained with
the best, from several seeds, and measured on held-out prompts against the model as it starts. Killed anywhere, the same
command goes on: finished trainings and measurements are found finished in a second each. Rows differ in one thing and
are trained for equally many steps, so an objective that looks at two candidates of four costs half of one that looks at
all: time is not what is held equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import rankray
from rankray.ablate import table as tables
from rankray.ablate.trials import START, Bench, Outcome, outcomes
from rankray.cluster.job import Job, Result, Say, open_output
from rankray.config import ConfigError, nearest
from rankray.config.ablate import CHECKER, AblationConfig, Row, TunedObjective
from rankray.data import place
from rankray.data.place import Publish
from rankray.data.prompts import read_prompts
from rankray.evals.shapes import categories as categories_of
from rankray.rankdpo import job as rankdpo
from rankray.rankdpo import labels
from rankray.synpic import job as synpic

HAS_NO_BETA = frozenset({"sft", "weighted_sft"})


def run(config: AblationConfig, say: Say, publish_dataset: Publish, publish: Publish) -> Result:
    """Runs what is left of an ablation.

    Raises:
        ConfigError: something in the configuration, the prompts, the models or the cluster does not fit.
    """
    output = open_output(config.output)
    _, revision = check(config, output.uri)
    contents = {f"{name}.contents": place.prompts_digest(rows) for name, rows in _prompts_of(config).items()}
    identity = place.identity_of(config, {"model": revision}, contents)
    job = Job("ablate", config, output, "ablation.json", identity, say)

    def work(_: None, meter: Any) -> dict[str, Any]:
        made = synpic.run(config.synpic(output.uri_of("synpic")), say, publish_dataset)
        bench = Bench(config, output, made.path, say)
        info = {**_figures(bench, made.info, _sweep(bench)), "identity": place.claimed(output)}
        for table in info["tables"]:
            say(f"\nTable {table}\n{tables.markdown(info, table)}")
        output.write_text("tables.md", _markdown(info))
        return info

    return Result(output.uri, job.complete() or job.run(lambda: None, work, publish))


def check(config: AblationConfig, output: str) -> tuple[Any, str]:
    """Finds what is wrong with any part before the first begins; the model's row and revision.

    Raises:
        ConfigError: the model does not train, the metric is unknown, or trained pipelines could not be loaded.
    """
    if "://" in output:
        raise ConfigError(
            f"an ablation measures trained pipelines, which load from directories, and output is '{output}'; give a "
            "directory that all nodes see"
        )
    model = rankdpo.check_model(config.model)
    names = [choice.label for choice in config.rewards]
    if config.metric not in (CHECKER, *names):
        raise ConfigError(
            f"metric '{config.metric}'{nearest(config.metric, (CHECKER, *names))}; allowed: "
            f"{CHECKER}, {', '.join(names)}"
        )
    for tuned in config.objectives:
        rankdpo.check_reward(config.trial(tuned, config.labels, tuned.settings[0], 0), names)
    drawn = {
        "generators": [{"name": choice.label, "samples": choice.samples} for choice in config.generators],
        "rewards": [{"name": name} for name in names],
    }
    for row in config.rows:
        labels.resolve(drawn, 0, **config.labels_of(row).model_dump())
    prompts = _prompts_of(config)
    for one, other in itertools.combinations(prompts, 2):
        if overlap := set(prompts[one]) & set(prompts[other]):
            raise ConfigError(
                f"{len(overlap):,} prompts are both {other} and {one}, the first is {min(overlap)!r}; rows learn from "
                "some, settings are chosen on others, and what is measured has been seen by neither"
            )
    if config.metric == CHECKER:
        for name in ("validation", "held_out"):
            if categories_of(prompts[name]) is None:
                raise ConfigError(
                    f"metric '{CHECKER}' judges prompts of the shapes world, and those of {name} are others; give a "
                    f"reward as metric: {', '.join(names)}"
                )
    return model


def _prompts_of(config: AblationConfig) -> dict[str, list[str]]:
    """Who learns, who chooses and who judges: prompts by their part's name."""
    validation, held_out = config.validation.prompts, config.held_out.prompts
    parts = {"prompts": config.prompts, "validation": validation, "held_out": held_out}
    return {name: read_prompts(part).rows for name, part in parts.items()}


def _sweep(bench: Bench) -> list[dict[str, Any]]:
    """Tries every objective's settings on validation prompts; what came of each, and which is best."""
    config = bench.config
    trials = {
        _trial_name(tuned, setting): config.trial(tuned, config.labels, setting, config.sweep_seed)
        for tuned in config.objectives
        for setting in tuned.settings
    }
    came = outcomes(bench, trials, config.validation)
    start = came[START].last[config.metric]
    found = []
    for tuned in config.objectives:
        tried: list[dict[str, Any]] = []
        for rate, beta in tuned.settings:
            outcome, gain = came[_trial_name(tuned, (rate, beta))], None
            if outcome.failed is None:
                gain = tables.difference([start], [outcome.last[config.metric]])
            tried.append({"learning_rate": rate, "beta": beta, "gain": gain, "failed": outcome.failed})
        gains = [-float("inf") if trial["gain"] is None else trial["gain"]["gain"] for trial in tried]
        has_beta = tuned.objective.name not in HAS_NO_BETA
        best = max(range(len(tried)), key=gains.__getitem__)
        found.append({"objective": tuned.name, "has_beta": has_beta, "trials": tried, "chosen": best})
    return found


def _trial_name(tuned: TunedObjective, setting: tuple[float, float]) -> str:
    return f"sweep-{tuned.name}-lr{setting[0]:g}-beta{setting[1]:g}"


def _figures(bench: Bench, dataset: Mapping[str, Any], sweep: list[dict[str, Any]]) -> dict[str, Any]:
    """Trains and measures all rows; the contents of `ablation.json`."""
    config = bench.config
    settings = {}
    for tuned in sweep:
        best = tuned["trials"][tuned["chosen"]]
        settings[tuned["objective"]] = (best["learning_rate"], best["beta"])
    names = {
        row.name: [f"{row.name}-seed{n}" for n in range(row.seeds or config.seeds)] for row in config.rows
    }
    trials = {
        names[row.name][seed]: config.trial(
            config.tuned(row.objective), config.labels_of(row), settings[row.objective], seed
        )
        for seed in range(max(len(each) for each in names.values()))  # a kill leaves whole seeds
        for row in config.rows
        if seed < len(names[row.name])
    }
    came = outcomes(bench, trials, config.held_out)
    start, prompts = came[START].last, came[START].prompts
    categories = categories_of(prompts) or ["all"] * len(prompts)
    rows = [
        _row(config, row, [came[name] for name in names[row.name]], start, settings, categories)
        for row in config.rows
    ]
    _compare(
        rows,
        {row: [came[n].last[config.metric] for n in names[row] if not came[n].failed] for row in names},
    )
    by_name = {row["name"]: row for row in rows}
    return {
        "rankray_version": rankray.__version__,
        "metric": config.metric,
        "tables": list(dict.fromkeys(table for row in config.rows for table in row.tables)),
        "model": config.model.model_dump(mode="json", exclude={"pool"}, exclude_none=True),
        "dataset": {key: dataset[key] for key in ("rows", "candidates", "generators", "rewards")},
        "settings": _settings(config, len(prompts)),
        "start": {
            "accuracy": tables.share(start[config.metric]),
            "categories": tables.by_category(start[config.metric], categories),
        },
        "sweep": sweep,
        "rows": rows,
        "curves": [_curve(curve.model_dump(), by_name) for curve in config.curves],
        "along": _along(bench, settings),
        "cpu_minutes": sum(outcome.cpu_minutes for outcome in came.values()),
    }


def _settings(config: AblationConfig, held_out: int) -> dict[str, Any]:
    training = config.training
    return {
        "steps": training.steps,
        "batch_size": training.batch_size,
        "seeds": config.seeds,
        "held_out": {"prompts": held_out, "samples": config.held_out.samples},
        "validation": {"samples": config.validation.samples},
        "noise": training.noise.model_dump(mode="json"),
        "optimizer": training.optimizer.model_dump(mode="json"),
    }


def _row(
    config: AblationConfig,
    row: Row,
    came: Sequence[Outcome],
    start: Mapping[str, tables.Values],
    settings: Mapping[str, tuple[float, float]],
    categories: Sequence[str],
) -> dict[str, Any]:
    """A row of `ablation.json`."""
    rate, beta = settings[row.objective]
    seeds = [outcome.last for outcome in came if outcome.failed is None]
    return {
        "name": row.name,
        "label": row.label,
        "tables": list(row.tables),
        "paper": dict(row.paper),
        "objective": row.objective,
        "learning_rate": rate,
        "beta": None if config.tuned(row.objective).objective.name in HAS_NO_BETA else beta,
        "labels": config.labels_of(row).model_dump(mode="json"),
        "failed": [outcome.failed for outcome in came if outcome.failed is not None],
        "cpu_minutes": sum(outcome.cpu_minutes for outcome in came),
        **tables.row_of(config.metric, start, seeds, categories),
    }


def _compare(rows: Sequence[dict[str, Any]], values: Mapping[str, Sequence[tables.Values]]) -> None:
    """Gives each row its difference from every other row of its tables: `against[other]` is this one less the other."""
    for row in rows:
        row["against"] = {}
    for one, other in itertools.combinations(rows, 2):
        first, second = values[one["name"]], values[other["name"]]
        if set(one["tables"]) & set(other["tables"]) and first and second:
            found = tables.difference(first, second)
            other["against"][one["name"]] = found
            one["against"][other["name"]] = tables.mirrored(found)


def _curve(curve: dict[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    points = [
        {**point, **{key: rows[point["row"]][key] for key in ("accuracy", "gain")}}
        for point in curve["points"]
    ]
    return {**curve, "points": points}


def _along(bench: Bench, settings: Mapping[str, tuple[float, float]]) -> dict[str, Any] | None:
    """One long training measured as it goes: every metric's difference from the start."""
    config, wanted = bench.config, bench.config.along
    if wanted is None:
        return None
    row = config.row(wanted.row)
    trial = config.trial(config.tuned(row.objective), config.labels_of(row), settings[row.objective], 0)
    name = f"along-{row.name}"
    trials = {name: trial.model_copy(update={"steps": wanted.steps})}
    came = outcomes(bench, trials, config.held_out, wanted.every)
    start = came[START].last
    points = [
        {
            "step": step,
            "metrics": {metric: tables.difference([start[metric]], [values[metric]]) for metric in start},
        }
        for step, values in sorted(came[name].points.items())
    ]
    return {"row": row.name, "failed": came[name].failed, "points": points}


def _markdown(info: Mapping[str, Any]) -> str:
    parts = [f"## Table {table}\n\n{tables.markdown(info, table)}" for table in info["tables"]]
    return "\n\n".join([*parts, f"## Settings that were tried\n\n{tables.sweep_markdown(info)}"]) + "\n"
