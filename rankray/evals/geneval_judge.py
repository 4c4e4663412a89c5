"""GenEval's judge: objects by a detector of COCO's classes, colours by CLIP on the objects alone.

Asked by default are the authors' models: Mask2Former (Swin-S, COCO instances; transformers' port of it) and OpenAI's
CLIP ViT-L/14. A colour is CLIP's choice among ten for the object cut out by its box, with all that its mask leaves out
grey; the text of a colour is the mean of three templates. `geneval.verdict` does the rest. The authors' framework
resizes pictures to 800 pixels on the shorter side, at most 1,333 on the longer, which the option `size` repeats.

A detector without masks (DETR and its kin) leaves the background in the crop, as the authors' code does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rankray.evals import EvalSpec, geneval
from rankray.evals.detection import Detector, Sighting
from rankray.evals.loading import asked_of, load_clip, part_of
from rankray.models.rewards.clip import batches, normalised
from rankray.models.targets import Judgement

TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
ORIGINAL = "original"
"""Option `background` that keeps what is around an object."""


class GenEvalJudge:
    """The judge on one device.

    Args:
        spec: its row; parts `detector` and `clip`; options are the published thresholds (`geneval.Thresholds`), `size`
            of the detector's pictures ({} for its checkpoint's own), `background` (a colour, or "original"), `crop`,
            and `vocabulary` of CLIP.
        items: GenEval's metadata by prompt.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: weights do not fit, or the detector lacks a class that an item names.
    """

    def __init__(self, spec: EvalSpec, items: Mapping[str, Any], device: str) -> None:
        options = dict(spec.options)
        size, vocabulary = options.pop("size"), options.pop("vocabulary")
        self.background, self.crop = str(options.pop("background")), bool(options.pop("crop"))
        self.thresholds = geneval.Thresholds(**options)
        self.items, self.batch_size = items, spec.batch_size
        classes = {name for item in items.values() for name in classes_of(item)}
        self.detector = Detector(part_of(spec, "detector", device), size or None, classes)
        self.clip = load_clip(part_of(spec, "clip", device), vocabulary)
        self._classifiers: dict[str, Tensor] = {}

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Judgement]:
        """1 for a right picture, 0 for a wrong one; the detail has the reason, and boxes and colours that counted.

        Raises:
            ValueError: images and prompts differ in number, or GenEval asks nothing of a prompt.
        """
        asked = asked_of(self.items, images, prompts, "GenEval")
        least = min(self.thresholds.confidence, self.thresholds.counting_confidence)
        seen = self.detector.find(images, [classes_of(item) for item in asked], least, self.batch_size)
        colors = self._colors(images, asked, seen)
        return [self._verdict(*one) for one in zip(asked, seen, colors, strict=True)]

    def _verdict(
        self, item: Mapping[str, Any], seen: Mapping[str, Sequence[Sighting]], colors: Mapping[str, list[str]]
    ) -> Judgement:
        boxes = {name: [one.box for one in found] for name, found in seen.items()}
        right, reason = geneval.verdict(item, boxes, colors, self.thresholds)
        counted = {
            name: [
                [*(round(edge, 1) for edge in found[n][:4]), round(found[n][4], 4)]
                for n in geneval.kept(found, item["tag"], self.thresholds)
            ]
            for name, found in boxes.items()
        }
        found = {name: some for name, some in counted.items() if some}
        return Judgement(float(right), {"reason": reason, "found": found, "colors": dict(colors)})

    def _colors(
        self,
        images: Sequence[Image.Image],
        asked: Sequence[Mapping[str, Any]],
        seen: Sequence[Mapping[str, Sequence[Sighting]]],
    ) -> list[dict[str, list[str]]]:
        """Of each picture, the colour of each box that a colour is asked of, by class, most confident first."""
        wanted: list[tuple[int, str, Image.Image]] = []
        for place, (image, item, found) in enumerate(zip(images, asked, seen, strict=True)):
            for name, count in _colored(item).items():
                sightings = found.get(name, ())
                kept = geneval.kept([one.box for one in sightings], item["tag"], self.thresholds)[:count]
                wanted += [(place, name, self.cut(image, sightings[n])) for n in kept]
        colors: list[dict[str, list[str]]] = [{} for _ in images]
        for batch, count in batches(wanted, self.batch_size):
            with torch.inference_mode():
                features = self.clip.image_features([crop for _, _, crop in batch])
            for (place, name, _), row in zip(batch[:count], features, strict=False):
                color = geneval.COLORS[int((self._classifier(name) @ row).argmax())]
                colors[place].setdefault(name, []).append(color)
        return colors

    def cut(self, image: Image.Image, seen: Sighting) -> Image.Image:
        """An object cut out by its box, the background outside its mask in one colour."""
        if seen.mask is not None and self.background != ORIGINAL:
            blank = Image.new("RGB", image.size, self.background)
            image = Image.composite(image, blank, Image.fromarray(seen.mask.astype(np.uint8) * 255))
        if not self.crop:
            return image
        x0, y0, x1, y1 = (round(edge) for edge in seen.box[:4])
        return image.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))

    def _classifier(self, name: str) -> Tensor:
        """Text features of the ten colours of a class, [10, projection], each the mean of three templates."""
        if name not in self._classifiers:
            with torch.inference_mode():
                texts = [
                    [text.format(color=color, name=name) for text in TEMPLATES] for color in geneval.COLORS
                ]
                rows = [self.clip.text_features(of_color).mean(0) for of_color in texts]
                self._classifiers[name] = normalised(torch.stack(rows))
        return self._classifiers[name]


def classes_of(item: Mapping[str, Any]) -> set[str]:
    """Names of the classes that a metadata's clauses are about."""
    return {clause["class"] for clause in (*item["include"], *(item.get("exclude") or ()))}


def _colored(item: Mapping[str, Any]) -> dict[str, int]:
    """Of each class that a colour is asked of, how many boxes."""
    found: dict[str, int] = {}
    for clause in item["include"]:
        if "color" in clause:
            found[clause["class"]] = max(clause["count"], found.get(clause["class"], 0))
    return found
