"""The renderer: hand-computed coverage, determinism, and layouts that keep their distance."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankray.shapes.prompts import COLOURS, SHAPES, parse, prompts
from rankray.shapes.renderer import BACKGROUND, GAP, JITTER, SIZE, Item, compose, coverage, paint, render

AREAS = {
    "circle": math.pi,
    "square": 4.0,
    "triangle": 2.0,
    "star": 5 * 1.05 * 0.52 * math.sin(math.pi / 5),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_covered_area_is_the_shape_s(shape):
    radius = 20.0
    assert coverage(shape, 32.0, 32.0, radius).sum() == pytest.approx(AREAS[shape] * radius**2, rel=0.02)


def test_a_square_on_pixel_borders_is_exact():
    picture = paint([Item("square", 20.0, 30.0, 4.0, (10.0, 20.0, 30.0))])
    assert picture.shape == (SIZE, SIZE, 3)
    assert picture.dtype == np.uint8
    inside = (picture == (10, 20, 30)).all(axis=2)
    assert inside[26:34, 16:24].all()
    assert inside.sum() == 64
    assert (picture[~inside] == BACKGROUND).all()


def test_an_edge_inside_a_pixel_is_blended():
    picture = paint([Item("square", 20.0, 30.0, 4.25, (0.0, 0.0, 0.0))])
    assert picture[30, 24].tolist() == [round(0.75 * value) for value in BACKGROUND]


def test_the_same_seed_gives_the_same_picture_and_another_seed_another():
    text = "a blue square left of two green triangles"
    text = text if text in prompts("train") else prompts("train")[100]
    first, again, other = (render(text, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(prompts("train")), st.integers(0, 2**32))
def test_layouts_are_inside_apart_and_of_the_asked_kind(text, seed):
    scene = parse(text)
    items = compose(scene, np.random.default_rng(seed))
    assert [item.shape for item in items] == [g.shape for g in scene.groups for _ in range(g.count)]
    for item in items:
        assert item.radius <= min(item.x, item.y)
        assert max(item.x, item.y) <= SIZE - item.radius
        assert min(np.abs(np.subtract(rgb, item.fill)).max() for rgb in COLOURS.values()) <= JITTER
    for one, two in itertools.combinations(items, 2):
        assert max(abs(one.x - two.x), abs(one.y - two.y)) >= one.radius + two.radius + GAP
