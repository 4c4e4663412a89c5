"""Caption noise: what makes the families of the shapes world fail in different ways, as noisy captions do real models.

A false caption is a sentence of the same grammar that misdescribes the picture in one respect. A model trained on
them draws clean pictures and follows prompts sloppily. That failure can be repaired by preference training, while an
immature model's cannot: 0.43 of false captions cost about 25 points of accuracy at no cost in cleanliness.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rankray.shapes.prompts import COLOURS, RELATIONS, SHAPES, Scene, parse, sentence

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def wrong_relation(scene: Scene, rng: np.random.Generator) -> Scene:
    """The opposite relation three times of four, else one across; scenes without one are unchanged."""
    if scene.relation is None:
        return scene
    across = [name for name in RELATIONS if name not in (scene.relation, OPPOSITE[scene.relation])]
    other = OPPOSITE[scene.relation] if rng.random() < 0.75 else across[rng.integers(2)]
    return replace(scene, relation=other)


def wrong_count(scene: Scene, rng: np.random.Generator) -> Scene:
    """One group's count one off, within 1 to 3; a lone object stays alone in half of the cases' stead."""
    at = int(rng.integers(len(scene.groups)))
    group = scene.groups[at]
    count = {1: 2, 2: 1 if rng.random() < 0.5 else 3, 3: 2}[group.count]
    groups = list(scene.groups)
    groups[at] = replace(group, count=count)
    return replace(scene, groups=tuple(groups))


def swapped_colours(scene: Scene, rng: np.random.Generator) -> Scene:
    """The two groups' colours exchanged; a single group's colour replaced by another; colourless scenes unchanged."""
    if len(scene.groups) == 2:
        first, second = scene.groups
        return replace(
            scene, groups=(replace(first, colour=second.colour), replace(second, colour=first.colour))
        )
    return wrong_colour(scene, rng)


def wrong_colour(scene: Scene, rng: np.random.Generator) -> Scene:
    """One group's colour replaced by another; colourless scenes are unchanged."""
    at = int(rng.integers(len(scene.groups)))
    group = scene.groups[at]
    if group.colour is None:
        return scene
    others = [name for name in COLOURS if name != group.colour]
    groups = list(scene.groups)
    groups[at] = replace(group, colour=others[rng.integers(len(others))])
    return replace(scene, groups=tuple(groups))


def wrong_shape(scene: Scene, rng: np.random.Generator) -> Scene:
    """One group's shape replaced by another."""
    at = int(rng.integers(len(scene.groups)))
    group = scene.groups[at]
    others = [name for name in SHAPES if name != group.shape]
    groups = list(scene.groups)
    groups[at] = replace(group, shape=others[rng.integers(len(others))])
    return replace(scene, groups=tuple(groups))


FAULTS = {
    "relation": wrong_relation,
    "count": wrong_count,
    "swapped colours": swapped_colours,
    "colour": wrong_colour,
    "shape": wrong_shape,
}
"""What can be false in a caption."""


def caption(prompt: str, noise: dict[str, float], rng: np.random.Generator) -> str:
    """The prompt, or a false description of its picture.

    Args:
        noise: names of `FAULTS` with their probabilities, applied independently of each other.
    """
    scene = parse(prompt)
    hits = [name for name, share in noise.items() if rng.random() < share]
    if not hits:
        return prompt
    for name in hits:
        scene = FAULTS[name](scene, rng)
    return sentence(scene)
