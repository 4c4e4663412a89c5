"""A module of the published MPS' structure and names, pickled as a whole by code that is gone afterwards."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig

SOURCE = """
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel as Base


class LayerNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(dim))
        self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias)


class Gate(nn.Module):
    def forward(self, x):
        one, two = x.chunk(2, dim=-1)
        return one * F.silu(two)


def attend(query, key, value, heads, mask):
    parts = query.unflatten(-1, (heads, -1))
    weights = torch.einsum("bihd,bjd->bhij", parts, key) / key.shape[-1] ** 0.5
    weights = weights.masked_fill(~mask[:, None, None, :], float("-inf")) if mask is not None else weights
    return torch.einsum("bhij,bjd->bihd", weights.softmax(-1), value).flatten(-2)


class CrossAttention(nn.Module):
    def __init__(self, dim, heads, width):
        super().__init__()
        self.heads = heads
        self.norm = LayerNorm(dim)
        self.context_norm = nn.Identity()
        self.to_q = nn.Linear(dim, heads * width, bias=False)
        self.to_kv = nn.Linear(dim, 2 * width, bias=False)
        self.to_out = nn.Linear(heads * width, dim, bias=False)
        self.ff = nn.Sequential(nn.Linear(dim, 8 * dim, bias=False), Gate(), nn.Linear(4 * dim, dim, bias=False))

    def forward(self, x, context, mask):
        x = self.norm(x)
        key, value = self.to_kv(context).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(x), key, value, self.heads, mask)) + self.ff(x)


class Rotary(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / (10000 ** (torch.arange(0, width, 2).float() / width)))

    def forward(self, x):
        angles = torch.arange(x.shape[1])[:, None] * self.inv_freq
        first, second = x.unflatten(-1, (-1, 2, self.inv_freq.numel())).unbind(-2)
        angles = angles[:, None]
        turned = (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin())
        return torch.cat(turned, -1).flatten(-2)


class Parallel(nn.Module):
    def __init__(self, dim, heads, width):
        super().__init__()
        self.heads, self.sizes = heads, (heads * width, width, width, 8 * dim)
        self.norm = LayerNorm(dim)
        self.rotary_emb = Rotary(width)
        self.fused_attn_ff_proj = nn.Linear(dim, sum(self.sizes), bias=False)
        self.attn_out = nn.Linear(heads * width, dim, bias=False)
        self.ff_out = nn.Sequential(Gate(), nn.Linear(4 * dim, dim, bias=False))
        self.register_buffer("pos_emb", torch.ones(3), persistent=False)

    def forward(self, x):
        query, key, value, inner = self.fused_attn_ff_proj(self.norm(x)).split(self.sizes, dim=-1)
        mixed = attend(self.rotary_emb(query), self.rotary_emb(key), value, self.heads, None)
        return self.attn_out(mixed) + self.ff_out(inner)


class Residual(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x, *rest):
        return x + self.fn(x, *rest)


class Cross(nn.Module):
    def __init__(self, dim, layers, heads, width):
        super().__init__()
        parts = (CrossAttention, Parallel)
        self.layers = nn.ModuleList(
            nn.ModuleList(Residual(part(dim, heads, width)) for part in parts) for _ in range(layers)
        )

    def forward(self, x, context, mask):
        for cross, itself in self.layers:
            x = itself(cross(x, context, mask))
        return x


class XCLIPModel(Base):
    pass


class CLIPModel(nn.Module):
    def __init__(self, config, layers, heads, width):
        super().__init__()
        self.model = XCLIPModel(config)
        self.cross_model = Cross(config.projection_dim, layers, heads, width)

    def text(self, ids):
        seen = self.model.text_model(input_ids=ids)
        return [self.model.text_projection(part) for part in (seen[0], seen[1])]

    def score(self, ids, pixels, condition, threshold):
        tokens, end = self.text(ids)
        like = torch.einsum("bnd,bmd->bnm", tokens, self.text(condition)[0]).amax(-1)
        image = self.model.visual_projection(self.model.vision_model(pixel_values=pixels)[0])
        image = self.cross_model(image, tokens, like / like.amax() > threshold)[:, 0]
        return self.model.logit_scale.exp() * F.cosine_similarity(end, image)
"""


def pickled(
    place: Path,
    config: CLIPConfig,
    inputs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, list[float]]:
    """(the checkpoint, what its own code scores for each (ids, pixels, condition)); the code is gone on return."""
    package = place / "code" / "trainer" / "models"
    package.mkdir(parents=True)
    (package / "clip_model.py").write_text(SOURCE)
    with monkeypatch.context() as within:
        within.syspath_prepend(str(place / "code"))
        module = importlib.import_module("trainer.models.clip_model")
        torch.manual_seed(4)
        model = module.CLIPModel(config, layers=2, heads=2, width=8).eval()
        with torch.no_grad():
            due = [float(model.score(*item, threshold=0.3)) for item in inputs]
        torch.save(model, place / "MPS_overall_checkpoint.pth")
    (package / "clip_model.py").unlink()
    for name in [name for name in sys.modules if name.partition(".")[0] == "trainer"]:
        del sys.modules[name]
    return place / "MPS_overall_checkpoint.pth", due
