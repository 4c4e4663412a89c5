"""Stable Diffusion 3: a joint-attention transformer, rectified flow, three text encoders of which each is optional.

Where the T5 is left out the pipeline puts zeros in its place, `max_sequence_length` of them: train as you draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

_OPTIONS = ("max_sequence_length",)


def encode_prompts(pipe: Any, prompts: Sequence[str], call: Mapping[str, Any]) -> dict[str, Tensor]:
    """`text`: joint hidden states [B, T, W]; `pooled`: both CLIPs' embeddings [B, P]."""
    device = next(part.device for part in (pipe.text_encoder, pipe.text_encoder_2) if part is not None)
    options = {name: call[name] for name in _OPTIONS if name in call}
    texts = list(prompts)
    hidden, _, pooled, _ = pipe.encode_prompt(
        texts, None, None, device=device, do_classifier_free_guidance=False, **options
    )
    return {"text": hidden, "pooled": pooled}


def predict(
    denoiser: Any, noisy: Tensor, time: Tensor, text: Mapping[str, Tensor], size: tuple[int, int]
) -> Tensor:
    """The transformer's velocity [B, C, H, W]; `size` has no part in it."""
    prediction: Tensor = denoiser(
        noisy, encoder_hidden_states=text["text"], pooled_projections=text["pooled"], timestep=time
    ).sample
    return prediction
