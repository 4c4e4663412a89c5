"""`shapes-cascade` as a pipeline: assembling the trained parts, saving, loading and calling them.

`save_pretrained` of the combined pipeline forgets two settings and diffusers 0.42 does not find its VQGAN again, so a
plain `from_pretrained` is not enough here: `load` does the rest, in three lines that any other loader has to
repeat.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import numpy as np
import torch
from diffusers import StableCascadeCombinedPipeline
from diffusers.models import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from torch import Tensor, nn

from rankray.shapes.renderer import SIZE
from recipes.shapes.cascade_layout import GRID
from recipes.shapes.cascade_models import (
    LATENT_CHANNELS,
    LATENT_SIZE,
    Diffusion,
    PriorWithText,
    build_scheduler,
)
from recipes.shapes.text import POOLED, clip_tokenizer

Model = TypeVar("Model", bound=nn.Module)

CALL: dict[str, Any] = {
    "height": SIZE,
    "width": SIZE,
    "prior_num_inference_steps": 10,
    "prior_guidance_scale": 2.5,
    "num_inference_steps": 4,
    "decoder_guidance_scale": 0.0,
}
"""How the pipeline is called, beside its prompts."""
AFTER_LOAD = {
    "prior_pipe": {"resolution_multiple": SIZE / GRID},
    "decoder_pipe": {"latent_dim_scale": LATENT_SIZE / GRID},
}
"""Configuration that `save_pretrained` of the combined pipeline forgets; give it to each one's `register_to_config`."""


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8[n, 64, 64, 3] to float32[n, 3, 64, 64] in [0, 1], the range in which this VQGAN works."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(255.0).contiguous()


def to_pictures(pixels: Tensor) -> np.ndarray:
    """float[n, 3, 64, 64] in [0, 1] to uint8[n, 64, 64, 3]."""
    scaled = pixels.detach().float().clamp(0.0, 1.0).mul(255.0).round()
    return np.asarray(scaled.permute(0, 2, 3, 1).to(torch.uint8).numpy())


def averaged(model: Model, checkpoint: Path) -> Model:
    """The model with the averaged weights of a checkpoint, which may be of a training under way."""
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    model.load_state_dict(state["average"], strict=False)
    return model.eval()


@torch.no_grad()
def draw_latents(
    decoder: StableCascadeUNet, vqgan: PaellaVQModel, embeddings: Tensor, seed: int
) -> np.ndarray:
    """Stage B and the VQGAN as the decoder pipeline runs them, for embeddings [n, 5, 8, 8]: uint8[n, 64, 64, 3]."""
    scheduler, diffusion = build_scheduler(), Diffusion()
    scheduler.set_timesteps(CALL["num_inference_steps"])
    count = len(embeddings)
    latents = torch.randn(
        (count, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE), generator=torch.Generator().manual_seed(seed)
    )
    pooled = torch.zeros(count, 1, POOLED)
    for step in scheduler.timesteps:
        ratio = diffusion.ratio[step].expand(count)
        predicted = decoder(latents, ratio, pooled, effnet=embeddings, return_dict=False)[0]
        latents = scheduler.step(predicted, step, latents).prev_sample
    return to_pictures(vqgan.decode(latents).sample)


def assemble(
    prior: PriorWithText, vqgan: PaellaVQModel, decoder: StableCascadeUNet
) -> StableCascadeCombinedPipeline:
    """The pipeline of trained parts; both stages have the one text encoder, of which stage B uses nothing."""
    tokenizer = clip_tokenizer()
    pipeline = StableCascadeCombinedPipeline(
        tokenizer=tokenizer,
        text_encoder=prior.text_encoder,
        decoder=decoder,
        scheduler=build_scheduler(),
        vqgan=vqgan,
        prior_prior=prior.unet,
        prior_text_encoder=prior.text_encoder,
        prior_tokenizer=tokenizer,
        prior_scheduler=build_scheduler(),
    )
    return _register(pipeline)


def _register(pipeline: StableCascadeCombinedPipeline) -> StableCascadeCombinedPipeline:
    for name, settings in AFTER_LOAD.items():
        getattr(pipeline, name).register_to_config(**settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load(directory: Path) -> StableCascadeCombinedPipeline:
    """The saved pipeline, in float32, ready to draw 64 x 64 pictures.

    diffusers 0.42 moved `PaellaVQModel` to its deprecated pipelines, where `from_pretrained` does not find it.
    """
    diffusers.PaellaVQModel = PaellaVQModel
    return _register(StableCascadeCombinedPipeline.from_pretrained(directory, dtype=torch.float32))


def save(pipeline: StableCascadeCombinedPipeline, directory: Path) -> None:
    """Writes the pipeline in half precision beside its place and swaps it in, so that no reader sees half of it.

    transformers loads what a configuration names and diffusers float32, so the text encoders' configurations
    ask for float32 too.
    """
    partial = directory.with_name(directory.name + ".partial")
    replaced = directory.with_name(directory.name + ".old")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(partial, safe_serialization=True)
    pipeline.to(torch.float32)
    for config in partial.glob("*text_encoder/config.json"):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    if directory.exists():
        os.replace(directory, replaced)
    os.replace(partial, directory)
    shutil.rmtree(replaced, ignore_errors=True)
