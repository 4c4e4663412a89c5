"""T2I-CompBench's judge: BLIP-VQA for attributes, OWLv2 for places, CLIP ViT-B/32 for the rest.

Models asked, and how they differ from the authors':

    attributes    BLIP-VQA as published, in transformers' port, whose pictures have 384 pixels a side where the authors'
                  have 480, and whose weights were fitted to that
    2-D spatial   OWLv2 in place of UniDet (`open_detection.py` states the effect). Distances are taken in a picture as
                  the authors resize it, 479 pixels on the shorter side and 480 at most, whatever the picture's own size
    non-spatial   CLIP's cosine, as published
    complex       the mean of those of the three that a prompt calls for, as published
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from rankray.evals import EvalSpec, compbench
from rankray.evals.loading import asked_of, load_clip, part_of
from rankray.evals.open_detection import Box, OpenDetector
from rankray.evals.vqa import BlipVqa
from rankray.models.rewards.clip import batches
from rankray.models.targets import Judgement

TOKENS = 35
"""Of a question, as published."""
SHORTER, LONGER = 479.0, 480.0


class CompBenchJudge:
    """The judge on one device.

    Args:
        spec: its row; parts `vqa`, `detector` and `clip`; options `least_confidence` of a box that counts,
            `vocabulary` of BLIP, `clip_vocabulary` of CLIP and OWLv2.
        items: category, phrases and objects by prompt, as `compbench.read_items` gives them.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: weights do not fit.
    """

    def __init__(self, spec: EvalSpec, items: Mapping[str, Any], device: str) -> None:
        self.items, self.batch_size, options = items, spec.batch_size, spec.options
        self.least = float(options["least_confidence"])
        # Only what the items call for: a run of the colour prompts alone needs one of three models.
        asked = [set(data) for data in items.values()]
        self.vqa = self.detector = self.clip = None
        parts = {name: part_of(spec, name, device) for name in spec.models}
        if any("phrases" in keys for keys in asked):
            self.vqa = BlipVqa(parts["vqa"], options["vocabulary"], TOKENS)
        if any(data.get("spatial") for data in items.values()):
            self.detector = OpenDetector(parts["detector"], options["clip_vocabulary"])
        if any("action" in keys for keys in asked):
            self.clip = load_clip(parts["clip"], options["clip_vocabulary"])

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Judgement]:
        """A picture's score by its prompt's category; the detail has what it was made from.

        Raises:
            ValueError: images and prompts differ in number, or T2I-CompBench asks nothing of a prompt.
        """
        asked = asked_of(self.items, images, prompts, "T2I-CompBench")
        phrases = self._attributes(images, asked)
        boxes = self._boxes(images, asked)
        cosines = self._cosines(images, asked)
        seen = zip(asked, images, phrases, boxes, cosines, strict=True)
        return [judgement(item, image.size, said, found, cosine) for item, image, said, found, cosine in seen]

    def _attributes(
        self, images: Sequence[Image.Image], asked: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, float]]:
        """P(yes) of each phrase of each picture's prompt, the first eight."""
        phrases = [list(item.get("phrases", ()))[: compbench.PHRASES] for item in asked]
        if self.vqa is None:
            return [{} for _ in images]
        questions = [[f"{phrase}?" for phrase in some] for some in phrases]
        found = self.vqa.probabilities(images, questions, self.batch_size)
        return [dict(zip(some, values, strict=True)) for some, values in zip(phrases, found, strict=True)]

    def _boxes(
        self, images: Sequence[Image.Image], asked: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Box]]:
        if self.detector is None:
            return [{} for _ in images]
        names = [[item["spatial"][0], item["spatial"][2]] if item.get("spatial") else [] for item in asked]
        return self.detector.best(images, names, self.least, self.batch_size)

    def _cosines(
        self, images: Sequence[Image.Image], asked: Sequence[Mapping[str, Any]]
    ) -> list[float | None]:
        found: list[float | None] = [None] * len(images)
        if self.clip is None:
            return found
        places = [place for place, item in enumerate(asked) if "action" in item]
        for batch, count in batches(places, self.batch_size):
            with torch.inference_mode():
                seen = self.clip.image_features([images[place] for place in batch])
                said = self.clip.text_features([asked[place]["action"] for place in batch])
            for place, cosine in zip(batch[:count], (seen * said).sum(-1).tolist(), strict=False):
                found[place] = cosine
        return found


def judgement(
    item: Mapping[str, Any],
    size: tuple[int, int],
    phrases: Mapping[str, float],
    boxes: Mapping[str, Box],
    cosine: float | None,
) -> Judgement:
    """A picture's score from what was seen.

    Args:
        item: what is asked, as `compbench.read_items` gives it.
        size: (width, height) of the picture, in pixels.
        phrases: P(yes) by phrase.
        boxes: the best box by object's name, in pixels of the picture.
        cosine: of CLIP, where it was asked.
    """
    parts: dict[str, float] = {}
    detail: dict[str, Any] = {}
    if "phrases" in item:
        # A phrase that stands twice is asked twice, as published.
        values = [phrases[phrase] for phrase in item["phrases"][: compbench.PHRASES]]
        parts["attribute"] = compbench.binding_score(values)
        detail["phrases"] = {phrase: round(value, 4) for phrase, value in phrases.items()}
    if "spatial" in item:
        parts["spatial"] = 0.0
        if item["spatial"] is not None:
            first, locality, second = item["spatial"]
            framed = {name: in_frame(box, size) for name, box in boxes.items()}
            parts["spatial"] = compbench.spatial_score(locality, framed.get(first), framed.get(second))
            detail["found"] = {
                name: [*(round(edge, 1) for edge in box[:4]), round(box[4], 4)] for name, box in boxes.items()
            }
    if cosine is not None:
        parts["action"] = cosine
    if item["category"] == "complex":
        three = (parts.get(part, 0.0) for part in ("attribute", "spatial", "action"))
        score = compbench.complex_score(item["kind"], *three)
        detail["parts"] = {part: round(value, 4) for part, value in parts.items()}
    else:
        (score,) = parts.values()
    if not math.isfinite(score):
        detail = {}  # a score that is no number is that picture's error, and JSON has none
    return Judgement(score, detail)


def in_frame(box: Box, size: tuple[int, int]) -> Box:
    """A box in pixels of the picture as the authors resize it."""
    scale = min(SHORTER / min(size), LONGER / max(size))
    x0, y0, x1, y1 = (edge * scale for edge in box[:4])
    return (x0, y0, x1, y1, box[4])
