"""The shapes world as a benchmark: does a picture show its prompt, exactly? The checker knows; no reward has seen it.

Prompts are a split's (`shapes:heldout`), a column is a category of the world's grammar, and the headline figure is the
mean of categories. The same rules serve as those of real benchmarks; a verdict takes 0.7 ms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rankray import shapes
from rankray.evals import EvalSpec, Item, by_category
from rankray.models.targets import Judgement
from rankray.models.weights import SHAPES
from rankray.shapes.renderer import SIZE
from rankray.stats import Column

if TYPE_CHECKING:
    from PIL import Image


def read_items(path: str) -> list[Item]:
    """Prompts of `shapes:SPLIT` with their categories.

    Raises:
        ValueError: it names no split of the shapes world.
    """
    split = path.removeprefix(SHAPES)
    if not path.startswith(SHAPES) or split not in shapes.SPLITS:
        raise ValueError(
            f"'{path}' is no split of the shapes world: {', '.join(SHAPES + name for name in shapes.SPLITS)}"
        )
    return [Item(prompt, {"category": shapes.category(prompt)}) for prompt in shapes.prompts(split)]


def categories(prompts: Sequence[str]) -> list[str] | None:
    """Each prompt's category; None where one of them is not of this world, and the checker knows nothing."""
    try:
        return [shapes.category(prompt) for prompt in prompts]
    except ValueError:
        return None


def reads(prompts: Sequence[str], sizes: Iterable[tuple[int, int]]) -> bool:
    """Whether the checker can judge pictures of these (width, height): others draw this world's prompts larger."""
    return categories(prompts) is not None and set(sizes) <= {(SIZE, SIZE)}


def columns(items: Sequence[Item], judgements: Mapping[str, Sequence[Judgement | None]]) -> dict[str, Column]:
    """A column for each category that occurs: 1 for a right picture, 0 for a wrong one, none for one that failed."""
    return by_category(items, judgements, shapes.CATEGORIES)


class ShapesJudge:
    """The exact checker."""

    def __init__(
        self, spec: EvalSpec | None = None, items: Mapping[str, Any] | None = None, device: str = "cpu"
    ) -> None:
        pass

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Judgement]:
        """1 where the picture shows its prompt, else 0, with the objects that were found.

        Raises:
            ValueError: a prompt is none of the shapes world.
        """
        import numpy as np

        from rankray.shapes.checker import objects, shows
        from rankray.shapes.prompts import parse

        found = []
        for image, text in zip(images, prompts, strict=True):
            seen = objects(np.asarray(image.convert("RGB")))
            names = None if seen is None else [f"{one.colour} {one.shape}" for one in seen]
            found.append(Judgement(float(shows(seen, parse(text))), {"objects": names}))
        return found
