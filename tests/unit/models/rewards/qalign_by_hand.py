"""mPLUG-Owl2 once more, as loops over tokens and heads in float64: what the model's own arithmetic is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Weights = Mapping[str, np.ndarray]


def logits(
    weights: Weights,
    config: Mapping[str, Any],
    pixels: np.ndarray,
    before: Sequence[int],
    after: Sequence[int],
) -> np.ndarray:
    """Of every token after `before`, the picture and `after`: float64[vocabulary]."""
    visual = config["visual_config"]
    seen = tower(weights, visual["visual_model"], pixels)
    seen = abstractor(weights, visual["visual_abstractor"], seen)
    table = weights["model.embed_tokens.weight"]
    tokens = np.stack([*(table[n] for n in before), *seen, *(table[n] for n in after)])
    modality = [0] * len(before) + [1] * len(seen) + [0] * len(after)
    for n in range(config["num_hidden_layers"]):
        tokens = llama_layer(weights, config, f"model.layers.{n}", tokens, modality)
    last = rms(weights["model.norm.weight"], tokens[-1], config["rms_norm_eps"])
    return weights["lm_head.weight"] @ last


def tower(weights: Weights, sizes: Mapping[str, Any], pixels: np.ndarray) -> np.ndarray:
    """float64[3, size, size] -> [1 + patches, width]."""
    at, edge = "model.vision_model", sizes["patch_size"]
    kernel = weights[f"{at}.embeddings.patch_embed.weight"]
    patches = [
        (kernel * pixels[:, y : y + edge, x : x + edge]).sum(axis=(1, 2, 3))
        for y in range(0, sizes["image_size"], edge)
        for x in range(0, sizes["image_size"], edge)
    ]
    tokens = np.stack([weights[f"{at}.embeddings.cls_token"][0, 0], *patches])
    tokens = tokens + weights[f"{at}.embeddings.position_embedding"][0]
    eps, heads = sizes["layer_norm_eps"], sizes["num_attention_heads"]
    tokens = norm(weights, f"{at}.embeddings.pre_layernorm", tokens, eps)
    for n in range(sizes["num_hidden_layers"]):
        layer = f"{at}.encoder.layers.{n}"
        mixed = linear(
            weights,
            f"{layer}.self_attn.query_key_value",
            norm(weights, f"{layer}.input_layernorm", tokens, eps),
        )
        wide = mixed.shape[1] // (3 * heads)
        parts: tuple[list[np.ndarray], ...] = ([], [], [])
        for head in range(heads):  # a head's query, key and value lie side by side
            for which in range(3):
                start = (3 * head + which) * wide
                parts[which].append(mixed[:, start : start + wide])
        query, key, value = (np.concatenate(part, axis=1) for part in parts)
        tokens = tokens + linear(weights, f"{layer}.self_attn.dense", attend(query, key, value, heads))
        inner = linear(
            weights, f"{layer}.mlp.fc1", norm(weights, f"{layer}.post_attention_layernorm", tokens, eps)
        )
        tokens = tokens + linear(weights, f"{layer}.mlp.fc2", inner / (1 + np.exp(-1.702 * inner)))
    return norm(weights, f"{at}.post_layernorm", tokens, eps)


def abstractor(weights: Weights, sizes: Mapping[str, Any], seen: np.ndarray) -> np.ndarray:
    """[1 + patches, width] -> [queries + 1, width of LLaMA]."""
    at = "model.visual_abstractor"
    tokens = weights[f"{at}.query_embeds"][0]
    for n in range(sizes["num_hidden_layers"]):
        layer = f"{at}.encoder.layers.{n}.crossattention"
        tokens = norm(weights, f"{layer}.norm1", tokens, 1e-5)
        both = np.concatenate([tokens, norm(weights, f"{layer}.normk", seen, 1e-5)])
        own = weights[f"{layer}.attention.q_pos_embed"]
        places = np.concatenate([own, weights[f"{layer}.attention.k_pos_embed"]])
        found = attend(
            linear(weights, f"{layer}.attention.query", tokens + own),
            linear(weights, f"{layer}.attention.key", both + places),
            linear(weights, f"{layer}.attention.value", both),
            sizes["num_attention_heads"],
        )
        tokens = tokens + linear(weights, f"{layer}.output.out_proj", found)
        normed = norm(weights, f"{layer}.output.norm2", tokens, 1e-5)
        gate = linear(weights, f"{layer}.output.mlp.w1", normed)
        inner = gate / (1 + np.exp(-gate)) * linear(weights, f"{layer}.output.mlp.w3", normed)
        inner = norm(weights, f"{layer}.output.mlp.ffn_ln", inner, sizes["layer_norm_eps"])
        tokens = tokens + linear(weights, f"{layer}.output.mlp.w2", inner)
    return np.concatenate([linear(weights, f"{at}.visual_fc", tokens), weights[f"{at}.vit_eos"][0]])


def llama_layer(
    weights: Weights, config: Mapping[str, Any], layer: str, tokens: np.ndarray, modality: Sequence[int]
) -> np.ndarray:
    """[t, width] -> [t, width]; a token's modality says whose norms, keys and values it goes through."""
    eps, heads = config["rms_norm_eps"], config["num_attention_heads"]

    def normed(name: str) -> np.ndarray:
        return np.stack(
            [
                rms(weights[f"{layer}.{name}.multiway.{kind}.weight"], token, eps)
                for token, kind in zip(tokens, modality, strict=True)
            ]
        )

    def own(name: str, given: np.ndarray) -> np.ndarray:
        return np.stack(
            [
                weights[f"{layer}.self_attn.{name}.multiway.{kind}.weight"] @ token
                for token, kind in zip(given, modality, strict=True)
            ]
        )

    given = normed("input_layernorm")
    query = given @ weights[f"{layer}.self_attn.q_proj.weight"].T
    turned = (turn(part, heads, config["rope_theta"]) for part in (query, own("k_proj", given)))
    found = attend(*turned, own("v_proj", given), heads, causal=True)
    tokens = tokens + found @ weights[f"{layer}.self_attn.o_proj.weight"].T
    given = normed("post_attention_layernorm")
    gate = given @ weights[f"{layer}.mlp.gate_proj.weight"].T
    inner = gate / (1 + np.exp(-gate)) * (given @ weights[f"{layer}.mlp.up_proj.weight"].T)
    return tokens + inner @ weights[f"{layer}.mlp.down_proj.weight"].T


def turn(tokens: np.ndarray, heads: int, base: float) -> np.ndarray:
    """Rotary positions: in each head, component i and its partner half a head on turn by place * base^(-2i / width)."""
    made = tokens.copy()
    wide = tokens.shape[1] // heads
    for place in range(len(tokens)):
        for head in range(heads):
            for i in range(wide // 2):
                one, two = head * wide + i, head * wide + i + wide // 2
                angle = place * base ** (-2 * i / wide)
                a, b = tokens[place, one], tokens[place, two]
                made[place, one] = a * np.cos(angle) - b * np.sin(angle)
                made[place, two] = b * np.cos(angle) + a * np.sin(angle)
    return made


def attend(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, heads: int, causal: bool = False
) -> np.ndarray:
    """[t, width] each -> [t, width], a token and a head at a time."""
    wide = query.shape[1] // heads
    made = np.empty((len(query), value.shape[1]))
    for place in range(len(query)):
        until = place + 1 if causal else len(key)
        for head in range(heads):
            part = slice(head * wide, (head + 1) * wide)
            scores = key[:until, part] @ query[place, part] / np.sqrt(wide)
            shares = np.exp(scores - scores.max())
            made[place, part] = shares @ value[:until, part] / shares.sum()
    return made


def linear(weights: Weights, name: str, tokens: np.ndarray) -> np.ndarray:
    return tokens @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights: Weights, name: str, tokens: np.ndarray, eps: float) -> np.ndarray:
    centred = tokens - tokens.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def rms(weight: np.ndarray, token: np.ndarray, eps: float) -> np.ndarray:
    return weight * token / np.sqrt((token**2).mean() + eps)
