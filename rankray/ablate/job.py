"""Ablations as one job (paper Tables 4 and 5): which labels, which objective, how many candidates, rewards and prompts.

    OUTPUT/synpic/               the ranked dataset that every row learns from, with its encoded set beside it
    OUTPUT/trials/NAME/          each training
    OUTPUT/evaluation/KEY/       pictures and scores of models that were measured together (trials = "jobs")
    OUTPUT/power.json            what the rows will be able to show
    OUTPUT/ablation.json         written last: every figure; tables.md and report.html beside it

First each objective's settings are searched on validation prompts, by equally many trainings (`tuning`). These also
tell how far trainings, prompts and pictures are apart, so that the smallest difference which the rows will be able to
show is written down, as power.json, before any of them is trained. Then all rows are trained with the best, from
several seeds, and measured on held-out prompts against the model as it starts. Killed anywhere, the same command goes
on: finished trainings and measurements are found finished in a second each. Rows differ in one thing and are trained
for at most equally many steps, so an objective that looks at two candidates of four costs half of one that looks at
all: time is not what is held equal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import rankray
from rankray import store
from rankray.ablate import table as tables
from rankray.ablate.trials import START, Bench, Outcome, outcomes, room
from rankray.ablate.tuning import Choice, Grid, Place, Trial, best_point, choose, next_trials
from rankray.cluster.job import Job, Result, connect, failures, open_output
from rankray.config import ConfigError, nearest
from rankray.config.ablate import CHECKER, AblationConfig, Row, TuningConfig
from rankray.config.rankdpo import WITHOUT_PAIRS
from rankray.data import place
from rankray.data.place import Publish
from rankray.data.prompts import read_prompts
from rankray.evals.shapes import categories as categories_of
from rankray.evals.shapes import reads
from rankray.rankdpo import job as rankdpo
from rankray.shapes.renderer import SIZE
from rankray.synpic import job as synpic
from rankray.words import Say


def run(config: AblationConfig, say: Say, publish_dataset: Publish, publish: Publish) -> Result:
    """Runs what is left of an ablation.

    Raises:
        ConfigError: something in the configuration, the prompts, the models or the cluster does not fit.
    """
    output = open_output(config.output)
    revision, prompts = check(config, output.uri)
    contents = {f"{name}.contents": place.prompts_digest(rows) for name, rows in prompts.items()}
    identity = place.identity_of(config, {"model": revision}, contents)
    job = Job("ablate", config, output, "ablation.json", identity, say)

    def work(_: None, meter: Any) -> dict[str, Any]:
        made = synpic.run(config.synpic(output.uri_of("synpic")), say, publish_dataset)
        bench = Bench(config, output, made.path, say, prompts, {"synpic": synpic.failed(made)})
        say(plan_line(config))
        return {**_made(bench, made.info), "identity": place.claimed(output)}

    info = job.run(connect, work, publish)
    counted = info.get("failures", {})  # which older ones have not
    return Result(output.uri, info, counted.get("worst_share", 0.0))


def _made(bench: Bench, dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Trains and measures what is left on the dataset, writes the tables; the contents of `ablation.json`."""
    config, held_out = bench.config, len(bench.prompts["held_out"])
    searches, start = _searched(bench, held_out)
    settings, tuned = _chosen(bench, searches, start, held_out)
    figures = _figures(bench, dataset, settings, tuned["power"])
    info = {
        **figures,
        **tuned,
        "cpu_minutes": sum(bench.cpu_minutes.values()),
        "failures": failures(bench.failed, config.execution.tolerance),
    }
    parts = {table: tables.markdown(info, table) for table in info["tables"]}
    for table, text in parts.items():
        bench.say(f"\nTable {table}\n{text}")
    written = {f"Table {table}": text for table, text in parts.items()}
    if info["curves"]:
        written["Along a quantity"] = tables.curves_markdown(info)
    if info["along"] and info["along"]["points"]:
        written[f"Along the training of {info['along']['row']}"] = tables.along_markdown(info)
    written["Settings that were tried"] = tables.sweep_markdown(info)
    text = "".join(f"## {head}\n\n{part}\n\n" for head, part in written.items())
    bench.output.write_text("tables.md", text)
    return info


def check(config: AblationConfig, output: str) -> tuple[str, dict[str, list[str]]]:
    """Finds what is wrong with any part before the first begins; the model's revision, and prompts by their part.

    Raises:
        ConfigError: the model does not train, the metric is unknown, or trained pipelines could not be loaded.
    """
    if "://" in output:
        raise ConfigError(
            f"an ablation measures trained pipelines, which load from directories, and output is '{output}'; give a "
            "directory that all nodes see"
        )
    spec, revision = rankdpo.check_model(config.model)
    names = [choice.label for choice in config.rewards]
    if config.metric not in (CHECKER, *names):
        raise ConfigError(
            f"metric '{config.metric}'{nearest(config.metric, (CHECKER, *names))}; allowed: "
            f"{CHECKER}, {', '.join(names)}"
        )
    prompts, dataset = _prompts_of(config), config.synpic(f"{output}/synpic")
    trials = [config.trial(tuned, config.labels, tuned.first, 0) for tuned in config.objectives]
    trials += [config.trial_of(row, config.tuned(row.objective).first, 0) for row in config.rows]
    rankdpo.check_places(trials[0].model_copy(update={"output": output}))
    for trial in trials:
        rankdpo.check_ahead(trial, dataset, prompts["prompts"])
    _check_prompts(config, (spec.width, spec.height), prompts)
    return revision, prompts


def _check_prompts(
    config: AblationConfig, size: tuple[int, int], prompts: Mapping[str, Sequence[str]]
) -> None:
    """Whether nobody judges what was learnt from, by more than one prompt, and the metric can judge it in this size.

    Raises:
        ConfigError: so it is not.
    """
    for one, other in itertools.combinations(prompts, 2):
        if overlap := set(prompts[one]) & set(prompts[other]):
            raise ConfigError(
                f"{len(overlap):,} prompts are both {other} and {one}, the first is {min(overlap)!r}; rows learn from "
                "some, settings are chosen on others, and what is measured has been seen by neither"
            )
    for name in ("validation", "held_out"):
        if len(prompts[name]) < 2:
            raise ConfigError(f"{name}.prompts: one prompt says nothing of others; give two or more")
        if config.metric == CHECKER and not reads(prompts[name], [size]):
            ours = categories_of(prompts[name]) is not None
            why = f"{config.model.label} draws {size[0]}x{size[1]}" if ours else f"those of {name} are others"
            raise ConfigError(
                f"metric '{CHECKER}' judges prompts of the shapes world in pictures of {SIZE}x{SIZE}, and {why}; "
                f"give a reward as metric: {', '.join(choice.label for choice in config.rewards)}"
            )


def _prompts_of(config: AblationConfig) -> dict[str, list[str]]:
    """Who learns, who chooses and who judges: prompts by their part's name."""
    validation, held_out = config.validation.prompts, config.held_out.prompts
    parts = {"prompts": config.prompts, "validation": validation, "held_out": held_out}
    return {name: read_prompts(part).rows for name, part in parts.items()}


def _counts(config: AblationConfig) -> tuple[int, int]:
    """How many trainings tune, and how many are rows'."""
    tuned = sum(math.prod(map(len, one.axes)) > 1 for one in config.objectives)
    return config.tuning.trainings * tuned, sum(row.seeds or config.seeds for row in config.rows)


def plan_line(config: AblationConfig) -> str:
    """What is to come, in one line."""
    tuning, rows = _counts(config)
    along = f", and one of {config.along.steps:,} steps" if config.along else ""
    most = (config.tuning.most or 0) * tuning // config.tuning.trainings
    more = f" (up to {most:,} where the best of one lies at an edge)" if most > tuning else ""
    return (
        f"{tuning + rows + bool(along):,} trainings of at most {config.training.steps:,} steps: {tuning:,} to tune "
        f"{len(config.objectives)} objectives{more}, {rows:,} of {len(config.rows)} rows{along}"
    )


def _hours(bench: Bench, start: Outcome, trials: Sequence[Outcome], held_out: int) -> str:
    """How long the rest will take, by the first trainings: of each objective one a setting."""
    config = bench.config
    tuning, rows = _counts(config)
    each = sum(trial.cpu_minutes for trial in trials) / len(trials)
    drawn = held_out * config.held_out.samples / (len(start.prompts) * config.validation.samples)
    measuring = start.cpu_minutes  # of no trial that is a job
    row = max(0.0, each - measuring * len(_measured(config))) + measuring * drawn
    hours = (each * (tuning - len(trials)) + row * rows) / 60
    at_once = room(bench, 1 if config.trials == "actors" else config.training.workers.count)
    return (
        f"{each:.1f} CPU minutes a training: {hours:.1f} CPU hours to come, {hours / at_once:.1f} hours with {at_once} "
        "at once"
    )


@dataclass(frozen=True)
class Setting:
    """What an objective's rows train with: the best step of a schedule over all of them."""

    learning_rate: float
    beta: float
    step: int

    @property
    def pair(self) -> tuple[float, float]:
        """(learning rate, beta)."""
        return self.learning_rate, self.beta


@dataclass(frozen=True)
class Search:
    """One objective's: its grid, the trainings so far and their gains, and what is taken of them."""

    grid: Grid
    done: dict[Trial, list[float]] = field(default_factory=dict)
    came: dict[Trial, Outcome] = field(default_factory=dict)

    def add(self, trial: Trial, outcome: Outcome, metric: str, start: Mapping[str, tables.Values]) -> None:
        """Keeps a training, with its gain at each step at which it was measured."""
        base, points = tables.share(start[metric]), sorted(outcome.points.items())
        gains = [tables.share(values[metric]) - base for _, values in points]
        self.done[trial], self.came[trial] = ([] if outcome.failed else gains), outcome

    def values(self, place: Place, step: int, metric: str) -> list[tables.Values]:
        """float[P, S] of each seed that came through."""
        found = [(trial[1], outcome) for trial, outcome in self.came.items() if trial[0] == place]
        return [
            one.points[step][metric] for _, one in sorted(found, key=lambda pair: pair[0]) if not one.failed
        ]


def _searched(bench: Bench, held_out: int) -> tuple[dict[str, Search], Mapping[str, tables.Values]]:
    """Searches every objective's grid on validation prompts, and measures the model as it starts on them.

    It goes in rounds of what is due of all objectives, which a start that goes on repeats: the search does not depend
    on what a kill left.
    """
    config, tuning = bench.config, bench.config.tuning
    found = {tuned.name: Search(Grid(*tuned.axes)) for tuned in config.objectives}
    start: Mapping[str, tables.Values] = {}
    for due in _rounds(found, tuning):
        trials = {}
        for name, (place_, seed) in due:
            rate, beta = found[name].grid.setting(place_)
            asked = config.trial(config.tuned(name), config.labels, (rate, beta), config.sweep_seed + seed)
            trials[f"sweep-{name}-lr{rate:g}-beta{beta:g}-seed{seed}"] = asked, _measured(config)
        came = outcomes(bench, trials, "validation", tuning=True)
        if not start:
            bench.say(_hours(bench, came[START], [came[label] for label in trials], held_out))
        start = came[START].last
        for (name, trial), label in zip(due, trials, strict=True):
            found[name].add(trial, came[label], config.metric, start)
        done = sum(len(one.done) for one in found.values())
        bench.say(f"{done:,} of {max(done, _counts(config)[0]):,} trainings that tune")
    return found, start


def _rounds(searches: Mapping[str, Search], tuning: TuningConfig) -> Iterator[list[tuple[str, Trial]]]:
    """What is due of all objectives together, until every one's best lies inside what was tried, or the purses end.

    Purses grow for all alike: an objective that is searched for longer would be one that is chosen better.
    """
    for purse in range(tuning.trainings, (tuning.most or tuning.trainings) + 1):
        while due := [
            (name, trial)
            for name, one in searches.items()
            for trial in next_trials(one.grid, one.done, purse, tuning.seeds)
        ]:
            yield due
        if not any(choose(one.grid, one.done, tuning.seeds).inside is False for one in searches.values()):
            return


def _measured(config: AblationConfig) -> list[int]:
    """Steps after which a training that chooses settings is measured."""
    every = config.tuning.every or config.training.steps
    return list(range(every, config.training.steps + 1, every))


def _chosen(
    bench: Bench, searches: Mapping[str, Search], start: Mapping[str, tables.Values], held_out: int
) -> tuple[dict[str, Setting], dict[str, Any]]:
    """Each objective's setting; and of `ablation.json`, what was tried and what the rows will be able to show."""
    config, steps = bench.config, _measured(bench.config)
    settings, taken, sweep = {}, [], []
    for name, one in searches.items():
        choice = choose(one.grid, one.done, config.tuning.seeds)
        settings[name] = Setting(*one.grid.setting(choice.place), steps[choice.point])
        if one.done:
            taken.append(one.values(choice.place, steps[choice.point], config.metric))
            sweep.append(_swept(config, name, one, choice, start[config.metric]))
    power = tables.power(start.get(config.metric), taken, config.seeds, held_out, config.held_out.samples)
    if power is not None:
        store.write_json(bench.output.at("power.json"), power, bench.output.fs)
        bench.say(f"before any row is trained: {tables.power_line(power, config.metric)}")
    return settings, {"sweep": sweep, "power": power}


def _figures(
    bench: Bench,
    dataset: Mapping[str, Any],
    settings: Mapping[str, Setting],
    power: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Trains and measures all rows; the rest of `ablation.json`."""
    config = bench.config
    names = {
        row.name: [f"{row.name}-seed{n}" for n in range(row.seeds or config.seeds)] for row in config.rows
    }
    trials = {
        names[row.name][seed]: (
            config.trial_of(row, settings[row.objective].pair, seed),
            [settings[row.objective].step],
        )
        for seed in range(max(len(each) for each in names.values()))  # a kill leaves whole seeds
        for row in config.rows
        if seed < len(names[row.name])
    }
    came = outcomes(bench, trials, "held_out")
    start = came[START].last
    held_out = came[START].prompts  # in the order of the values, which is not the file's
    categories = categories_of(held_out) or ["all"] * len(held_out)
    rows = [
        _row(
            config, row, [came[name] for name in names[row.name]], start, settings[row.objective], categories
        )
        for row in config.rows
    ]
    values = {row: [came[n].last[config.metric] for n in names[row] if not came[n].failed] for row in names}
    tables.compare_rows(rows, values, power)
    by_name = {row["name"]: row for row in rows}
    return {
        "rankray_version": rankray.__version__,
        "metric": config.metric,
        "tables": list(dict.fromkeys(table for row in config.rows for table in row.tables)),
        "model": config.model.model_dump(mode="json", exclude={"pool"}, exclude_none=True),
        "dataset": {key: dataset[key] for key in ("rows", "candidates", "generators", "rewards")},
        "settings": _settings(config, len(held_out)),
        "start": {
            "accuracy": tables.share(start[config.metric]),
            "categories": tables.by_category(start[config.metric], categories),
        },
        "rows": rows,
        "curves": [_curve(curve.model_dump(), by_name) for curve in config.curves],
        "along": _along(bench, settings),
    }


def _swept(
    config: AblationConfig, name: str, search: Search, choice: Choice, start: tables.Values
) -> dict[str, Any]:
    """Every setting of an objective that was tried, by rate and beta, and which was taken."""
    steps, tried = _measured(config), []
    settings = sorted({trial[0] for trial in search.done})
    for setting in settings:
        step = steps[best_point(search.done, setting)[0]]
        failed = [one.failed for trial, one in search.came.items() if trial[0] == setting and one.failed]
        values = search.values(setting, step, config.metric)
        rate, beta = search.grid.setting(setting)
        tried.append(
            {
                "learning_rate": rate,
                "beta": beta,
                "seeds": len(values) + len(failed),
                "step": step,
                "gain": None if failed else tables.difference([start], values),
                "failed": failed[0] if failed else None,
            }
        )
    return {
        "objective": name,
        "has_beta": config.tuned(name).objective.name not in WITHOUT_PAIRS,
        "trainings": len(search.done),
        "trials": tried,
        "chosen": settings.index(choice.place),
        "inside": choice.inside,
    }


def _settings(config: AblationConfig, held_out: int) -> dict[str, Any]:
    training = config.training
    return {
        "steps": training.steps,
        "batch_size": training.batch_size,
        "seeds": config.seeds,
        "held_out": {"prompts": held_out, "samples": config.held_out.samples},
        "validation": {"samples": config.validation.samples},
        "tuning": config.tuning.model_dump(mode="json"),
        "noise": training.noise.model_dump(mode="json"),
        "optimizer": training.optimizer.model_dump(mode="json"),
    }


def _row(
    config: AblationConfig,
    row: Row,
    came: Sequence[Outcome],
    start: Mapping[str, tables.Values],
    setting: Setting,
    categories: Sequence[str],
) -> dict[str, Any]:
    """A row of `ablation.json`."""
    seeds = [outcome.last for outcome in came if outcome.failed is None]
    return {
        "name": row.name,
        "label": row.label,
        "tables": list(row.tables),
        "paper": dict(row.paper),
        "objective": row.objective,
        "learning_rate": setting.learning_rate,
        "beta": None if config.tuned(row.objective).objective.name in WITHOUT_PAIRS else setting.beta,
        "step": setting.step,
        "labels": config.labels_of(row).model_dump(mode="json"),
        "reencode": row.reencode,
        "failed": [outcome.failed for outcome in came if outcome.failed is not None],
        "cpu_minutes": sum(outcome.cpu_minutes for outcome in came),
        **tables.row_of(config.metric, start, seeds, categories),
    }


def _curve(curve: dict[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    points = [
        {**point, **{key: rows[point["row"]][key] for key in ("accuracy", "gain")}}
        for point in curve["points"]
    ]
    return {**curve, "points": points}


def _along(bench: Bench, settings: Mapping[str, Setting]) -> dict[str, Any] | None:
    """One long training measured as it goes: every metric's difference from the start."""
    config, wanted = bench.config, bench.config.along
    if wanted is None:
        return None
    row = config.row(wanted.row)
    trial = config.trial_of(row, settings[row.objective].pair, 0)
    name, steps = f"along-{row.name}", range(wanted.every, wanted.steps + 1, wanted.every)
    trials = {name: (trial.model_copy(update={"steps": wanted.steps}), steps)}
    came = outcomes(bench, trials, "held_out")
    start = came[START].last
    points = [
        {
            "step": step,
            "metrics": {metric: tables.difference([start[metric]], [values[metric]]) for metric in start},
        }
        for step, values in sorted(came[name].points.items())
    ]
    return {"row": row.name, "failed": came[name].failed, "points": points}
