"""GenEval: does a picture hold the objects, counts, colours and positions that its prompt asks for?

Source: Ghosh et al. 2023, `evaluate_images.py` and `summary_scores.py` of the authors' repository, whose rules stand
here as pure functions over detections: a verdict costs microseconds, so thresholds can be tried on stored detections
without a detector. The prompts are the 553 lines of `evaluation_metadata.jsonl`, read from a path; 4 pictures each,
six categories; the score is the mean of categories, not of pictures. `geneval_judge.py` says which models are asked.

Departures: a detection's box is a tuple and not an array; a position has to point at an earlier object by its number
from 0, where the authors' code fails with an index error or counts from the end; among equally confident boxes, whose
order the authors' sorting leaves open, the later one comes first.

    metadata      one line of the published file, as a dict: tag, prompt, include, exclude
    detections    class -> raw boxes (x0, y0, x1, y1, score), before any threshold, in any order
    colors        class -> colour of each box that is kept, most confident first
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankray.evals import Item, by_category, read_lines
from rankray.models.targets import Judgement
from rankray.stats import Column
from rankray.store import parse_json

Box = Sequence[float]

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Thresholds:
    """The published settings.

    Attributes:
        confidence: a box counts above it.
        counting_confidence: the same for prompts of the category "counting".
        max_objects: of a class, the most confident ones.
        max_overlap: a box that overlaps a more confident one of its class by this IoU or more is dropped; 1 keeps all.
        position: share of the two objects' summed sizes by which their centres must differ.
        direction: cosine above which an offset counts as a direction.
    """

    confidence: float = 0.3
    counting_confidence: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position: float = 0.1
    direction: float = 0.5


PUBLISHED = Thresholds()


def read(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Metadata of a published JSON-lines file; blank lines are left out.

    Raises:
        ValueError: a line is no such metadata; it names the line.
    """
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            metadata = parse_json(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON ({error}); give GenEval's metadata") from None
        try:
            _check(metadata)
            found.append(metadata)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return found


def read_items(path: str) -> list[Item]:
    """Prompts of a published file, each with its metadata.

    Raises:
        ValueError: there is no such file, or a line is no such metadata; it names the line.
    """
    return [Item(metadata["prompt"], metadata) for metadata in read(read_lines(path))]


def columns(items: Sequence[Item], judgements: Mapping[str, Sequence[Judgement | None]]) -> dict[str, Column]:
    """A column for each category that occurs: 1 for a right picture, 0 for a wrong one, none for one that failed."""
    return by_category(items, judgements, CATEGORIES, "tag")


def _check(metadata: Any) -> None:
    prompt = metadata.get("prompt") if isinstance(metadata, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("no 'prompt', or a blank one; give GenEval's metadata")
    if metadata.get("tag") not in CATEGORIES:
        raise ValueError(f"tag {metadata.get('tag')!r} is none of {', '.join(CATEGORIES)}")
    if not isinstance(metadata.get("include"), list) or not metadata["include"]:
        raise ValueError("'include' is no list of objects")
    excluded = metadata.get("exclude") or []
    if not isinstance(excluded, list):
        raise ValueError("'exclude' is no list of objects")
    for index, wanted in enumerate([*metadata["include"], *excluded]):
        if not isinstance(wanted, dict):
            raise ValueError(f"clause {index} is {wanted!r}, no object with 'class' and 'count'")
        if not isinstance(wanted.get("class"), str) or not isinstance(wanted.get("count"), int):
            raise ValueError(f"clause {index} has no 'class' and 'count'")
        if wanted.get("color", COLORS[0]) not in COLORS:
            raise ValueError(f"colour {wanted['color']!r} is none of {', '.join(COLORS)}")
        if "position" in wanted:
            _check_position(wanted["position"], index)


def _check_position(position: Any, index: int) -> None:
    match position:
        case [str(relation), int(of)] if relation in RELATIONS and 0 <= of < index:
            pass
        case _:
            raise ValueError(f"position {position!r} is no [relation, earlier object]")


def kept(boxes: Sequence[Box], tag: str | None, thresholds: Thresholds = PUBLISHED) -> list[int]:
    """Places of the boxes of one class that count, most confident first; among equals the later one."""
    least = thresholds.counting_confidence if tag == "counting" else thresholds.confidence
    order = [int(n) for n in np.argsort([box[4] for box in boxes], kind="stable")[::-1]]
    order = [n for n in order if boxes[n][4] > least][: thresholds.max_objects]
    if thresholds.max_overlap == 1.0:
        return order
    found: list[int] = []
    for n in order:
        if all(overlap(boxes[m], boxes[n]) < thresholds.max_overlap for m in found):
            found.append(n)
    return found


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes whose edges are pixels, both included, as published."""

    def area(x0: float, y0: float, x1: float, y1: float) -> float:
        return max(x1 - x0 + 1, 0.0) * max(y1 - y0 + 1, 0.0)

    low = [max(first[n], second[n]) for n in (0, 1)]
    high = [min(first[n], second[n]) for n in (2, 3)]
    common = area(low[0], low[1], high[0], high[1])
    union = area(*first[:4]) + area(*second[:4]) - common
    return common / union if union else 0.0


def relations(first: Box, second: Box, thresholds: Thresholds = PUBLISHED) -> set[str]:
    """Where the first box lies from the second: up to two of `RELATIONS`, none where they are too near.

    The offset of the centres is shortened, on each axis, by a share of both sizes; what is left counts as a direction
    where it exceeds half of the whole offset's length.
    """
    corners = np.asarray([first[:4], second[:4]], np.float64).reshape(2, 2, 2)
    centers = corners.mean(axis=1)
    sizes = np.abs(corners[:, 1] - corners[:, 0])
    offset = centers[0] - centers[1]
    left = np.maximum(np.abs(offset) - thresholds.position * sizes.sum(axis=0), 0.0) * np.sign(offset)
    if (np.abs(left) < 1e-3).all():
        return set()
    dx, dy = left / np.linalg.norm(offset)
    names = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
    return {name for name, cosine in names.items() if cosine > thresholds.direction}


def verdict(
    metadata: Mapping[str, Any],
    detections: Mapping[str, Sequence[Box]],
    colors: Mapping[str, Sequence[str]],
    thresholds: Thresholds = PUBLISHED,
) -> tuple[bool, str]:
    """Whether the picture is right, and what is not, a line each ("" where all is right).

    Of each class the `count` most confident boxes are looked at: all of them have the colour, and each of them stands
    in the asked relation to each box of the object that the position points at.

    Raises:
        ValueError: a position points at no earlier object.
    """
    objects = {
        name: [boxes[n] for n in kept(boxes, metadata.get("tag"), thresholds)]
        for name, boxes in detections.items()
    }
    wrong: list[str] = []
    groups: list[list[Box] | None] = []
    for wanted in metadata.get("include") or ():
        name, count = wanted["class"], wanted["count"]
        found = objects.get(name, [])[:count]
        reason = _missing(wanted, found, colors)
        if reason is None and "position" in wanted:
            reason = _misplaced(wanted, found, groups, thresholds)
        groups.append(found if reason is None else None)
        wrong += [] if reason is None else [reason]
    for unwanted in metadata.get("exclude") or ():
        name, count = unwanted["class"], unwanted["count"]
        if len(objects.get(name, [])) >= count:
            wrong.append(f"expected {name}<{count}, found {len(objects.get(name, []))}")
    return not wrong, "\n".join(wrong)


def _missing(wanted: Mapping[str, Any], found: list[Box], colors: Mapping[str, Sequence[str]]) -> str | None:
    """What is wrong with number or colour of the boxes found for a clause."""
    name, count = wanted["class"], wanted["count"]
    if len(found) < count:
        return f"expected {name}>={count}, found {len(found)}"
    if "color" not in wanted:
        return None
    seen = list(colors.get(name, ()))[:count]
    right = seen.count(wanted["color"])
    if right >= count:
        return None
    instead = ", ".join(f"{seen.count(color)} {color}" for color in COLORS if color in seen) or "no other"
    return f"expected {wanted['color']} {name}>={count}, found {right} {wanted['color']}; and {instead}"


def _misplaced(
    wanted: Mapping[str, Any], found: list[Box], groups: list[list[Box] | None], thresholds: Thresholds
) -> str | None:
    """What is wrong with the places of the boxes found for a clause; `groups` holds the clauses before it."""
    relation, place = wanted["position"]
    if not 0 <= place < len(groups):
        raise ValueError(
            f"position {wanted['position']!r} points at no earlier object; there are {len(groups)}"
        )
    targets = groups[place]
    if targets is None:
        return f"no target for {wanted['class']} to be {relation}"
    for box in found:
        for target in targets:
            true = relations(box, target, thresholds)
            if relation not in true:
                seen = " and ".join(name for name in RELATIONS if name in true)
                return (
                    f"expected {wanted['class']} {relation} target, found {seen or 'neither side of'} target"
                )
    return None
