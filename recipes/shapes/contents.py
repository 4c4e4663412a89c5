"""What a picture holds, by 8 x 8 patches and by kinds of object: labels from how it was made, never from looking at it.

Teachers of the shapes world use it (image towers, the middle of a transformer): naming the objects of a patch is learnt
several times sooner than drawing or judging them, and what names them can then be used for both. It knows boxes and not
outlines: a patch at the corner of a circle's box counts as circle, though it shows background.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from rankray.shapes.prompts import COLOURS, SHAPES
from rankray.shapes.renderer import SIZE, Item

KINDS = {kind: place for place, kind in enumerate(product(SHAPES, COLOURS))}
"""(shape, colour) to its number."""
PATCH = 8
"""Pixels of a patch's side: a cell of the autoencoder's latents."""


def layout(items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a picture holds, for teaching an image tower to see.

    Returns:
        Kind of object per patch, int64[64] (24 for background); number of objects per kind, float32[24]; their mean
        centre per kind, float32[24, 2] in [-1, 1].
    """
    side = SIZE // PATCH
    centres = (np.arange(side) + 0.5) * PATCH
    patches = np.full((side, side), len(KINDS))
    counts, places = np.zeros(len(KINDS), np.float32), np.zeros((len(KINDS), 2), np.float32)
    palette = np.asarray(list(COLOURS.values()))
    names = list(COLOURS)
    for item in items:
        colour = names[int(np.abs(palette - np.asarray(item.fill)).sum(axis=1).argmin())]
        kind = KINDS[item.shape, colour]
        reach = item.radius + 1.0
        inside = (np.abs(centres - item.y) < reach)[:, None] & (np.abs(centres - item.x) < reach)[None]
        patches[inside] = kind
        counts[kind] += 1
        places[kind] += np.asarray([item.x, item.y]) / (SIZE / 2) - 1.0
    return patches.reshape(-1), counts, places / np.maximum(counts, 1.0)[:, None]
