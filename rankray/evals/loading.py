"""How a judge's parts are loaded: safetensors, key by key, from a directory or the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rankray.evals import EvalSpec
from rankray.models.loading import one_line, strictly, where
from rankray.models.rewards.clip import ClipModel

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Part:
    """One model of a judge, and where it is computed.

    Attributes:
        source: hub repository or directory.
        revision: of a hub repository.
        dtype: "float32", "float16" or "bfloat16".
        device: "cpu", "cuda", "cuda:1".
    """

    source: str
    revision: str = "main"
    dtype: str = "float32"
    device: str = "cpu"


def part_of(spec: EvalSpec, name: str, device: str) -> Part:
    """The judge's part of that name, on `device`."""
    return Part(spec.models[name], spec.revisions.get(name, "main"), spec.dtype, device)


def load(kind: Any, part: Part, **changes: Any) -> Any:
    """A configuration, tokenizer or processor of class `kind` (or of an Auto class).

    Args:
        changes: settings in place of the stored ones.

    Raises:
        ConfigError: it is not there, or its files cannot be read.
    """
    place, settings = where(part.source, part.revision)
    with one_line(part.source, part.revision):
        return kind.from_pretrained(place, **settings, **changes)


def load_model(kind: Any, part: Part) -> Any:
    """A model of class `kind` (or of an Auto class) on the part's device, in evaluation mode.

    Raises:
        ConfigError: there are no weights there, none in safetensors, or they do not fit the model key by key.
    """
    place, settings = where(part.source, part.revision)
    with strictly(part.source, part.revision):
        model = kind.from_pretrained(
            place, dtype=getattr(torch, part.dtype), use_safetensors=True, **settings
        )
    return model.to(part.device).eval().requires_grad_(False)


def load_clip(part: Part, vocabulary: int | None) -> ClipModel:
    """OpenAI's CLIP, with texts and pictures prepared as by its authors' package.

    Raises:
        ConfigError: weights, tokenizer or preprocessing cannot be had, or are not what the model needs.
    """
    more: dict[str, Any] = {"vocabulary": vocabulary, "dtype": part.dtype, "device": part.device}
    return ClipModel(part.source, part.revision, **more, by_openai=True)


def load_image_processor(part: Part, **changes: Any) -> Any:
    """The image processor of a part, by Pillow, so that a picture's pixels do not depend on torchvision's version.

    Raises:
        ConfigError: as `load`.
    """
    import transformers

    by_pillow = {"use_fast": False} if transformers.__version__.startswith("4.") else {"backend": "pil"}
    return load(transformers.AutoImageProcessor, part, **by_pillow, **changes)


def asked_of(
    items: Mapping[str, Any], images: Sequence[Any], prompts: Sequence[str], benchmark: str
) -> list[Any]:
    """What the benchmark asks of each prompt.

    Raises:
        ValueError: images and prompts differ in number, or it asks nothing of a prompt.
    """
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images and {len(prompts)} prompts; one prompt an image is due")
    for prompt in prompts:
        if prompt not in items:
            raise ValueError(
                f"{benchmark} asks nothing of '{prompt}'; judge pictures of the benchmark's own prompts"
            )
    return [items[prompt] for prompt in prompts]
