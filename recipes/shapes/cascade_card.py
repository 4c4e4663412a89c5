"""The model card of `shapes-cascade`: written by its training from its own curves and measurements, never by hand.

It is apart from `card.py` since three parts are trained here, each with a curve and a set of numbers of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

from rankray.shapes.prompts import CATEGORIES, prompts
from recipes.shapes.card import curve, size_mb

PARTS = {
    "vqgan": "VQGAN: reconstructions",
    "refine": "VQGAN, its decoder refined: reconstructions",
    "decoder": "stage B and VQGAN: true embeddings",
    "prior": "whole pipeline: 128 validation prompts",
}


def _points(path: Path, rows: int = 12) -> list[str]:
    """At most about `rows` measured points of a curve as table rows, the last one always."""
    points = curve(path)
    every = max(1, len(points) // rows)
    kept = [point for place, point in enumerate(points) if (len(points) - 1 - place) % every == 0]
    return [f"| {p['minutes']:.1f} | {p['step']:.0f} | {p['accuracy']:.1%} |" for p in kept]


def write_card(work: Path, directory: Path, call: dict[str, object], found: dict[str, float]) -> None:
    """Writes README.md and accuracy.json into the saved pipeline's directory.

    Args:
        work: the training's directory, with a `curve.jsonl` for each part.
        call: arguments with which the pipeline was called.
        found: "accuracy", each category's, and "images_per_s", over the held-out prompts.
    """
    (directory / "accuracy.json").write_text(json.dumps(found, indent=1) + "\n")
    rows = [f"| {name.replace('_', ' ')} | {found[name]:.1%} |" for name in CATEGORIES if name in found]
    curves = ""
    for part, what in PARTS.items():
        curves += f"\n{what}:\n\n| minutes | steps | accuracy |\n|---|---|---|\n"
        curves += "\n".join(_points(work / part / "curve.jsonl")) + "\n"
    shown = ", ".join(f"{key}={value}" for key, value in call.items())
    text = f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# shapes-cascade

A small, genuine `StableCascadeCombinedPipeline` that draws coloured shapes (64 x 64), for trying out and testing
rankray. It knows some thirty words and nothing else.

- **Data**: pictures rendered from the {len(prompts("train"))} training prompts of `rankray.shapes.prompts`; no false
  captions.
- **Parts**: a fourfold `PaellaVQModel` (latents 16 x 16 x 4, no codebook in use), stage B (embeddings 8 x 8 x 5 to
  latents), stage C (prompt to embedding) with its CLIP text encoder, all trained from scratch. The embedding stands
  in for EfficientNet's features: a coarse map of what lies where, computed by the renderer (`cascade_layout.py`).
- **Schedulers**: both `DPMSolverMultistepScheduler` with v-prediction, saved with the pipeline. Another one has to keep
  `prediction_type="v_prediction"`.
- **Sampling**: `{shown}`.
- **Weights**: half precision, {size_mb(directory):.1f} MB.
- **Made by** `python -m recipes.shapes.cascade --work DIR --output THIS`, one thread, seed 0. The machine was
  shared, and the minutes of the first two thirds are wall-clock: steps are the honest axis.

Loading, with diffusers 0.42 (which moved `PaellaVQModel` and does not save two settings of this pipeline):

```python
import diffusers, torch
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

diffusers.PaellaVQModel = PaellaVQModel
pipe = diffusers.StableCascadeCombinedPipeline.from_pretrained(DIRECTORY, dtype=torch.float32)
pipe.prior_pipe.register_to_config(resolution_multiple=8.0)
pipe.decoder_pipe.register_to_config(latent_dim_scale=2.0)
```

Share of pictures that pass the exact checker, one picture for each of the {len(prompts("heldout"))} held-out prompts,
{found["images_per_s"]} images/s of one core's processor time, with the checker's:

| category | accuracy |
|---|---|
| all | {found["accuracy"]:.1%} |
{chr(10).join(rows)}

While the parts trained (share that passes the checker, averaged weights):
{curves}"""
    (directory / "README.md").write_text(text)
