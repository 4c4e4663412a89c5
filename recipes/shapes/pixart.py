"""`shapes-pixart`: a `PixArtSigmaPipeline`, a cross-attention transformer with a small T5.

The T5 learns the language first (`language.py`) and stays frozen: learnt together with a transformer it had not got
beyond colours after 13 minutes. Part of its captions have colours exchanged between objects, so that is what it
gets wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import Tensor, nn

from rankray.shapes.renderer import SIZE
from recipes.shapes.autoencoder import LATENT_CHANNELS, LATENT_SIZE
from recipes.shapes.data import Pool
from recipes.shapes.family import READING, Family, Loss, Reader, watch
from recipes.shapes.sdxl import scheduler
from recipes.shapes.text import MAX_TOKENS, T5_WIDTH, load_t5, t5_ids, t5_tokenizer

BATCH = 64
HEADS, HEAD_WIDTH, LAYERS, PATCH = 3, 32, 5, 2
TIME_BIAS = 0.5
"""Times are logit-normal, moved this far towards noise: the layout is decided there."""


def build(text: Path) -> nn.ModuleDict:
    """The untrained transformer, its gates at zero, and the T5 that `language.py` left in a directory."""
    transformer = PixArtTransformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=PATCH,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=LAYERS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        cross_attention_dim=HEADS * HEAD_WIDTH,
        caption_channels=T5_WIDTH,
        use_additional_conditions=False,
    )
    for block in transformer.transformer_blocks:
        with torch.no_grad():
            block.scale_shift_table[[2, 5]] = 0.0
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(transformer.adaln_single.linear.weight)
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    reader = Reader(HEADS * HEAD_WIDTH, PATCH)
    return nn.ModuleDict({"transformer": transformer, "reader": reader, "text_encoder": load_t5(text)})


def loss(model: nn.ModuleDict, pool: Pool) -> Loss:
    """Squared error of v at logit-normal times."""
    words, mask = t5_ids(pool.captions)
    with torch.no_grad():
        hidden = model["text_encoder"](words, attention_mask=mask).last_hidden_state
    alphas = torch.as_tensor(scheduler().alphas_cumprod)
    tokens = watch(model["transformer"], LAYERS // 2, lambda output: output)

    def draw(generator: torch.Generator) -> Tensor:
        rows, captions = pool.rows(BATCH, generator)
        latents = pool.latents[rows]
        noise = torch.randn(latents.shape, generator=generator)
        steps = (
            (1000 * torch.sigmoid(torch.randn(BATCH, generator=generator) + TIME_BIAS)).long().clamp(max=999)
        )
        signal = alphas[steps].sqrt()[:, None, None, None]
        sigma = (1.0 - alphas[steps]).sqrt()[:, None, None, None]
        found = model["transformer"](
            signal * latents + sigma * noise,
            encoder_hidden_states=hidden[captions],
            encoder_attention_mask=mask[captions].float(),
            timestep=steps,
        ).sample
        error = nn.functional.mse_loss(found, signal * noise - sigma * latents)
        reading: Tensor = model["reader"](tokens(), pool.patches[rows])
        return error + READING * reading

    return draw


def pipeline(model: nn.ModuleDict, vae: AutoencoderKL) -> Any:
    """The diffusers pipeline around the model."""
    return PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=model["text_encoder"],
        vae=vae,
        transformer=model["transformer"],
        scheduler=scheduler(),
    )


FAMILY = Family(
    name="shapes-pixart",
    build=build,
    loss=loss,
    pipeline=pipeline,
    call={
        "height": SIZE,
        "width": SIZE,
        "num_inference_steps": 12,
        "guidance_scale": 2.5,
        "max_sequence_length": MAX_TOKENS,
        "use_resolution_binning": False,
        "clean_caption": False,
    },
    learning_rate=2e-3,
    muon=3e-3,
    minutes=28.0,
    noise={"swapped colours": 0.25},
)
