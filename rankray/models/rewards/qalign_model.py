"""mPLUG-Owl2 (Ye et al. 2023), which Q-Align trains: a vision tower, an abstractor, a LLaMA for two modalities.

Parameters bear the published names, so that a checkpoint loads key by key. LLaMA is transformers' own; what the paper
adds to it, keys, values and norms of their own for visual tokens, replaces its linear layers one for one. Q-Align asks
one question, so visual tokens always stand at the same places and are picked by a slice: half the arithmetic of
computing both and choosing, where a model for any conversation needs an index. Tower and abstractor are written out
here, as transformers' CLIP has neither fused projections nor a norm over all tokens at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaModel

from rankray.config import ConfigError

FIXED = {"attention_bias": False, "hidden_act": "silu", "rope_scaling": None, "tie_word_embeddings": False}
"""What the published configuration says of LLaMA, and the only thing that is implemented."""
LLAMA_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "rms_norm_eps", "rope_theta",
)  # fmt: skip
ABSTRACTOR_EPS = 1e-5
"""Of the abstractor's norms that the published code leaves at torch's default."""


@dataclass(frozen=True)
class Sizes:
    """A published `config.json`, as far as it is used.

    Attributes:
        llama: keyword arguments of `LlamaConfig`.
        vision: of the tower: hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, image_size,
            patch_size, layer_norm_eps.
        abstractor: hidden_size (the tower's, too), intermediate_size, num_hidden_layers, num_attention_heads,
            num_learnable_queries, grid_size, layer_norm_eps.
    """

    llama: Mapping[str, Any]
    vision: Mapping[str, Any]
    abstractor: Mapping[str, Any]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Sizes:
        """From the contents of a `config.json`.

        Raises:
            ConfigError: it is another model's, or states something that is not implemented.
        """
        if config.get("model_type") != "mplug_owl2":
            raise ConfigError(f"config.json is of a '{config.get('model_type')}', Q-Align is an 'mplug_owl2'")
        heads = config["num_attention_heads"]
        fixed = {**FIXED, "num_key_value_heads": heads}
        other = {key: config[key] for key, value in fixed.items() if config.get(key, value) != value}
        visual = config["visual_config"]
        if visual["visual_model"].get("hidden_act", "quick_gelu") != "quick_gelu":
            other["visual_model.hidden_act"] = visual["visual_model"]["hidden_act"]
        if other:
            raise ConfigError(f"config.json says {other}, which no published Q-Align does")
        llama = {key: config[key] for key in LLAMA_SIZES}
        return cls(llama, visual["visual_model"], visual["visual_abstractor"])

    @property
    def tokens(self) -> int:
        """Visual tokens of a picture: the abstractor's queries, and the one that ends them."""
        return int(self.abstractor["num_learnable_queries"]) + 1


class Owl2(nn.Module):
    """The whole model, for one sentence with one picture in it.

    Args:
        sizes: of the three parts.
        before: tokens of the sentence before the picture.
    """

    def __init__(self, sizes: Sizes, before: int) -> None:
        super().__init__()
        self.before = before
        config = LlamaConfig(**sizes.llama, attn_implementation="sdpa", use_cache=False)
        self.model: Any = LlamaModel(config)
        for layer in self.model.layers:
            for parent, names in (
                (layer.self_attn, ("k_proj", "v_proj")),
                (layer, ("input_layernorm", "post_attention_layernorm")),
            ):
                for name in names:
                    setattr(parent, name, Multiway(getattr(parent, name), before, before + sizes.tokens))
        self.model.vision_model = VisionTower(sizes.vision)
        self.model.visual_abstractor = Abstractor(sizes.abstractor, sizes.llama["hidden_size"])
        self.lm_head = nn.Linear(sizes.llama["hidden_size"], sizes.llama["vocab_size"], bias=False)

    def forward(self, pixels: Tensor, ids: Tensor, answers: Tensor) -> Tensor:
        """Logits of some answers after the sentence.

        Args:
            pixels: [n, 3, height, width].
            ids: int64[t], the sentence without its picture, start token first.
            answers: int64[a], tokens that may follow.

        Returns:
            float[n, a].
        """
        seen = self.model.visual_abstractor(self.model.vision_model(pixels))
        text = self.model.embed_tokens(ids)[None].expand(len(pixels), -1, -1)
        whole = torch.cat([text[:, : self.before], seen, text[:, self.before :]], dim=1)
        last = self.model(inputs_embeds=whole, use_cache=False).last_hidden_state[:, -1]
        logits: Tensor = functional.linear(last, self.lm_head.weight[answers])
        return logits


class Multiway(nn.Module):
    """The modality-adaptive module: one layer for text, its twin for the visual tokens in the middle.

    Args:
        layer: linear layer or norm to double.
        start, stop: where visual tokens are.
    """

    def __init__(self, layer: nn.Module, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop
        self.multiway = nn.ModuleList([layer, _twin(layer)])

    def forward(self, hidden: Tensor) -> Tensor:
        """[n, t, width] -> [n, t, width of the layer]."""
        text, vision = self.multiway
        parts = hidden[:, : self.start], hidden[:, self.start : self.stop], hidden[:, self.stop :]
        return torch.cat([text(parts[0]), vision(parts[1]), text(parts[2])], dim=1)


def _twin(layer: Any) -> nn.Module:
    """Another layer of that kind and size."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    made: nn.Module = type(layer)(len(layer.weight), eps=layer.variance_epsilon)
    return made


class VisionTower(nn.Module):
    """CLIP's vision transformer with queries, keys and values in one projection, and its last norm on every token."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width, patch, eps = sizes["hidden_size"], sizes["patch_size"], sizes["layer_norm_eps"]
        self.embeddings = nn.Module()
        self.embeddings.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.embeddings.patch_embed = nn.Conv2d(3, width, patch, patch, bias=False)
        places = (sizes["image_size"] // patch) ** 2 + 1
        self.embeddings.position_embedding = nn.Parameter(torch.randn(1, places, width))
        self.embeddings.pre_layernorm = nn.LayerNorm(width, eps=eps)
        self.encoder: Any = _layers(lambda: VisionLayer(sizes), sizes["num_hidden_layers"])
        self.post_layernorm = nn.LayerNorm(width, eps=eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """[n, 3, height, width] -> [n, 1 + patches, width]."""
        made: Any = self.embeddings
        patches = made.patch_embed(pixels).flatten(2).transpose(1, 2)
        hidden = torch.cat([made.cls_token.expand(len(pixels), -1, -1), patches], dim=1)
        hidden = made.pre_layernorm(hidden + made.position_embedding)
        for layer in self.encoder.layers:
            hidden = layer(hidden)
        normed: Tensor = self.post_layernorm(hidden)
        return normed


class VisionLayer(nn.Module):
    """One layer of the tower."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner, eps = sizes["hidden_size"], sizes["intermediate_size"], sizes["layer_norm_eps"]
        self.heads = sizes["num_attention_heads"]
        linears = {"query_key_value": nn.Linear(width, 3 * width), "dense": nn.Linear(width, width)}
        self.self_attn = nn.ModuleDict(linears)
        self.input_layernorm = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        self.post_attention_layernorm = nn.LayerNorm(width, eps=eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """[n, t, width] -> the same."""
        # A head's query, key and value lie beside each other: [head, 3, width of a head].
        mixed = self.self_attn["query_key_value"](self.input_layernorm(hidden))
        query, key, value = mixed.unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        hidden = hidden + self.self_attn["dense"](_attend(query, key, value))
        inner = self.mlp["fc1"](self.post_attention_layernorm(hidden))
        sharpened: Tensor = hidden + self.mlp["fc2"](inner * torch.sigmoid(1.702 * inner))  # CLIP's GELU
        return sharpened


class Abstractor(nn.Module):
    """Learnt queries that read a picture's tokens into fewer ones, in LLaMA's width, and an end token after them."""

    def __init__(self, sizes: Mapping[str, Any], out: int) -> None:
        super().__init__()
        self.query_embeds = nn.Parameter(torch.randn(1, sizes["num_learnable_queries"], sizes["hidden_size"]))
        self.vit_eos = nn.Parameter(torch.randn(1, 1, out))
        self.visual_fc = nn.Linear(sizes["hidden_size"], out)

        def layer() -> nn.Module:
            return nn.ModuleDict({"crossattention": CrossAttention(sizes)})

        self.encoder: Any = _layers(layer, sizes["num_hidden_layers"])

    def forward(self, seen: Tensor) -> Tensor:
        """[n, 1 + patches, width] -> [n, queries + 1, out]."""
        hidden: Tensor = self.query_embeds.expand(len(seen), -1, -1)
        for layer in self.encoder.layers:
            hidden = layer["crossattention"](hidden, seen)
        return torch.cat([self.visual_fc(hidden), self.vit_eos.expand(len(seen), -1, -1)], dim=1)


class CrossAttention(nn.Module):
    """One layer of the abstractor. Queries look at themselves and at the picture.

    Positions are tables in the checkpoint (sines, as published), and go to queries and keys but not to values.
    What is added to is the normed input, not the input: the published code's way, and so the weights'.
    """

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner, eps = sizes["hidden_size"], sizes["intermediate_size"], sizes["layer_norm_eps"]
        self.heads = sizes["num_attention_heads"]
        self.norm1, self.normk = nn.LayerNorm(width, ABSTRACTOR_EPS), nn.LayerNorm(width, ABSTRACTOR_EPS)
        self.attention = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.attention.register_buffer("q_pos_embed", torch.randn(sizes["num_learnable_queries"], width))
        self.attention.register_buffer("k_pos_embed", torch.randn(sizes["grid_size"] ** 2 + 1, width))
        gates = {"w1": nn.Linear(width, inner), "w2": nn.Linear(inner, width), "w3": nn.Linear(width, inner)}
        self.output = nn.ModuleDict(
            {
                "out_proj": nn.Linear(width, width),
                "norm2": nn.LayerNorm(width, ABSTRACTOR_EPS),
                "mlp": nn.ModuleDict({**gates, "ffn_ln": nn.LayerNorm(inner, eps)}),
            }
        )

    def forward(self, hidden: Tensor, seen: Tensor) -> Tensor:
        """[n, queries, width] and [n, 1 + patches, width] -> [n, queries, width]."""
        attention: Any = self.attention
        hidden = self.norm1(hidden)
        both = torch.cat([hidden, self.normk(seen)], dim=1)
        places = torch.cat([attention.q_pos_embed, attention.k_pos_embed])
        projected = (
            attention["query"](hidden + attention.q_pos_embed),
            attention["key"](both + places),
            attention["value"](both),
        )
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected)
        hidden = hidden + self.output["out_proj"](_attend(query, key, value))
        mlp: Any = self.output["mlp"]
        normed = self.output["norm2"](hidden)
        gated = functional.silu(mlp["w1"](normed)) * mlp["w3"](normed)
        mixed: Tensor = hidden + mlp["w2"](mlp["ffn_ln"](gated))
        return mixed


def _layers(make: Callable[[], nn.Module], count: int) -> nn.Module:
    """What checkpoints call `encoder`: a module whose `layers` are a list."""
    return nn.ModuleDict({"layers": nn.ModuleList([make() for _ in range(count)])})


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of [n, heads, t, width of a head], heads joined again: [n, t, width]."""
    mixed: Tensor = functional.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).flatten(2)
