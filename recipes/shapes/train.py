"""`python -m recipes.shapes.train NAME`: trains one pipeline of the shapes world and saves it as diffusers does.

Needs the autoencoder, the encoded pictures and the text encoders (`recipes.shapes.autoencoder`, `.data`, `.language`)
in the work directory. Seeded, one thread,
resumable by `--resume`; a run of 26 minutes on one core makes some 8,000 steps of 64 pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from recipes.shapes import pixart, sd3, sdxl
from recipes.shapes.card import write_card
from recipes.shapes.data import load_pool
from recipes.shapes.family import Family, accuracy, spread
from recipes.shapes.loop import Budget, Training, fit, optimizers_for

FAMILIES: dict[str, Family] = {family.name: family for family in (sdxl.FAMILY, sd3.FAMILY, pixart.FAMILY)}
MEASURED = 128
"""Held-out prompts a point of the training curve; a point is ± 4 points."""
HELD_OUT = 485
"""Held-out prompts in a model card: all there are."""


def save(family: Family, model: nn.ModuleDict, vae: AutoencoderKL, directory: Path) -> None:
    """Saves the pipeline in half precision and swaps it into place, so that a reader never sees half of it.

    transformers loads what its configuration names and diffusers float32, so the configuration of the text encoders
    asks for float32 too: a plain `from_pretrained` then gives one dtype.
    """
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    full = directory.with_name(directory.name + ".full")
    pipeline = family.pipeline(model, vae)
    pipeline.save_pretrained(full, safe_serialization=True)
    half = load(full, pipeline, torch.float16)
    half.save_pretrained(partial, safe_serialization=True)
    shutil.rmtree(full)
    for config in (*partial.glob("*/config.json"), partial / "model_index.json"):
        fields = json.loads(config.read_text())
        fields.pop(
            "_name_or_path", None
        )  # where this machine kept it is nobody's business, and part of its hash
        if config.parent.name.startswith("text_encoder"):
            fields["dtype"] = "float32"
        config.write_text(json.dumps(fields, indent=2) + "\n")
    replaced = directory.with_name(directory.name + ".old")
    if directory.exists():
        os.replace(directory, replaced)
    os.replace(partial, directory)
    shutil.rmtree(replaced, ignore_errors=True)


def load(directory: Path, like: Any, dtype: torch.dtype) -> Any:
    """A saved pipeline of the class of `like`; components that it lacks (SD3's T5) have to be named as None."""
    absent = {name: None for name, part in like.components.items() if part is None}
    return type(like).from_pretrained(directory, dtype=dtype, **absent)


def train(family: Family, work: Path, output: Path, budget: Budget, seed: int, resume: bool) -> nn.ModuleDict:
    """Trains a family on the pool in `work/pool` with the autoencoder in `work/vae`; returns the averaged model."""
    torch.manual_seed(seed)
    directory = work / family.name
    directory.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    model = family.build(work / "text")
    optimizers = optimizers_for(model, family.learning_rate, family.muon)
    training = Training(model, optimizers, torch.Generator().manual_seed(seed))
    if resume:
        training.restore(directory / "state.pt")
    else:
        (directory / "curve.jsonl").unlink(missing_ok=True)
    told = family.loss(model, load_pool(work / "pool", family.noise, seed))
    true = family.loss(model, load_pool(work / "pool", {}, seed)) if family.noise_after else told

    def draw(generator: torch.Generator) -> torch.Tensor:
        return (true if training.elapsed_s < 60.0 * family.noise_after else told)(generator)

    texts = spread("heldout", MEASURED)

    def measure() -> dict[str, float]:
        model.eval()
        found = accuracy(family.pipeline(model, vae), texts, family.call, seed=seed)
        save(family, model, vae, output)
        model.train()
        return found

    fit(training, draw, budget, directory, measure)
    training.load_average()
    model.eval()
    save(family, model, vae, output)
    return model


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.shapes.train", description=__doc__)
    parser.add_argument("name", choices=sorted(FAMILIES))
    parser.add_argument(
        "--work", type=Path, default=Path("shapes-work"), help="autoencoder, pool, checkpoints, curves"
    )
    parser.add_argument("--output", type=Path, help="where to save; by default WORK/NAME/pipeline")
    parser.add_argument("--minutes", type=float, help="computing time; by default the family's")
    parser.add_argument("--steps", type=int, help="train this many steps whatever they take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in WORK/NAME"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    family = FAMILIES[options.name]
    budget = Budget(options.steps, options.minutes or family.minutes)
    output = options.output or options.work / family.name / "pipeline"
    model = train(family, options.work, output, budget, options.seed, options.resume)
    pipeline = family.pipeline(model, AutoencoderKL.from_pretrained(options.work / "vae"))
    found = accuracy(
        load(output, pipeline, torch.float32), spread("heldout", HELD_OUT), family.call, seed=10_000
    )
    write_card(family, output, options.work / family.name / "curve.jsonl", found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
