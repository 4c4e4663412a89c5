"""Says whether a picture shows a prompt, by classical means: background, components, colour, outline.

It is strict: exactly the objects asked for, each of one clean colour and a clear outline, nothing else. A
component that cannot be named fails the picture, so a messy picture is never right by luck. 0.5 ms a picture,
which allows a check in a training loop; two objects that touch count as one blob and fail. It is for
evaluation: no reward sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rankray.shapes.prompts import COLOURS, RELATIONS, SHAPES, Group, Scene, parse
from rankray.shapes.renderer import BACKGROUND, SIZE, coverage

FOREGROUND = 60.0
"""Distance from the background, in RGB of 255, from which a pixel belongs to an object (yellow is 200 away)."""
SPECK = 10
"""Components of fewer pixels are dirt, not objects; the smallest drawn object has about 80."""
COLOUR_REACH = 70.0
"""Largest distance of a component's colour from a named one."""
PURITY = 0.7
"""Least share of a component's inner pixels that have its colour: two merged objects have less."""
OVERLAP = 0.72
"""Least intersection over union with the best template; a square and a circle overlap by 0.785."""
ALIGNED = 0.5
"""Least share of the centres' offset along a relation's axis: GenEval's rule, within 60 degrees."""
_GRID = 20


@dataclass(frozen=True)
class Found:
    """One object seen in a picture: names, centre in pixels, area in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    area: int


@lru_cache(maxsize=1)
def _templates() -> np.ndarray:
    """Each shape filling its box: bool[shapes, grid, grid]."""
    drawn = [_resample(coverage(shape, 32.0, 32.0, 20.0) > 0.5) for shape in SHAPES]
    return np.stack(drawn)


def _resample(mask: np.ndarray) -> np.ndarray:
    """A mask's bounding box brought to grid x grid by nearest neighbour."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    steps = (np.arange(_GRID) + 0.5) / _GRID
    down = rows[0] + (steps * (rows[-1] - rows[0] + 1)).astype(int)
    across = columns[0] + (steps * (columns[-1] - columns[0] + 1)).astype(int)
    return np.asarray(mask[down[:, None], across[None, :]])


def components(mask: np.ndarray) -> np.ndarray:
    """4-connected components of bool[h, w]: int labels, 0 for background, by union of row runs."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = mask
    edges = np.diff(padded, axis=1)
    rows, starts = (part.tolist() for part in np.nonzero(edges == 1))
    ends = np.nonzero(edges == -1)[1].tolist()
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    above: list[int] = []
    current: list[int] = []
    row = -1
    for run in range(len(rows)):
        if rows[run] != row:
            above = current if rows[run] == row + 1 else []
            current, row = [], rows[run]
        for other in above:
            if starts[other] < ends[run] and starts[run] < ends[other]:
                parent[root(run)] = root(other)
        current.append(run)
    labels = np.zeros(mask.shape, dtype=np.int32)
    for run in range(len(rows)):
        labels[rows[run], starts[run] : ends[run]] = root(run) + 1
    return labels


def _colour_of(pixels: np.ndarray) -> str | None:
    """The colour of float[n, 3] pixels, or None when they are mixed or far from every named colour."""
    palette = np.asarray(list(COLOURS.values()), dtype=np.float64)
    strength = np.abs(pixels - np.asarray(BACKGROUND, dtype=np.float64)).sum(axis=1)
    inner = pixels[strength >= 0.8 * np.quantile(strength, 0.75)]
    distance = np.linalg.norm(inner[:, None] - palette[None], axis=2)
    votes = np.bincount(distance.argmin(axis=1), minlength=len(palette))
    winner = int(votes.argmax())
    typical = np.linalg.norm(np.median(inner, axis=0) - palette[winner])
    if votes[winner] < PURITY * len(inner) or typical > COLOUR_REACH:
        return None
    return list(COLOURS)[winner]


def _shape_of(mask: np.ndarray) -> str | None:
    """The shape whose template covers a component best, or None when none does well."""
    rows, columns = mask.any(axis=1).sum(), mask.any(axis=0).sum()
    if not 0.7 <= rows / columns <= 1.43:
        return None
    grid, templates = _resample(mask), _templates()
    union = (grid | templates).sum(axis=(1, 2))
    overlap = (grid & templates).sum(axis=(1, 2)) / union
    best = int(overlap.argmax())
    return SHAPES[best] if overlap[best] >= OVERLAP else None


def objects(image: np.ndarray) -> list[Found] | None:
    """Every object in uint8[64, 64, 3], or None when something in it cannot be named.

    Raises:
        ValueError: the picture has another size or type.
    """
    if image.shape != (SIZE, SIZE, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"the checker reads uint8[{SIZE}, {SIZE}, 3], got {image.dtype}{list(image.shape)}: resize the picture"
        )
    pixels = image.astype(np.float64)
    away = np.sqrt(((pixels - np.asarray(BACKGROUND, dtype=np.float64)) ** 2).sum(axis=2))
    labels = components(away > FOREGROUND)
    found = []
    for label in np.unique(labels)[1:]:
        mask = labels == label
        area = int(mask.sum())
        if area < SPECK:
            continue
        colour, shape = _colour_of(pixels[mask]), _shape_of(mask)
        if colour is None or shape is None:
            return None
        rows, columns = np.nonzero(mask)
        x, y = float(columns.mean()) + 0.5, float(rows.mean()) + 0.5
        found.append(Found(shape, colour, x, y, area))
    return found


def _belongs(item: Found, group: Group) -> bool:
    return item.shape == group.shape and group.colour in (None, item.colour)


def _holds(relation: str, first: list[Found], second: list[Found]) -> bool:
    """GenEval's rule on the groups' mean centres, and every object on its side of every object of the other."""
    direction = np.asarray(RELATIONS[relation], dtype=np.float64)
    here = np.asarray([(item.x, item.y) for item in first])
    there = np.asarray([(item.x, item.y) for item in second])
    offset = here.mean(axis=0) - there.mean(axis=0)
    along = float(offset @ direction)
    apart = ((here[:, None] - there[None]) @ direction).min()
    return along > ALIGNED * float(np.linalg.norm(offset)) and bool(apart > 0.0)


def shows(found: list[Found] | None, scene: Scene) -> bool:
    """Whether the objects found are exactly those of the scene, in the relation that it asks for."""
    if found is None or len(found) != sum(group.count for group in scene.groups):
        return False
    members = [[item for item in found if _belongs(item, group)] for group in scene.groups]
    if any(len(part) != group.count for part, group in zip(members, scene.groups, strict=True)):
        return False
    return scene.relation is None or _holds(scene.relation, members[0], members[1])


def check(image: np.ndarray, prompt: str) -> bool:
    """Whether uint8[64, 64, 3] shows exactly what the prompt says.

    Raises:
        ValueError: the picture's size or type is wrong, or the prompt is not one of the world's.
    """
    return shows(objects(image), parse(prompt))
