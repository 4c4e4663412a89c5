"""Run by the interpreter of the overlay: the package's own `score`, one picture at a time, against ours, batched.

python imagereward_parity.py DIRECTORY   -> {"difference": ..., "half": ..., "truncated": [...], "scores": [...]}
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from odd_prompts import PROMPTS
from PIL import Image

from rankray.models.rewards import REWARDS
from rankray.models.rewards.imagereward import ImageReward, bare_model
from recipes.random_weights.rewards import imagereward, sizes


def main(directory: Path) -> None:
    imagereward(directory)
    options = {**REWARDS["imagereward"].options, **sizes("imagereward", directory)}
    spec = replace(REWARDS["imagereward"], source=str(directory), batch_size=3, options=options)
    theirs = bare_model(spec).eval()
    theirs.load_state_dict(torch.load(directory / "ImageReward.pt", weights_only=True))
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 255, (30 + 40 * i, 300 - 30 * i, 3), dtype=np.uint8))
        for i in range(6)
    ]
    pictures.append(pictures[0].convert("L"))
    pictures[1], pictures[2] = Image.new("RGB", (1, 1), "red"), Image.new("RGB", (4096, 4096), "red")
    with torch.no_grad():
        due = [theirs.score(text, picture) for text, picture in zip(PROMPTS, pictures, strict=True)]
    ours = ImageReward(spec=spec, device="cpu")
    got = ours.score(pictures, PROMPTS)
    half = ImageReward(spec=replace(spec, dtype="bfloat16"), device="cpu").score(pictures, PROMPTS)
    found = {
        "difference": float(np.abs(got - due).max()),
        "half": float(np.abs(half - got).max()),
        "truncated": ours.truncated(PROMPTS),
        "scores": got.tolist(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
