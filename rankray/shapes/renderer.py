"""Draws a picture that truly shows a prompt: 64 x 64 RGB, antialiased, sizes, places and tints at random.

Coverage comes from signed distances instead of supersampling, which costs 0.2 ms a picture; a corner
is then up to 0.1 of a pixel rounder than exact area coverage would make it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rankray.shapes.prompts import COLOURS, RELATIONS, SHAPES, Scene, parse

SIZE = 64
"""Pixels a side."""
BACKGROUND = (240, 240, 236)
JITTER = 10
"""Largest deviation of a fill from its colour, per channel, of 255."""
GAP = 4.0
"""Least free space between the boxes of two objects, in pixels: a component analysis must tell them apart."""
MARGIN = 2.0
RADII = {1: (9.0, 17.0), 2: (8.0, 13.0), 3: (7.0, 10.5)}
"""Half the side of an object's box in pixels, by the number of objects in the picture."""
ALIGNED = 0.75
"""A relation is drawn with at least this share of the centres' offset along its axis (the checker asks for 0.5)."""
_TRIES = 48


@dataclass(frozen=True)
class Item:
    """One drawn object: centre and half-size in pixels, fill as RGB of 255."""

    shape: str
    x: float
    y: float
    radius: float
    fill: tuple[float, float, float]


def signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Distance to the outline in pixels, negative inside, near enough to the outline for antialiasing.

    Args:
        dx, dy: offsets from the centre, broadcastable against each other; y points down.
        radius: half the side of the box that every shape fills.
    """
    if shape == "circle":
        return np.asarray(np.hypot(dx, dy) - radius)
    if shape == "square":
        return np.asarray(np.maximum(np.abs(dx), np.abs(dy)) - radius)
    if shape == "triangle":
        side = (2.0 * np.abs(dx) - dy - radius) / math.sqrt(5.0)
        return np.asarray(np.maximum(side, dy - radius))
    angle = np.arctan2(dx, -(dy - 0.05 * radius))
    wedge = np.abs((angle + math.pi / 5.0) % (2.0 * math.pi / 5.0) - math.pi / 5.0)
    length = np.hypot(dx, dy - 0.05 * radius)
    tip, notch = 1.05 * radius, 0.52 * radius
    notch_x, notch_y = notch * math.cos(math.pi / 5.0), notch * math.sin(math.pi / 5.0)
    edge = math.hypot(notch_x - tip, notch_y)
    across = (length * np.cos(wedge) - tip) * notch_y - length * np.sin(wedge) * (notch_x - tip)
    return np.asarray(across / edge)


def coverage(shape: str, x: float, y: float, radius: float, size: int = SIZE) -> np.ndarray:
    """How much of each pixel an object covers: float64[size, size] in [0, 1]."""
    centres = np.arange(size) + 0.5
    distance = signed_distance(shape, centres[None, :] - x, centres[:, None] - y, radius)
    return np.asarray(np.clip(0.5 - distance, 0.0, 1.0))


def paint(items: list[Item] | tuple[Item, ...]) -> np.ndarray:
    """The picture of some objects on the background, later ones on top: uint8[64, 64, 3]."""
    canvas = np.empty((SIZE, SIZE, 3))
    canvas[:] = BACKGROUND
    for item in items:
        left, right = max(0, int(item.x - item.radius) - 2), min(SIZE, int(item.x + item.radius) + 3)
        top, bottom = max(0, int(item.y - item.radius) - 2), min(SIZE, int(item.y + item.radius) + 3)
        across = np.arange(left, right) + 0.5 - item.x
        down = np.arange(top, bottom) + 0.5 - item.y
        distance = signed_distance(item.shape, across[None, :], down[:, None], item.radius)
        alpha = np.clip(0.5 - distance, 0.0, 1.0)[:, :, None]
        window = canvas[top:bottom, left:right]
        window += alpha * (np.asarray(item.fill) - window)
    return np.asarray(np.rint(canvas), dtype=np.uint8)


def _related(relation: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which layouts show the relation clearly; first [n, a, 2] and second [n, b, 2] are centres -> bool[n]."""
    direction = np.asarray(RELATIONS[relation], dtype=np.float64)
    offset = first.mean(axis=1) - second.mean(axis=1)
    aligned = offset @ direction >= ALIGNED * np.linalg.norm(offset, axis=1)
    pairs = (first[:, :, None] - second[:, None, :]) @ direction
    return np.asarray(aligned & (pairs.reshape(len(first), -1).min(axis=1) >= 6.0))


def place(
    counts: tuple[int, ...], relation: str | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Centres float64[m, 2] and radii float64[m] for the groups' objects in order, found by rejection."""
    total = sum(counts)
    first, second = np.triu_indices(total, 1)
    while True:
        radii = rng.uniform(*RADII[total], size=(_TRIES, total))
        reach = (radii + MARGIN)[:, :, None]
        centres = reach + rng.random((_TRIES, total, 2)) * (SIZE - 2.0 * reach)
        apart = np.abs(centres[:, first] - centres[:, second]).max(axis=2)
        valid = (apart >= radii[:, first] + radii[:, second] + GAP).all(axis=1)
        if relation:
            valid &= _related(relation, centres[:, : counts[0]], centres[:, counts[0] :])
        if valid.any():
            best = int(np.argmax(valid))
            return centres[best], radii[best]


def compose(scene: Scene, rng: np.random.Generator) -> list[Item]:
    """Objects that show a scene, at random sizes, places, tints and, where the prompt is silent, colours."""
    centres, radii = place(tuple(group.count for group in scene.groups), scene.relation, rng)
    names = tuple(COLOURS)
    items: list[Item] = []
    for group in scene.groups:
        for _ in range(group.count):
            colour = group.colour or names[rng.integers(len(names))]
            fill = np.clip(np.asarray(COLOURS[colour]) + rng.uniform(-JITTER, JITTER, 3), 0.0, 255.0)
            x, y = centres[len(items)]
            red, green, blue = fill.tolist()
            items.append(Item(group.shape, float(x), float(y), float(radii[len(items)]), (red, green, blue)))
    return items


def render(prompt: str, rng: np.random.Generator) -> np.ndarray:
    """A picture that truly shows the prompt: uint8[64, 64, 3].

    Raises:
        ValueError: the prompt is not one of the world's.
    """
    return paint(compose(parse(prompt), rng))


__all__ = ["BACKGROUND", "SHAPES", "SIZE", "Item", "compose", "coverage", "paint", "place", "render"]
