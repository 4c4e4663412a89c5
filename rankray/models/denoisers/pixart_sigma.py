"""PixArt-Sigma: a cross-attention transformer on T5 alone, with a mask over the prompt's padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

_OPTIONS = ("clean_caption", "max_sequence_length")


def encode_prompts(pipe: Any, prompts: Sequence[str], call: Mapping[str, Any]) -> dict[str, Tensor]:
    """`text`: hidden states [B, T, W]; `text_mask`: 1 where there is a token [B, T]."""
    options = {name: call[name] for name in _OPTIONS if name in call}
    hidden, mask, _, _ = pipe.encode_prompt(
        list(prompts), do_classifier_free_guidance=False, device=pipe.text_encoder.device, **options
    )
    return {"text": hidden, "text_mask": mask.to(hidden.dtype)}


def predict(
    denoiser: Any, noisy: Tensor, time: Tensor, text: Mapping[str, Tensor], size: tuple[int, int]
) -> Tensor:
    """The transformer's prediction of the noise [B, C, H, W]; its learnt variance is left off, as the pipeline does."""
    prediction: Tensor = denoiser(
        noisy,
        encoder_hidden_states=text["text"],
        encoder_attention_mask=text["text_mask"],
        timestep=time,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample
    return prediction.chunk(2, dim=1)[0] if prediction.shape[1] == 2 * noisy.shape[1] else prediction
