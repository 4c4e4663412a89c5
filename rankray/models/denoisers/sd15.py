"""Stable Diffusion 1.x: a UNet on one CLIP text encoder; 0.86 billion parameters, the field's small one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def encode_prompts(pipe: Any, prompts: Sequence[str], call: Mapping[str, Any]) -> dict[str, Tensor]:
    """`text`: hidden states [B, T, W] of the CLIP encoder."""
    device = pipe.text_encoder.device
    hidden, _ = pipe.encode_prompt(list(prompts), device, 1, False)
    return {"text": hidden}


def predict(
    denoiser: Any, noisy: Tensor, time: Tensor, text: Mapping[str, Tensor], size: tuple[int, int]
) -> Tensor:
    """The UNet's prediction [B, C, H, W]; `size` has no part in it."""
    prediction: Tensor = denoiser(noisy, time, encoder_hidden_states=text["text"]).sample
    return prediction
