"""PickScore (Kirstain et al. 2023): exp(logit_scale) * cos(text, image) of a CLIP-H fine-tuned on human choices.

Batched: text and image towers run on `batch_size` pairs at once, where the published script scores one prompt
at a time. The published weights are in float32 and 3.9 GB.
"""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from rankray.models.rewards.clip import ClipReward


class PickScore(ClipReward):
    """The reward on one device, built as `ClipReward`. Scores: about 15 to 25 for the published weights."""

    def _score_batch(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        return self.clip.scale * self._cosines(images, prompts)
