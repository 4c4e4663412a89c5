"""HPSv2.1 (Wu et al. 2023): cos(text, image) of a CLIP-H fine-tuned on human rankings, by the package's own model.

The package reloads its 3.9 GB checkpoint at every call and scores one image at a time; here the model is built
once and batched. Its `score()` uses version 2.0 unless told otherwise: this is 2.1.
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

from rankray.config import ConfigError
from rankray.loading import check_strict, fetched, one_line, read_plain
from rankray.rewards import RewardSpec
from rankray.rewards.clip import in_batches, normalised, of_distinct
from rankray.targets import locate

VOCABULARY = 49408
TEXT_TOKENS = 77


class Hpsv2:
    """The reward on one device.

    Args:
        spec: its row; option `file`, the checkpoint's name in the repository or directory, and `architecture`, the
            open_clip name of the model, or a JSON file of its sizes.
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
        model, _, self.preprocess = factory.create_model_and_transforms(
            architecture,
            None,
            precision="fp32",
            device="cpu",
            light_augmentation=True,
            aug_cfg={},
            output_dict=True,
        )
        found = read_plain(_checkpoint(spec))
        weights = found.get("state_dict", found)
        with one_line(spec.source):  # tensors of another shape
            missing, unexpected = model.load_state_dict(weights, strict=False)
        check_strict(spec.source, {"missing_keys": missing, "unexpected_keys": unexpected})
        self.model: Any = model.to(device, self.dtype).eval().requires_grad_(False)
        self.tokenize = factory.get_tokenizer(architecture)
        tokens = self.model.token_embedding.num_embeddings
        if tokens != VOCABULARY:
            raise ConfigError(f"'{spec.source}' embeds {tokens} tokens; HPSv2 has {VOCABULARY}")

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """float32[len(images)]: about 0.2 to 0.35, higher is better."""
        return in_batches(self._score_batch, images, prompts, self.batch_size)

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts are longer than the text encoder reads: they fill one place more, where others are padded."""
        found = self.tokenize(list(prompts), context_length=TEXT_TOKENS + 1)
        return [bool(ids[TEXT_TOKENS] != 0) for ids in found]

    def _score_batch(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        pixels = torch.stack([self.preprocess(image.convert("RGB")) for image in images])
        seen = normalised(self.model.encode_image(pixels.to(self.device, self.dtype)))
        return (seen * of_distinct(self._encoded_texts, prompts)).sum(-1)

    def _encoded_texts(self, prompts: list[str]) -> Tensor:
        return normalised(self.model.encode_text(self.tokenize(prompts).to(self.device)))


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


def _checkpoint(spec: RewardSpec) -> Path:
    place = Path(locate(spec.source))
    if place.exists():
        return place / spec.options["file"] if place.is_dir() else place
    return fetched(spec.source, spec.options["file"], spec.revision)
