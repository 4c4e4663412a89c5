"""What the shapes rewards learn from: for one prompt right, wrong and dirty pictures, with their faults named.

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

from rankray.shapes.prompts import COLOURS, SHAPES, Group, Scene, parse
from rankray.shapes.renderer import Item, compose, paint
from recipes.shapes.autoencoder import sample_prompts, to_pictures, to_tensor
from recipes.shapes.captions import wrong_colour, wrong_relation, wrong_shape
from recipes.shapes.rewards_corruptions import corrupt

MOST = 3
"""The most objects in a picture."""

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


Made = tuple[np.ndarray, list[Item], int, bool]
"""A picture, its objects, its fault, and whether it is dirty."""


def group(prompt: str, faults: int, dirty: int, rng: np.random.Generator, spoil: float) -> list[Made]:
    """Two right pictures, then wrong ones, then dirty ones of a prompt: picture, objects, fault, whether dirty.

    A share `spoil` of the wrong pictures is spoilt as well; the dirty ones show what the prompt asks for.
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
        is_dirty = place >= 2 + faults or (bool(name) and rng.random() < spoil)
        if is_dirty:
            picture = corrupt(picture, rng)
        made.append((picture, items, FAULT_NAMES.index(name) if name else RIGHT, is_dirty))
    return made


def draw(
    vae: AutoencoderKL | None,
    size: tuple[int, int, int],
    rng: np.random.Generator,
    split: str = "train",
    share: float = 0.15,
    spoil: float = 1 / 6,
) -> Batch:
    """A batch of groups.

    Args:
        vae: passes a random `share` of the pictures through it, right, wrong and dirty alike, as all generated
            pictures come out of it; a third of those have their latents disturbed and count as dirty.
        spoil: share of the wrong pictures that are dirty too.
        size: prompts, wrong and dirty pictures a prompt (beside two right ones).
    """
    number, faults, dirty = size
    texts = sample_prompts(number, split, rng, even=0.35 if split == "train" else 0.0)
    made = [entry for text in texts for entry in group(text, faults, dirty, rng, spoil)]
    pixels = to_tensor(np.stack([picture for picture, _, _, _ in made]))
    spoilt = np.asarray([is_dirty for _, _, _, is_dirty in made])
    if vae is not None:
        rows = rng.permutation(len(made))[: int(share * len(made))]
        disturbed = len(rows) // 3
        pixels[rows] = decoded(vae, pixels[rows], disturbed, rng)
        spoilt[rows[:disturbed]] = True
    shape = (number, 2 + faults + dirty)
    wrong = torch.tensor([fault for _, _, fault, _ in made]).view(shape)
    return Batch(
        texts, pixels, wrong, torch.from_numpy(spoilt).view(shape), [items for _, items, _, _ in made]
    )


def decoded(vae: AutoencoderKL, pixels: Tensor, disturbed: int, rng: np.random.Generator) -> Tensor:
    """Pictures as the autoencoder gives them back, `disturbed` of them from noisy or mixed latents."""
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


__all__ = ["FAULTS", "FAULT_NAMES", "RIGHT", "Batch", "draw", "faulty", "group"]
