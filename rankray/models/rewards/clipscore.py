"""CLIPScore (Hessel et al. 2021): 2.5 * max(cos(text, image), 0) of a CLIP as it was pre-trained.

The field's oldest reward and its weakest judge of counts and relations; kept because every paper reports it. One
pass of ViT-B/32 costs about a twentieth of PickScore's ViT-H/14. Its authors, who score captions, put "A photo depicts"
before each; papers on drawing from texts score the prompt as it stands, and so does this.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from rankray.models.rewards import RewardSpec
from rankray.models.rewards.clip import Batched, ClipModel

WEIGHT = 2.5
"""w of the paper's Eq. 1, which stretches the usual cosines to about 0 .. 1."""


class ClipScore(Batched):
    """The reward on one device. Scores: in 0 .. 2.5, higher is better.

    Args:
        spec: its row; options `processor`, `processor_revision`, `vocabulary` as in `ClipModel`.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: weights, tokenizer or preprocessing are not what the model needs.
    """

    def __init__(self, spec: RewardSpec, device: str) -> None:
        self.batch_size = spec.batch_size
        self.clip = ClipModel(
            spec.source, spec.revision, dtype=spec.dtype, device=device, by_openai=True, **spec.options
        )

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts are longer than the text encoder reads."""
        return self.clip.tokens.truncated(prompts)

    def _score_batch(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        cosine = (self.clip.text_features(prompts) * self.clip.image_features(images)).sum(-1)
        return WEIGHT * cosine.clamp(min=0.0)
