"""T2I-CompBench's formulas on hand-made boxes and probabilities."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankray.evals import compbench, phrases


def box(x: float, y: float, confidence: float = 0.8, size: float = 100.0) -> tuple[float, ...]:
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2, confidence)


# Two confidences of 0.8 give 0.4; a fitting place adds 0.5.
CASES: dict[str, tuple[str, tuple[float, ...] | None, tuple[float, ...] | None, float]] = {
    "left": ("on the left of", box(100, 200), box(300, 200), 0.9),
    "left, asked for right": ("on the right of", box(100, 200), box(300, 200), 0.0),
    "right": ("on the right of", box(300, 200), box(100, 200), 0.9),
    "above, with y downwards": ("on the top of", box(200, 100), box(200, 300), 0.9),
    "below": ("on the bottom of", box(200, 300), box(200, 100), 0.9),
    "more below than right": ("on the right of", box(150, 300), box(100, 100), 0.0),
    "a diagonal is no side": ("on the left of", box(100, 100), box(300, 300), 0.0),
    "the same place": ("on the left of", box(100, 100), box(100, 100), 0.0),
    # 50 of 100 pixels shared: IoU 5000 / 15000 = 1/3, so 0.1 / (1/3) = 0.3; 0.4 + 0.15 = 0.55.
    "overlapping": ("on the left of", box(100, 100), box(150, 100), 0.55),
    # 80 of 100 shared: IoU 2/3, 0.15; 0.4 + 0.075 is below one half.
    "overlapping too much": ("on the left of", box(100, 100), box(120, 100), 0.0),
    "near on one axis is near": ("next to", box(100, 100), box(900, 240), 0.9),
    # 300 and 200 apart: 150 / 300 = 0.5; 0.4 + 0.25.
    "not quite near": ("near", box(100, 100), box(400, 300), 0.65),
    # 1500 and 200 apart: 0.1; 0.4 + 0.05 is below one half.
    "far": ("on side of", box(100, 100), box(1600, 300), 0.0),
    # 150 apart is not within 150, and 150 / 150 = 1.
    "at the edge of near": ("near", box(100, 100), box(250, 250), 0.9),
    "the first is not seen": ("next to", None, box(100, 100, 1.0), 0.0),
    "the second is not seen": ("next to", box(100, 100, 1.0), None, 0.0),
    "neither is seen": ("next to", None, None, 0.0),
    "sure of both, place wrong": ("on the top of", box(100, 300, 1.0), box(100, 100, 1.0), 0.5),
    "unsure of both, place right": ("on the left of", box(100, 200, 0.1), box(300, 200, 0.1), 0.55),
    "'on top of' is no place of the published rule": ("on top of", box(200, 100), box(200, 300), 0.0),
    "boxes without area": ("on the left of", box(100, 100, 0.8, 0.0), box(300, 100, 0.8, 0.0), 0.9),
}


@pytest.mark.parametrize("name", CASES)
def test_spatial_score(name: str) -> None:
    locality, first, second, expected = CASES[name]
    assert compbench.spatial_score(locality, first, second) == pytest.approx(expected)


@pytest.mark.parametrize("locality", ["inside", None])
def test_what_is_no_locality_is_no_place(locality: str | None) -> None:
    assert compbench.spatial_score(locality, box(1, 1, 1.0), box(2, 2, 1.0)) == 0.5
    assert compbench.spatial_score(locality, box(1, 1, 0.9), box(2, 2, 1.0)) == 0.0


KINDS = {
    "The lantern glowed over a tiled floor.": "action",
    "The blue mug was on top of the oak shelf.": "spatial",
    "The old boots are near the yellow door": "spatial",
    "The grey heron stood next to the quiet pond.": "both",
}


@pytest.mark.parametrize("prompt", KINDS)
def test_what_a_complex_prompt_calls_for_by_its_words(prompt: str, tmp_path: Path) -> None:
    file = tmp_path / "complex_val.txt"
    file.write_text(prompt)
    (item,) = compbench.read_items(str(file))
    assert item.data["kind"] == KINDS[prompt]
    (tmp_path / "complex_val_spatial.txt").write_text("Another prompt.")
    (item,) = compbench.read_items(str(file))
    assert item.data["kind"] == "both", "there are lists, and it is on none"


@given(
    # Whole numbers, for which the centres' offset does not depend on the order of its sums.
    st.tuples(*[st.integers(-500, 500)] * 2),
    st.tuples(*[st.integers(-500, 500)] * 2),
    st.integers(1, 300),
    st.floats(0, 1),
)
def test_mirrored_pictures_score_alike(
    first: tuple[int, int], second: tuple[int, int], size: int, confidence: float
) -> None:
    """Left and right change places in a mirror; so do above and below where the picture is turned."""
    a, b = box(*first, confidence, size), box(*second, confidence, size)
    mirrored = [(-p[2], p[1], -p[0], p[3], p[4]) for p in (a, b)]
    turned = [(p[1], p[0], p[3], p[2], p[4]) for p in (a, b)]
    left = compbench.spatial_score("on the left of", a, b)
    assert left == pytest.approx(compbench.spatial_score("on the right of", *mirrored))
    assert left == pytest.approx(compbench.spatial_score("on the top of", *turned))
    assert left == pytest.approx(compbench.spatial_score("on the right of", b, a))
    assert left == 0.0 or 0.5 <= left <= 1.0


@pytest.mark.parametrize(
    ("name", "category"),
    {
        "non-spatial_val.txt": "non_spatial",
        "non_spatial_val.txt": "non_spatial",
        "my-nonspatial.txt": "non_spatial",
        "Non Spatial (val).txt": "non_spatial",
        "T2I-CompBench_spatial_train.txt": "spatial",
        "COLOUR_val.txt": "color",
        "2d-spatial-val.txt": "spatial",
        "3d_spatial_val.txt": None,
        "3d-spatial.txt": None,
        "numeracy_val.txt": None,
        "nonspatials.txt": None,
    }.items(),
)
def test_a_list_s_category_is_known_by_its_words(name: str, category: str | None, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text("a lantern on the left of a hedgehog\n")
    if category is None:
        with pytest.raises(ValueError, match="the file's name says no category"):
            compbench.read_items(str(file))
        return
    (item,) = compbench.read_items(str(file))
    assert item.data["category"] == category
    assert ("action" in item.data) == (category == "non_spatial")


def test_spatial_prompts_are_taken_apart() -> None:
    parsed = {
        "a lantern on the left of a hedgehog": ("lantern", "on the left of", "hedgehog"),
        "a woman on side of an old van.": ("person", "on side of", "old van"),
        "The gate next to a man": ("gate", "next to", "person"),
        "a kite near a boy": ("kite", "near", "person"),
    }
    for prompt, (first, locality, second) in parsed.items():
        assert phrases.parse_spatial(prompt) == phrases.Spatial(first, locality, second)
    with pytest.raises(ValueError, match="none of on side of"):
        phrases.parse_spatial("a lantern under a hedgehog")
    with pytest.raises(ValueError, match="between two objects"):
        phrases.parse_spatial("near a lantern")


def test_noun_phrases() -> None:
    assert phrases.noun_phrases("a teal drum and a round kettle") == ["a teal drum", "a round kettle"]
    assert phrases.noun_phrases("Wool hats, silk ties, and tin cans.") == [
        "Wool hats",
        "silk ties",
        "tin cans",
    ]
    assert phrases.noun_phrases("a sandy bandage") == ["a sandy bandage"]
    assert phrases.noun_phrases("a wool hat and the left") == ["a wool hat"]


def test_yes_is_weighed_against_no() -> None:
    assert compbench.yes_probability(math.log(0.3), math.log(0.1)) == pytest.approx(0.75)
    assert compbench.yes_probability(0.0, 0.0) == 0.5
    assert compbench.yes_probability(-1e4, 1e4) == pytest.approx(0.0)
    assert compbench.yes_probability(1e4, -1e4) == 1.0


def test_binding_is_a_product_over_eight_phrases() -> None:
    assert compbench.binding_score([0.5, 0.8]) == pytest.approx(0.4)
    assert compbench.binding_score([]) == 1.0
    assert compbench.binding_score([0.9] * 8 + [0.0]) == pytest.approx(0.9**8)
    for bad in (1.1, -0.1, math.nan):
        with pytest.raises(ValueError, match="is outside 0 to 1"):
            compbench.binding_score([bad])


def test_the_complex_mix_weighs_what_the_prompt_asks() -> None:
    assert compbench.complex_score("spatial", 0.2, 0.6, 1.0) == pytest.approx(0.4)
    assert compbench.complex_score("action", 0.2, 0.6, 1.0) == pytest.approx(0.6)
    assert compbench.complex_score("both", 0.2, 0.6, 1.0) == pytest.approx(0.6)
