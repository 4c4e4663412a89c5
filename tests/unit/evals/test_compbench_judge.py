"""T2I-CompBench's judge on tiny genuine BLIP, OWLv2 and CLIP: each category by hand, neighbours, places."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, Owlv2ForObjectDetection

from rankray.config import ConfigError
from rankray.evals import compbench
from rankray.evals.compbench_judge import CompBenchJudge, in_frame, judgement
from rankray.evals.loading import Part
from rankray.evals.open_detection import OpenDetector, owl_pixels
from recipes.random_weights.judges import small_spec

ITEMS: dict[str, dict[str, Any]] = {
    "a red circle and a blue star": {"category": "color", "phrases": ["a red circle", "a blue star"]},
    "a circle on the left of a star": {"category": "spatial", "spatial": ["circle", "on the left of", "star"]},
    "two stars dance": {"category": "non_spatial", "action": "two stars dance"},
    "the red circle is above the star": {
        "category": "complex", "kind": "both", "phrases": ["the red circle"], "spatial": None,
        "action": "the circle is above the star",
    },
    "the red square near a star": {
        "category": "complex", "kind": "spatial", "phrases": ["the red square", "a star"],
        "spatial": ["square", "near", "star"],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def judge(judges: Path) -> CompBenchJudge:
    return CompBenchJudge(spec=small_spec("compbench", judges / "compbench"), items=ITEMS, device="cpu")


def test_each_category_by_hand(judge: CompBenchJudge, judges: Path, pictures: list[Image.Image]) -> None:
    assert judge.vqa is not None
    assert judge.detector is not None
    got = dict(zip(ITEMS, judge.judge(pictures[:5], list(ITEMS)), strict=True))
    red, blue = judge.vqa.probabilities(pictures[:1], [["a red circle?", "a blue star?"]], 4)[0]
    assert got["a red circle and a blue star"].score == red * blue
    assert 0 < red * blue < 1
    boxes = judge.detector.best(pictures[1:2], [["circle", "star"]], 0.1, 4)[0]
    framed = {name: in_frame(box, pictures[1].size) for name, box in boxes.items()}
    assert got["a circle on the left of a star"].score == compbench.spatial_score(
        "on the left of", framed.get("circle"), framed.get("star")
    )
    assert judge.clip is not None
    model = CLIPModel.from_pretrained(judges / "compbench" / "clip").eval()
    ids, mask = judge.clip.tokens(["two stars dance"])
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, pixel_values=judge.clip.preprocess(pictures[2])[None])
    cosine = float(out.text_embeds[0] @ out.image_embeds[0])
    assert got["two stars dance"].score == pytest.approx(cosine, abs=1e-5)
    both, near = got["the red circle is above the star"], got["the red square near a star"]
    assert set(both.detail["parts"]) == {"attribute", "spatial", "action"}
    assert both.score == pytest.approx(sum(both.detail["parts"].values()) / 3, abs=1e-3)
    assert set(near.detail["parts"]) == {"attribute", "spatial"}
    assert near.score == pytest.approx(sum(near.detail["parts"].values()) / 2, abs=1e-3)


def test_a_score_does_not_depend_on_neighbours(judge: CompBenchJudge, pictures: list[Image.Image]) -> None:
    prompts = [list(ITEMS)[n % 5] for n in range(6)]
    whole = judge.judge(pictures, prompts)
    assert [judge.judge([a], [b])[0] for a, b in zip(pictures, prompts, strict=True)] == whole
    assert judge.judge(pictures[::-1], prompts[::-1])[::-1] == whole
    with pytest.raises(ValueError, match="T2I-CompBench asks nothing of 'a star'"):
        judge.judge(pictures[:1], ["a star"])


def test_objects_are_found_as_by_the_model_alone(judges: Path, pictures: list[Image.Image]) -> None:
    place = judges / "compbench" / "detector"
    detector = OpenDetector(Part(str(place)), None)
    names = [
        ["circle", "star"],
        ["star"],
        [],
        ["red square", "red square"],
        ["two", "one"],
        ["circle", "blue"],
    ]
    got = detector.best(pictures, names, 0.0, 4)
    assert got[2] == {}
    assert sum(len(found) for found in got) > 5
    model = Owlv2ForObjectDetection.from_pretrained(place).eval()
    for picture, asked, found in zip(pictures, names, got, strict=True):
        if not asked:
            continue
        unique = list(dict.fromkeys(asked))
        tokens = detector.tokenizer(
            [f"a photo of a {name}" for name in unique],
            padding="max_length",
            max_length=detector.length,
            return_tensors="pt",
        )
        with torch.no_grad():
            out = model(**tokens, pixel_values=owl_pixels(picture, 32)[None])
        scores, side = out.logits[0].sigmoid().numpy(), max(picture.size)
        for n, name in enumerate(unique):
            own = [place for place in range(len(scores)) if scores[place].argmax() == n]
            if not own:
                assert name not in found
                continue
            best = max(own, key=lambda place: scores[place][n])
            x, y, w, h = out.pred_boxes[0][best].numpy() * side
            edges = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, [*picture.size, *picture.size])
            np.testing.assert_allclose(found[name], [*edges, scores[best][n]], atol=1e-3)
    assert detector.best(pictures[:1], names[:1], 1.0, 4) == [{}]
    with pytest.raises(ConfigError, match="where 49408 are due"):
        OpenDetector(Part(str(place)), 49408)


@pytest.mark.parametrize("size", [(20, 12), (100, 60), (64, 200)])
def test_owl_pixels_are_the_processor_s(size: tuple[int, int]) -> None:
    """transformers' own, which needs torchvision; what it pads with is black."""
    pytest.importorskip("torchvision")
    from transformers import Owlv2ImageProcessor

    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
    expected = Owlv2ImageProcessor(size={"height": 32, "width": 32})(
        images=image, return_tensors="pt"
    ).pixel_values[0]
    torch.testing.assert_close(owl_pixels(image, 32), expected, atol=2e-3, rtol=0)


def test_places_are_taken_in_the_authors_picture() -> None:
    """At 1024 pixels centres 300 apart on both axes are 140 apart at 479, so near; at 512 they are 281 apart."""
    item = {"category": "spatial", "spatial": ["cup", "near", "van"]}
    boxes = {"cup": (0.0, 0.0, 100.0, 100.0, 1.0), "van": (300.0, 300.0, 400.0, 400.0, 1.0)}
    assert in_frame(boxes["van"], (1024, 1024))[:2] == pytest.approx((140.33, 140.33), abs=0.01)
    assert in_frame(boxes["van"], (400, 800))[2] == pytest.approx(400 * 480 / 800)
    assert judgement(item, (1024, 1024), {}, boxes, None).score == 1.0
    assert judgement(item, (512, 512), {}, boxes, None).score == pytest.approx(0.5 + 75 / (300 * 479 / 512))
    assert judgement(item, (512, 512), {}, {"cup": boxes["cup"]}, None).score == 0.0


def test_only_the_models_that_are_called_for_are_loaded(judges: Path) -> None:
    name = "two stars dance"
    judge = CompBenchJudge(
        spec=small_spec("compbench", judges / "compbench"), items={name: ITEMS[name]}, device="cpu"
    )
    assert (judge.vqa, judge.detector) == (None, None)
    assert judge.clip is not None


def test_no_score_is_no_number() -> None:
    item = {"category": "non_spatial", "action": "a"}
    found = judgement(item, (8, 8), {}, {}, math.nan)
    assert math.isnan(found.score), "which is that picture's error, and no other's"
    assert found.detail == {}


def test_a_smaller_batch_reaches_every_model(judges: Path, pictures: list[Image.Image]) -> None:
    judge = CompBenchJudge(spec=small_spec("compbench", judges / "compbench"), items=ITEMS, device="cpu")
    whole = judge.judge(pictures[:5], list(ITEMS))
    widths: dict[str, set[int]] = {"vqa": set(), "detector": set(), "clip": set()}
    models = {name: getattr(judge, name).model for name in widths}
    seen_by = {
        "vqa": models["vqa"].vision_model,
        "detector": models["detector"].owlv2.vision_model,
        "clip": models["clip"].vision_model,
    }
    for name, module in seen_by.items():
        module.register_forward_hook(lambda m, args, out, name=name: widths[name].add(len(out[0])))
    judge.batch_size = judge.batch_size // 2
    halved = judge.batch_size
    again = judge.judge(pictures[:5], list(ITEMS))
    assert widths == {name: {halved} for name in widths}
    assert [one.score for one in again] == pytest.approx([one.score for one in whole], abs=1e-5)
