"""PickScore (Kirstain et al. 2023): exp(logit_scale) * cos(text, image) of a CLIP-H fine-tuned on human choices.

Batched: text and image towers run on `batch_size` pairs at once, where the published script scores one prompt
at a time. The published weights are in float32 and 3.9 GB.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from rankray.models.rewards import RewardSpec
from rankray.models.rewards.clip import Batched, ClipModel


class PickScore(Batched):
    """The reward on one device. Scores: about 15 to 25 for the published weights, higher is better.

    Args:
        spec: its row; options `processor`, `processor_revision`, `vocabulary` as in `ClipModel`.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: weights, tokenizer or preprocessing are not what the model needs.
    """

    def __init__(self, spec: RewardSpec, device: str) -> None:
        self.batch_size = spec.batch_size
        self.clip = ClipModel(spec.source, spec.revision, dtype=spec.dtype, device=device, **spec.options)

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts are longer than the text encoder reads."""
        return self.clip.tokens.truncated(prompts)

    def _score_batch(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        cosine = (self.clip.text_features(prompts) * self.clip.image_features(images)).sum(-1)
        return self.clip.scale * cosine
