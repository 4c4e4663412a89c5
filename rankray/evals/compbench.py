"""T2I-CompBench: attributes bound to their objects, objects in their places, and prompts that ask for all of it.

Source: Huang et al. 2023, the authors' `BLIP_vqa.py`, `2D_spatial_eval.py` and `3_in_1.py`, whose formulas stand here
as pure functions of what a judge saw:

    attribute binding (colour, shape, texture)   product over noun phrases of P(yes) / (P(yes) + P(no)) for "PHRASE?"
    2-D spatial                                  confidences and the boxes' places, 0 below one half
    non-spatial                                  CLIPScore
    complex                                      mean of those of the three that the prompt calls for

Departures: the authors find objects and noun phrases by spaCy's English model, which no package index carries; these
prompts are of the shape "A and B" or "A LOCALITY B", so words do (`noun_phrases`, `parse_spatial`), and free sentences
need the user's own split. Boxes without area overlap nothing; the authors' code divides by zero there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Located = Sequence[float]
Kind = Literal["spatial", "action", "both"]

NEAR = ("next to", "on side of", "near")
LOCALITIES = (
    "on side of",
    "next to",
    "near",
    "on the left of",
    "on the right of",
    "on the bottom of",
    "on the top of",
    "on top of",
)
PEOPLE = ("girl", "boy", "man", "woman")
IOU = 0.1
DISTANCE_PX = 150.0
LEAST = 0.5
PHRASES = 8
NO_OBJECTS = ("top", "the side", "the left", "the right")


@dataclass(frozen=True)
class Spatial:
    """A spatial prompt: what stands where; people are "person", as detectors call them."""

    first: str
    locality: str
    second: str


def parse_spatial(prompt: str) -> Spatial:
    """Splits "a girl on the top of a frog" into its objects and the locality between them.

    Raises:
        ValueError: it has no locality of `LOCALITIES` between two objects.
    """
    text = prompt.strip().rstrip(".").lower()
    for locality in LOCALITIES:
        first, found, second = text.partition(f" {locality} ")
        if found and first.strip() and second.strip():
            return Spatial(_noun(first), locality, _noun(second))
    raise ValueError(f"'{prompt}' has none of {', '.join(LOCALITIES)} between two objects")


def _noun(phrase: str) -> str:
    words = re.sub(r"^(a|an|the) ", "", phrase.strip())
    return "person" if words in PEOPLE else words


def noun_phrases(prompt: str) -> list[str]:
    """Noun phrases of an attribute prompt, "a teal drum and a round kettle": its parts between commas and "and".

    Phrases that name a place and no object ("the left") are left out, as published.
    """
    parts = re.split(r",\s*(?:and\s+)?|\s+and\s+", prompt.strip().rstrip("."))
    return [part.strip() for part in parts if part.strip() and part.strip() not in NO_OBJECTS]


def binding_score(probabilities: Sequence[float]) -> float:
    """Product of P(yes) over a prompt's noun phrases, the first eight; 1 where it has none, as published.

    Raises:
        ValueError: one is outside 0 to 1.
    """
    for value in probabilities:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"P(yes) = {value} is outside 0 to 1")
    return math.prod(probabilities[:PHRASES])


def yes_probability(yes: float, no: float) -> float:
    """P(yes) among yes and no alone, of the first word of the answer, from both words' log-probabilities or logits."""
    return 1.0 / (1.0 + math.exp(min(no - yes, 700.0)))


def overlap(first: Located, second: Located) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1, ...); 0 where they have no area."""
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def position_score(locality: str, first: Located, second: Located) -> float:
    """How well the first box's place fits, 0 to 1, from the centres' offset in pixels and the overlap.

    Near is within 150 pixels on either axis, and falls with the larger distance beyond. A side must be the larger part
    of the offset; boxes that overlap by more than 0.1 are marked down to 0.1 / IoU. "on top of" (without "the") is no
    locality of the published rule and gives 0, as there.
    """
    dx, dy = ((second[n] + second[n + 2] - first[n] - first[n + 2]) / 2 for n in (0, 1))
    if locality in NEAR:
        if min(abs(dx), abs(dy)) < DISTANCE_PX:
            return 1.0
        return DISTANCE_PX / max(abs(dx), abs(dy))
    along, across = {
        "on the right of": (-dx, dy),
        "on the left of": (dx, dy),
        "on the bottom of": (-dy, dx),
        "on the top of": (dy, dx),
    }.get(locality, (0.0, 0.0))
    if along <= abs(across):
        return 0.0
    iou = overlap(first, second)
    return 1.0 if iou < IOU else IOU / iou


def spatial_score(locality: str, first: Located | None, second: Located | None) -> float:
    """A picture's 2-D spatial score: a quarter of each confidence and half of `position_score`; 0 below one half.

    Args:
        locality: one of `LOCALITIES`.
        first, second: (x0, y0, x1, y1, confidence) of the objects, None where the detector did not see one.

    A picture that lacks an object cannot reach one half, so it scores 0.

    Raises:
        ValueError: the locality is none of `LOCALITIES`.
    """
    if locality not in LOCALITIES:
        raise ValueError(f"locality '{locality}' is none of {', '.join(LOCALITIES)}")
    total = sum(0.25 * box[4] for box in (first, second) if box is not None)
    if first is not None and second is not None:
        total += position_score(locality, first, second) / 2
    return total if total >= LEAST else 0.0


def complex_score(kind: Kind, attribute: float, spatial: float, action: float) -> float:
    """The published 3-in-1 mix: attributes with places, with actions, or with both, each part weighing the same.

    Args:
        kind: which of the benchmark's two lists holds the prompt: "spatial", "action"; "both" where neither does.
    """
    parts = {
        "spatial": (attribute, spatial),
        "action": (attribute, action),
        "both": (attribute, spatial, action),
    }[kind]
    return sum(parts) / len(parts)
