"""LAION's aesthetic predictor (Schuhmann 2022): five linear layers on CLIP ViT-L/14's image feature, about 1 to 10.

It does not look at the prompt: a reward for how a picture looks, whatever it shows. The layers are 0.9 million
parameters on top of 304 million of CLIP, which is the whole of its cost. They are published as a pickle of plain
tensors, which is read by torch's `weights_only` loader; a safetensors file of the same keys does as well.
"""

from __future__ import annotations

from PIL import Image
from torch import Tensor, nn

from rankray.models.loading import file_of, fit, read_plain
from rankray.models.rewards import RewardSpec
from rankray.models.rewards.clip import Batched, ClipModel

WIDTHS = (1024, 128, 64, 16, 1)
DROPOUT = (0.2, 0.2, 0.1)
"""After the first three layers; at work they do nothing, and they number the published keys."""


class Aesthetic(Batched):
    """The reward on one device. Scores: about 1 to 10, higher is better; prompts have no part in it.

    Args:
        spec: its row; `source` holds the layers in option `file`, option `clip` names the CLIP beneath them.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: the layers do not fit that CLIP, or one of them cannot be found.
    """

    def __init__(self, spec: RewardSpec, device: str) -> None:
        options = spec.options
        self.batch_size = spec.batch_size
        self.clip = ClipModel(
            options["clip"],
            options["clip_revision"],
            vocabulary=options["vocabulary"],
            dtype=spec.dtype,
            device=device,
            by_openai=True,
        )
        self.layers = layers(self.clip.model.config.projection_dim)
        fit(self.layers, read_plain(file_of(spec.source, options["file"], spec.revision)), spec.source)
        self.layers.to(device).eval().requires_grad_(False)

    def _score_batch(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        values: Tensor = self.layers(self.clip.image_features(images)).squeeze(-1)
        return values


def layers(width: int) -> nn.Module:
    """The predictor over features of `width`, with the published names: layers.0, layers.2, ..., layers.7."""
    stack: list[nn.Module] = []
    for n, out in enumerate(WIDTHS):
        stack.append(nn.Linear(width, out))
        stack += [nn.Dropout(DROPOUT[n])] if n < len(DROPOUT) else []
        width = out
    module = nn.Sequential()
    module.add_module("layers", nn.Sequential(*stack))
    return module
