"""Caption noise: one fact is false, the rest is kept, at the asked rate."""

import numpy as np
import pytest

from rankray.shapes.prompts import Group, Scene, prompts
from recipes.shapes.captions import FAULTS, caption

SCENE = Scene((Group(1, "square", "blue"), Group(2, "triangle", "green")), "left of")


def test_no_noise_leaves_every_caption():
    rng = np.random.default_rng(0)
    assert all(caption(text, {}, rng) == text for text in prompts("train")[::50])


def test_swapped_colours_by_hand():
    swapped = FAULTS["swapped colours"](SCENE, np.random.default_rng(0))
    assert swapped == Scene((Group(1, "square", "green"), Group(2, "triangle", "blue")), "left of")


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_each_fault_changes_the_scene_and_keeps_it_in_the_grammar(name):
    rng = np.random.default_rng(1)
    for _ in range(50):
        found = FAULTS[name](SCENE, rng)
        assert found != SCENE
        assert all(1 <= group.count <= 3 for group in found.groups)
        changed = [one != two for one, two in zip(found.groups, SCENE.groups, strict=True)]
        assert sum(changed) == {"relation": 0, "swapped colours": 2}.get(name, 1)
        assert (found.relation != SCENE.relation) == (name == "relation")


def test_the_share_of_false_captions_is_the_asked_one():
    rng, text = np.random.default_rng(2), next(t for t in prompts("train") if "left of" in t)
    false = sum(caption(text, {"relation": 0.3}, rng) != text for _ in range(2000))
    assert false == pytest.approx(600, abs=70)
