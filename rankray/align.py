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
from rankray.cluster.job import Result, Say, connect, exclusive, open_output
from rankray.config import ConfigError
from rankray.config.rankdpo import AlignConfig
from rankray.data import place
from rankray.data.place import Output, Publish
from rankray.evals import scores as evaluation
from rankray.rankdpo import job as rankdpo
from rankray.synpic import job as synpic


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
    connect()
    with exclusive("align", output.uri):
        info = _rounds(config, output, say, publish)
    return Result(output.uri, place.publish(output, "align.json", info, publish.align))


def _rounds(config: AlignConfig, output: Output, say: Say, publish: Publishers) -> dict[str, Any]:
    """All rounds, each found finished where it is; the contents of `align.json`."""
    evaluations = [_evaluate(config, output, "before", None, say, publish.dataset)]
    source, rounds = None, []
    for number in range(1, config.rounds + 1):
        say(f"round {number} of {config.rounds}")
        part = output.uri_of(f"round-{number}")
        made = synpic.run(config.synpic(f"{part}/synpic", number, source), say, publish.dataset)
        trained = rankdpo.run(config.rankdpo(made.path, f"{part}/rankdpo", source), say, publish.run)
        source = f"{trained.path}/pipeline"
        evaluations.append(_evaluate(config, output, f"round-{number}", source, say, publish.dataset))
        rounds.append(_round(made.info, trained.info, evaluation.difference(evaluations[0], evaluations[-1])))
        say(evaluation.table(rounds[-1]["gain"]))
    return {"rankray_version": rankray.__version__, "rounds": rounds, "pipeline": source}


def check(config: AlignConfig, output: str) -> None:
    """Finds what is wrong with any phase before the first begins.

    Raises:
        ConfigError: later rounds read the pipelines of earlier ones as directories, and output is a URI; or the model
            does not train, or the cluster is too small.
    """
    if config.rounds > 1 and "://" in output:
        raise ConfigError(
            f"rounds = {config.rounds} draw with pipelines of earlier rounds, which load from directories, and output "
            f"is '{output}'; give a directory that all nodes see, or rounds = 1"
        )
    config.synpic(f"{output}/round-1/synpic", 1, None)
    rankdpo.check_model(config.model)
    rankdpo.check_reward(config.training, [choice.label for choice in config.rewards])


def _evaluate(
    config: AlignConfig, output: Output, name: str, source: str | None, say: Say, publish: Publish
) -> str:
    """Pictures and scores of held-out prompts by the model at `source`; the dataset's place."""
    place = output.uri_of("evaluation", name)
    return synpic.run(config.evaluation(place, source), say, publish).path


def _round(dataset: dict[str, Any], trained: dict[str, Any], gain: dict[str, Any]) -> dict[str, Any]:
    return {
        "rows": dataset["rows"],
        "images": dataset["images"],
        "steps": trained["steps"],
        "synpic_usd": dataset["cost"]["totals"]["usd"],
        "rankdpo_usd": trained["cost"]["usd"],
        "gain": gain,
    }
