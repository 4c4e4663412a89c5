r"""Does one shipped configuration help whatever the dataset? Each cell trains on so many prompts of it and is measured.

python jobs/synpic.py --config jobs/synpic-shapes.toml --prompts.path shapes:train --prompts.limit 1834 \
    --output /data/four
python jobs/synpic.py --config jobs/synpic-shapes-train.toml --output /data/own
python benchmarks/recipe.py --config jobs/rankdpo-shapes.toml /data/four /data/own --prompts 200 500 1834 \
    --seeds 0 1 2 --json cells.json [--labels random]

A cell's prompts are drawn anew for each seed. Training runs in this process, at ZeRO 0, with the configuration's own
validation and its decision; the exported step is measured on all held-out prompts, two pictures each, by the exact
checker, paired with the model as it starts. Some 2.5 minutes of one core a cell, 25 s of it pictures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from provenance import provenance

from rankray import config, schema, shapes
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

SAMPLES, SEED, AT_ONCE = 2, 1, 32
ALONE = {"workers.count": 1, "workers.zero_stage": 0, "objective.reference": "copy"}

Values = npt.NDArray[np.float64]


def drawn(painter: DiffusersGenerator, prompts: list[str]) -> Values:
    """The checker's verdicts on `SAMPLES` pictures a prompt, from the same seeds for every model: float64[P, S]."""
    items = [
        (text, schema.candidate_seed(SEED, schema.prompt_id(text), "model", sample))
        for text in prompts
        for sample in range(SAMPLES)
    ]
    verdicts: list[float] = []
    for start in range(0, len(items), AT_ONCE):
        texts, seeds = zip(*items[start : start + AT_ONCE], strict=True)
        pictures = painter.generate(list(texts), list(seeds))
        verdicts += [
            float(shapes.check(np.asarray(picture.convert("RGB")), text))
            for picture, text in zip(pictures, texts, strict=True)
        ]
    return np.array(verdicts).reshape(len(prompts), SAMPLES)


def some_rows(job: TrainJob, count: int, seed: int) -> Rows:
    """`count` of the job's prompts, drawn anew for each seed, of which the configuration's share is held out."""
    rows = Rows(job)
    (learnt,) = rows.places
    places = sorted(learnt + rows.held_out, key=lambda place: place.prompt_id)
    taken = [places[n] for n in np.random.default_rng(1000 + seed).permutation(len(places))[:count]]
    away = feed.held_out([place.prompt for place in taken], job.config.validation)
    by_id = sorted(taken, key=lambda place: place.prompt_id)
    rows.places = [[place for place in by_id if place.prompt not in away]]
    rows.held_out = [place for place in by_id if place.prompt in away]
    return rows


def cell(
    job: TrainJob, count: int, before: Values, painter: DiffusersGenerator, prompts: list[str]
) -> dict[str, Any]:
    """Trains as the configuration says, and measures the step that it would export."""
    settings, rows = job.config.validation, some_rows(job, count, job.config.seed)
    training = begin(job, rows)
    held_out, state = HeldOut(training, rows), RunState(0)
    state, kept = state.validated(held_out.measure(state)), {}
    for step in training.steps(rows):
        state = state.after(step.bad, step.sums)
        if state.step % settings.every and state.step != job.config.steps:
            continue
        state = state.validated(held_out.measure(state))
        with training.averaged():
            kept[state.step] = zero.gather(training.engine)
        if validation.stops(state.points, settings):
            break
    exported = validation.chosen(state.points, settings)
    if exported.step:
        place_weights(painter.pipe, job.spec, job.config, kept[exported.step].items())
    after = drawn(painter, prompts) if exported.step else before
    return {
        "prompts": count,
        "seed": job.config.seed,
        "exported": exported.step,
        "last": state.step,
        "warnings": sorted(validation.warnings(state.points, settings)),
        "points": [asdict(point) for point in state.points],
        **asdict(compare(before, after)),
    }


def main() -> None:
    """Trains every cell, prints a line each, and writes JSON after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", help="what jobs/synpic.py wrote")
    parser.add_argument("--config", required=True, type=Path, help="a training's TOML")
    parser.add_argument("--prompts", nargs="+", type=int, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--labels", default="win_probability", help="another aggregation, such as random")
    parser.add_argument("--steps", type=int, help="in place of the configuration's")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    prompts, found = list(shapes.prompts("heldout")), []
    for dataset in options.datasets:
        for seed in options.seeds:
            changes = {
                **ALONE,
                "dataset": dataset,
                "output": tempfile.mkdtemp(prefix="rankray-recipe-"),
                "seed": seed,
            }
            changes |= {
                "labels.aggregation": options.labels,
                **({"steps": options.steps} if options.steps else {}),
            }
            tables = config.with_options(config.read_toml(options.config), changes)
            job = rankdpo.prepare(config.build(RankDPOConfig, tables), say=lambda line: None)
            zero.alone()
            job, painter = replace(job, device="cpu"), DiffusersGenerator(job.spec, "cpu")
            before = drawn(painter, prompts)
            for count in options.prompts:
                made = {"dataset": dataset, **cell(job, count, before, painter, prompts)}
                found.append(made)
                print(
                    f"{dataset} {count:,} prompts, seed {seed}: {made['gain']:+.1%} [{made['low']:+.1%}, "
                    f"{made['high']:+.1%}], step {made['exported']} of {made['last']} {' '.join(made['warnings'])}",
                    flush=True,
                )
                if options.json:
                    options.json.write_text(json.dumps({"cells": found, **provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
