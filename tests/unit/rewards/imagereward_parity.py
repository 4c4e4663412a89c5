"""Run by the interpreter of the overlay: the package's own `score`, one picture at a time, against ours, batched.

python imagereward_parity.py DIRECTORY   -> {"difference": ..., "scores": [...]}

Weights are random and small: a vision transformer of two layers in place of ViT-L's 24, BERT's head of one. Everything
else, from preprocessing to the last layer, is the package's.
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from rankray.rewards import REWARDS
from rankray.rewards.imagereward import ImageReward, _tokenizer
from rankray.rewards.submodule import import_alone

WIDTH = 64
PROMPTS = [
    "a red circle",
    "two blue squares left of a star",
    "",
    "🦊 <b>",
    "word " * 2000,
    "a red circle",
    "x",
]


def vocabulary(place: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] + ["red", "blue", "circle", "two"]
    words += [f"[unused{n}]" for n in range(30522 - len(words))]
    place.mkdir(parents=True)
    (place / "vocab.txt").write_text("\n".join(words))


def main(directory: Path) -> None:
    blip = import_alone("ImageReward.models.BLIP.blip_pretrain")
    vit = import_alone("ImageReward.models.BLIP.vit")
    package = import_alone("ImageReward.ImageReward")

    def small_vit(*args: object, **kwargs: object) -> tuple[nn.Module, int]:
        norm = functools.partial(nn.LayerNorm, eps=1e-6)
        tower = vit.VisionTransformer(
            img_size=224, patch_size=32, embed_dim=WIDTH, depth=2, num_heads=2, norm_layer=norm
        )
        return tower, WIDTH

    blip.create_vit = small_vit
    vocabulary(directory / "bert")
    bert = {
        "hidden_size": 768,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 30524,
        "encoder_width": WIDTH,
        "add_cross_attention": True,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }
    (directory / "med_config.json").write_text(json.dumps(bert))
    options = {**REWARDS["imagereward"].options, "tokenizer": str(directory / "bert")}
    spec = replace(REWARDS["imagereward"], source=str(directory), batch_size=3, options=options)
    blip.init_tokenizer = lambda: _tokenizer(spec)
    torch.manual_seed(0)
    theirs = package.ImageReward(device="cpu", med_config=str(directory / "med_config.json")).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    torch.save(theirs.state_dict(), directory / "ImageReward.pt")

    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 255, (30 + 40 * i, 300 - 30 * i, 3), dtype=np.uint8))
        for i in range(6)
    ]
    pictures.append(pictures[0].convert("L"))
    with torch.no_grad():
        due = [theirs.score(text, picture) for text, picture in zip(PROMPTS, pictures, strict=True)]
    got = ImageReward(spec=spec, device="cpu").score(pictures, PROMPTS)
    print(json.dumps({"difference": float(np.abs(got - due).max()), "scores": got.tolist()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
