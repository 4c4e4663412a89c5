"""Stable Diffusion XL: a UNet on two CLIP text encoders, told the picture's size (SDXL paper, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def encode_prompts(pipe: Any, prompts: Sequence[str], call: Mapping[str, Any]) -> dict[str, Tensor]:
    """`text`: hidden states [B, T, W] of both encoders side by side; `pooled`: the second one's embedding [B, P].

    The empty prompt, which prompt dropout trains on, is what the encoders make of "", as in Diffusion-DPO's script
    (`encode_prompt_sdxl`), whose share of 0.2 is the published one. Where it is given no negative prompt the published
    SDXL draws its unconditional part from zeros instead (`force_zeros_for_empty_prompt`), which dropout does not train;
    `shapes-sdxl` draws it from "".
    """
    hidden, _, pooled, _ = pipe.encode_prompt(
        list(prompts), device=pipe.text_encoder_2.device, do_classifier_free_guidance=False
    )
    return {"text": hidden, "pooled": pooled}


def time_ids(size: tuple[int, int], like: Tensor) -> Tensor:
    """Original size, crop and target size, as the pipeline fills them in for an uncropped picture: float[B, 6]."""
    height, width = size
    row = torch.tensor([height, width, 0, 0, height, width], dtype=like.dtype, device=like.device)
    return row.repeat(len(like), 1)


def predict(
    denoiser: Any, noisy: Tensor, time: Tensor, text: Mapping[str, Tensor], size: tuple[int, int]
) -> Tensor:
    """The UNet's prediction [B, C, H, W] for pictures of `size` (height, width in pixels)."""
    prediction: Tensor = denoiser(
        noisy,
        time,
        encoder_hidden_states=text["text"],
        added_cond_kwargs={"text_embeds": text["pooled"], "time_ids": time_ids(size, noisy)},
    ).sample
    return prediction
