"""What `shapes-cascade`'s stage C draws: a picture's layout on an 8 x 8 grid, standing in for EfficientNet's features.

Stable Cascade's stage C draws a small semantic map of a picture and stage B turns it into latents (Pernias et al.
2023, section 3). Here the map says, for each 8 x 8 patch, how much of it the objects' bounding boxes cover, times
a code of their colour and shape: 320 numbers a picture, none of them about outlines, so that the stage which has
to understand the prompt draws soft rectangles and nothing finer. The price is an embedding that only this world
has: it comes from the renderer's objects and not from pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rankray.shapes.prompts import parse
from rankray.shapes.renderer import BACKGROUND, SIZE, Item, compose, paint
from recipes.shapes.autoencoder import sample_prompts

GRID = 8
"""Cells a side."""
CHANNELS = 5
"""Three for the colour's distance from the background, two for the shape."""
SPREAD = 0.5
"""Standard deviation of a whitened channel: decisions about whole objects then fall in the middle of the noise
schedule, since a blob of several cells shows through noise that hides one cell."""
SHAPE_CODES = {"circle": (1.0, 1.0), "square": (1.0, -1.0), "triangle": (-1.0, 1.0), "star": (-1.0, -1.0)}


@dataclass(frozen=True)
class Pool:
    """Rendered pictures made once: training draws from them and never renders.

    texts are the n prompts, embeddings float32[n, 5, 8, 8], pictures uint8[n, 64, 64, 3] or of length 0.
    """

    texts: list[str]
    embeddings: np.ndarray
    pictures: np.ndarray


def _cover(centre: float, radius: float) -> np.ndarray:
    """How much of each cell an interval covers: float64[8]."""
    edges = np.arange(GRID + 1) * (SIZE / GRID)
    inside = np.clip(edges, centre - radius, centre + radius)
    return np.asarray(np.diff(inside) * (GRID / SIZE))


def layout(items: Sequence[Item]) -> np.ndarray:
    """The map of some objects, before whitening: float64[5, 8, 8], 0 where nothing is."""
    grid = np.zeros((CHANNELS, GRID, GRID))
    for item in items:
        colour = (np.asarray(BACKGROUND, dtype=np.float64) - np.asarray(item.fill)) / 127.5
        code = np.concatenate([colour, SHAPE_CODES[item.shape]])
        covered = np.outer(_cover(item.y, item.radius), _cover(item.x, item.radius))
        grid += code[:, None, None] * covered
    return grid


@lru_cache(maxsize=1)
def _whitening() -> tuple[np.ndarray, np.ndarray]:
    """Mean float64[5] and symmetric whitening matrix float64[5, 5] of the cells of 2,048 fixed scenes."""
    rng = np.random.default_rng(0)
    drawn = [layout(compose(parse(text), rng)) for text in sample_prompts(2048, "train", rng)]
    cells = np.stack(drawn).transpose(0, 2, 3, 1).reshape(-1, CHANNELS)
    values, vectors = np.linalg.eigh(np.cov(cells.T))
    return cells.mean(axis=0), (vectors / np.sqrt(values)) @ vectors.T * SPREAD


def embedding(items: Sequence[Item]) -> np.ndarray:
    """The layout with uncorrelated channels of mean 0 and standard deviation `SPREAD`: float32[5, 8, 8]."""
    mean, matrix = _whitening()
    white = np.einsum("ij,jyx->iyx", matrix, layout(items) - mean[:, None, None])
    return np.asarray(white, dtype=np.float32)


def make_pool(number: int, seed: int, pictures: bool) -> Pool:
    """Scenes of training prompts with their embeddings and, on request, their pictures; 0.5 to 0.9 ms a scene."""
    rng = np.random.default_rng(seed)
    texts = sample_prompts(number, "train", rng)
    embeddings = np.empty((number, CHANNELS, GRID, GRID), dtype=np.float32)
    painted = np.empty((number if pictures else 0, SIZE, SIZE, 3), dtype=np.uint8)
    for place, text in enumerate(texts):
        items = compose(parse(text), rng)
        embeddings[place] = embedding(items)
        if pictures:
            painted[place] = paint(items)
    return Pool(texts, embeddings, painted)
