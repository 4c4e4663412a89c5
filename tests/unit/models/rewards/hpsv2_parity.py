"""Run by the interpreter of the overlay: the package's own `score`, one picture at a time, against ours, batched.

python hpsv2_parity.py DIRECTORY   -> {"difference": ..., "half": ..., "truncated": [...], "scores": [...]}

Both ways to resize: as torchvision did when the package was published, and as it does today. And texts: our tokens of
CLIP's vocabulary, which the package carries, against its own.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from odd_prompts import PROMPTS
from PIL import Image
from transformers import CLIPTokenizerFast

from rankray.models.rewards import REWARDS
from rankray.models.rewards.clip import TextTokens
from rankray.models.rewards.hpsv2 import Hpsv2
from recipes.random_weights.rewards import hpsv2, sizes

TEXTS = [
    "a “curly” cat\u2019s \u2018hat\u2019",
    "salt &amp; pepper, &amp;lt;b&amp;gt; &eacute;",
    "âœ” a cafÃ© in the rain",
    "\x1b[31mred ﬁre ",
    "ΟΔΟΣ Straße İstanbul 12:30 don't  \t tabs\nlines",
    "🦊 a fox, 3 kites — “one”… &#39;two&#39;",
    "",
    *(prompt for prompt in PROMPTS if len(prompt) < 1000),
]


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

    def package_scores() -> list[float]:
        return [
            float(package.score(picture, prompt, cp=file, hps_version="v2.1")[0])
            for picture, prompt in zip(pictures, PROMPTS, strict=True)
        ]

    options = {**REWARDS["hpsv2.1"].options, **sizes("hpsv2.1", directory)}
    spec = replace(REWARDS["hpsv2.1"], source=str(directory), batch_size=3, options=options)
    today = Hpsv2(spec=replace(spec, options={**options, "antialias": True}), device="cpu")
    differences = [np.abs(today.score(pictures, PROMPTS) - package_scores()).max()]
    transform = importlib.import_module("hpsv2.src.open_clip.transform")
    transform.F.resize = functools.partial(transform.F.resize, antialias=False)
    ours = Hpsv2(spec=spec, device="cpu")
    got = ours.score(pictures, PROMPTS)
    differences.append(np.abs(got - package_scores()).max())
    half = Hpsv2(spec=replace(spec, dtype="bfloat16"), device="cpu").score(pictures, PROMPTS)
    found = {
        "difference": float(max(differences)) + _other_tokens(),
        "half": float(np.abs(half - got).max()),
        "truncated": ours.truncated(PROMPTS),
        "scores": got.tolist(),
    }
    print(json.dumps(found))


def _other_tokens() -> int:
    """In how many places our tokens are not the package's, in CLIP's own vocabulary of 49,408."""
    theirs = importlib.import_module("hpsv2.src.open_clip.tokenizer").SimpleTokenizer()
    named = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {named.get(token, token): n for token, n in theirs.encoder.items()}
    tokenizer = CLIPTokenizerFast(vocab=vocabulary, merges=list(theirs.bpe_ranks))
    found, _ = TextTokens(tokenizer, 77, by_openai=True)(TEXTS)
    due = importlib.import_module("hpsv2.src.open_clip.tokenizer").tokenize(TEXTS)
    ends = vocabulary["<|endoftext|>"]
    # The package pads by 0, transformers by the end token; what is after the end is not looked at.
    padded = [[ends if n > row.index(ends) else t for n, t in enumerate(row)] for row in due.tolist()]
    return int((found.numpy() != np.asarray(padded)).sum())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
