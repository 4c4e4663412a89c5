"""The towers of the shapes rewards: a vision transformer of 64 patches and the world's text encoder, a real CLIPModel.

Towers are taught to see and read before they are taught to judge: they name what each patch shows and what picture and
prompt speak of, in linear classifiers that are thrown away. Judging alone would have to find colours and outlines
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

from rankray.models.rewards.clip import normalised
from rankray.models.rewards.mps import Attention, MpsConfig, MpsModel
from rankray.shapes.prompts import COLOURS, SHAPES
from rankray.shapes.renderer import SIZE
from recipes.shapes.contents import KINDS, PATCH, layout
from recipes.shapes.rewards_data import RIGHT, Batch
from recipes.shapes.text import clip_config, clip_ids, clip_tokenizer, load_clips

WIDTH = 96
LAYERS = 4
PROJECTION = 96
SCALE = 20.0
"""exp(logit_scale) at the start; it is trained."""
CONDITION = " ".join(("a", *SHAPES, *COLOURS))
"""What the small MPS is asked about: things and colours."""


def tower_config() -> CLIPConfig:
    """Configuration of both towers."""
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
        "hidden_act": "gelu",
        "projection_dim": PROJECTION,
    }
    text = clip_config().to_dict() | {"projection_dim": PROJECTION}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION)


def waves() -> Tensor:
    """Where the position embeddings start: sines of either coordinate, float32[64, 96].

    CLIP starts them at a twentieth of the patches' own scale: after 800 steps so, nothing behind the first layer knew
    any more where it was to less than a whole object, and no relation was learnt.
    """
    side = SIZE // PATCH
    places = torch.arange(side, dtype=torch.float32) + 0.5
    turns = 2.0 * np.pi * places[:, None] / torch.logspace(0.6, 1.6, WIDTH // 4)
    line = torch.cat([turns.sin(), turns.cos()], dim=1)  # [8, 48], wavelengths of 4 to 40 patches
    down, across = line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)
    return 0.3 * torch.cat([down, across], dim=-1).flatten(0, 1)


def build_towers(text: Path) -> CLIPModel:
    """Both towers, the text side from `text_encoder_2` in a directory, the rest untrained."""
    model = CLIPModel(tower_config())
    model.text_model.load_state_dict(load_clips(text)[1].text_model.state_dict())
    model.logit_scale.data.fill_(float(np.log(SCALE)))
    model.vision_model.embeddings.position_embedding.weight.data[1:] = waves()
    return model


class Towers(nn.Module):
    """Both towers with the classifiers that teach them: what each patch shows, what a picture or a prompt speaks of.

    One classifier reads both embeddings, so that a picture and a prompt that speak of the same things come to lie
    close to each other; for a prompt it learns what its pictures have in common.
    """

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip: Any = clip
        self.patches = nn.Linear(WIDTH, len(KINDS) + 1)
        self.kinds = nn.Linear(PROJECTION, 6 * len(KINDS))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Summed loss over a batch without dirty pictures, and the shares of patches and counts named rightly."""
        found = [layout(items) for items in batch.items]
        patches, counts, places = (torch.from_numpy(np.stack(part)) for part in zip(*found, strict=True))
        seen = self.clip.vision_model(pixel_values=batch.pictures)
        named = self.patches(seen.last_hidden_state[:, 1:])
        image = self.clip.visual_projection(seen.pooler_output)
        text = self.clip.text_projection(
            self.clip.text_model(input_ids=clip_ids(batch.prompts)).pooler_output
        )
        right = (batch.fault == RIGHT).flatten()
        told, said = self._read(image), self._read(text).repeat_interleave(batch.fault.shape[1], 0)[right]
        per_patch = nn.functional.cross_entropy(named.flatten(0, 1), patches.flatten())
        from_image = _kinds_loss(told, counts, places)
        from_text = _kinds_loss(said, counts[right], places[right])
        present = counts > 0
        shares = {
            "patches": float((named.argmax(-1) == patches)[patches != len(KINDS)].float().mean()),
            "counts": float((told[..., :4].argmax(-1) == counts.long())[present].float().mean()),
            "places": float((told[..., 4:].detach() - places)[present].abs().mean()),
            "text": float(from_text.detach()),
        }
        return per_patch + from_image + from_text, shares

    def _read(self, embedding: Tensor) -> Tensor:
        """What an embedding [n, projection] says of each kind, [n, 24, 6]: scores of counts 0 to 3, and the place."""
        scaled = normalised(embedding) * PROJECTION**0.5
        told: Tensor = self.kinds(scaled).unflatten(-1, (len(KINDS), 6))
        return told


def _kinds_loss(told: Tensor, counts: Tensor, places: Tensor) -> Tensor:
    """Cross-entropy of counts [n, 24] and absolute error of places [n, 24, 2] of the kinds that are there."""
    weight = torch.tensor([0.3, 1.0, 1.0, 1.0])
    per_kind = nn.functional.cross_entropy(
        told[..., :4].flatten(0, 1), counts.long().flatten(), weight=weight
    )
    return 2.0 * per_kind + 3.0 * (told[..., 4:] - places)[counts > 0].abs().mean()


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
            found: Tensor = self.model(ids.repeat_interleave(each, 0), pictures, condition)
            return found.view(len(prompts), each)
        model: Any = self.model
        text = model.text_projection(model.text_model(input_ids=clip_ids(prompts)).pooler_output)
        image = model.visual_projection(model.vision_model(pixel_values=pictures).pooler_output)
        image = normalised(image).view(len(prompts), -1, image.shape[-1])
        cosine = torch.einsum("pd,pmd->pm", normalised(text), image)
        return torch.as_tensor(model.logit_scale.exp() * cosine)


def build_judge(kind: str, text: Path, towers: Path) -> Judge:
    """The untrained reward on taught towers.

    Args:
        kind: "clip" or "mps".
        text: directory of the text encoders.
        towers: safetensors file that `save_towers` left.
    """
    clip = build_towers(text)
    clip.load_state_dict(load_file(towers))
    if kind == "clip":
        return Judge(clip)
    config = MpsConfig(
        layers=1, heads=4, head_width=16, feed_forward=1, condition=CONDITION, threshold=-100.0
    )
    model = MpsModel(clip.config, config)
    model.clip.load_state_dict(clip.state_dict())
    # MPS reads tokens before the last layer norm; its centring and gain go into the projection instead.
    gain = clip.vision_model.post_layernorm.weight.detach()
    centring = torch.eye(WIDTH) - 1.0 / WIDTH
    model.clip.visual_projection.weight.data = (clip.visual_projection.weight.detach() * gain) @ centring
    # The fusion starts as nothing, so that it adds to what the taught towers already agree on.
    for layer in model.fusion.modules():
        if isinstance(layer, Attention):
            nn.init.zeros_(layer.out.weight)
            nn.init.zeros_(layer.feed_forward.w_out.weight)
    return Judge(model)


def save_towers(model: Any, path: Path) -> None:
    """Writes taught towers for `build_judge`."""
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


__all__ = ["Judge", "Towers", "build_judge", "build_towers", "save_judge", "save_towers"]
