"""HPSv2.1 (Wu et al. 2023): cos(text, image) of a CLIP-H fine-tuned on human rankings, by the package's own model.

The package reloads its 3.9 GB checkpoint at every call and scores one image at a time; here the model is built
once and batched. Its `score()` uses version 2.0 unless told otherwise: this is 2.1.

The package resizes pictures as tensors and leaves to torchvision whether that is antialiased. Until 0.16 it was not,
from 0.17 (2024) it is: the model was trained, and its authors' figures of 2023 were made, without, and so is ours. A
picture of 1024 pixels with fine texture differs by up to 11 of 255 levels rms.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from rankray.config import ConfigError
from rankray.models.loading import file_of, fit, read_plain
from rankray.models.rewards import RewardSpec
from rankray.models.rewards.clip import Batched, normalised, of_distinct

VOCABULARY = 49408
TEXT_TOKENS = 77


class Hpsv2(Batched):
    """The reward on one device. Scores: about 0.2 to 0.35, higher is better.

    Args:
        spec: its row; option `file`, the checkpoint's name in the repository or directory, `architecture`, the
            open_clip name of the model, or a JSON file of its sizes, and `antialias`, whether pictures are resized so.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: the package is missing, or weights or vocabulary are not what the model needs.
    """

    def __init__(self, spec: RewardSpec, device: str) -> None:
        try:
            factory = importlib.import_module("hpsv2.src.open_clip")
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"reward 'hpsv2.1' needs the package hpsv2x ({error}); run its pool in the environment 'hpsv2': "
                "rankray envs build hpsv2"
            ) from None
        self.batch_size, self.device, self.dtype = spec.batch_size, device, getattr(torch, spec.dtype)
        architecture = _architecture(factory, spec.options["architecture"])
        with torch.device(device):  # its weights are copied there from the file, without a model on the host
            model = factory.create_model(
                architecture, None, precision="fp32", device=device, output_dict=True
            )
        weights = read_plain(file_of(spec.source, spec.options["file"], spec.revision))
        fit(model, weights.get("state_dict", weights), spec.source)
        self.model: Any = model.to(device, self.dtype).eval().requires_grad_(False)
        self.antialias = bool(spec.options["antialias"])
        self.tokenize = factory.get_tokenizer(architecture)
        tokens = self.model.token_embedding.num_embeddings
        if tokens != VOCABULARY:
            raise ConfigError(f"'{spec.source}' embeds {tokens} tokens; HPSv2 has {VOCABULARY}")

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts are longer than the text encoder reads: they fill one place more, where others are padded."""
        texts = self.tokenize(list(prompts), context_length=TEXT_TOKENS + 1)
        return [bool(ids[TEXT_TOKENS] != 0) for ids in texts]

    def _score_batch(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        seen = normalised(self.model.encode_image(self._pixels(images).to(self.dtype)))
        return (seen * of_distinct(self._encoded_texts, prompts)).sum(-1)

    def _pixels(self, images: list[Image.Image]) -> Tensor:
        """float32[n, 3, side, side] on the device, which pictures reach as bytes."""
        vision = self.model.visual
        side = max(vision.image_size)
        squares = []
        for image in images:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).to(self.device)
            squares.append(squared(pixels.permute(2, 0, 1).float() / 255, side, self.antialias))
        mean, std = (
            torch.tensor(values, device=self.device).view(3, 1, 1)
            for values in (vision.image_mean, vision.image_std)
        )
        return (torch.stack(squares) - mean) / std

    def _encoded_texts(self, prompts: list[str]) -> Tensor:
        return normalised(self.model.encode_text(self.tokenize(prompts).to(self.device)))


def squared(pixels: Tensor, side: int, antialias: bool) -> Tensor:
    """A picture float[3, h, w] with its longer edge made `side` pixels, bicubically, amid a black square."""
    scale = side / max(pixels.shape[1:])
    high, wide = (max(1, round(edge * scale)) for edge in pixels.shape[1:])
    resized = interpolate(
        pixels[None], (high, wide), mode="bicubic", align_corners=False, antialias=antialias
    )
    left, top = (side - wide) // 2, (side - high) // 2
    return pad(resized[0], (left, side - wide - left, top, side - high - top))


def _architecture(factory: Any, name: str) -> str:
    """open_clip's name of an architecture, made known to it where it is a file."""
    if not name.endswith(".json"):
        return name
    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"reward 'hpsv2.1': there is no architecture at {path}; name a file, or open_clip's name"
        )
    factory.add_model_config(path)
    return path.stem
