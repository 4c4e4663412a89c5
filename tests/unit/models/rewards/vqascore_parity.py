"""Run by the interpreter of the overlay: the package's own model, one picture at a time, against ours, batched.

python vqascore_parity.py DIRECTORY with-tower|without-tower
-> {"difference": ..., "half": ..., "neighbours": ..., "float16": ..., "truncated": [...], "scores": [...]}
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from allocated import Allocated
from odd_prompts import PROMPTS
from PIL import Image

from rankray.models.rewards import REWARDS
from rankray.models.rewards.submodule import import_alone
from rankray.models.rewards.vqascore import VqaScore
from recipes.random_weights.rewards import T5_MODULE, sizes, vqascore

MODEL = "clip-flant5-xxl"


def main(directory: Path, with_tower: bool) -> None:
    torch.manual_seed(0)
    vqascore(directory)
    if not with_tower:
        file = directory / "model" / "pytorch_model.bin"
        weights = torch.load(file, weights_only=True)
        torch.save({k: v for k, v in weights.items() if not k.startswith("vision_tower.")}, file)
    row = import_alone(T5_MODULE).CLIP_T5_MODELS[MODEL]
    row["model"]["path"], row["tokenizer"]["path"] = str(directory / "model"), str(directory / "tokenizer")
    theirs = import_alone(T5_MODULE).CLIPT5Model(
        model_name=MODEL, device="cpu", cache_dir=str(directory / "cache")
    )
    if not with_tower:
        theirs.model.get_vision_tower().load_model()
    theirs.model.to(torch.bfloat16).float()  # the package rounds to bfloat16
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 255, (30 + 40 * i, 300 - 30 * i, 3), dtype=np.uint8))
        for i in range(6)
    ]
    pictures.append(pictures[0].convert("L"))
    pictures[1], pictures[2] = Image.new("RGB", (2, 1), "red"), Image.new("RGB", (4096, 4096), "red")
    due = []
    for n, (picture, prompt) in enumerate(zip(pictures, PROMPTS, strict=True)):
        path = directory / f"{n}.png"
        picture.save(path)
        due.append(float(theirs.forward([str(path)], [prompt])[0]))
    options = {**REWARDS["vqascore"].options, **sizes("vqascore", directory)}
    spec = replace(
        REWARDS["vqascore"], source=str(directory / "model"), batch_size=3, options=options, dtype="float32"
    )
    with Allocated() as allocated:
        ours = VqaScore(spec=spec, device="cpu")
    in_half = 2 * sum(p.numel() for p in ours.model.model.parameters())
    got = ours.score(pictures, PROMPTS)
    # The package's own image processor cannot tell the channels of 1x1 pixels; ours takes them.
    assert np.isfinite(ours.score([Image.new("RGB", (1, 1), "red")], ["a red circle"])).all()
    in_bfloat16 = VqaScore(spec=replace(spec, dtype="bfloat16"), device="cpu")
    in_float16 = VqaScore(spec=replace(spec, dtype="float16"), device="cpu")  # in which T5 would overflow
    half = in_bfloat16.score(pictures, PROMPTS)
    pairs = zip(pictures, PROMPTS, strict=True)
    alone = np.concatenate([in_bfloat16.score([picture], [prompt]) for picture, prompt in pairs])
    found = {
        "difference": float(np.abs(got - due).max()),
        "half": float(np.abs(half - got).max()),
        "neighbours": float(np.abs(half - alone).max()),
        "float16": float(np.abs(half - in_float16.score(pictures, PROMPTS)).max()),
        "loading": allocated.peak / in_half,
        "truncated": ours.truncated(PROMPTS),
        "scores": got.tolist(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "with-tower")
