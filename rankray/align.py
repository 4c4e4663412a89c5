"""Algorithm 3 as one job: prompts -> Syn-Pic -> RankDPO -> before and after on held-out prompts, in rounds.

    OUTPUT/round-1/synpic/      the first round's dataset, with its encoded set beside it
    OUTPUT/round-1/rankdpo/     the first round's run; its pipeline draws and learns in round 2
    OUTPUT/evaluation/before/, round-1/, ...   pictures and scores of held-out prompts
    OUTPUT/align.json           written last: the comparison, and every part's cost

Every phase is a job of its own that resumes by itself, so a kill anywhere costs what that job says; a finished phase is
found finished in a second. The price is that phases do not overlap: trainers wait while a round is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import rankray
from rankray import words
from rankray.cluster import terminal
from rankray.cluster.job import Result, failures, open_output
from rankray.config import ConfigError, PromptsConfig
from rankray.config.rankdpo import AlignConfig
from rankray.data import owner, place
from rankray.data.place import Output, Publish
from rankray.data.prompts import read_prompts
from rankray.evals import scores as evaluation
from rankray.rankdpo import job as rankdpo
from rankray.synpic import job as synpic
from rankray.words import Say


@dataclass(frozen=True)
class Publishers:
    """What writes the report of a dataset, of a run, and of the whole: the surface's, given from above."""

    dataset: Publish
    run: Publish
    align: Publish


def run(config: AlignConfig, say: Say, publish: Publishers) -> Result:
    """Runs what is left of all rounds.

    Raises:
        ConfigError: something in the configuration, the prompts, the models or the cluster does not fit.
        TrainingError: a round's training diverged.
    """
    output = open_output(config.output)
    check(config, output.uri)
    with owner.owned(output, "align") as held:
        terminal.place_log(output)
        say(opening(config, output.uri))
        info = _rounds(config, output, say, publish)
        held.require()
        info = place.publish(output, "align.json", info, publish.align)
        return Result(output.uri, info, info["failures"]["worst_share"])


def _rounds(config: AlignConfig, output: Output, say: Say, publish: Publishers) -> dict[str, Any]:
    """All rounds, each found finished where it is; the contents of `align.json`."""
    part = terminal.aside(say)
    say("before: held-out prompts")
    before = _evaluate(config, output, "before", None, part, publish.dataset)
    drawn, rounds, source = {"evaluation/before": before}, [], None
    for number in range(1, config.rounds + 1):
        name = f"round-{number}"
        place_ = output.uri_of(name)
        say(f"round {number} of {config.rounds}: dataset")
        made = synpic.run(config.synpic(f"{place_}/synpic", number, source), part, publish.dataset)
        say(f"round {number} of {config.rounds}: training")
        trained = rankdpo.run(config.rankdpo(made.path, f"{place_}/rankdpo", source), part, publish.run)
        source = f"{trained.path}/pipeline"
        if trained.info.get("validation"):
            say(f"  the pipeline is {trained.info['validation']['decision']}")
        say(f"round {number} of {config.rounds}: held-out prompts")
        after = _evaluate(config, output, name, source, part, publish.dataset)
        drawn |= {f"{name}/synpic": made, f"evaluation/{name}": after}
        gain = evaluation.difference(before.path, after.path)
        rounds.append(_round(made.info, trained.info, after.info, gain))
        say(evaluation.table(rounds[-1]["gain"]))
    failed = {name: synpic.failed(result) for name, result in drawn.items()}
    return {
        "rankray_version": rankray.__version__,
        "rounds": rounds,
        "failures": failures(failed, config.execution.tolerance),
        "cost": _cost(before.info, rounds),
        "pipeline": source,
    }


def opening(config: AlignConfig, output: str) -> str:
    """What a job is about to do."""
    training, held_out = config.training, config.held_out.prompts
    drawn = ", ".join(
        f"{one.label} x {one.samples}" if one.samples > 1 else one.label for one in config.generators
    )
    lines = [
        f"{config.model.label} in {words.count(config.rounds, 'round')}, into {output}",
        f"  prompts   {_prompts(config.prompts)}, held out {_prompts(held_out)}",
        f"  draws     {drawn}",
        f"  ranks     {', '.join(one.label for one in config.rewards)}",
        f"  trains    {training.steps:,} steps of {training.batch_size:,} prompts, {training.objective.name}, "
        f"{words.count(training.workers.count, 'worker')}",
    ]
    return "\n".join(lines)


def _prompts(prompts: PromptsConfig) -> str:
    return prompts.path if prompts.limit is None else f"up to {prompts.limit:,} of {prompts.path}"


def check(config: AlignConfig, output: str) -> None:
    """Finds what is wrong with any phase before the first begins.

    Raises:
        ConfigError: prompts are both learnt from and held out, or too few for a training to validate on; or the model
            does not train, or what the training asks for is not there.
    """
    dataset = config.synpic(f"{output}/round-1/synpic", 1, None)
    rankdpo.check_model(config.model)
    learnt, held_out = (read_prompts(part).rows for part in (config.prompts, config.held_out.prompts))
    if len(held_out) < 2:
        raise ConfigError("held_out.prompts: one prompt says nothing of others; give two or more")
    if overlap := set(learnt) & set(held_out):
        raise ConfigError(
            f"{words.count(len(overlap), 'prompt')} of held_out.prompts also in prompts, first {min(overlap)!r}; "
            "what a model learns from cannot measure it, so give others"
        )
    training = config.rankdpo(dataset.output, f"{output}/round-1/rankdpo", None)
    try:
        rankdpo.check_places(training)
        rankdpo.check_ahead(training, dataset, learnt)
    except ConfigError as error:  # or all pictures would be drawn before a round's training says so
        raise ConfigError(f"[training] {error}") from None


def _evaluate(
    config: AlignConfig, output: Output, name: str, source: str | None, say: Say, publish: Publish
) -> Result:
    """Pictures and scores of held-out prompts by the model at `source`."""
    place = output.uri_of("evaluation", name)
    return synpic.run(config.evaluation(place, source), say, publish)


def _round(
    dataset: dict[str, Any], trained: dict[str, Any], measured: dict[str, Any], gain: dict[str, Any]
) -> dict[str, Any]:
    return {
        "rows": dataset["rows"],
        "images": dataset["images"],
        "steps": trained["steps"],
        "synpic_usd": dataset["cost"]["totals"]["usd"],
        "rankdpo_usd": trained["cost"]["usd"],
        "evaluation_usd": measured["cost"]["totals"]["usd"],
        "gain": gain,
    }


def _cost(before: dict[str, Any], rounds: list[dict[str, Any]]) -> dict[str, float]:
    """The whole bill, and what of it the comparison's first half took: held-out prompts by the model as it starts."""
    before_usd = before["cost"]["totals"]["usd"]
    parts = ("synpic_usd", "rankdpo_usd", "evaluation_usd")
    return {
        "usd": before_usd + sum(found[part] for found in rounds for part in parts),
        "before_usd": before_usd,
    }
