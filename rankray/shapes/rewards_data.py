"""What the shapes rewards learn from: for one prompt right pictures, wrong ones and dirty ones, with their faults named.

A wrong picture is a clean one of a scene that differs from the prompt in one respect; a dirty one is a right
picture spoilt after the fact. Labels come from how a picture was made, never from looking at it: the checker is not
imported here. Rendering and spoiling cost 0.5 ms a picture, a seventh of what training on it costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from rankray.shapes.autoencoder import sample_prompts, to_pictures, to_tensor
from rankray.shapes.captions import wrong_colour, wrong_relation, wrong_shape
from rankray.shapes.prompts import COLOURS, SHAPES, Group, Scene, parse
from rankray.shapes.renderer import BACKGROUND, SIZE, Item, compose, paint

MOST = 3
"""The most objects in a picture."""
KINDS = {kind: place for place, kind in enumerate(product(SHAPES, COLOURS))}
"""(shape, colour) to its number."""
PATCH = 8

Fault = Callable[[Scene, np.random.Generator], Scene]


def _pick(groups: list[tuple[Group, ...]], scene: Scene, rng: np.random.Generator) -> Scene:
    """One of the alternatives that still fits into a picture, or the scene itself where none does."""
    fitting = [g for g in groups if g and sum(part.count for part in g) <= MOST]
    if not fitting:
        return scene
    chosen = fitting[rng.integers(len(fitting))]
    return Scene(chosen, scene.relation if len(chosen) == 2 else None)


def other_count(scene: Scene, rng: np.random.Generator) -> Scene:
    """Another number of objects in one group, or in both."""
    counts = product(*[range(1, MOST + 1) for _ in scene.groups])
    changed = [tuple(replace(g, count=n) for g, n in zip(scene.groups, c, strict=True)) for c in counts]
    return _pick([groups for groups in changed if groups != scene.groups], scene, rng)


def swapped(scene: Scene, rng: np.random.Generator) -> Scene:
    """The right colours and shapes, but the other way round; unchanged for one group."""
    if len(scene.groups) < 2:
        return scene
    first, second = scene.groups
    groups = (replace(first, colour=second.colour), replace(second, colour=first.colour))
    return replace(scene, groups=groups)


def missing(scene: Scene, rng: np.random.Generator) -> Scene:
    """One of two groups left out."""
    return _pick([(g,) for g in scene.groups], scene, rng) if len(scene.groups) == 2 else scene


def extra(scene: Scene, rng: np.random.Generator) -> Scene:
    """One object more, of another shape and colour; only for one group, as a relation has two."""
    if len(scene.groups) == 2:
        return scene
    shapes = [shape for shape in SHAPES if shape != scene.groups[0].shape]
    colours = [colour for colour in COLOURS if colour != scene.groups[0].colour]
    stray = Group(1, shapes[rng.integers(len(shapes))], colours[rng.integers(len(colours))])
    return _pick([(scene.groups[0], stray)], scene, rng)


FAULTS: dict[str, Fault] = {
    "count": other_count,
    "relation": wrong_relation,
    "swap": swapped,
    "colour": wrong_colour,
    "shape": wrong_shape,
    "missing": missing,
    "extra": extra,
}
FAULT_NAMES = tuple(FAULTS)
RIGHT = -1
"""The fault of a picture that has none."""


def faulty(scene: Scene, rng: np.random.Generator) -> dict[str, Scene]:
    """Every fault that this scene can have, as the scene that has it.

    A change that says the same in other words (two circles of exchanged colours) is no fault and is left out.
    """
    found = {name: fault(scene, rng) for name, fault in FAULTS.items()}
    return {name: other for name, other in found.items() if _content(other) != _content(scene)}


def _content(scene: Scene) -> tuple[list[tuple[int, str, str]], str | None]:
    return sorted((g.count, g.shape, g.colour or "") for g in scene.groups), scene.relation


# Corruptions: float[64, 64, 3] of 0 .. 255 in and out, each at a random strength that a person would notice.


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
    return np.clip((1.0 - away) * 4.0, 0.0, 1.0)[:, :, None]


def _on_object(picture: np.ndarray, rng: np.random.Generator, radius: float) -> np.ndarray:
    """A soft disc around a random pixel of an object (anywhere where there is none), float[64, 64, 1]."""
    rows, columns = np.nonzero(np.abs(picture - np.asarray(BACKGROUND)).sum(axis=2) > 90.0)
    at = rng.integers(len(rows)) if len(rows) else 0
    row, column = (rows[at], columns[at]) if len(rows) else (SIZE // 2, SIZE // 2)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    return np.asarray(np.clip((radius - np.hypot(x - column, y - row)) / 2.0, 0.0, 1.0)[:, :, None])


def _any_colour(rng: np.random.Generator) -> np.ndarray:
    return np.asarray(list(COLOURS.values()), dtype=np.float64)[rng.integers(len(COLOURS))]


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
    other = paint(compose(random_scene(rng), rng)).astype(np.float64)
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


def random_scene(rng: np.random.Generator) -> Scene:
    """The scene of some training prompt."""
    return parse(sample_prompts(1, "train", rng)[0])


def corrupt(picture: np.ndarray, rng: np.random.Generator, name: str | None = None) -> np.ndarray:
    """A spoilt copy of uint8[64, 64, 3], by the corruption named or by a random one."""
    chosen = CORRUPTIONS[name or list(CORRUPTIONS)[rng.integers(len(CORRUPTIONS))]]
    spoilt = chosen(picture.astype(np.float64), rng)
    return np.asarray(np.clip(np.rint(spoilt), 0, 255), dtype=np.uint8)


@dataclass(frozen=True)
class Batch:
    """Pictures of a few prompts, several each, and what is known of how they were made.

    Attributes:
        prompts: P texts.
        pictures: float32[P * M, 3, 64, 64] in [-1, 1], those of a prompt together.
        fault: int64[P, M], place in `FAULT_NAMES`, or `RIGHT`.
        dirty: bool[P, M].
        items: the objects drawn in each picture.
    """

    prompts: list[str]
    pictures: Tensor
    fault: Tensor
    dirty: Tensor
    items: list[list[Item]]


def group(prompt: str, faults: int, dirty: int, rng: np.random.Generator) -> list[tuple[np.ndarray, list[Item], int, bool]]:
    """Two right pictures, then wrong ones, then dirty ones of a prompt: picture, objects, fault, whether dirty.

    One wrong picture in six is spoilt as well; the dirty ones show what the prompt asks for.
    """
    scene = parse(prompt)
    others = faulty(scene, rng)
    names = list(others)
    names = [names[place] for place in rng.permutation(len(names))]
    wanted = ["", "", *(names[place % len(names)] for place in range(faults)), *[""] * dirty]
    made = []
    for place, name in enumerate(wanted):
        items = compose(others[name] if name else scene, rng)
        picture = paint(items)
        spoil = place >= 2 + faults or (bool(name) and rng.random() < 1 / 6)
        if spoil:
            picture = corrupt(picture, rng)
        made.append((picture, items, FAULT_NAMES.index(name) if name else RIGHT, spoil))
    return made


def draw(
    vae: AutoencoderKL | None,
    size: tuple[int, int, int],
    rng: np.random.Generator,
    split: str = "train",
    share: float = 0.2,
) -> Batch:
    """A batch of groups.

    Args:
        vae: passes a random `share` of the pictures through it, right, wrong and dirty alike, as all generated
            pictures come out of it; a third of those have their latents disturbed and count as dirty.
        size: prompts, wrong and dirty pictures a prompt (beside two right ones).
    """
    number, faults, dirty = size
    texts = sample_prompts(number, split, rng, even=0.35 if split == "train" else 0.0)
    made = [entry for text in texts for entry in group(text, faults, dirty, rng)]
    pixels = to_tensor(np.stack([picture for picture, _, _, _ in made]))
    spoilt = np.asarray([is_dirty for _, _, _, is_dirty in made])
    if vae is not None:
        rows = rng.permutation(len(made))[: int(share * len(made))]
        disturbed = len(rows) // 3
        pixels[rows] = decoded(vae, pixels[rows], disturbed, rng)
        spoilt[rows[:disturbed]] = True
    shape = (number, 2 + faults + dirty)
    wrong = torch.tensor([fault for _, _, fault, _ in made]).view(shape)
    return Batch(texts, pixels, wrong, torch.from_numpy(spoilt).view(shape), [items for _, items, _, _ in made])


def decoded(vae: AutoencoderKL, pixels: Tensor, disturbed: int, rng: np.random.Generator) -> Tensor:
    """Pictures as the autoencoder gives them back, the first `disturbed` with latents noisy or mixed with a neighbour's."""
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        noise = torch.from_numpy(rng.standard_normal(latents.shape)).float()
        for place in range(disturbed):
            if rng.random() < 0.5:
                latents[place] += rng.uniform(0.35, 0.9) * noise[place]
            else:
                latents[place].lerp_(latents[(place + 1) % len(latents)], rng.uniform(0.25, 0.5))
        found: Tensor = vae.decode(latents).sample.clamp(-1.0, 1.0)
    return to_tensor(to_pictures(found))


def layout(items: list[Item]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


__all__ = ["CORRUPTIONS", "FAULTS", "FAULT_NAMES", "KINDS", "RIGHT", "Batch", "corrupt", "draw", "faulty", "group", "layout"]
