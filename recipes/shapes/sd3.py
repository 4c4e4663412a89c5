"""`shapes-sd3`: a `StableDiffusion3Pipeline`, a joint-attention transformer trained as rectified flow.

It shares the frozen CLIP encoders of `shapes-sdxl`, as the real SD3 shares SDXL's, and has no T5 (the real one
may drop it too). Part of its captions are false about relations and counts, so it draws clean pictures and
is unreliable about where things are and how many.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from rankray.shapes.renderer import SIZE
from recipes.shapes.autoencoder import LATENT_CHANNELS, LATENT_SIZE
from recipes.shapes.data import Pool
from recipes.shapes.family import READING, Family, Loss, Reader, watch
from recipes.shapes.text import CLIP_WIDTH, POOLED, clip_ids, clip_tokenizer, load_clips

BATCH = 64
HEADS, HEAD_WIDTH, LAYERS, PATCH = 3, 32, 4, 2
SHIFT = 1.5
"""Moves sampling and training times towards noise, where the layout is decided (SD3 paper, section 5.3.2)."""


def _with_projection(directory: Path) -> tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection]:
    """SDXL's encoders as SD3 wants them: the first gets the projection that SDXL never used, an identity."""
    plain, second = load_clips(directory)
    config = second.config
    first = CLIPTextModelWithProjection(config)
    missing, unexpected = first.load_state_dict(plain.state_dict(), strict=False)
    if not unexpected and set(missing) == {"text_projection.weight"}:
        pass
    else:
        inner = {
            f"text_model.{name.removeprefix('text_model.')}": v for name, v in plain.state_dict().items()
        }
        missing, unexpected = first.load_state_dict(inner, strict=False)
    if unexpected or set(missing) != {"text_projection.weight"}:
        raise ValueError(
            f"the text encoder in {directory} does not fit: missing {missing}, unexpected {unexpected}"
        )
    nn.init.eye_(first.text_projection.weight)
    return first.eval().requires_grad_(False), second


def build(text: Path) -> nn.ModuleDict:
    """The untrained transformer (adaLN-zero), and the text encoders that `language.py` left in a directory."""
    transformer = SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=PATCH,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=LAYERS,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=2 * CLIP_WIDTH,
        caption_projection_dim=HEADS * HEAD_WIDTH,
        pooled_projection_dim=2 * POOLED,
        pos_embed_max_size=LATENT_SIZE // PATCH,
        qk_norm="rms_norm",
    )
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            nn.init.zeros_(norm.linear.weight)
            nn.init.zeros_(norm.linear.bias)
    for last in (transformer.norm_out.linear, transformer.proj_out):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    first, second = _with_projection(text)
    reader = Reader(HEADS * HEAD_WIDTH, PATCH)
    parts = {"transformer": transformer, "reader": reader, "text_encoder": first, "text_encoder_2": second}
    return nn.ModuleDict(parts)


def encode(model: nn.ModuleDict, captions: list[str]) -> tuple[Tensor, Tensor]:
    """What the pipeline conditions on: hidden states [n, 16, 128] and pooled embeddings [n, 128]."""
    hidden, pooled = [], []
    with torch.no_grad():
        for part in clip_ids(captions).split(256):
            found = [
                model[name](part, output_hidden_states=True) for name in ("text_encoder", "text_encoder_2")
            ]
            hidden.append(torch.cat([output.hidden_states[-2] for output in found], dim=-1))
            pooled.append(torch.cat([output.text_embeds for output in found], dim=-1))
    return torch.cat(hidden), torch.cat(pooled)


def loss(model: nn.ModuleDict, pool: Pool) -> Loss:
    """Rectified flow: x_t = (1 - t) x_0 + t noise, target noise - x_0, logit-normal t shifted towards noise."""
    hidden, pooled = encode(model, pool.captions)
    tokens = watch(model["transformer"], LAYERS // 2 - 1, lambda output: output[1])

    def draw(generator: torch.Generator) -> Tensor:
        rows, captions = pool.rows(BATCH, generator)
        latents = pool.latents[rows]
        noise = torch.randn(latents.shape, generator=generator)
        sigma = torch.sigmoid(torch.randn(BATCH, generator=generator) + math.log(SHIFT))
        wide = sigma[:, None, None, None]
        found = model["transformer"](
            (1.0 - wide) * latents + wide * noise,
            encoder_hidden_states=hidden[captions],
            pooled_projections=pooled[captions],
            timestep=1000.0 * sigma,
        ).sample
        error = nn.functional.mse_loss(found, noise - latents)
        reading: Tensor = model["reader"](tokens(), pool.patches[rows])
        return error + READING * reading

    return draw


def pipeline(model: nn.ModuleDict, vae: AutoencoderKL) -> Any:
    """The diffusers pipeline around the model, without a T5."""
    return StableDiffusion3Pipeline(
        transformer=model["transformer"],
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT),
        vae=vae,
        text_encoder=model["text_encoder"],
        tokenizer=clip_tokenizer(),
        text_encoder_2=model["text_encoder_2"],
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


FAMILY = Family(
    name="shapes-sd3",
    build=build,
    loss=loss,
    pipeline=pipeline,
    call={
        "height": SIZE,
        "width": SIZE,
        "num_inference_steps": 12,
        "guidance_scale": 2.5,
        "max_sequence_length": 0,
    },
    learning_rate=2e-3,
    muon=3e-3,
    minutes=37.5,
    noise={"relation": 0.25, "count": 0.1},
)
