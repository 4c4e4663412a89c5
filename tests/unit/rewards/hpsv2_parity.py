"""Run by the interpreter of the overlay: the package's own `score`, one picture at a time, against ours, batched.

python hpsv2_parity.py DIRECTORY   -> {"difference": ..., "half": ..., "truncated": [...], "scores": [...]}
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from odd_prompts import PROMPTS
from PIL import Image

from rankray.random_weights.rewards import hpsv2, sizes
from rankray.rewards import REWARDS
from rankray.rewards.hpsv2 import Hpsv2


def main(directory: Path) -> None:
    hpsv2(directory)
    factory = importlib.import_module("hpsv2.src.open_clip.factory")
    package = importlib.import_module("hpsv2.img_score")
    # What `initialize_model` does, but for the size, and for fetching weights that it then replaces.
    model, _, preprocess = factory.create_model_and_transforms(
        "small", None, precision="amp", device="cpu", light_augmentation=True, aug_cfg={}, output_dict=True
    )
    package.model_dict.update({"model": model, "preprocess_val": preprocess})
    file = str(directory / REWARDS["hpsv2.1"].options["file"])
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 255, (30 + 40 * i, 300 - 30 * i, 3), dtype=np.uint8))
        for i in range(6)
    ]
    pictures.append(pictures[0].convert("L"))
    pictures[1], pictures[2] = Image.new("RGB", (1, 1), "red"), Image.new("RGB", (4096, 4096), "red")
    due = [
        float(package.score(picture, prompt, cp=file, hps_version="v2.1")[0])
        for picture, prompt in zip(pictures, PROMPTS, strict=True)
    ]
    options = {**REWARDS["hpsv2.1"].options, **sizes("hpsv2.1", directory)}
    spec = replace(REWARDS["hpsv2.1"], source=str(directory), batch_size=3, options=options)
    ours = Hpsv2(spec=spec, device="cpu")
    got = ours.score(pictures, PROMPTS)
    half = Hpsv2(spec=replace(spec, dtype="bfloat16"), device="cpu").score(pictures, PROMPTS)
    found = {
        "difference": float(np.abs(got - due).max()),
        "half": float(np.abs(half - got).max()),
        "truncated": ours.truncated(PROMPTS),
        "scores": got.tolist(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
