"""Ablations as one job (paper Tables 4 and 5): which labels, which objective, how many candidates, rewards and prompts.

    OUTPUT/synpic/               the ranked dataset that every row learns from, with its encoded set beside it
    OUTPUT/trials/NAME/          each training, a RankDPO run of its own
    OUTPUT/evaluation/KEY/       pictures and scores of models that were measured together
    OUTPUT/ablation.json         written last: every figure; tables.md and report.html beside it

First each objective's settings are tried on validation prompts, equally many for each; then all rows are trained with
the best, from several seeds, and measured on held-out prompts against the model as it starts. Killed anywhere, the same
command goes on: finished trainings and measurements are found finished in a second each. Rows differ in one thing and
are trained for equally many steps, so an objective that looks at two candidates of four costs half of one that looks at
all: time is not what is held equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs
import ray

import rankray
from rankray import ablation_table as tables
from rankray import labels, rankdpo, samples, store, synpic
from rankray import output as outputs
from rankray.ablation_config import CHECKER, AblationConfig, Row
from rankray.config import ConfigError, nearest
from rankray.output import Output
from rankray.prompts import read_prompts
from rankray.ray_session import connect, exclusive, in_submitted_job
from rankray.training_config import RankDPOConfig
from rankray.trials import Measured, Trained, Trial, measure_all, train_all

Say = Callable[[str], None]
Publish = Callable[[str, dict[str, Any]], None]
START = "start"
HAS_NO_BETA = frozenset({"sft", "weighted_sft"})


@dataclass(frozen=True)
class Result:
    """What an ablation leaves: its place and figures (the contents of `ablation.json`)."""

    path: str
    info: dict[str, Any]


@dataclass(frozen=True)
class _Job:
    """What all parts of an ablation share."""

    config: AblationConfig
    output: Output
    dataset: store.RankedDataset
    say: Say


def run(config: AblationConfig, say: Say, publish_dataset: Publish, publish: Publish) -> Result:
    """Runs what is left of an ablation.

    Raises:
        ConfigError: something in the configuration, the prompts, the models or the cluster does not fit.
    """
    output = outputs.open_output(config.output, in_job=in_submitted_job())
    check(config, output.uri)
    connect()
    with exclusive("ablate", output.uri):
        made = synpic.run(config.synpic(output.uri_of("synpic")), say, publish_dataset)
        job = _Job(config, output, store.read(made.path), say)
        for row in config.rows:
            labels.resolve(config.labels_of(row), made.info, 0)
        sweep = _sweep(job)
        settings = {found["objective"]: _chosen(found) for found in sweep}
        info = _figures(job, sweep, settings)
    for table in info["tables"]:
        say(f"\nTable {table}\n{tables.markdown(info, table)}")
    output.write_text("tables.md", _markdown(info))
    publish(output.uri, info)
    store.write_json(output.at("ablation.json"), info, output.fs)
    return Result(output.uri, info)


def check(config: AblationConfig, output: str) -> None:
    """Finds what is wrong with any part before the first begins.

    Raises:
        ConfigError: the model does not train, the metric is unknown, or trained pipelines could not be loaded.
    """
    if "://" in output:
        raise ConfigError(
            f"an ablation measures trained pipelines, which load from directories, and output is '{output}'; give a "
            "directory that all nodes see"
        )
    rankdpo.check_model(config.model)
    names = [choice.label for choice in config.rewards]
    if config.metric not in (CHECKER, *names):
        raise ConfigError(
            f"metric '{config.metric}'{nearest(config.metric, (CHECKER, *names))}; allowed: "
            f"{CHECKER}, {', '.join(names)}"
        )
    for tuned in config.objectives:
        rankdpo.check_reward(config.trial(tuned, config.labels, tuned.settings[0], 0), names)
    overlap = set(read_prompts(config.prompts).rows) & set(read_prompts(config.held_out.prompts).rows)
    if overlap:
        raise ConfigError(
            f"{len(overlap):,} held-out prompts are trained on, the first is {min(overlap)!r}; take others"
        )


def _placed(job: _Job, name: str, config: RankDPOConfig) -> Trial:
    """A trial with its dataset and output in place."""
    place = {"dataset": job.dataset.path, "output": job.output.uri_of("trials", name)}
    return Trial(name, config.model_copy(update=place))


def _sweep(job: _Job) -> list[dict[str, Any]]:
    """Tries every objective's settings on validation prompts; what came of each, and which is best."""
    config, trials = job.config, {}
    for tuned in config.objectives:
        for rate, beta in tuned.settings:
            name = f"sweep-{tuned.name}-lr{rate:g}-beta{beta:g}"
            trials[tuned.name, rate, beta] = _placed(
                job, name, config.trial(tuned, config.labels, (rate, beta), config.sweep_seed)
            )
    trained = train_all(list(trials.values()), config.parallel, job.say)
    measured = measure_all(config, job.output, config.validation, _models(trained), job.say)
    start = measured[START].values[config.metric]
    found = []
    for tuned in config.objectives:
        tried: list[dict[str, Any]] = []
        for rate, beta in tuned.settings:
            name = trials[tuned.name, rate, beta].name
            gain = (
                tables.difference([start], [measured[name].values[config.metric]])
                if name in measured
                else None
            )
            tried.append({"learning_rate": rate, "beta": beta, "gain": gain, "failed": trained[name].failed})
        gains = [-float("inf") if trial["gain"] is None else trial["gain"]["gain"] for trial in tried]
        has_beta = tuned.objective.name not in HAS_NO_BETA
        best = max(range(len(tried)), key=gains.__getitem__)
        found.append({"objective": tuned.name, "has_beta": has_beta, "trials": tried, "chosen": best})
    return found


def _chosen(found: Mapping[str, Any]) -> tuple[float, float]:
    best = found["trials"][found["chosen"]]
    return best["learning_rate"], best["beta"]


def _models(trained: Mapping[str, Trained]) -> dict[str, str | None]:
    """Pipelines to measure by name, the model as it starts first; trainings that diverged have none."""
    there = {name: found.pipeline for name, found in trained.items() if found.pipeline is not None}
    return {START: None, **there}


def _figures(
    job: _Job, sweep: list[dict[str, Any]], settings: Mapping[str, tuple[float, float]]
) -> dict[str, Any]:
    """Trains and measures all rows; the contents of `ablation.json`."""
    config = job.config
    names = {
        row.name: [f"{row.name}-seed{seed}" for seed in range(row.seeds or config.seeds)]
        for row in config.rows
    }
    trials = [
        _placed(
            job,
            names[row.name][seed],
            config.trial(config.tuned(row.objective), config.labels_of(row), settings[row.objective], seed),
        )
        for seed in range(max(len(each) for each in names.values()))  # a kill leaves whole seeds
        for row in config.rows
        if seed < len(names[row.name])
    ]
    trained = train_all(trials, config.parallel, job.say)
    measured = measure_all(config, job.output, config.held_out, _models(trained), job.say)
    along = _along(job, settings)
    start = measured[START]
    categories = _categories(start.prompts)
    rows = [_row(job, row, names[row.name], trained, measured, settings, categories) for row in config.rows]
    by_name = {row["name"]: row for row in rows}
    values = {
        name: [measured[n].values[config.metric] for n in names[name] if n in measured] for name in names
    }
    for row in rows:
        row["against"] = {
            other: tables.difference(values[other], values[row["name"]])
            for other in names
            if other != row["name"]
            and values[other]
            and values[row["name"]]
            and set(row["tables"]) & set(by_name[other]["tables"])
        }
    return {
        "rankray_version": rankray.__version__,
        "metric": config.metric,
        "tables": list(dict.fromkeys(table for row in config.rows for table in row.tables)),
        "model": config.model.model_dump(mode="json", exclude={"pool"}, exclude_none=True),
        "dataset": {key: job.dataset.info[key] for key in ("rows", "candidates", "generators", "rewards")},
        "settings": _settings(config, len(start.prompts)),
        "start": {
            "accuracy": tables.share(start.values[config.metric]),
            "categories": tables.by_category(start.values[config.metric], categories),
        },
        "sweep": sweep,
        "rows": rows,
        "curves": [_curve(curve.model_dump(), by_name) for curve in config.curves],
        "along": along,
        "cpu_minutes": sum(found.cpu_minutes for found in trained.values()),
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
    job: _Job,
    row: Row,
    names: Sequence[str],
    trained: Mapping[str, Trained],
    measured: Mapping[str, Measured],
    settings: Mapping[str, tuple[float, float]],
    categories: Sequence[str],
) -> dict[str, Any]:
    """A row of `ablation.json`."""
    rate, beta = settings[row.objective]
    seeds = [measured[name].values for name in names if name in measured]
    chosen = job.config.labels_of(row)
    return {
        "name": row.name,
        "label": row.label,
        "tables": list(row.tables),
        "paper": row.paper,
        "objective": row.objective,
        "learning_rate": rate,
        "beta": None if job.config.tuned(row.objective).objective.name in HAS_NO_BETA else beta,
        "labels": chosen.model_dump(mode="json"),
        "failed": [found for name in names if (found := trained[name].failed) is not None],
        "cpu_minutes": sum(trained[name].cpu_minutes for name in names),
        **tables.row_of(job.config.metric, measured[START].values, seeds, categories),
    }


def _categories(prompts: Sequence[str]) -> list[str]:
    """Each prompt's category in the shapes world; "all" elsewhere."""
    from rankray.shapes import category

    found = []
    for prompt in prompts:
        try:
            found.append(category(prompt))
        except ValueError:
            return ["all"] * len(prompts)
    return found


def _curve(curve: dict[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    points = [
        {**point, "accuracy": rows[point["row"]]["accuracy"], "gain": rows[point["row"]]["gain"]}
        for point in curve["points"]
    ]
    return {**curve, "points": points}


def _along(job: _Job, settings: Mapping[str, tuple[float, float]]) -> dict[str, Any] | None:
    """One long training measured at its checkpoints: every metric's difference from the start."""
    config, wanted = job.config, job.config.along
    if wanted is None:
        return None
    row = config.row(wanted.row)
    trial = config.trial(config.tuned(row.objective), config.labels_of(row), settings[row.objective], 0)
    marks = list(range(wanted.every, wanted.steps + 1, wanted.every))
    trial = trial.model_copy(
        update={
            "steps": wanted.steps,
            "checkpoints": trial.checkpoints.model_copy(
                update={"every": wanted.every, "keep": len(marks) + 1}
            ),
        }
    )
    placed = _placed(job, f"along-{row.name}", trial)
    trained = train_all([placed], 1, job.say)[placed.name]
    if trained.pipeline is None:
        return {"row": row.name, "failed": trained.failed, "points": []}
    models = {f"step {step}": _exported(job, placed, step) for step in marks}
    measured = measure_all(config, job.output, config.held_out, {START: None, **models}, job.say)
    start = measured[START].values
    points = []
    for step in marks:
        values = measured[f"step {step}"].values
        found = {name: tables.difference([start[name]], [values[name]]) for name in start}
        points.append({"step": step, "metrics": found})
    return {"row": row.name, "failed": None, "points": points}


def _exported(job: _Job, trial: Trial, step: int) -> str:
    """The pipeline of a run's checkpoint after `step` steps, written once."""
    place = job.output.uri_of("trials", trial.name, f"pipeline-{step}")
    if not job.output.exists("trials", trial.name, f"pipeline-{step}", "model_index.json"):
        spec, _ = rankdpo.check_model(trial.config.model)
        export = ray.remote(num_cpus=0.5)(samples.export_pipeline)
        ray.get(export.remote(spec, trial.config, _checkpoint(job, trial, step), place))
    return place


def _checkpoint(job: _Job, trial: Trial, step: int) -> str:
    """The URI of the checkpoint that a run wrote after `step` steps."""
    root = job.output.at("trials", trial.name, "checkpoints")
    for info in job.output.fs.get_file_info(pafs.FileSelector(root)):
        state = f"{info.path}/state.json"
        there = job.output.fs.get_file_info(state).type != pafs.FileType.NotFound
        if there and store.read_json(state, job.output.fs)["run"]["step"] == step:
            return job.output.uri_of("trials", trial.name, "checkpoints", info.base_name)
    raise RuntimeError(f"no checkpoint of step {step} in {root}; remove that directory and run again")


def _markdown(info: Mapping[str, Any]) -> str:
    parts = [f"## Table {table}\n\n{tables.markdown(info, table)}" for table in info["tables"]]
    return "\n\n".join([*parts, f"## Settings that were tried\n\n{tables.sweep_markdown(info)}"]) + "\n"
