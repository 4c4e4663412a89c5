"""The checker: right on rendered pictures of every category, strict on others, and on damaged ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankray.shapes import CATEGORIES, category, check
from rankray.shapes.checker import components, objects
from rankray.shapes.prompts import COLOURS, parse, world
from rankray.shapes.renderer import BACKGROUND, Item, paint, render

RED, BLUE = COLOURS["red"], COLOURS["blue"]


def entails(one, two):
    """Whether every picture of prompt `one` shows prompt `two`, order and unnamed colours considered."""
    first, second = parse(one), parse(two)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", None: None}
    readings = [(first.groups, first.relation), (first.groups[::-1], opposite[first.relation])]
    return any(
        len(groups) == len(second.groups)
        and (second.relation in (None, relation))
        and all(
            (a.count, a.shape) == (b.count, b.shape) and b.colour in (None, a.colour)
            for a, b in zip(groups, second.groups, strict=True)
        )
        for groups, relation in readings
    )


@pytest.mark.parametrize("name", CATEGORIES)
def test_right_on_rendered_pictures_and_strict_on_pictures_of_other_prompts(name):
    rng = np.random.default_rng(7)
    every = list(world())
    own = [text for text in every if category(text) == name]
    right = false = pairs = 0
    for _ in range(400):
        text = own[rng.integers(len(own))]
        found = render(text, rng)
        right += check(found, text)
        for pool in (own, every):
            other = pool[rng.integers(len(pool))]
            if not entails(text, other) and parse(other).groups[0].colour is not None:
                pairs += 1
                false += check(found, other)
    assert right >= 0.99 * 400
    assert false <= 0.03 * max(pairs, 1)


def square(x, y, fill, radius=8.0):
    return Item("square", x, y, radius, tuple(map(float, fill)))


def test_counts_extra_objects_and_relations_by_hand():
    left, right = square(16.0, 32.0, RED), Item("circle", 46.0, 34.0, 8.0, tuple(map(float, BLUE)))
    assert check(paint([left]), "a red square")
    assert not check(paint([left]), "a blue square")
    assert not check(paint([left, right]), "a red square")
    assert [(o.shape, o.colour) for o in objects(paint([left, right]))] == [
        ("square", "red"),
        ("circle", "blue"),
    ]
    assert check(paint([left, right]), "a red square and a blue circle")
    texts = [f"a red square {r} a blue circle" for r in ("left of", "right of", "above", "below")]
    known = [text for text in texts if text in world()]
    assert known
    assert [check(paint([left, right]), text) for text in known] == ["left of" in text for text in known]


def test_centres_and_areas_are_found():
    (found,) = objects(paint([square(20.0, 30.0, RED, 6.0)]))
    assert (found.x, found.y, found.area) == (20.0, 30.0, 144)


def test_touching_objects_mixed_fills_and_blobs_fail():
    touching = paint([square(20.0, 32.0, RED), square(36.0, 32.0, BLUE)])
    assert objects(touching) is None
    mixed = paint([square(32.0, 32.0, RED)])
    mixed[32:40, 24:40] = BLUE
    assert objects(mixed) is None
    bar = paint([])
    bar[30:34, 10:50] = RED
    assert objects(bar) is None
    assert objects(paint([])) == []


def test_dirt_and_noise_are_forgiven_and_another_size_is_refused():
    picture = paint([square(32.0, 32.0, RED)])
    picture[4:6, 4:6] = RED
    noisy = np.clip(picture + np.random.default_rng(0).normal(0.0, 8.0, picture.shape), 0, 255).astype(
        np.uint8
    )
    assert check(noisy, "a red square")
    with pytest.raises(ValueError, match=r"uint8\[64, 64, 3\]"):
        check(np.zeros((32, 32, 3), np.uint8), "a red square")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.05, 0.9))
def test_components_agree_with_flood_fill(seed, share):
    mask = np.random.default_rng(seed).random((12, 9)) < share
    labels = components(mask)
    assert ((labels > 0) == mask).all()
    seen = np.zeros_like(mask)
    used = set()
    for start in zip(*np.nonzero(mask), strict=True):
        if seen[start]:
            continue
        stack, region = [start], []
        seen[start] = True
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                near = (y + dy, x + dx)
                if 0 <= near[0] < 12 and 0 <= near[1] < 9 and mask[near] and not seen[near]:
                    seen[near] = True
                    stack.append(near)
        (label,) = {labels[place] for place in region}
        assert label not in used
        used.add(label)


def test_background_is_not_an_object_at_any_brightness_jitter():
    assert objects(np.full((64, 64, 3), BACKGROUND, np.uint8) - np.uint8(12)) == []
