"""The shapes world as a benchmark: its items, columns and judge."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rankray import evals, shapes
from rankray.config import EvalChoice
from rankray.evals import Item
from rankray.evals.shapes import ShapesJudge, columns, read_items, reads
from rankray.models.targets import Judgement, load
from rankray.shapes.prompts import parse
from rankray.shapes.renderer import compose, paint


def test_items_are_a_splits_prompts_with_their_categories() -> None:
    items = read_items("shapes:heldout")
    assert [item.prompt for item in items] == shapes.prompts("heldout")
    assert {item.data["category"] for item in items} == set(shapes.CATEGORIES)
    with pytest.raises(ValueError, match="no split of the shapes world: shapes:train"):
        read_items("shapes:test")


def test_columns_are_categories_and_failed_pictures_are_in_none() -> None:
    items = [Item("a", {"category": "position"}), Item("b", {"category": "counting"})]
    right, wrong = Judgement(1.0, {}), Judgement(0.0, {})
    found = columns(items, {"a": [right, None], "b": [wrong, right]})
    assert list(found) == ["counting", "position"]
    assert found["position"].values == {"a": [1.0]}
    assert found["counting"].mean == 0.5


def test_the_judge_is_the_checker() -> None:
    prompt = "a red circle"
    right = Image.fromarray(paint(compose(parse(prompt), np.random.default_rng(0))))
    page = Image.new("RGB", (64, 64), (240, 240, 240))
    judge = load(evals.resolve(EvalChoice(model="shapes"), [Item(prompt, {})]), "cpu")
    assert isinstance(judge, ShapesJudge)
    found = judge.judge([right, page], [prompt, prompt])
    assert [(one.score, dict(one.detail)) for one in found] == [
        (1.0, {"objects": ["red circle"]}),
        (0.0, {"objects": []}),
    ]


def test_the_checker_reads_this_world_s_prompts_in_its_size() -> None:
    assert reads(["a red circle"], [(64, 64)])
    assert reads(["a red circle"], [])
    assert not reads(["a red circle"], [(64, 64), (1024, 1024)])
    assert not reads(["a red circle", "a cat"], [(64, 64)])
