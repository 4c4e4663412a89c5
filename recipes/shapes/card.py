"""Model cards of the shapes pipelines: written by the training run from its own measurements, never by hand.

A card costs one generation of all held-out prompts (about 15 seconds) and is the only record of what was trained.
"""

from __future__ import annotations

import json
from pathlib import Path

from rankray.shapes.prompts import CATEGORIES, prompts
from recipes.shapes.family import Family


def curve(path: Path) -> list[dict[str, float]]:
    """The measured points of a training curve (lines of JSON with an accuracy)."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "accuracy" in line]


def size_mb(directory: Path) -> float:
    """Megabytes of all files of a saved pipeline."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) / 1e6


def write_card(family: Family, directory: Path, curve_path: Path, found: dict[str, float]) -> None:
    """Writes README.md and accuracy.json into a saved pipeline's directory."""
    (directory / "accuracy.json").write_text(json.dumps(found, indent=1) + "\n")
    points = curve(curve_path)
    noise = ", ".join(f"{share:.0%} {name}" for name, share in family.noise.items()) or "none"
    if family.noise_after:
        noise += f", after {family.noise_after:g} minutes of true ones"
    call = ", ".join(f"{key}={value}" for key, value in family.call.items())
    rows = [f"| {name.replace('_', ' ')} | {found[name]:.1%} |" for name in CATEGORIES if name in found]
    steps = [f"| {p['minutes']:.1f} | {p['step']:.0f} | {p['accuracy']:.1%} |" for p in points]
    text = f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# {family.name}

A small, genuine diffusers pipeline that draws coloured shapes (64 x 64), for trying out and testing rankray.
It knows some thirty words and nothing else.

- **Data**: 48,000 pictures of the {len(prompts("train"))} training prompts of `rankray.shapes.prompts`, encoded once.
- **False captions** in training: {noise}.
- **Sampling**: `{call}`.
- **Weights**: half precision, {size_mb(directory):.1f} MB with the autoencoder.
- **Made by** `python -m recipes.shapes.train {family.name}` after `python -m recipes.shapes.autoencoder` and
  `python -m recipes.shapes.data` (see docs/shapes.md), one core, {points[-1]["minutes"]:.0f} minutes.

Share of pictures that pass the exact checker, one picture for each of the {len(prompts("heldout"))} held-out prompts:

| category | accuracy |
|---|---|
| all | {found["accuracy"]:.1%} |
{chr(10).join(rows)}

While it trained (128 held-out prompts, averaged weights):

| minutes | steps | accuracy |
|---|---|---|
{chr(10).join(steps)}
"""
    (directory / "README.md").write_text(text)
