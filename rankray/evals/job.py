"""Evaluation as a job: models -> pictures of benchmarks' prompts from the same seeds -> judgements -> tables.

    OUTPUT/sets/MODEL/LIST/     each model's pictures of one prompt list, judged: a dataset as Syn-Pic's
    OUTPUT/pipelines/NAME/      checkpoints of a run, written out as pipelines
    OUTPUT/changed/             pictures that changed most, before and after
    OUTPUT/results.md           the tables
    OUTPUT/config.toml, report.html
    OUTPUT/results.json         written last: all that was asked for is measured

Every set is made by Syn-Pic and resumes as it does; one that is finished is found finished in a second, so that more
models can be measured into the same output. The price is that judges load anew for each model and list: with real
weights a minute each, where a list takes hours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray.exceptions import RayTaskError

from rankray import store
from rankray.cluster import layout, terminal
from rankray.cluster.job import Job, Result, connect, open_output
from rankray.config import ConfigError, Faults, differing_keys, flatten
from rankray.config.evaluate import LABEL, EvaluateConfig, EvaluatedModel, SetConfig
from rankray.data import cost, place
from rankray.data.place import Output, Publish
from rankray.evals import models as evaluated_models
from rankray.evals import published, results
from rankray.evals import scores as evaluation
from rankray.evals.models import Model
from rankray.evals.prompt_lists import PromptList, read_lists, scorer_revisions
from rankray.evals.results import Change, Measured
from rankray.models.targets import left_to_row, require_resolved
from rankray.synpic import forecast
from rankray.synpic import job as synpic
from rankray.synpic.job import PromptsAndJudges
from rankray.synpic.stages import stages_of
from rankray.words import Say

MARKER = "results.json"


@dataclass(frozen=True)
class Plan:
    """An evaluation whose inputs were found good.

    Attributes:
        lists: prompts, and who judges.
        models: what is measured, the baseline first where it is none of the others.
        revisions: of judges and metrics.
    """

    config: EvaluateConfig
    output: Output
    lists: tuple[PromptList, ...]
    models: tuple[Model, ...]
    baseline: str | None
    revisions: dict[str, str]

    @property
    def contents(self) -> dict[str, str]:
        """Digests of the prompts and of what is asked of them: a file that was edited is another one."""
        found = {}
        for prompts in self.lists:
            found[f"prompts.{prompts.name}.contents"] = place.prompts_digest(prompts.prompts.rows)
            for label, asked in prompts.asked.items():
                found[f"prompts.{prompts.name}.asked.{label}"] = asked
        return found


def run(config: EvaluateConfig, say: Say = print, publish: Publish | None = None) -> Result:
    """Measures what is left of all models, or nothing where all is measured.

    Raises:
        ConfigError: the configuration, the prompts, a model, the output or the cluster do not fit; nothing was begun.
        BrokenModelError: (inside Ray's task error) a model failed for everything; finished rows are kept.
    """
    plan = check(config)
    output, identity = plan.output, place.identity_of(config, plan.revisions, plan.contents)
    job = Job("evaluate", config, output, MARKER, identity, say)

    def found() -> dict[str, Any] | None:
        if output.exists(MARKER) or output.exists("_work", "identity.json"):
            place.claim(output, MARKER, identity)
        info = _measured_already(plan)  # a finished output takes more models
        if info is not None:
            say(f"{output.uri} is complete already; nothing to do")
        return info

    def prepare() -> Plan:
        again = check(config)  # another may have measured models here meanwhile
        forecast.of_actors(config.execution.measured, ())  # or it would be missed once nodes were waited for
        connect()
        _check_cluster(again, say)
        return again

    info = job.run(prepare, lambda checked, _: _measure_all(checked, say, publish), found=found)
    return Result(output.uri, info, float(info["failures"]["worst_share"]))


def _measure_all(plan: Plan, say: Say, publish: Publish | None) -> dict[str, Any]:
    """Measures model after model, publishing as it goes; the contents of `results.json`."""
    output, follow, info = plan.output, plan.config.follow, dict[str, Any]()
    beside = f", each against {plan.baseline}" if plan.baseline else ""
    say(
        f"{len(plan.models)} models on {len(plan.lists)} prompt lists{beside}: {', '.join(m.name for m in plan.models)}"
    )
    for prompts in plan.lists:
        say(prompts.described)
    place.write_config(output, plan.config)
    for models in _rounds(plan, say):
        info = _measure(replace(plan, models=models), say, publish)
    if not info:
        raise ConfigError(f"the run {follow} has no checkpoint to measure yet; try again later")
    if not info["complete"] and evaluated_models.finished(str(follow)):
        info = {**info, "complete": True}
        publish_results(output, info, publish)
    return info


def check(config: EvaluateConfig) -> Plan:
    """Looks at everything that an evaluation needs, without loading a model.

    Raises:
        ConfigError: named fault, what is allowed, what to do.
    """
    output = open_output(config.output)
    written = evaluated_models.written(output)
    lists, revisions, models = _found(config, written)
    baseline = config.baseline
    if baseline is not None:
        baseline = evaluated_models.named(baseline, config.models, models)
    if baseline is None and config.baseline is not None:
        models.insert(0, evaluated_models.resolve(evaluated_models.parse(config.baseline), written))
        baseline = models[0].name
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"models: '{twice[0]}' stands twice; give one another name, as in NAME=/its/place")
    if config.follow is not None:
        evaluated_models.check_run(config.follow, models)
    evaluated_models.check_kept(models, written)
    require_resolved([model.target for model in models if not model.checkpoint])
    _check_sets(output, lists, models)
    return Plan(config, output, lists, tuple(models), baseline, revisions)


def _found(
    config: EvaluateConfig, written: Mapping[str, Model]
) -> tuple[tuple[PromptList, ...], dict[str, str], list[Model]]:
    """Prompt lists, the scorers' revisions and the models.

    Raises:
        ConfigError: a line for each file and each model that is not there.
    """
    faults, lists, revisions = Faults(), tuple[PromptList, ...](), dict[str, str]()
    models = list[Model]()
    with faults.kept():
        lists = tuple(read_lists(config))
    with faults.kept():
        revisions = scorer_revisions(config, lists)
    for asked in config.models:
        with faults.kept():
            models.append(evaluated_models.resolve(asked, written))
    if len(models) < len(config.models) or not lists or not revisions:
        with faults.kept():
            require_resolved([model.target for model in models if not model.checkpoint])
    faults.raise_any()
    return lists, revisions, models


def _check_sets(output: Output, lists: Sequence[PromptList], models: Sequence[Model]) -> None:
    """Refuses a model whose name is another's in this output: its sets are of other weights, or drawn otherwise."""
    for model in models:
        for prompts in lists:
            for marker in ("dataset.json", "_work/identity.json"):
                if output.exists("sets", model.name, prompts.name, marker):
                    place = output.at("sets", model.name, prompts.name, marker)
                    _require_same_model(model, store.read_json(place, output.fs)["identity"])


def _require_same_model(model: Model, begun: Mapping[str, Any]) -> None:
    """Whether a set of the identity `begun` is this model's. Pictures a prompt are the list's, and places may move.

    Raises:
        ConfigError: it is of other weights, or was drawn by other settings.
    """
    otherwise = f"give it a name of its own, as in NAME={model.asked}, or take another output"
    row = dict[str, Any]()
    if not model.checkpoint:  # of which `check_kept` looked at its place
        target = model.target
        revision, row = target.revision, left_to_row(model.choice, target)
        was = begun.get(f"revision.{LABEL}", revision)
        if was != revision:
            raise ConfigError(
                f"'{model.name}' was measured here with other weights ({was[:19]}, and they are {revision[:19]} now); "
                f"{otherwise}"
            )
    settings, drawer = {"model": model.choice.model, **model.settings}, "generators.0."
    of_set = {key.removeprefix(drawer): value for key, value in begun.items() if key.startswith(drawer)}
    then = {key: value for key, value in of_set.items() if key.partition(".")[0] in {*settings, "run_with"}}
    if lines := differing_keys(then, {**dict(flatten(settings)), **row}):
        raise ConfigError(
            f"'{model.name}' was measured here with other settings ({'; '.join(lines)}); {otherwise}"
        )


def _check_cluster(plan: Plan, say: Say) -> None:
    """Waits for nodes where the pools of a set have no room on those that are there, before anything is written.

    Raises:
        ConfigError: they have none after `execution.wait_for_nodes_s` either.
    """
    execution = plan.config.execution
    for model in plan.models:
        for prompts in plan.lists:
            settings = _settings(plan, model, prompts)
            pools = stages_of(settings, prompts.judges, look_up=False)
            try:
                layout.plan(pools, layout.wait_for_nodes(pools, 0.0, say), execution.mode)
            except ConfigError:
                try:
                    nodes = layout.wait_for_nodes(pools, execution.wait_for_nodes_s, say)
                    layout.plan(pools, nodes, execution.mode)
                finally:
                    layout.release_nodes(execution.wait_for_nodes_s)


def _measured_already(plan: Plan) -> dict[str, Any] | None:
    """The results, where they are of all that the plan asks for and nothing more can come."""
    output, follow = plan.output, plan.config.follow
    if not output.exists(MARKER) or (follow is not None and not evaluated_models.finished(follow)):
        return None
    info = store.read_json(output.at(MARKER), output.fs)
    due = list(plan.models)
    if follow is not None:
        due = _known(plan)
        due += [last] if (last := _last(follow, due)) is not None else []
    then = {model["name"]: model for model in info["models"]}
    same = then.keys() == {model.name for model in due} and info["baseline"] == plan.baseline
    return info if same and all(_is_as_measured(model, then[model.name]) for model in due) else None


def _is_as_measured(model: Model, then: Mapping[str, Any]) -> bool:
    """Whether the model is what its entry of results.json tells of; one that is not written out yet has none."""
    if model.checkpoint:
        return False
    now = (model.choice.model, model.target.revision, model.settings)
    return now == (
        then["model"],
        then["revision"],
        then.get("settings", model.settings),
    )  # older files have none


def _rounds(plan: Plan, say: Say) -> Iterator[tuple[Model, ...]]:
    """The models to measure, all at once; those of a run that is followed as they come."""
    follow = plan.config.follow
    models = [evaluated_models.as_pipeline(model, plan.output, say) for model in plan.models]
    if follow is None:
        yield tuple(models)
        return
    models = _known(replace(plan, models=tuple(models)))
    if models:
        yield tuple(models)
    news = time.monotonic()
    while True:
        # Looked at first, so that no checkpoint that comes meanwhile is missed.
        over = evaluated_models.finished(follow)
        fresh = list(_fresh(follow, plan.output, models, say))
        if over and not fresh and (last := _last(follow, models)) is not None:
            fresh = [last]
        for model in fresh:
            models.append(model)
            yield tuple(models)
            news = time.monotonic()
        if over and not fresh:
            return
        if time.monotonic() - news > plan.config.follow_patience_s:
            say(
                f"{follow} is not finished, and no checkpoint came for follow_patience_s; run this again to go on"
            )
            return
        if not fresh:
            time.sleep(plan.config.follow_interval_s)


def _known(plan: Plan) -> list[Model]:
    """The plan's models, and the checkpoints of the followed run that were measured before."""
    run = str(plan.config.follow).rstrip("/")
    found = {model.name: model for model in plan.models}
    for model in evaluated_models.written(plan.output).values():
        if evaluated_models.is_of(model, f"{run}/checkpoints"):
            found.setdefault(model.name, model)
    return list(found.values())


def _fresh(run: str, output: Output, models: Sequence[Model], say: Say) -> Iterator[Model]:
    """Checkpoints of the run that are not among the models, as pipelines; those of the same step are the same."""
    steps = evaluated_models.steps(run, models)
    for asked in evaluated_models.checkpoints(run):
        try:
            model = evaluated_models.resolve(asked, {})
            if model.step in steps:
                continue
            steps.add(model.step)
            written = evaluated_models.as_pipeline(model, output, say)
        except (ConfigError, OSError, RayTaskError):
            if evaluated_models.is_there(asked):
                raise
            say(f"{asked.model} was dropped by its run before it could be measured; raise checkpoints.keep")
        else:
            yield written


def _last(run: str, models: Sequence[Model]) -> Model | None:
    """The finished run's own pipeline, unless a checkpoint of its last step is among the models."""
    final = evaluated_models.resolve(EvaluatedModel(model=run), {})
    return None if final.step in evaluated_models.steps(run, models) else final


def _measure(plan: Plan, say: Say, publish: Publish | None) -> dict[str, Any]:
    """Makes what is left of the models' sets, and their results, which it writes last."""
    sets: dict[tuple[str, str], Measured] = {}
    for model in plan.models:
        for prompts in plan.lists:
            say(f"{model.name} on {prompts.name}")
            given = PromptsAndJudges(prompts.prompts, prompts.judges)
            made = synpic.run(_settings(plan, model, prompts), terminal.aside(say), given=given)
            found = Measured(made.info, evaluation.read(made.path), made.failed_share)
            sets[model.name, prompts.name] = found
    info = _results(plan, sets)
    publish_results(plan.output, info, publish)
    return info


def _settings(plan: Plan, model: Model, prompts: PromptList) -> SetConfig:
    place = plan.output.uri_of("sets", model.name, prompts.name)
    return plan.config.set_config(
        place, prompts.name, model.choice, prompts.samples, prompts.scorers, prompts.asked
    )


def _results(plan: Plan, sets: dict[tuple[str, str], Measured]) -> dict[str, Any]:
    """The contents of `results.json`; writes the pictures that changed most."""
    config, names = plan.config, [model.name for model in plan.models]
    changed = results.changes(plan.lists, names, plan.baseline, sets, config.changed)
    revisions = {f"revision.{name}": value for name, value in plan.revisions.items()}
    identity = {**config.identity(), **revisions, **plan.contents}
    return {
        **place.stamp(),
        "complete": config.follow is None,
        "identity": identity,
        "seed": config.seed,
        "baseline": plan.baseline,
        "models": [results.described(model, _drawer(plan, model, sets)) for model in plan.models],
        **results.tables(plan.lists, names, plan.baseline, sets),
        "changed": _write_changed(plan, changed),
        "published": _published(plan.lists),
        "failures": results.failures(names, plan.lists, sets, config.execution.tolerance),
        "sets": [
            {
                "model": name,
                "set": prompts,
                "path": found.pictures.path,
                "samples": found.info["generators"][0]["samples"],
                **{key: found.info[key] for key in ("rows", "images", "images_made", "runs")},
                "versions": found.info.get("versions", {}),
                "failures": found.info["failures"]["total"],
            }
            for (name, prompts), found in sets.items()
        ],
        "cost": cost.merged(
            [_named(found.info["cost"], name) for (name, _), found in sets.items()], config.prices
        ),
    }


def _published(lists: Sequence[PromptList]) -> dict[str, Any]:
    """The paper's rows beside each benchmark, by the benchmark's label."""
    found: dict[str, Any] = {}
    for prompts in lists:
        for choice in prompts.scorers:
            if choice.label in prompts.benchmarks and (rows := published.beside(choice.model)) is not None:
                found[choice.label] = rows
    return found


def _drawer(plan: Plan, model: Model, sets: dict[tuple[str, str], Measured]) -> Mapping[str, Any]:
    """What a set's `dataset.json` says of the model."""
    found: Mapping[str, Any] = sets[model.name, plan.lists[0].name].info["generators"][0]
    return found


def _named(ledger: dict[str, Any], model: str) -> dict[str, Any]:
    """A set's bill with the evaluated model's name in place of the label that all share."""
    rows = [{**row, "model": model} if row["model"] == LABEL else row for row in ledger["models"]]
    return {**ledger, "models": rows}


def _write_changed(plan: Plan, changes: Sequence[Change]) -> list[dict[str, Any]]:
    """The changes' entries, with the places of their pictures, which it copies out of their sets."""
    output, suffix = plan.output, plan.config.images.format
    output.remove("changed")
    wanted: dict[str, set[tuple[str, int]]] = {}
    for change in changes:
        for path, key in (change.before, change.after):
            wanted.setdefault(path, set()).add(key)
    places: dict[tuple[str, tuple[str, int]], str] = {}
    for path, keys in wanted.items():
        output.make("changed")
        model, prompts = path.split("/")[-2:]
        for key, data in evaluation.images_of(path, keys).items():
            place = f"changed/{prompts}-{key[0][:16]}-{key[1]}-{model}.{suffix}"
            store.put(output.at(place), data, output.fs)
            places[path, key] = place
    return [
        {**change.entry, "before_image": places[change.before], "after_image": places[change.after]}
        for change in changes
    ]


def publish_results(output: Output, info: dict[str, Any], publish: Publish | None) -> None:
    """Writes results.md, the report and, last, results.json."""
    output.write_text("results.md", results.markdown(info))
    if publish is not None:
        publish(output.uri, info)
    store.write_json(output.at(MARKER), store.sealed(info), output.fs)
