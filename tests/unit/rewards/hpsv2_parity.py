"""Run by the interpreter of the overlay: the package's own `score`, one picture at a time, against ours, batched.

python hpsv2_parity.py DIRECTORY   -> {"difference": ..., "scores": [...]}

Weights are random and small: towers of two layers under the name of ViT-H/14. Everything else is the package's.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rankray.rewards import REWARDS
from rankray.rewards.hpsv2 import Hpsv2

PROMPTS = [
    "a red circle",
    "two blue squares left of a star",
    "",
    "🦊 <b>",
    "word " * 2000,
    "a red circle",
    "x",
]
SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 32, "head_width": 16, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def main(directory: Path) -> None:
    factory = importlib.import_module("hpsv2.src.open_clip.factory")
    package = importlib.import_module("hpsv2.img_score")
    factory._MODEL_CONFIGS["ViT-H-14"] = SMALL
    torch.manual_seed(0)
    # What `initialize_model` does, but for fetching the weights that it then replaces.
    model, _, preprocess = factory.create_model_and_transforms(
        "ViT-H-14", None, precision="amp", device="cpu", light_augmentation=True, aug_cfg={}, output_dict=True
    )
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    package.model_dict.update({"model": model, "preprocess_val": preprocess})
    file = directory / REWARDS["hpsv2.1"].options["file"]
    torch.save({"state_dict": model.state_dict()}, file)

    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 255, (30 + 40 * i, 300 - 30 * i, 3), dtype=np.uint8))
        for i in range(6)
    ]
    pictures.append(pictures[0].convert("L"))
    due = [
        float(package.score(picture, prompt, cp=str(file), hps_version="v2.1")[0])
        for picture, prompt in zip(pictures, PROMPTS, strict=True)
    ]
    spec = replace(REWARDS["hpsv2.1"], source=str(directory), batch_size=3)
    got = Hpsv2(spec=spec, device="cpu").score(pictures, PROMPTS)
    print(json.dumps({"difference": float(np.abs(got - due).max()), "scores": got.tolist()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
