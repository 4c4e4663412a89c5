"""GenEval's judge on a tiny genuine Mask2Former and CLIP: boxes, masks and colours by hand, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate
from transformers import (
    AutoImageProcessor,
    CLIPModel,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from rankray.config import ConfigError
from rankray.evals import EvalSpec, geneval
from rankray.evals.detection import (
    ALIASES,
    Detector,
    Frame,
    Sighting,
    bare_mask2former,
    class_names,
    sighting,
)
from rankray.evals.geneval_judge import GenEvalJudge
from rankray.evals.loading import Part
from recipes.random_weights.judges import COCO, small_spec

NAMES = {ALIASES.get(name, name) for name in COCO}


def item(tag: str, *clauses: dict[str, Any]) -> dict[str, Any]:
    return {"tag": tag, "include": list(clauses), "prompt": "", "exclude": []}


def detector(place: Path, **changes: Any) -> Detector:
    given: dict[str, Any] = {"size": None, "classes": NAMES}
    return Detector(Part(str(place)), **{**given, **changes})


def spec(judges: Path, **options: Any) -> EvalSpec:
    row = small_spec("geneval", judges / "geneval")
    return replace(row, options={**row.options, **options})


@pytest.fixture(scope="module")
def mask2former(judges: Path) -> Detector:
    return detector(judges / "geneval" / "detector")


@pytest.fixture(scope="module")
def seen(mask2former: Detector, pictures: list[Image.Image]) -> list[dict[str, list[Sighting]]]:
    """All that the detector sees in each picture, with masks."""
    return mask2former.find(pictures, [NAMES] * len(pictures), 0.0, 4)


def by_hand(model: Any, place: Path, image: Image.Image) -> dict[str, list[tuple[float, ...]]]:
    """All boxes of one picture, class by class, from the model called alone."""
    frame = Frame.of(AutoImageProcessor.from_pretrained(place, backend="pil"))
    assert frame is not None
    pixels, (high, wide) = frame.pixels([image], "cpu")
    with torch.no_grad():
        out = model(pixel_values=pixels)
    scores = out.class_queries_logits[0].softmax(-1)[:, :-1]
    found: dict[str, list[tuple[float, ...]]] = {}
    ranked = sorted(
        ((float(s), q, c) for q, row in enumerate(scores) for c, s in enumerate(row)), reverse=True
    )
    for score, query, label in ranked[: scores.shape[0]]:
        logits = interpolate(
            out.masks_queries_logits[0, query][None, None], pixels.shape[-2:], mode="bilinear"
        )
        logits = interpolate(logits[..., :high, :wide], image.size[::-1], mode="bilinear")[0, 0].numpy()
        ys, xs = np.where(logits > 0)
        if len(xs):
            quality = (1 / (1 + np.exp(-logits[ys, xs]))).mean()
            name = ALIASES.get(COCO[label], COCO[label])
            box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, score * quality)
            found.setdefault(name, []).append(tuple(float(edge) for edge in box))
    return found


def test_boxes_are_those_of_the_model_alone(
    judges: Path, pictures: list[Image.Image], seen: list[dict[str, list[Sighting]]]
) -> None:
    place = judges / "geneval" / "detector"
    model = bare_mask2former().from_pretrained(place).eval()
    assert len({name for found in seen for name in found}) > 3
    for picture, found in list(zip(pictures, seen, strict=True))[:3]:
        expected = by_hand(model, place, picture)
        assert set(found) == set(expected)
        for name, boxes in expected.items():
            np.testing.assert_allclose([one.box for one in found[name]], boxes, atol=1e-4)
            for one in found[name]:
                assert one.mask is not None
                ys, xs = np.where(one.mask)
                assert one.mask.shape == picture.size[::-1]
                assert one.box[:4] == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_a_picture_is_shown_as_by_the_authors_framework() -> None:
    """6 x 4, to 3 pixels on the shorter side: by 3/4 to 4.5, rounded to 5, x 3.

    Places of the five in the six columns are 0.1, 1.3, 2.5, 3.7, 4.9: between them, and no wider.
    """
    columns = np.array([0, 100, 0, 0, 200, 0], np.uint8)
    picture = Image.fromarray(np.tile(columns[None, :, None], (4, 1, 3)))
    frame = Frame(3, 100, (0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    pixels, inner = frame.pixels([picture, picture], "cpu")
    assert (tuple(pixels.shape), inner) == ((2, 3, 32, 32), (3, 5))
    levels = torch.tensor([10.0, 70.0, 0.0, 140.0, 20.0])
    for channel, std in enumerate((0.25, 0.5, 1.0)):
        due = ((levels / 255 - 0.5) / std).expand(3, 5)
        torch.testing.assert_close(pixels[1, channel, :3, :5], due)
    assert not pixels[:, :, 3:].any()
    assert not pixels[:, :, :, 5:].any()
    # The longer side decides where it would be too long: 1333 / 2000 of 2000 x 1000.
    assert Frame(800, 1333, (0,) * 3, (1,) * 3).pixels([Image.new("RGB", (2000, 1000))], "cpu")[1] == (
        667,
        1333,
    )


def test_only_what_is_asked_is_found_and_masks_only_of_the_sure(
    mask2former: Detector, pictures: list[Image.Image], seen: list[dict[str, list[Sighting]]]
) -> None:
    names = [set(list(found)[:1]) for found in seen]
    again = mask2former.find(pictures, names, 2.0, 4)
    expected = [
        {name: [replace(one, mask=None) for one in found[name]] for name in some}
        for found, some in zip(seen, names, strict=True)
    ]
    assert again == expected


def test_a_mask_and_its_box_by_hand() -> None:
    logits = torch.full((4, 6), -1.0)
    logits[1:3, 2:5] = 0.0
    logits[1, 2:4] = torch.tensor([0.0, 2.0])  # 0 is no part of a mask
    logits[2, 4] = 1.0
    found = sighting(logits, 0.5, 0.1)
    mean = (1 / (1 + np.exp(-2.0)) + 1 / (1 + np.exp(-1.0))) / 2
    assert found is not None
    assert found.box == pytest.approx((3, 1, 5, 3, 0.5 * mean))
    assert found.mask is not None
    assert np.argwhere(found.mask).tolist() == [[1, 3], [2, 4]]
    unsure = sighting(logits, 0.5, 0.9)
    assert unsure is not None
    assert unsure.mask is None
    assert sighting(torch.full((4, 6), -1.0), 0.5, 0.1) is None


@pytest.fixture(scope="module")
def items(seen: list[dict[str, list[Sighting]]]) -> dict[str, Any]:
    """A prompt for each picture, half of them about what its most confident box shows, with a colour."""
    made = {}
    for n, found in enumerate(seen):
        name = max(found, key=lambda one: max(box.box[4] for box in found[one]))
        clause = {"class": name if n % 2 else "zebra", "count": 1, "color": geneval.COLORS[n]}
        also = {"class": name, "count": 1, "color": geneval.COLORS[n + 1]}
        made[f"prompt {n}"] = item("colors", clause, also)
    return made


@pytest.fixture(scope="module")
def judge(judges: Path, items: dict[str, Any]) -> GenEvalJudge:
    """One for which every box counts."""
    return GenEvalJudge(spec=spec(judges, confidence=0.0), items=items, device="cpu")


def test_a_verdict_does_not_depend_on_neighbours(
    judge: GenEvalJudge, items: dict[str, Any], pictures: list[Image.Image]
) -> None:
    prompts = list(items)
    whole = judge.judge(pictures, prompts)
    assert any(one.detail["colors"] for one in whole)
    assert [judge.judge([a], [b])[0] for a, b in zip(pictures, prompts, strict=True)] == whole
    assert judge.judge(pictures[::-1], prompts[::-1])[::-1] == whole
    assert judge.judge([], []) == []


def test_a_smaller_batch_reaches_every_model(
    judges: Path, items: dict[str, Any], pictures: list[Image.Image]
) -> None:
    judge = GenEvalJudge(spec=spec(judges, confidence=0.0), items=items, device="cpu")
    whole = judge.judge(pictures, list(items))
    widths: set[int] = set()
    hook = lambda module, arguments, options: widths.add(len(options["pixel_values"]))  # noqa: E731
    judge.detector.model.register_forward_pre_hook(hook, with_kwargs=True)
    judge.clip.model.vision_model.register_forward_pre_hook(hook, with_kwargs=True)
    judge.batch_size = 1
    again = judge.judge(pictures, list(items))
    assert widths == {1}
    assert [one.score for one in again] == [one.score for one in whole]


def test_colours_are_the_likeliest_by_hand(
    judges: Path,
    judge: GenEvalJudge,
    items: dict[str, Any],
    pictures: list[Image.Image],
    seen: list[dict[str, list[Sighting]]],
) -> None:
    prompts = list(items)
    model = CLIPModel.from_pretrained(judges / "geneval" / "clip").eval()
    checked = 0
    for n, judgement in enumerate(judge.judge(pictures, prompts)):
        picture, boxes = pictures[n], {name: [one.box for one in some] for name, some in seen[n].items()}
        for name, colors in judgement.detail["colors"].items():
            top = seen[n][name][geneval.kept(boxes[name], "colors", judge.thresholds)[0]]
            grey = np.full((*picture.size[::-1], 3), 0x99, np.uint8)
            grey[top.mask] = np.asarray(picture)[top.mask]
            x0, y0, x1, y1 = (int(edge) for edge in top.box[:4])
            pixels = judge.clip.preprocess(Image.fromarray(grey[y0:y1, x0:x1]))[None]
            likeness = []
            for color in geneval.COLORS:
                ids, mask = judge.clip.tokens(
                    [
                        f"a photo of a {color} {name}",
                        f"a photo of a {color}-colored {name}",
                        f"a photo of a {color} object",
                    ]
                )
                with torch.no_grad():
                    out = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
                text = out.text_embeds.mean(0)
                likeness.append(float(text @ out.image_embeds[0] / text.norm()))
            assert colors == [geneval.COLORS[int(np.argmax(likeness))]]
            checked += 1
        right, reason = geneval.verdict(
            items[prompts[n]], boxes, judgement.detail["colors"], judge.thresholds
        )
        assert (judgement.score, judgement.detail["reason"]) == (float(right), reason)
    assert checked > 3


def test_the_background_is_grey_and_the_crop_the_box(judge: GenEvalJudge, judges: Path) -> None:
    image = Image.new("RGB", (8, 6), (10, 20, 30))
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:6] = True
    mask[2, 3] = False
    seen = Sighting((3.0, 2.0, 6.0, 4.0, 0.9), mask)
    assert np.asarray(judge.cut(image, seen)).tolist() == [
        [[153, 153, 153], [10, 20, 30], [10, 20, 30]],
        [[10, 20, 30]] * 3,
    ]
    assert judge.cut(image, replace(seen, mask=None)).getcolors() == [(6, (10, 20, 30))]
    whole = GenEvalJudge(spec=spec(judges, crop=False, background="original"), items={}, device="cpu")
    assert whole.cut(image, seen).getcolors() == [(48, (10, 20, 30))]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_sees_about_the_same(
    dtype: str, judges: Path, pictures: list[Image.Image], seen: list[dict[str, list[Sighting]]]
) -> None:
    part = Part(str(judges / "geneval" / "detector"), dtype=dtype)
    half = Detector(part, None, NAMES).find(pictures[:2], [NAMES] * 2, 0.0, 4)
    sums = [
        sum(one.box[4] for found in both for some in found.values() for one in some)
        for both in (seen[:2], half)
    ]
    assert sums[1] == pytest.approx(sums[0], rel=0.1)
    assert sums[1] != sums[0]


def test_keys_of_earlier_versions_change_nothing(
    judges: Path, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    """Published weights have tables that Swin's window decides, and lack a norm that no backbone applies."""
    shutil.copytree(judges / "geneval" / "detector", tmp_path / "old")
    file = tmp_path / "old" / "model.safetensors"
    weights = load_file(file)
    norms = [key for key in weights if ".swin.layernorm." in key]
    tables = [key for key in weights if key.endswith(".relative_position_bias_table")]
    assert (len(norms), len(tables)) == (2, 4)

    def sees(changed: dict[str, torch.Tensor]) -> list[Any]:
        save_file(changed, file, metadata={"format": "pt"})
        found = detector(tmp_path / "old").find(pictures, [NAMES] * len(pictures), 0.3, 4)
        return [{name: [one.box for one in some] for name, some in one.items()} for one in found]

    as_now = sees(weights)
    assert any(as_now)
    assert sees({**weights, **{key: torch.full_like(weights[key], 7.0) for key in norms}}) == as_now
    old = {key: value for key, value in weights.items() if key not in norms}
    old |= {key.replace("bias_table", "index"): torch.zeros(16, 16, dtype=torch.int64) for key in tables}
    assert sees(old) == as_now
    strange = {**old, "model.pixel_level_module.encoder.strange": torch.zeros(1)}
    with pytest.raises(ConfigError, match="1 unexpected keys, such as model"):
        sees(strange)
    lacking = {key: value for key, value in old.items() if not key.endswith("embeddings.norm.bias")}
    with pytest.raises(ConfigError, match=r"1 missing keys, such as .*embeddings\.norm\.bias"):
        sees(lacking)


def test_a_detector_without_masks(tmp_path: Path, pictures: list[Image.Image]) -> None:
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=[64, 64],
        patch_size=16, num_detection_tokens=12, id2label=dict(enumerate(COCO)),
    )  # fmt: skip
    model = YolosForObjectDetection(config).eval()
    model.class_labels_classifier.layers[-1].weight.data.mul_(30.0)
    model.save_pretrained(tmp_path)
    YolosImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    got = detector(tmp_path).find(pictures, [NAMES] * len(pictures), 0.0, 4)
    assert sum(len(some) for seen in got for some in seen.values()) > len(pictures)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for picture, seen in zip(pictures, got, strict=True):
        with torch.no_grad():
            out = model(**processor(images=picture, return_tensors="pt"))
        size = torch.tensor([picture.size[::-1]])
        raw = processor.post_process_object_detection(out, threshold=0.0, target_sizes=size)[0]
        expected: dict[str, list[list[float]]] = {}
        for score, label, box in zip(raw["scores"], raw["labels"], raw["boxes"], strict=True):
            edges = np.clip(box.numpy(), 0, [*picture.size, *picture.size])
            name = ALIASES.get(COCO[int(label)], COCO[int(label)])
            expected.setdefault(name, []).append([*edges.tolist(), float(score)])
        assert set(seen) == set(expected)
        for name, some in seen.items():
            np.testing.assert_allclose([one.box for one in some], expected[name], atol=1e-3)
            assert all(one.mask is None for one in some)


def test_names_are_geneval_s() -> None:
    names = class_names({"0": "TVMonitor", "1": "mouse", "2": "remote", "3": "N/A", "4": "sofa"})
    assert names == {0: "tv", 1: "computer mouse", 2: "tv remote", 3: "n/a", 4: "couch"}
    assert len(NAMES) == 80


def test_what_cannot_be_used_is_refused(
    judge: GenEvalJudge, judges: Path, pictures: list[Image.Image], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="has no class quokka; it has 80"):
        GenEvalJudge(
            spec=spec(judges), items={"a": item("colors", {"class": "quokka", "count": 1})}, device="cpu"
        )
    with pytest.raises(ValueError, match="GenEval asks nothing of 'a sheep'"):
        judge.judge(pictures[:1], ["a sheep"])
    with pytest.raises(ValueError, match="6 images and 1 prompts"):
        judge.judge(pictures, ["a sheep"])
    with pytest.raises(ConfigError, match="of type 'clip', no detector"):
        detector(judges / "geneval" / "clip")
    place = tmp_path / "detector"
    shutil.copytree(judges / "geneval" / "detector", place)
    weights = load_file(place / "model.safetensors")
    assert "criterion.empty_weight" in weights
    del weights["class_predictor.bias"]
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 missing keys, such as class_predictor\.bias"):
        detector(place)
