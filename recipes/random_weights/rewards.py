"""Checkpoints of the paper's five rewards and Q-Align with random weights: the published architectures at two layers.

Each is in the layout of the published one, so that the same class loads it with nothing changed but where it is and
how large. Three are made by their own packages, in their own environments; a second or two each, 110 MB for
ImageReward, whose BERT keeps its 30,522 words, and a few MB for the others.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from rankray.models.rewards import REWARDS
from rankray.models.rewards.submodule import import_alone
from recipes.random_weights import qalign
from recipes.shapes.text import WORDS, clip_tokenizer

SIZE = 32
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
T5_MODULE = "t2v_metrics.models.vqascore_models.clip_t5_model"
VIT = {"patch_size": 32, "embed_dim": 64, "depth": 2, "num_heads": 2}
"""Sizes of ImageReward's vision transformer, for its option `vit`."""


def clip_config() -> CLIPConfig:
    """A CLIP for pictures of 32 pixels and the words of the shapes world."""
    tokenizer = clip_tokenizer()
    text = {
        **SHAPE,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**SHAPE, "image_size": SIZE, "patch_size": 8}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)


def save_processor(place: Path) -> None:
    """Tokenizer and image processor of that CLIP."""
    clip_tokenizer().save_pretrained(place)
    _image_processor().save_pretrained(place)


def _image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


def pickscore(place: Path) -> None:
    """A CLIP with its processor."""
    CLIPModel(clip_config()).save_pretrained(place)
    save_processor(place)


def mps(place: Path) -> None:
    """MPS in our own layout."""
    from rankray.models.rewards.mps import MpsConfig, MpsModel

    MpsModel(clip_config(), MpsConfig(layers=2, heads=2, head_width=8)).save(place)
    save_processor(place)


def hpsv2(place: Path) -> None:
    """HPSv2's checkpoint, and its architecture in open_clip's words."""
    factory = importlib.import_module("hpsv2.src.open_clip")
    small = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 224, "layers": 2, "width": 32, "head_width": 16, "patch_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (place / "small.json").write_text(json.dumps(small))
    factory.add_model_config(place / "small.json")
    model, *_ = factory.create_model_and_transforms(
        "small", None, precision="fp32", device="cpu", output_dict=True
    )
    _disturb(model)
    torch.save({"state_dict": model.state_dict()}, place / REWARDS["hpsv2.1"].options["file"])


def imagereward(place: Path) -> None:
    """ImageReward's checkpoint, BLIP's configuration and a BERT vocabulary."""
    from rankray.models.rewards import imagereward as ours

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    words += [word for word in WORDS if word not in words]
    words += [f"[unused{n}]" for n in range(ours.VOCABULARY - 2 - len(words))]
    (place / "bert").mkdir()
    (place / "bert" / "vocab.txt").write_text("\n".join(words))
    options = REWARDS["imagereward"].options
    bert = {
        "hidden_size": 768,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": ours.VOCABULARY,
        "encoder_width": VIT["embed_dim"],
        "add_cross_attention": True,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }
    (place / options["med_config"]).write_text(json.dumps(bert))
    changed = {**options, **sizes("imagereward", place)}
    model = ours.bare_model(replace(REWARDS["imagereward"], source=str(place), options=changed))
    _disturb(model)
    torch.save(model.state_dict(), place / options["file"])


def vqascore(place: Path) -> None:
    """CLIP-FlanT5: its vision tower, its tokenizer, and the model, in which both are named."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    tower = CLIPVisionConfig(**SHAPE, image_size=SIZE, patch_size=8)
    CLIPVisionModel(tower).save_pretrained(place / "tower")
    _image_processor().save_pretrained(place / "tower")
    kind = import_alone(T5_MODULE).CLIPT5ForConditionalGeneration
    config = kind.config_class(
        vocab_size=sentencepiece_words(place / "tokenizer"), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        decoder_start_token_id=0, tie_word_embeddings=False, feed_forward_proj="gated-gelu",
        mm_vision_tower=str(place / "tower"), mm_hidden_size=32, mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2,
    )  # fmt: skip
    model = kind(config)
    _disturb(model.mm_projector)
    model.lm_head.weight.data.mul_(0.05)  # probabilities that are neither 0 nor 1
    # As the published one is: two names of one tensor, which safetensors does not hold.
    model.save_pretrained(place / "model", safe_serialization=False)


def sentencepiece_words(place: Path) -> int:
    """Writes a T5 tokenizer of some 120 pieces; its size, with the hundred words that T5 adds."""
    import sentencepiece
    from transformers import T5Tokenizer

    place.mkdir(parents=True, exist_ok=True)
    text = place / "text.txt"
    lines = [
        "Does this figure show a circle? Please answer yes or no.",
        "Yes",
        "USER: ASSISTANT:",
        " ".join(WORDS),
    ]
    text.write_text("\n".join(lines * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(place / "spiece"), vocab_size=120, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    tokenizer = T5Tokenizer.from_pretrained(place)
    tokenizer.save_pretrained(place)
    return len(tokenizer)


def _disturb(model: nn.Module) -> None:
    """Moves every parameter, so that gates and biases that start at zero have a say."""
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))


REWARDS_MADE: dict[str, tuple[Callable[[Path], None], str | None]] = {
    "hpsv2.1": (hpsv2, "hpsv2"),
    "mps": (mps, None),
    "pickscore": (pickscore, None),
    "vqascore": (vqascore, "vqascore"),
    "imagereward": (imagereward, "imagereward"),
    "qalign-quality": (qalign.write, None),
}
"""By the rewards' names: what makes one, and the environment that has its package."""


def sizes(name: str, place: Path) -> dict[str, Any]:
    """Options of a reward that say where its small checkpoint's parts are, and how large they are."""
    if name in ("pickscore", "mps"):
        return {"processor": str(place), "vocabulary": len(clip_tokenizer())}
    if name == "hpsv2.1":
        return {"architecture": str(place / "small.json")}
    if name == "imagereward":
        return {"tokenizer": str(place / "bert"), "vit": VIT}
    if name == "qalign-quality":
        return {"vocabulary": 0}
    return {"tokenizer": str(place / "tokenizer"), "tower": str(place / "tower"), "vocabulary": 0}
