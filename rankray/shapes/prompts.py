"""The grammar of the shapes world: every prompt, what it asks for, its category and its split.

2,583 prompts over six colours and four shapes say one or two groups of one to three objects and, between two
groups, nothing or one of four relations. The categories are GenEval's six (Ghosh et al. 2023, table 1). The
two largest families of prompts are thinned by hash, since otherwise 80 % of the world would be relations and
an accuracy over the held-out split would measure nothing else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (36, 90, 214),
    "yellow": (246, 205, 40),
    "purple": (150, 60, 190),
    "cyan": (60, 190, 215),
}
"""Name to RGB; the closest two (blue and purple) are 119 apart, six times the renderer's jitter."""

SHAPES = ("circle", "square", "triangle", "star")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Phrase to the direction, in picture axes (x right, y down), in which the first group lies."""

CATEGORIES = ("single_object", "two_objects", "counting", "colours", "position", "colour_attribution")
SPLITS = ("train", "validation", "heldout")
NUMBERS = {"a": 1, "one": 1, "a single": 1, "two": 2, "three": 3}
_KEPT = {"counting": 0.7, "position": 0.55, "counted position": 0.2}


@dataclass(frozen=True)
class Group:
    """`count` objects of one shape; colour None means that any colour will do, for each of them."""

    count: int
    shape: str
    colour: str | None = None


@dataclass(frozen=True)
class Scene:
    """What a prompt asks for: these groups and nothing else, the first `relation` the second where one is given."""

    groups: tuple[Group, ...]
    relation: str | None = None


def _fraction(text: str, salt: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.sha256(f"{salt}:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def phrase(group: Group, number: str | None = None) -> str:
    """`"two red circles"`; `number` overrides the word for one object ("one", "a single")."""
    word = number or {1: "a", 2: "two", 3: "three"}[group.count]
    noun = group.shape + ("s" if group.count > 1 else "")
    return " ".join(part for part in (word, group.colour, noun) if part)


def sentence(scene: Scene) -> str:
    """The prompt for a scene, in the grammar's plainest words."""
    joint = f" {scene.relation} " if scene.relation else " and "
    return joint.join(phrase(group) for group in scene.groups)


def _single_groups() -> list[tuple[str, Scene, str]]:
    found = []
    for shape, colour, number in product(SHAPES, (None, *COLOURS), NUMBERS):
        group = Group(NUMBERS[number], shape, colour)
        category = "counting" if group.count > 1 else "colours" if colour else "single_object"
        found.append((phrase(group, number), Scene((group,)), category))
    return found


def _pairs() -> list[tuple[str, Scene, str]]:
    found = []
    for first, second in permutations(SHAPES, 2):
        groups = (Group(1, first), Group(1, second))
        found.append((sentence(Scene(groups)), Scene(groups), "two_objects"))
        found += [(sentence(Scene(groups, r)), Scene(groups, r), "position") for r in RELATIONS]
    kinds = list(product(SHAPES, COLOURS))
    for (shape_a, colour_a), (shape_b, colour_b) in permutations(kinds, 2):
        one = Scene((Group(1, shape_a, colour_a), Group(1, shape_b, colour_b)))
        found.append((sentence(one), one, "colour_attribution"))
        if shape_a == shape_b or colour_a == colour_b:
            continue
        for counts in ((1, 1), (1, 2), (2, 1)):
            groups = (Group(counts[0], shape_a, colour_a), Group(counts[1], shape_b, colour_b))
            counted = counts != (1, 1)
            scenes = [(Scene(groups, r), "counted position" if counted else "position") for r in RELATIONS]
            scenes += [(Scene(groups), "counting")] if counted else []
            for scene, thinning in scenes:
                if _fraction(sentence(scene), "kept") < _KEPT[thinning]:
                    found.append((sentence(scene), scene, thinning.removeprefix("counted ")))
    return found


@lru_cache(maxsize=1)
def world() -> dict[str, tuple[Scene, str, str]]:
    """Every prompt, sorted: its scene, its category and its split (70 % train, 10 % validation, 20 % held out)."""
    entries = {}
    for text, scene, group in sorted(_single_groups() + _pairs(), key=lambda entry: entry[0]):
        place = _fraction(text, "split")
        split = "train" if place < 0.7 else "validation" if place < 0.8 else "heldout"
        entries[text] = (scene, group, split)
    return entries


def prompts(split: str) -> list[str]:
    """The prompts of one split, sorted; the splits are disjoint and depend on each prompt's hash alone.

    Raises:
        ValueError: `split` is none of "train", "validation" and "heldout".
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: the shapes world has {', '.join(SPLITS)}")
    return [text for text, (_, _, home) in world().items() if home == split]


def parse(prompt: str) -> Scene:
    """What a prompt of the world asks for.

    Raises:
        ValueError: the prompt is not one of the world's; its nearest relatives are described.
    """
    try:
        return world()[prompt][0]
    except KeyError:
        raise ValueError(
            f"not a prompt of the shapes world: {prompt[:80]!r}; the world speaks of "
            f"{', '.join(COLOURS)} {', '.join(s + 's' for s in SHAPES)}, for example 'a blue square left of "
            f"two green triangles' (rankray.shapes.prompts lists them all)"
        ) from None


def category(prompt: str) -> str:
    """The prompt's category, one of `CATEGORIES`.

    Raises:
        ValueError: the prompt is not one of the world's.
    """
    parse(prompt)
    return world()[prompt][1]
