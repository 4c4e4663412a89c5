"""Parts of the benchmarks' judges at their published sizes, without numbers: configurations as published, hollow files.

For `rankray.fake_cuda`, where they load and judge: `hollow(name, place)` takes a second or two and kilobytes of disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from rankray.random_weights.full_size import clip, write_module
from rankray.random_weights.judges import COCO
from rankray.random_weights.vocabularies import clip_tokenizer

BERT_TOKENS = 30_522


def _write(kind: Any, config: Any, place: Path) -> None:
    with init_empty_weights(include_buffers=False):
        module = kind(config)
    write_module(module, place, torch.float32, hollow=True)


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


def _clip(model: str) -> Callable[[Path], None]:
    return lambda place: clip(place, model, torch.float32, hollow=True)


_PARTS: Mapping[str, Mapping[str, Callable[[Path], None]]] = {
    "geneval": {"detector": mask2former, "clip": _clip("clip-l")},
    "dpg": {"vqa": blip},
    "compbench": {"vqa": blip, "detector": owlv2, "clip": _clip("clip-b")},
}


def hollow(name: str, place: Path) -> dict[str, str]:
    """Writes each part of a benchmark's judge; where it is, by the part's name."""
    for part, write in _PARTS[name].items():
        write(place / part)
    return {part: str(place / part) for part in _PARTS[name]}
