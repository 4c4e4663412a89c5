r"""Does one shipped configuration help whatever the dataset? Each cell trains on so many prompts of it and is measured.

python jobs/synpic.py --config jobs/synpic-shapes.toml --prompts.path shapes:train --prompts.limit 1834 \
    --output /data/four
python jobs/synpic.py --config jobs/synpic-shapes-train.toml --output /data/own
python benchmarks/recipe.py --config jobs/rankdpo-shapes.toml /data/four /data/own --prompts 200 500 1834 \
    --seeds 0 1 2 --json cells.json [--measured validation] [--set labels.aggregation=random steps=1000]

A cell's prompts are drawn anew for each seed. Training runs in this process, at ZeRO 0, with the configuration's own
validation and its decision; the exported step, and the last where that is another, are measured on all held-out
prompts by the exact checker, paired with the model as it starts. Whoever chooses between settings (`--set`) measures
them on validation prompts. Some 2.5 minutes of one core a cell, 25 s of it pictures, two each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from provenance import provenance

from rankray import cli, schema, shapes
from rankray.config import ConfigError
from rankray.config.rankdpo import RankDPOConfig
from rankray.models.generators.diffusers_pipeline import DiffusersGenerator
from rankray.rankdpo import feed, validation, zero
from rankray.rankdpo import job as rankdpo
from rankray.rankdpo.feed import Rows
from rankray.rankdpo.held_out import HeldOut
from rankray.rankdpo.samples import place_weights
from rankray.rankdpo.step import begin
from rankray.rankdpo.train_job import RunState, TrainJob
from rankray.stats import compare

SEED, AT_ONCE = 1, 32
ALONE = ("--workers.count=1", "--workers.zero_stage=0", "--objective.reference=copy")

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """What models are measured by: P prompts, S pictures of each from the same seeds for every model."""

    painter: DiffusersGenerator
    prompts: Sequence[str]
    pictures: int

    def verdicts(self) -> Values:
        """The exact checker's verdicts on what the painter draws now: float64[P, S]."""
        items = [
            (text, schema.candidate_seed(SEED, schema.prompt_id(text), "model", sample))
            for text in self.prompts
            for sample in range(self.pictures)
        ]
        verdicts: list[float] = []
        for start in range(0, len(items), AT_ONCE):
            texts, seeds = zip(*items[start : start + AT_ONCE], strict=True)
            drawn = self.painter.generate(list(texts), list(seeds))
            verdicts += [
                float(shapes.check(np.asarray(picture.convert("RGB")), text))
                for picture, text in zip(drawn, texts, strict=True)
            ]
        return np.array(verdicts).reshape(len(self.prompts), self.pictures)

    def gain(self, job: TrainJob, weights: Mapping[str, torch.Tensor], before: Values) -> dict[str, Any]:
        """How much better the painter draws by `weights` than it did: the fields of `stats.Difference`."""
        place_weights(self.painter.pipe, job.spec, job.config, weights.items())
        return asdict(compare(before, self.verdicts()))


def some_rows(job: TrainJob, count: int, seed: int) -> Rows:
    """`count` of the job's prompts, drawn anew for each seed, of which the configuration's share is held out.

    Raises:
        ConfigError: the dataset has fewer.
    """
    rows = Rows(job)
    (learnt,) = rows.places
    places = sorted(learnt + rows.held_out, key=lambda place: place.prompt_id)
    if count > len(places):
        raise ConfigError(
            f"--prompts {count:,}: {job.sets[0].uri} has {len(places):,}; ask for fewer, or give it more"
        )
    taken = [places[n] for n in np.random.default_rng(1000 + seed).permutation(len(places))[:count]]
    away = feed.held_out([place.prompt for place in taken], job.config.validation)
    by_id = sorted(taken, key=lambda place: place.prompt_id)
    rows.places = [[place for place in by_id if place.prompt not in away]]
    rows.held_out = [place for place in by_id if place.prompt in away]
    return rows


def cell(job: TrainJob, count: int, before: Values, measure: Measure) -> dict[str, Any]:
    """Trains as the configuration says, and measures the step that it would export."""
    settings, rows = job.config.validation, some_rows(job, count, job.config.seed)
    training = begin(job, rows)
    held_out, state = HeldOut(training, rows), RunState(0)
    state, kept = state.validated(held_out.measure(state)), {}
    for step in training.steps(rows):
        state = state.after(step.bad, step.sums)
        if state.skipped > job.config.checkpoints.bad_steps:
            raise FloatingPointError(f"{state.skipped} of {state.step} steps were not finite, or exploded")
        if state.step % settings.every and state.step != job.config.steps:
            continue
        state = state.validated(held_out.measure(state))
        with training.averaged():
            kept[state.step] = zero.gather(training.engine)
        if validation.stops(state.points, settings):
            break
    exported = validation.chosen(state.points, settings).step
    at_end = measure.gain(job, kept[state.step], before)
    if exported not in (0, state.step):
        gain = measure.gain(job, kept[exported], before)
    else:
        gain = at_end if exported else asdict(compare(before, before))
    return {
        "prompts": count,
        "seed": job.config.seed,
        "exported": exported,
        "last": state.step,
        "warnings": sorted(validation.warnings(state.points, settings, job.config.steps)),
        "points": [asdict(point) for point in state.points],
        **gain,
        "at_end": at_end,
    }


def line(made: Mapping[str, Any]) -> str:
    """A cell in one line."""
    ended = f" ({made['at_end']['gain']:+.1%} at the end)" if made["exported"] != made["last"] else ""
    return (
        f"{made['dataset']} {made['prompts']:,} prompts, seed {made['seed']}: {made['gain']:+.1%} [{made['low']:+.1%}, "
        f"{made['high']:+.1%}], step {made['exported']} of {made['last']}{ended} {' '.join(made['warnings'])}"
    )


def main() -> None:
    """Trains every cell, prints a line each, and writes JSON after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", help="what jobs/synpic.py wrote")
    parser.add_argument("--config", required=True, type=Path, help="a training's TOML")
    parser.add_argument("--prompts", nargs="+", type=int, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--measured", choices=("heldout", "validation"), default="heldout", help="prompts")
    parser.add_argument("--pictures", type=int, default=2, help="of each of these prompts")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the configuration")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    found = []
    for dataset in options.datasets:
        for seed in options.seeds:
            words = ["--config", str(options.config), *(f"--{change}" for change in options.set), *ALONE]
            words += [f"--dataset={dataset}", f"--seed={seed}"]
            words += [f"--output={tempfile.mkdtemp(prefix='rankray-recipe-')}"]
            job = rankdpo.prepare(cli.parse("recipe", RankDPOConfig, words), say=lambda line: None)
            zero.alone()
            job, painter = replace(job, device="cpu"), DiffusersGenerator(job.spec, "cpu")
            measure = Measure(painter, list(shapes.prompts(options.measured)), options.pictures)
            before = measure.verdicts()
            for count in options.prompts:
                found.append({"dataset": dataset, "set": options.set, **cell(job, count, before, measure)})
                print(line(found[-1]), flush=True)
                if options.json:
                    options.json.write_text(json.dumps({"cells": found, **provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
