"""Checkpoints of the published sizes and layouts without their numbers: a hole in the disk, which reads as zeros and
takes no room. Within `fake_cuda` they are all that a model needs to load, run and train at its full size; on a GPU
`full_size.fill` gives it its numbers there.

    generator("sdxl", place)            # a second or two, and kilobytes of disk
    options = REWARDS["mps"](place)     # what the row's options must say
    models = judge("geneval", place)    # where its parts are
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from rankray.models.footprint import components
from rankray.models.rewards import REWARDS as ROWS
from rankray.models.rewards import aesthetic
from recipes.full_size import build
from recipes.random_weights import full_size, qalign
from recipes.random_weights.judges import COCO
from recipes.random_weights.vocabularies import clip_tokenizer

BERT_TOKENS = 30_522
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write(
    shapes: Mapping[str, Sequence[int]],
    dtype: torch.dtype,
    path: Path,
    known: Mapping[str, Tensor] | None = None,
) -> None:
    """A safetensors file of those tensors whose numbers are a hole, but for those that are `known`."""
    width, at = dtype.itemsize, 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, shape in shapes.items():
        end = at + math.prod(shape) * width
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + at)
        for name, value in (known or {}).items():
            stream.seek(8 + len(text) + header[name]["data_offsets"][0])
            stream.write(value.to(dtype).contiguous().flatten().view(torch.uint8).numpy().tobytes())


def write_module(module: nn.Module, dtype: torch.dtype, place: Path, stem: str) -> None:
    """A module's weights, and its buffers as they are; `recipes.random_weights.full_size.Write`."""
    tensors = dict(full_size.stored(module))
    shapes = {name: value.shape for name, value in tensors.items()}
    buffers = {name: value for name, value in tensors.items() if not isinstance(value, nn.Parameter)}
    write(shapes, dtype, place / f"{stem}.safetensors", buffers)


def generator(name: str, place: Path) -> None:
    """A pipeline, in the dtype of its row."""
    full_size.generator(name, place, write=write_module)


def _clip(place: Path, model: str) -> None:
    full_size.clip(place, model, torch.float32, write_module)


def _clip_reward(name: str, place: Path) -> dict[str, Any]:
    _clip(place, str(ROWS[name].full_size))
    return {"processor": str(place)}


def _mps(place: Path) -> dict[str, Any]:
    (component,) = components("rewards", "mps")
    module = build(component)
    config = {"model_type": "mps", "clip": module.clip.config.to_dict(), "mps": asdict(module.config)}
    (place / "config.json").write_text(json.dumps(config, default=str))
    write(shapes_of(module), torch.float32, place / "model.safetensors")
    full_size.write_processor(place)
    return {"processor": str(place)}


def _aesthetic(place: Path) -> dict[str, Any]:
    _clip(place / "clip", "clip-l")
    torch.save(aesthetic.layers(768).state_dict(), place / ROWS["aesthetic"].options["file"])
    return {"clip": str(place / "clip")}


def _qalign(place: Path) -> dict[str, Any]:
    (component,) = components("rewards", "qalign")
    config = {key: value for key, value in component.config.items() if key != "before"}
    pieces = qalign.vocabulary()
    more = [(f"<{n}>", 0.0, qalign.CONTROL) for n in range(config["vocab_size"] - len(pieces))]
    qalign.write_beside(place, {**config, "bos_token_id": 1, "eos_token_id": 2}, pieces + more)
    write(shapes_of(build(component)), torch.float16, place / "model.safetensors")
    return {}


def shapes_of(module: nn.Module) -> dict[str, Sequence[int]]:
    """Of all that its checkpoint holds, by name."""
    return {name: value.shape for name, value in module.state_dict().items()}


REWARDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "pickscore": functools.partial(_clip_reward, "pickscore"),
    "clipscore": functools.partial(_clip_reward, "clipscore"),
    "mps": _mps,
    "aesthetic": _aesthetic,
    "qalign-quality": _qalign,
}
"""By the rewards' names, of those that stand on no package: writes a checkpoint; the options that it is named by."""


def _write(kind: Any, config: Any, place: Path) -> None:
    with init_empty_weights(include_buffers=False):
        module = kind(config)
    full_size.write_module(module, place, torch.float32, write_module)


def mask2former(place: Path) -> None:
    """facebook/mask2former-swin-small-coco-instance: Swin-S, 100 queries, 69 million parameters."""
    from transformers import Mask2FormerConfig, Mask2FormerImageProcessor, SwinConfig

    from rankray.evals.detection import bare_mask2former

    swin = SwinConfig(
        image_size=224, patch_size=4, embed_dim=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24], window_size=7,
        drop_path_rate=0.3, out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    names = {"id2label": dict(enumerate(COCO)), "label2id": {name: n for n, name in enumerate(COCO)}}
    _write(bare_mask2former(), Mask2FormerConfig(backbone_config=swin, num_queries=100, **names), place)
    Mask2FormerImageProcessor(size={"shortest_edge": 800, "longest_edge": 1333}).save_pretrained(place)


def blip(place: Path) -> None:
    """Salesforce/blip-vqa-base: ViT-B at 384 pixels, 385 million parameters."""
    from transformers import BertTokenizer, BlipConfig, BlipForQuestionAnswering

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", *"abcdefghijklmnopqrstuvwxyz?"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    words += [f"[unused{n}]" for n in range(BERT_TOKENS - len(words))]
    place.mkdir(parents=True, exist_ok=True)
    (place / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(place / "vocab.txt")).save_pretrained(place)
    text = {
        "vocab_size": BERT_TOKENS + 2, "hidden_size": 768, "encoder_hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512,
        "bos_token_id": BERT_TOKENS, "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 102,
    }  # fmt: skip
    vision = {"image_size": 384, "patch_size": 16}
    _write(BlipForQuestionAnswering, BlipConfig(text_config=text, vision_config=vision), place)


def owlv2(place: Path) -> None:
    """google/owlv2-base-patch16-ensemble: ViT-B/16 at 960 pixels, 155 million parameters."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor

    tokenizer = clip_tokenizer(16)
    text = {
        "vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
    }  # fmt: skip
    vision = {"image_size": 960}
    _write(Owlv2ForObjectDetection, Owlv2Config(text_config=text, vision_config=vision), place)
    tokenizer.save_pretrained(place)
    Owlv2ImageProcessor(size={"height": 960, "width": 960}).save_pretrained(place)


_PARTS: Mapping[str, Mapping[str, Callable[[Path], None]]] = {
    "geneval": {"detector": mask2former, "clip": functools.partial(_clip, model="clip-l")},
    "dpg": {"vqa": blip},
    "compbench": {"vqa": blip, "detector": owlv2, "clip": functools.partial(_clip, model="clip-b")},
}


def judge(name: str, place: Path) -> dict[str, str]:
    """Writes each part of a benchmark's judge; where it is, by the part's name."""
    for part, make in _PARTS[name].items():
        make(place / part)
    return {part: str(place / part) for part in _PARTS[name]}
