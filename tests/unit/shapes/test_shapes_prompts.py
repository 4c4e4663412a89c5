"""The grammar: size, splits, categories, and that sentences and scenes are each other's inverse."""

import re

import pytest

from rankray.shapes import CATEGORIES, SPLITS, category, prompts
from rankray.shapes.prompts import COLOURS, SHAPES, Group, Scene, parse, sentence, world


def test_splits_are_disjoint_and_make_up_a_world_of_over_2000_prompts():
    parts = [set(prompts(split)) for split in SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(world()) == 2583
    assert [len(part) for part in parts] == [1834, 264, 485]


def test_every_category_occurs_in_training_and_among_the_held_out_prompts():
    for split in ("train", "heldout"):
        assert {category(text) for text in prompts(split)} == set(CATEGORIES)


@pytest.mark.parametrize(
    ("text", "scene", "name"),
    [
        ("a circle", Scene((Group(1, "circle"),)), "single_object"),
        ("one red star", Scene((Group(1, "star", "red"),)), "colours"),
        ("a circle and a square", Scene((Group(1, "circle"), Group(1, "square"))), "two_objects"),
        ("three squares", Scene((Group(3, "square"),)), "counting"),
        (
            "a blue square left of two green triangles",
            Scene((Group(1, "square", "blue"), Group(2, "triangle", "green")), "left of"),
            "position",
        ),
        (
            "a cyan star and a red star",
            Scene((Group(1, "star", "cyan"), Group(1, "star", "red"))),
            "colour_attribution",
        ),
    ],
)
def test_known_prompts(text, scene, name):
    written = sentence(scene)
    assert written == text.replace("one ", "a ")
    if text in world():
        assert parse(text) == scene
        assert category(text) == name


def test_every_prompt_reads_back_from_its_words():
    groups = rf"(a|one|a single|two|three) (?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)})(s?)"
    pattern = re.compile(rf"{groups}(?: (and|left of|right of|above|below) {groups})?")
    for text, (scene, _, _) in world().items():
        match = pattern.fullmatch(text)
        assert match, text
        found = [match.group(3), match.group(2)]
        assert found == [scene.groups[0].shape, scene.groups[0].colour]
        assert (match.group(5) in (None, "and")) == (scene.relation is None)
        assert 1 <= sum(group.count for group in scene.groups) <= 3


def test_unknown_split_and_foreign_prompt_say_what_is_allowed():
    with pytest.raises(ValueError, match="train, validation, heldout"):
        prompts("test")
    with pytest.raises(ValueError, match="two green triangles"):
        category("a photo of a dog")
