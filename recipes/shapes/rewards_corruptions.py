"""Ways to spoil a picture: what bad sampling and bad decoding look like, at strengths that a person would notice.

Each is a function of float[64, 64, 3] in 0 .. 255 and a random generator; 0.3 ms a picture on average.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rankray.shapes.prompts import COLOURS, parse
from rankray.shapes.renderer import BACKGROUND, SIZE, compose, paint
from recipes.shapes.autoencoder import sample_prompts


def blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; the border repeats."""
    reach = int(np.ceil(2.5 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    padded = np.pad(picture, [(reach, reach), (reach, reach), (0, 0)], mode="edge")
    down = sum(w * padded[i : i + SIZE] for i, w in enumerate(weights))
    return np.asarray(sum(w * down[:, i : i + SIZE] for i, w in enumerate(weights)))


def _disc(rng: np.random.Generator, least: float, most: float) -> np.ndarray:
    """A soft disc at a random place, float[64, 64, 1] in [0, 1]; radius in pixels."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    centre, radius = rng.uniform(6, SIZE - 6, 2), rng.uniform(least, most, 2)
    away = np.hypot((x - centre[0]) / radius[0], (y - centre[1]) / radius[1])
    return np.asarray(np.clip((1.0 - away) * 4.0, 0.0, 1.0)[:, :, None])


def _on_object(picture: np.ndarray, rng: np.random.Generator, radius: float) -> np.ndarray:
    """A soft disc around a random pixel of an object (anywhere where there is none), float[64, 64, 1]."""
    rows, columns = np.nonzero(np.abs(picture - np.asarray(BACKGROUND)).sum(axis=2) > 90.0)
    at = rng.integers(len(rows)) if len(rows) else 0
    row, column = (rows[at], columns[at]) if len(rows) else (SIZE // 2, SIZE // 2)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    return np.asarray(np.clip((radius - np.hypot(x - column, y - row)) / 2.0, 0.0, 1.0)[:, :, None])


def _any_colour(rng: np.random.Generator) -> np.ndarray:
    return np.asarray(list(COLOURS.values())[rng.integers(len(COLOURS))], dtype=np.float64)


def blurred(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Out of focus."""
    return blur(picture, rng.uniform(1.6, 3.5))


def noisy(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grain, fine or coarse."""
    grain = rng.normal(0.0, rng.uniform(18.0, 50.0), picture.shape)
    return picture + (blur(grain, 1.2) * 2.5 if rng.random() < 0.5 else grain)


def smeared(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dragged in one direction, everywhere or in one place."""
    length, axis = int(rng.integers(6, 15)), int(rng.integers(2))
    dragged = np.mean([np.roll(picture, shift, axis=axis) for shift in range(length)], axis=0)
    where = 1.0 if rng.random() < 0.5 else _on_object(picture, rng, rng.uniform(8.0, 14.0))
    return np.asarray(picture + where * (dragged - picture))


def deformed(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Outlines bent by waves of a few pixels."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    bends = []
    for along in (x, y):
        across = y if along is x else x
        turn, phase = rng.uniform(8.0, 40.0), rng.uniform(0.0, 6.3)
        bends.append(along + rng.uniform(2.0, 5.0) * np.sin(2 * np.pi * across / turn + phase))
    rows, columns = (np.clip(np.rint(b), 0, SIZE - 1).astype(int) for b in (bends[1], bends[0]))
    return blur(picture[rows, columns], 0.6)


def spotted(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One to three stray blobs."""
    for _ in range(rng.integers(1, 4)):
        picture = picture + _disc(rng, 2.5, 6.0) * rng.uniform(0.5, 1.0) * (_any_colour(rng) - picture)
    return picture


def melted(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A part of an object gone, as if half drawn."""
    hole = _on_object(picture, rng, rng.uniform(5.0, 9.0)) * rng.uniform(0.7, 1.0)
    return np.asarray(picture + hole * (np.asarray(BACKGROUND) - picture))


def patched(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A part of an object in another colour."""
    filled = np.clip(np.abs(picture - np.asarray(BACKGROUND)).sum(axis=2, keepdims=True) / 150.0, 0.0, 1.0)
    part = _on_object(picture, rng, rng.uniform(5.0, 9.0)) * filled * rng.uniform(0.6, 1.0)
    return np.asarray(picture + part * (_any_colour(rng) - picture))


def ghosted(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shines through from another scene, as when sampling could not decide between two."""
    other = paint(compose(parse(sample_prompts(1, "train", rng)[0]), rng)).astype(np.float64)
    return np.asarray(picture + rng.uniform(0.25, 0.6) * (other - picture))


def faded(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One object, or all, almost gone."""
    where = 1.0 if rng.random() < 0.3 else _on_object(picture, rng, 20.0)
    return np.asarray(picture + where * rng.uniform(0.45, 0.8) * (np.asarray(BACKGROUND) - picture))


CORRUPTIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "blur": blurred,
    "noise": noisy,
    "smear": smeared,
    "deformation": deformed,
    "stray blobs": spotted,
    "melting": melted,
    "wrong patch": patched,
    "ghost": ghosted,
    "fading": faded,
}


def corrupt(picture: np.ndarray, rng: np.random.Generator, name: str | None = None) -> np.ndarray:
    """A spoilt copy of uint8[64, 64, 3], by the corruption named or by a random one."""
    chosen = CORRUPTIONS[name or list(CORRUPTIONS)[rng.integers(len(CORRUPTIONS))]]
    spoilt = chosen(picture.astype(np.float64), rng)
    return np.asarray(np.clip(np.rint(spoilt), 0, 255), dtype=np.uint8)
