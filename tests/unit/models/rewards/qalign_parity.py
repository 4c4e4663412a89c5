"""The authors' mPLUG-Owl2, as the package pyiqa carries it, one picture at a time, against ours, batched.

python qalign_parity.py DIRECTORY   -> {"difference": ..., "scores": [...]}

Run by the interpreter of an overlay that has pyiqa and sentencepiece. What their files want and transformers 5 no
longer has is given here: two masks that hide nothing. The start token is put in front, as the weights were trained;
the package as it is loses it with transformers 5.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import sentencepiece
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from rankray.models.rewards import REWARDS
from rankray.models.rewards.qalign import QAlign
from rankray.models.rewards.submodule import import_alone
from recipes.random_weights.qalign import write

ROWS = ("qalign-quality", "qalign-aesthetic")
START = 1


class Tokenizer:
    """LLaMA's, by sentencepiece itself."""

    bos_token_id = START

    def __init__(self, directory: Path) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(str(directory / "tokenizer.model"))

    def __call__(self, text: str | list[str]) -> Any:
        if isinstance(text, list):
            return {"input_ids": [[START, *self.pieces.encode(word)] for word in text]}
        return SimpleNamespace(input_ids=[START, *self.pieces.encode(text)])


def theirs(directory: Path) -> Any:
    """(their module, their model with these weights)."""
    sys.modules["icecream"] = ModuleType("icecream")  # prints for debugging, and never does
    vars(sys.modules["icecream"])["ic"] = print
    module = import_alone("pyiqa.archs.q_align.modeling_mplug_owl2")
    local = Tokenizer(directory), CLIPImageProcessorPil.from_pretrained(directory)
    names = "LlamaTokenizer", "CLIPImageProcessor"  # which they would load from the hub
    for name, made in zip(names, local, strict=True):
        vars(module)[name] = SimpleNamespace(from_pretrained=lambda *_, made=made, **__: made)
    abstractor = module.MplugOwlVisualAbstractorModel
    abstractor.invert_attention_mask = lambda _, mask: (1 - mask[:, None, None, :]) * -1e9
    abstractor.get_head_mask = lambda _, __, layers: [None] * layers
    model, found = module.MPLUGOwl2LlamaForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    return module, model.eval()


def their_score(module: Any, model: Any, picture: Image.Image, aspect: str) -> float:
    """As their evaluation has it: padded to a square, asked, five levels weighed."""
    fill = tuple(int(255 * value) for value in model.image_processor.image_mean)
    padded = module.expand2square(picture.convert("RGB"), fill)
    pixels = model.image_processor.preprocess([padded], return_tensors="pt")["pixel_values"]
    prompt = f"USER: How would you rate the {aspect} of this image?\n<|image|>\nASSISTANT: The {aspect} of the image is"
    ids = module.tokenizer_image_token(prompt, model.tokenizer, module.IMAGE_TOKEN_INDEX, return_tensors="pt")
    with torch.inference_mode():
        logits = model(ids[None], images=pixels)["logits"][0, -1, model.preferential_ids_]
    return float(logits.softmax(-1) @ torch.tensor([1, 0.75, 0.5, 0.25, 0.0]))


def main(directory: Path) -> None:
    torch.manual_seed(0)
    write(directory)
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 255, (30 + 40 * i, 300 - 30 * i, 3), dtype=np.uint8))
        for i in range(6)
    ]
    pictures += [pictures[0].convert("L"), Image.new("RGB", (64, 64), (250, 10, 10))]
    ours: list[np.ndarray] = []
    for row in ROWS:  # first, as their import changes transformers' LLaMA for the whole process
        options = {**REWARDS[row].options, "vocabulary": 0}
        spec = replace(REWARDS[row], source=str(directory), dtype="float32", batch_size=3, options=options)
        ours.append(QAlign(spec=spec, device="cpu").score(pictures, [""] * len(pictures)))
    module, model = theirs(directory)
    due = [
        [their_score(module, model, picture, aspect) for picture in pictures]
        for aspect in ("quality", "aesthetics")
    ]
    difference = float(np.abs(np.array(ours) - np.array(due)).max())
    print(json.dumps({"difference": difference, "scores": np.concatenate(ours).tolist()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
