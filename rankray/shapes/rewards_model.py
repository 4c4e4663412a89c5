"""The towers of the shapes rewards: a vision transformer of 64 patches and the world's text encoder, as a real CLIPModel.

Towers are taught to see before they are taught to judge: the image tower names what each patch shows and what the
whole picture holds, in linear classifiers that are thrown away. Judging alone would have to find colours and outlines
through one number per pair of pictures, which takes about ten times as many pictures. 0.6 million parameters,
1.2 MB in half precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from rankray.rewards.clip import normalised
from rankray.rewards.mps import MpsConfig, MpsModel
from rankray.shapes.prompts import COLOURS, SHAPES
from rankray.shapes.renderer import SIZE
from rankray.shapes.rewards_data import KINDS, PATCH, Batch, layout
from rankray.shapes.text import clip_config, clip_ids, clip_tokenizer, load_clips

WIDTH = 96
LAYERS = 4
PROJECTION = 96
MPS_PROJECTION = 64
SCALE = 20.0
"""exp(logit_scale) at the start; it is trained."""
CONDITION = " ".join(("a", *SHAPES, *COLOURS))
"""What the small MPS is asked about: things and colours."""


def towers(projection: int = PROJECTION) -> CLIPConfig:
    """Configuration of both towers."""
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
        "hidden_act": "gelu",
        "projection_dim": projection,
    }
    text = clip_config().to_dict() | {"projection_dim": projection}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)


def build_towers(text: Path, projection: int = PROJECTION) -> CLIPModel:
    """Both towers, the text side from `text_encoder_2` in a directory, the rest untrained."""
    model = CLIPModel(towers(projection))
    model.text_model.load_state_dict(load_clips(text)[1].text_model.state_dict())
    model.logit_scale.data.fill_(float(np.log(SCALE)))
    return model


class Seeing(nn.Module):
    """Classifiers over the image tower: what each patch shows, and how many of each kind there are and where.

    Args:
        clip: the towers; only the image side is trained.
    """

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.vision = clip.vision_model
        self.patches = nn.Linear(WIDTH, len(KINDS) + 1)
        self.kinds = nn.Linear(WIDTH, 6 * len(KINDS))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Summed loss over the clean pictures of a batch, and the shares of patches and counts named rightly."""
        clean = ~batch.dirty.flatten()
        found = [layout(items) for items, ok in zip(batch.items, clean.tolist(), strict=True) if ok]
        patches, counts, places = (torch.from_numpy(np.stack(part)) for part in zip(*found, strict=True))
        output = self.vision(pixel_values=batch.pictures[clean])
        named = self.patches(output.last_hidden_state[:, 1:])
        told = self.kinds(output.pooler_output).unflatten(-1, (len(KINDS), 6))
        wanted = counts.long().clamp(max=3)
        present = counts > 0
        weight = torch.tensor([0.3, 1.0, 1.0, 1.0])
        per_patch = nn.functional.cross_entropy(named.flatten(0, 1), patches.flatten())
        per_kind = nn.functional.cross_entropy(told[..., :4].flatten(0, 1), wanted.flatten(), weight=weight)
        place = (told[..., 4:] - places)[present].abs().mean()
        objects = patches != len(KINDS)
        shares = {
            "patches": float((named.argmax(-1) == patches)[objects].float().mean()),
            "counts": float((told[..., :4].argmax(-1) == wanted)[present].float().mean()),
        }
        return per_patch + 2.0 * per_kind + place, shares


@dataclass
class Judge:
    """A reward while it trains: `model` is a CLIPModel, or an MpsModel around one."""

    model: nn.Module

    def scores(self, prompts: list[str], pictures: Tensor) -> Tensor:
        """Scores float32[P, M] of pictures [P * M, 3, 64, 64], those of a prompt together."""
        if isinstance(self.model, MpsModel):
            each = len(pictures) // len(prompts)
            ids = clip_ids(prompts)
            condition = self.model.text_tokens(clip_ids([CONDITION]))[0][0].detach()
            return self.model(ids.repeat_interleave(each, 0), pictures, condition).view(len(prompts), each)
        model: Any = self.model
        text = model.text_projection(model.text_model(input_ids=clip_ids(prompts)).pooler_output)
        image = model.visual_projection(model.vision_model(pixel_values=pictures).pooler_output)
        image = normalised(image).view(len(prompts), -1, image.shape[-1])
        cosine = torch.einsum("pd,pmd->pm", normalised(text), image)
        return torch.as_tensor(model.logit_scale.exp() * cosine)


def build_judge(kind: str, text: Path, seen: Path) -> Judge:
    """The untrained reward on towers that can see.

    Args:
        kind: "clip" or "mps".
        text: directory of the text encoders.
        seen: safetensors file of the image tower that `Seeing` left.
    """
    clip = build_towers(text, PROJECTION if kind == "clip" else MPS_PROJECTION)
    clip.vision_model.load_state_dict(load_file(seen))
    if kind == "clip":
        return Judge(clip)
    config = MpsConfig(layers=2, heads=4, head_width=16, feed_forward=1, condition=CONDITION, threshold=-100.0)
    model = MpsModel(clip.config, config)
    model.clip.load_state_dict(clip.state_dict())
    return Judge(model)


def save_tower(model: Any, path: Path) -> None:
    """Writes an image tower for `build_judge`."""
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)


def save_judge(judge: Judge, directory: Path) -> None:
    """Writes the reward in half precision with tokenizer and preprocessing, as the reward classes load it."""
    directory.mkdir(parents=True, exist_ok=True)
    model: Any = judge.model
    if isinstance(model, MpsModel):
        copied: Any = MpsModel(model.clip.config, model.config)
    else:
        copied = CLIPModel(model.config)
    copied.load_state_dict(model.state_dict())
    copied.half()
    if isinstance(copied, MpsModel):
        copied.save(directory)
    else:
        copied.save_pretrained(directory, safe_serialization=True)
    clip_tokenizer().save_pretrained(directory)
    half = [0.5, 0.5, 0.5]
    processor = CLIPImageProcessor(
        size={"height": SIZE, "width": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=half,
        image_std=half,
    )
    processor.save_pretrained(directory)


__all__ = ["Judge", "Seeing", "build_judge", "build_towers", "save_judge", "save_tower"]
