"""DPG-Bench's judge on tiny genuine models: answers through the graph to a score, by either model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rankray.config import ConfigError
from rankray.evals import dpg
from rankray.evals.dpg_judge import DpgJudge
from rankray.evals.vqa import BlipVqa
from recipes.random_weights.judges import llava, small_spec

ITEMS = {
    "a red circle above a star": {
        "item_id": "a",
        "questions": {
            "2": {"text": "Is the circle red?", "category": "attribute - color", "parents": [1]},
            "1": {"text": "Is there a circle?", "category": "entity - whole", "parents": [0]},
            "3": {"text": "a star?", "category": "entity - whole", "parents": [0]},
        },
    },
    "two squares": {
        "item_id": "b",
        "questions": {"1": {"text": "two squares?", "category": "other - count", "parents": []}},
    },
}


def test_a_score_is_made_of_the_model_s_answers(judges: Path, pictures: list[Image.Image]) -> None:
    judge = DpgJudge(spec=small_spec("dpg", judges / "dpg"), items=ITEMS, device="cpu")
    prompts = [list(ITEMS)[n % 2] for n in range(6)]
    whole = judge.judge(pictures, prompts)
    for picture, prompt, judgement in zip(pictures, prompts, whole, strict=True):
        asked = ITEMS[prompt]["questions"]
        said = judge.vqa.says_yes([picture], [[question["text"] for question in asked.values()]], 4)[0]
        assert judgement.detail == {"answers": dict(zip(asked, said, strict=True))}
        answers = {int(number): yes for number, yes in judgement.detail["answers"].items()}
        assert judgement.score == dpg.score(dpg.dependency(ITEMS[prompt]), answers)
        assert judge.judge([picture], [prompt]) == [judgement]
    with pytest.raises(ValueError, match="DPG-Bench asks nothing of 'three squares'"):
        judge.judge(pictures[:1], ["three squares"])


def test_a_smaller_batch_reaches_the_model(judges: Path, pictures: list[Image.Image]) -> None:
    judge = DpgJudge(spec=small_spec("dpg", judges / "dpg"), items=ITEMS, device="cpu")
    widths: set[int] = set()
    judge.vqa.model.vision_model.register_forward_hook(lambda m, args, out: widths.add(len(out[0])))
    judge.batch_size = 1
    judge.judge(pictures[:3], [next(iter(ITEMS))] * 3)
    assert widths == {1}


def test_the_order_of_questions_may_be_mended(judges: Path, pictures: list[Image.Image]) -> None:
    """Question 3 stands before its parent 2, and 2 before 1, whose fall it escapes as published."""
    row = small_spec("dpg", judges / "dpg")
    words = (
        "a red circle",
        "two stars",
        "is it blue",
        "yellow",
        "one square above a star",
        "no",
        "why",
        "left of a car",
    )
    texts = [f"{first} {second}?" for first in words for second in words]
    vqa = DpgJudge(spec=row, items={}, device="cpu").vqa
    assert isinstance(vqa, BlipVqa)
    picture = pictures[0]
    middle = float(np.median(vqa.probabilities([picture], [texts], 4)[0]))
    vqa.model.text_decoder.cls.predictions.bias.data[vqa.yes] += math.log(1 / middle - 1)
    answers = vqa.says_yes([picture], [texts], 4)[0]
    yes, no = texts[answers.index(True)], texts[answers.index(False)]
    chain = [("3", yes, [2]), ("2", yes, [1]), ("1", no, [0])]
    questions = {number: {"text": text, "category": "x", "parents": of} for number, text, of in chain}
    scores = []
    for any_order in (False, True):
        spec = replace(row, options={**row.options, "any_order": any_order})
        judge = DpgJudge(spec=spec, items={"p": {"item_id": "a", "questions": questions}}, device="cpu")
        judge.vqa = vqa  # which now says yes to half of the questions
        scores.append(judge.judge([picture], ["p"])[0].score)
    assert scores == [pytest.approx(1 / 3), 0.0]


def test_a_chat_model_may_answer(judges: Path, pictures: list[Image.Image], tmp_path: Path) -> None:
    torch.manual_seed(0)
    llava(tmp_path)
    row = small_spec("dpg", judges / "dpg")
    chat = replace(row, models={"vqa": str(tmp_path)}, options={**row.options, "vqa": "chat"})
    judge = DpgJudge(spec=chat, items=ITEMS, device="cpu")
    got = judge.judge(pictures[:2], list(ITEMS))
    assert [set(one.detail["answers"]) for one in got] == [{"1", "2", "3"}, {"1"}]
    with pytest.raises(ConfigError, match="option vqa = 'mplug' is none of blip, chat"):
        DpgJudge(spec=replace(row, options={**row.options, "vqa": "mplug"}), items={}, device="cpu")
