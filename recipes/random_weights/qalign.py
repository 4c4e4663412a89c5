"""A checkpoint of Q-Align with random weights: mPLUG-Owl2 at two layers, its files named and laid out as published.

Weights are two shards of safetensors and an index, as the hub converts the published ones; the tokenizer is a
sentencepiece file with the five levels' words, single letters and the bytes of everything else.
"""

from __future__ import annotations

import json
import string
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rankray.models.rewards.qalign import BYTE_PAIRS, LEVELS
from rankray.models.rewards.qalign_model import Owl2, Sizes

SIZE = 32
SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def write(place: Path) -> None:
    """The whole checkpoint, 0.4 MB."""
    made = vocabulary()
    config = {
        "model_type": "mplug_owl2",
        "architectures": ["MPLUGOwl2LlamaForCausalLM"],
        **LAYERS,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": len(made),
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "visual_config": {
            "visual_model": {
                **LAYERS,
                "intermediate_size": 64,
                "image_size": SIZE,
                "patch_size": 8,
                "layer_norm_eps": 1e-06,
                "hidden_act": "quick_gelu",
            },
            "visual_abstractor": {
                **LAYERS,
                "intermediate_size": 48,
                "encoder_hidden_size": 32,
                "num_learnable_queries": 6,
                "grid_size": 4,
                "layer_norm_eps": 1e-06,
            },
        },
    }
    write_beside(place, config, made)
    _save(Owl2(Sizes.from_config(config), before=0), place)


def write_beside(place: Path, config: dict[str, Any], pieces: list[tuple[str, float, int]]) -> None:
    """What a checkpoint has beside its weights: configuration, vocabulary, preprocessing."""
    write_vocabulary(place / "tokenizer.model", pieces)
    size = config["visual_config"]["visual_model"]["image_size"]
    (place / "config.json").write_text(json.dumps(config, indent=2))
    preprocessing = {
        "crop_size": size,
        "size": size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (place / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2))


def _drawn(key: str, tensor: Tensor) -> Tensor:
    """Of a size at which a layer's output is about as large as its input, and a picture's values are heard."""
    noise = torch.randn_like(tensor)
    if tensor.ndim < 2:
        return tensor + 0.1 * noise
    scale = (8.0 if "v_proj.multiway.1" in key else 1.5) / tensor[0].numel() ** 0.5
    found: Tensor = scale * noise
    return found


def _save(model: Owl2, place: Path) -> None:
    """Two shards and their index."""
    weights = {key: _drawn(key, tensor) for key, tensor in model.state_dict().items()}
    keys = sorted(weights)
    halves = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    where: dict[str, str] = {}
    for n, half in enumerate(halves, 1):
        name = f"model-{n:05}-of-00002.safetensors"
        save_file({key: weights[key].contiguous() for key in half}, place / name, metadata={"format": "pt"})
        where |= dict.fromkeys(half, name)
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (place / "model.safetensors.index.json").write_text(json.dumps(index, indent=4))


def vocabulary() -> list[tuple[str, float, int]]:
    """(piece, score, kind) as LLaMA orders them: special tokens, bytes, joined pieces, letters."""
    made = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    made += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    words = [SPACE + word for word in LEVELS]
    joined = dict.fromkeys(word[:length] for word in words for length in range(2, len(word) + 1))
    learnt = [*joined, SPACE, *string.ascii_letters]
    return made + [(piece, -float(rank), NORMAL) for rank, piece in enumerate(learnt)]


def write_vocabulary(path: Path, pieces: list[tuple[str, float, int]], byte_fallback: bool = True) -> None:
    """Pieces of at most 100 bytes as sentencepiece's ModelProto: pieces, trainer_spec, normalizer_spec."""
    made = b""
    for piece, score, kind in pieces:
        name = piece.encode()
        inner = (
            b"\x0a" + bytes([len(name)]) + name + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
        )
        made += b"\x0a" + bytes([len(inner)]) + inner
    trainer = b"\x18" + bytes([BYTE_PAIRS]) + b"\x98\x02" + bytes([byte_fallback])
    normalizer = b"\x0a\x08identity" + b"\x18\x01" + b"\x20\x00"  # a space in front, none taken away
    for tag, part in ((0x12, trainer), (0x1A, normalizer)):
        made += bytes([tag, len(part)]) + part
    path.write_bytes(made)
