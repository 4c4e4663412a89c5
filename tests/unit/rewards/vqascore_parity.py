"""Run by the interpreter of the overlay: the package's own model, one picture at a time, against ours, batched.

python vqascore_parity.py DIRECTORY   -> {"difference": ..., "scores": [...]}

Weights are random and small: a CLIP tower of two layers, a T5 of two. Everything else is the package's.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, T5Tokenizer

from rankray.rewards import REWARDS
from rankray.rewards.submodule import import_alone
from rankray.rewards.vqascore import VqaScore

MODULE = "t2v_metrics.models.vqascore_models.clip_t5_model"
SIZE = 32
PROMPTS = [
    "a red circle",
    "two blue squares left of a star",
    "",
    "🦊 <b>",
    "word " * 200,
    "a red circle",
    "x",
]


def tokenizer(place: Path) -> T5Tokenizer:
    place.mkdir(parents=True)
    text = place / "text.txt"
    lines = ["Does this figure show a red circle? Please answer yes or no.", "Yes", "USER: ASSISTANT:"]
    text.write_text("\n".join([*lines, *PROMPTS] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(place / "spiece"), vocab_size=120, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    found = T5Tokenizer(str(place / "spiece.model"))
    found.save_pretrained(place)
    return found


def checkpoint(directory: Path, with_tower: bool) -> None:
    """Tower, processor, tokenizer and model; the model's file with the tower's weights or without."""
    tower = directory / "tower"
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**shape, image_size=SIZE, patch_size=8)).save_pretrained(tower)
    edges = {"height": SIZE, "width": SIZE}
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=edges).save_pretrained(tower)
    words = tokenizer(directory / "t5")
    language = import_alone(MODULE).CLIPT5ForConditionalGeneration
    config = language.config_class(
        vocab_size=len(words), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0,
        mm_vision_tower=str(tower), mm_hidden_size=32, mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-2,
        tie_word_embeddings=False, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    model = language(config)
    for name, parameter in model.named_parameters():
        if "vision_tower" not in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.lm_head.weight.data.mul_(0.05)  # probabilities that are neither 0 nor 1
    state = {k: v for k, v in model.state_dict().items() if with_tower or not k.startswith("vision_tower.")}
    # As the published one is: two names of one tensor, which safetensors does not hold.
    model.save_pretrained(directory / "model", state_dict=state, safe_serialization=False)


def main(directory: Path, with_tower: bool) -> None:
    torch.manual_seed(0)
    checkpoint(directory, with_tower)
    options = {"model": "clip-flant5-xl", "tokenizer": str(directory / "t5"), "vocabulary": None}
    spec = replace(
        REWARDS["vqascore"], source=str(directory / "model"), batch_size=3, options=options, dtype="float32"
    )
    module = import_alone(MODULE)
    row = module.CLIP_T5_MODELS["clip-flant5-xl"]
    row["model"]["path"], row["tokenizer"]["path"] = str(directory / "model"), str(directory / "t5")
    theirs = module.CLIPT5Model(model_name="clip-flant5-xl", device="cpu", cache_dir=str(directory / "cache"))
    if not with_tower:
        theirs.model.get_vision_tower().load_model()
    theirs.model.to(torch.bfloat16).float()  # the package rounds to bfloat16

    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 255, (30 + 9 * i, 64 - 3 * i, 3), dtype=np.uint8)) for i in range(6)
    ]
    pictures.append(pictures[0].convert("L"))
    due = []
    for n, (picture, prompt) in enumerate(zip(pictures, PROMPTS, strict=True)):
        path = directory / f"{n}.png"
        picture.save(path)
        due.append(float(theirs.forward([str(path)], [prompt])[0]))
    got = VqaScore(spec=spec, device="cpu").score(pictures, PROMPTS)
    relative = np.abs(got - due) / np.abs(due)
    print(
        json.dumps(
            {
                "difference": float(np.abs(got - due).max()),
                "relative": float(relative.max()),
                "scores": got.tolist(),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "with-tower")
