"""A genuine CLIP of random weights, small enough to build, save and load in a second."""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPConfig, CLIPImageProcessor

from rankray.shapes.text import clip_tokenizer

SIZE = 32
PROMPTS = [
    "a red circle",
    "two blue squares",
    "",
    "🦊 \0 <b>",
    "word " * 2000,
    "a red circle",
    "a green star",
]


def clip_config() -> CLIPConfig:
    tokenizer = clip_tokenizer()
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **shared,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**shared, "image_size": SIZE, "patch_size": 8}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)


def save_processor(place: Path) -> None:
    clip_tokenizer().save_pretrained(place)
    edges = {"height": SIZE, "width": SIZE}
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=edges).save_pretrained(place)
