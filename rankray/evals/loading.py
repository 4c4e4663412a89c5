"""How a judge's parts are loaded: safetensors, key by key, from a directory or the hub; and batches of one size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from rankray.config import ConfigError
from rankray.loading import one_line, strictly
from rankray.targets import locate

Thing = TypeVar("Thing")


def place_of(source: str, revision: str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes for a part: where it is, and the settings that keep to that place and revision."""
    place = locate(source)
    is_local = Path(place).exists()
    return place, {"local_files_only": True} if is_local else {"revision": revision}


def load_part(kind: Any, source: str, revision: str, **changes: Any) -> Any:
    """A configuration, tokenizer or processor of class `kind` (or of an Auto class), of the part at `source`.

    Args:
        changes: settings in place of the stored ones.

    Raises:
        ConfigError: it is not there, or its files cannot be read.
    """
    place, settings = place_of(source, revision)
    with one_line(source, revision):
        return kind.from_pretrained(place, **settings, **changes)


def load_model(kind: Any, source: str, revision: str, dtype: str, device: str) -> Any:
    """A model of class `kind` (or of an Auto class) on `device`, in evaluation mode.

    Raises:
        ConfigError: there are no weights there, none in safetensors, or they do not fit the model key by key.
    """
    place, settings = place_of(source, revision)
    with strictly(source, revision):
        model = kind.from_pretrained(place, dtype=getattr(torch, dtype), use_safetensors=True, **settings)
    return model.to(device).eval().requires_grad_(False)


def load_image_processor(source: str, revision: str, **changes: Any) -> Any:
    """The image processor of a part, by Pillow, so that a picture's pixels do not depend on torchvision's version.

    Raises:
        ConfigError: as `load_part`.
    """
    import transformers

    by_pillow = {"use_fast": False} if transformers.__version__.startswith("4.") else {"backend": "pil"}
    return load_part(transformers.AutoImageProcessor, source, revision, **by_pillow, **changes)


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
