"""How a judge's parts are loaded: safetensors, key by key, from a directory or the hub; and batches of one size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from rankray.config import ConfigError
from rankray.evals import EvalSpec
from rankray.models.loading import one_line, strictly, where

Thing = TypeVar("Thing")


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


def load_image_processor(part: Part, **changes: Any) -> Any:
    """The image processor of a part, by Pillow, so that a picture's pixels do not depend on torchvision's version.

    Raises:
        ConfigError: as `load`.
    """
    import transformers

    by_pillow = {"use_fast": False} if transformers.__version__.startswith("4.") else {"backend": "pil"}
    return load(transformers.AutoImageProcessor, part, **by_pillow, **changes)


def batches(things: Sequence[Thing], size: int) -> Iterator[tuple[list[Thing], int]]:
    """(batch of `size`, how many of it are things) over `things`; the last is filled up with its last thing.

    Kernels so see one shape, and what is computed does not depend on how many neighbours a thing has.
    """
    for start in range(0, len(things), size):
        batch = list(things[start : start + size])
        yield batch + [batch[-1]] * (size - len(batch)), len(batch)


def item_of(items: Any, prompt: str, benchmark: str) -> Any:
    """What the benchmark asks of a prompt.

    Raises:
        ValueError: it asks nothing of it.
    """
    if prompt not in items:
        raise ValueError(
            f"{benchmark} asks nothing of '{prompt}'; judge pictures of the benchmark's own prompts"
        )
    return items[prompt]


def one_prompt_each(images: Sequence[Any], prompts: Sequence[str]) -> None:
    """Raises ValueError where images and prompts differ in number."""
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images and {len(prompts)} prompts; one prompt an image is due")


def checked_choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """`value`, if it is allowed.

    Raises:
        ConfigError: it is none of `allowed`.
    """
    if value not in allowed:
        raise ConfigError(f"option {name} = {value!r} is none of {', '.join(allowed)}")
    return str(value)
