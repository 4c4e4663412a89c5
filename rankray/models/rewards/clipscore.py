"""CLIPScore (Hessel et al. 2021): 2.5 * max(cos(text, image), 0) of a CLIP as it was pre-trained.

The field's oldest reward and its weakest judge of counts and relations; kept because every paper reports it. One
pass of ViT-B/32 costs about a twentieth of PickScore's ViT-H/14. Its authors, who score captions, put "A photo depicts"
before each; papers on drawing from texts score the prompt as it stands, and so does this.
"""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from rankray.models.rewards.clip import ClipReward

WEIGHT = 2.5
"""w of the paper's Eq. 1, which stretches the usual cosines to about 0 .. 1."""


class ClipScore(ClipReward):
    """The reward on one device, built as `ClipReward`. Scores: in 0 .. 2.5, higher is better."""

    by_openai = True

    def _score_batch(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        return WEIGHT * self._cosines(images, prompts).clamp(min=0.0)
