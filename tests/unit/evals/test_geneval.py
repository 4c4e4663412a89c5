"""GenEval's verdicts on hand-made detections, each worked out from the published rules."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankray.evals import geneval


def box(x: float, y: float, score: float = 0.95, size: float = 20.0) -> tuple[float, ...]:
    """A square around (x, y)."""
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2, score)


def single(name: str) -> dict[str, Any]:
    return {
        "tag": "single_object",
        "include": [{"class": name, "count": 1}],
        "prompt": f"a photo of a {name}",
    }


def counting(name: str, count: int) -> dict[str, Any]:
    return {
        "tag": "counting",
        "include": [{"class": name, "count": count}],
        "exclude": [{"class": name, "count": count + 1}],
        "prompt": "a photo",
    }


def two(first: str, second: str) -> dict[str, Any]:
    return {
        "tag": "two_object",
        "include": [{"class": n, "count": 1} for n in (first, second)],
        "prompt": "a photo",
    }


def colored(name: str, color: str, count: int = 1) -> dict[str, Any]:
    return {
        "tag": "colors",
        "include": [{"class": name, "count": count, "color": color}],
        "prompt": "a photo",
    }


def both_colored(first: str, color: str, second: str, other: str) -> dict[str, Any]:
    clauses = [
        {"class": first, "count": 1, "color": color},
        {"class": second, "count": 1, "color": other},
    ]
    return {"tag": "color_attr", "include": clauses, "prompt": "a photo"}


def placed(name: str, relation: str, of: str) -> dict[str, Any]:
    clauses = [{"class": of, "count": 1}, {"class": name, "count": 1, "position": [relation, 0]}]
    return {"tag": "position", "include": clauses, "prompt": "a photo"}


FAR = [box(10, 50), box(90, 50)]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], bool, str]] = {
    "there": (single("tree"), {"tree": [box(5, 5)]}, {}, True, ""),
    "nothing detected": (single("tree"), {}, {}, False, "expected tree>=1, found 0"),
    "another class": (single("tree"), {"bush": [box(5, 5)]}, {}, False, "expected tree>=1, found 0"),
    "no boxes of it": (single("tree"), {"tree": []}, {}, False, "expected tree>=1, found 0"),
    "at the threshold": (single("tree"), {"tree": [box(5, 5, 0.3)]}, {}, False, "expected tree>=1, found 0"),
    "just above it": (single("tree"), {"tree": [box(5, 5, 0.301)]}, {}, True, ""),
    "more than asked": (single("tree"), {"tree": FAR}, {}, True, ""),
    "both": (two("tree", "rock"), {"tree": [box(5, 5)], "rock": [box(9, 9)]}, {}, True, ""),
    "one of two": (two("tree", "rock"), {"tree": FAR}, {}, False, "expected rock>=1, found 0"),
    "none of two": (
        two("tree", "rock"),
        {},
        {},
        False,
        "expected tree>=1, found 0\nexpected rock>=1, found 0",
    ),
    "the same class twice is one clause twice": (two("tree", "tree"), {"tree": [box(5, 5)]}, {}, True, ""),
    "two of two": (counting("tree", 2), {"tree": FAR}, {}, True, ""),
    "one too few": (counting("tree", 2), {"tree": FAR[:1]}, {}, False, "expected tree>=2, found 1"),
    "one too many": (
        counting("tree", 2),
        {"tree": [*FAR, box(50, 9)]},
        {},
        False,
        "expected tree<3, found 3",
    ),
    "a weak third does not count": (counting("tree", 2), {"tree": [*FAR, box(50, 9, 0.9)]}, {}, True, ""),
    "counting needs more than 0.9": (
        counting("tree", 1),
        {"tree": [box(5, 5, 0.6)]},
        {},
        False,
        "expected tree>=1, found 0",
    ),
    "double detections are two objects": (
        counting("tree", 1),
        {"tree": [box(5, 5, 0.99), box(5, 5, 0.98)]},
        {},
        False,
        "expected tree<2, found 2",
    ),
    "no more than sixteen of a class": (
        counting("tree", 16),
        {"tree": [box(9 * n, 5) for n in range(20)]},
        {},
        True,
        "",
    ),
    "the colour": (colored("cup", "red"), {"cup": [box(5, 5)]}, {"cup": ["red"]}, True, ""),
    "another colour": (
        colored("cup", "red"),
        {"cup": [box(5, 5)]},
        {"cup": ["blue"]},
        False,
        "expected red cup>=1, found 0 red; and 1 blue",
    ),
    "only the most confident one's colour": (
        colored("cup", "red"),
        {"cup": [box(5, 5, 0.5), box(50, 5, 0.8)]},
        {"cup": ["blue", "red"]},
        False,
        "expected red cup>=1, found 0 red; and 1 blue",
    ),
    "colours of boxes beyond the count are not looked at": (
        colored("cup", "red"),
        {"cup": [box(5, 5, 0.8), box(50, 5, 0.5)]},
        {"cup": ["red", "blue"]},
        True,
        "",
    ),
    "each of two has the colour": (
        colored("cup", "red", 2),
        {"cup": FAR},
        {"cup": ["red", "orange"]},
        False,
        "expected red cup>=2, found 1 red; and 1 red, 1 orange",
    ),
    "coloured, but absent": (
        colored("cup", "red"),
        {},
        {},
        False,
        "expected cup>=1, found 0",
    ),
    "attributes bound": (
        both_colored("cup", "red", "tree", "blue"),
        {"cup": [box(5, 5)], "tree": [box(60, 5)]},
        {"cup": ["red"], "tree": ["blue"]},
        True,
        "",
    ),
    "attributes swapped": (
        both_colored("cup", "red", "tree", "blue"),
        {"cup": [box(5, 5)], "tree": [box(60, 5)]},
        {"cup": ["blue"], "tree": ["red"]},
        False,
        "expected red cup>=1, found 0 red; and 1 blue\nexpected blue tree>=1, found 0 blue; and 1 red",
    ),
    "left": (placed("cup", "left of", "tree"), {"cup": FAR[:1], "tree": FAR[1:]}, {}, True, ""),
    "left, asked for right": (
        placed("cup", "right of", "tree"),
        {"cup": FAR[:1], "tree": FAR[1:]},
        {},
        False,
        "expected cup right of target, found left of target",
    ),
    "above, with y downwards": (
        placed("cup", "above", "tree"),
        {"cup": [box(50, 10)], "tree": [box(50, 90)]},
        {},
        True,
        "",
    ),
    "below": (
        placed("cup", "below", "tree"),
        {"cup": [box(50, 90)], "tree": [box(50, 10)]},
        {},
        True,
        "",
    ),
    # offset (-40, -40), sizes 20 + 20: 36 are left on each axis, cosine 36 / 56.57 = 0.64 on both.
    "both left and above": (
        placed("cup", "above", "tree"),
        {"cup": [box(10, 10)], "tree": [box(50, 50)]},
        {},
        True,
        "",
    ),
    # offset (-40, -20): 36 and 16 left; cosines 0.80 and 0.36, so left alone.
    "left and a little above is left": (
        placed("cup", "above", "tree"),
        {"cup": [box(10, 30)], "tree": [box(50, 50)]},
        {},
        False,
        "expected cup above target, found left of target",
    ),
    # offset (-4, 0): a tenth of 20 + 20 is 4, nothing is left.
    "too near": (
        placed("cup", "left of", "tree"),
        {"cup": [box(46, 50)], "tree": [box(50, 50)]},
        {},
        False,
        "expected cup left of target, found neither side of target",
    ),
    "the same place": (
        placed("cup", "left of", "tree"),
        {"cup": [box(50, 50)], "tree": [box(50, 50)]},
        {},
        False,
        "expected cup left of target, found neither side of target",
    ),
    # offset (-8, 0): 4 of 8 left, cosine 0.5, which does not exceed one half.
    "half of the offset left": (
        placed("cup", "left of", "tree"),
        {"cup": [box(42, 50)], "tree": [box(50, 50)]},
        {},
        False,
        "expected cup left of target, found neither side of target",
    ),
    "nothing to be left of": (
        placed("cup", "left of", "tree"),
        {"cup": FAR},
        {},
        False,
        "expected tree>=1, found 0\nno target for cup to be left of",
    ),
    "nothing to be placed": (
        placed("cup", "left of", "tree"),
        {"tree": FAR},
        {},
        False,
        "expected cup>=1, found 0",
    ),
    "only the most confident ones are placed": (
        placed("cup", "left of", "tree"),
        {"cup": [box(90, 50, 0.5), box(10, 50, 0.9)], "tree": [box(50, 50, 0.9), box(0, 50, 0.4)]},
        {},
        True,
        "",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_verdict(name: str) -> None:
    metadata, detections, colors, right, reason = CASES[name]
    assert geneval.verdict(metadata, detections, colors) == (right, reason)


def test_of_equal_boxes_the_later_is_the_first() -> None:
    assert geneval.kept([box(0, 0, 0.5), box(1, 1, 0.7), box(2, 2, 0.5)], "position") == [1, 2, 0]


def test_overlapping_boxes_are_one_where_asked() -> None:
    """Boxes of 20 pixels a side, the edges included: 21 x 21 each; two pixels apart they share 19 x 21 of 483."""
    boxes = [box(10, 10, 0.9), box(12, 10, 0.8), box(60, 10, 0.7)]
    assert geneval.overlap(boxes[0], boxes[1]) == pytest.approx(19 * 21 / (23 * 21))
    assert geneval.kept(boxes, "position", geneval.Thresholds(max_overlap=0.8)) == [0, 2]
    assert geneval.kept(boxes, "position", geneval.Thresholds(max_overlap=0.9)) == [0, 1, 2]
    assert geneval.overlap((5, 5, 4, 4), (9, 9, 8, 8)) == 0.0


def test_a_box_without_a_colour_has_none() -> None:
    told = "expected red cup>=1, found 0 red; and no other"
    for colors in ({}, {"cup": []}):
        assert geneval.verdict(colored("cup", "red"), {"cup": [box(5, 5)]}, colors) == (False, told)


def test_a_position_without_an_earlier_object_is_an_error() -> None:
    clause = {"class": "cup", "count": 1, "position": ["left of", 3]}
    with pytest.raises(ValueError, match="points at no earlier object"):
        geneval.verdict({"tag": "position", "include": [clause]}, {"cup": [box(5, 5)]}, {})


@given(
    st.lists(st.floats(0.5, 60.0), min_size=4, max_size=4),
    st.tuples(st.floats(-200, 200), st.floats(-200, 200)),
)
def test_relations_turn_round_with_the_objects(sizes: list[float], offset: tuple[float, float]) -> None:
    first = (0.0, 0.0, sizes[0], sizes[1])
    second = (offset[0], offset[1], offset[0] + sizes[2], offset[1] + sizes[3])
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    there = geneval.relations(first, second)
    assert geneval.relations(second, first) == {opposite[name] for name in there}
    assert len(there & {"left of", "right of"}) <= 1
    assert len(there & {"above", "below"}) <= 1


def test_metadata_is_read_and_its_faults_named() -> None:
    good = placed("cup", "left of", "tree")
    assert geneval.read([json.dumps(good), "", json.dumps(counting("cup", 2))]) == [good, counting("cup", 2)]
    faults = {
        "line 1 is not JSON": "{",
        "line 1: no 'prompt'": "{}",
        "line 1: no .prompt., or a blank one": json.dumps({**good, "prompt": " "}),
        "tag 'shapes' is none of single_object": json.dumps({**good, "tag": "shapes"}),
        "'exclude' is no list": json.dumps({**good, "exclude": 2}),
        "'include' is no list": json.dumps({**good, "include": []}),
        "clause 0 has no 'class' and 'count'": json.dumps({**good, "include": [{"class": "cup"}]}),
        "colour 'mauve' is none of red": json.dumps(colored("cup", "mauve")),
        "is no .relation, earlier object.": json.dumps(placed("cup", "beside", "tree")),
        "clause 1 is 'cup', no object": json.dumps({**good, "include": [*good["include"][:1], "cup"]}),
        "position 'left' is no": json.dumps(
            {**good, "include": [{**good["include"][0], "position": "left"}]}
        ),
    }
    for message, line in faults.items():
        with pytest.raises(ValueError, match=message):
            geneval.read([line])
