"""Detectors of a fixed list of classes: Mask2Former with its masks, or any object detector of transformers.

`find` gives raw boxes before any threshold, as GenEval's rules want them. Mask2Former's are made as the authors'
framework makes them: the 100 best pairs of query and class, each with the box of its mask at the picture's own size and
the class's probability times the mask's mean. Its pictures are prepared as there, too (`Frame`): transformers' port
antialiases where OpenCV's bilinear does not, and stretches sides to multiples of 32 that the framework pads.

Masks cost a byte a pixel (a megabyte each at 1024 x 1024), so they are kept only of boxes above a threshold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from rankray.config import ConfigError
from rankray.evals.loading import Part, load, load_image_processor, load_model
from rankray.models.rewards.clip import batches

SEGMENTERS = ("mask2former", "maskformer")
DIVISOR = 32
"""Of the sides of what Mask2Former sees."""
MASKS_AT_ONCE = 8
"""Masks that are scaled up together: 64 MB of float32 logits at 1408 x 1408."""

ALIASES = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "tv monitor": "tv",
    "television": "tv",
    "mouse": "computer mouse",
    "keyboard": "computer keyboard",
    "remote": "tv remote",
    "remote control": "tv remote",
    "hair dryer": "hair drier",
    "doughnut": "donut",
    "cellphone": "cell phone",
}
"""What detectors of COCO call a class, and what GenEval calls it."""


@dataclass(frozen=True)
class Sighting:
    """One object seen.

    Attributes:
        box: (x0, y0, x1, y1, score) in pixels of the picture.
        mask: bool[height, width], None where there is none or the score is low.
    """

    box: tuple[float, float, float, float, float]
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Frame:
    """How mmdetection 2 shows Mask2Former pictures of one size.

    Attributes:
        shorter, longer: most pixels of a picture's shorter and longer side.
        mean, std: per channel, of values in 0 .. 1.
    """

    shorter: int
    longer: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, processor: Any) -> Frame | None:
        """Of an image processor; None where it keeps no aspect ratio."""
        size = processor.size
        shorter, longer = (
            size.get(edge) if isinstance(size, Mapping) else getattr(size, edge, None)
            for edge in ("shortest_edge", "longest_edge")
        )
        if shorter is None or longer is None:
            return None
        return cls(shorter, longer, tuple(processor.image_mean), tuple(processor.image_std))

    def pixels(self, images: Sequence[Image.Image], device: str) -> tuple[Tensor, tuple[int, int]]:
        """float32[n, 3, high, wide] with sides of multiples of 32, and (height, width) of the picture in it.

        Scaled bilinearly without antialiasing and rounded to bytes, as OpenCV does; padding is 0 after normalising.
        """
        width, height = images[0].size
        scale = min(self.longer / max(width, height), self.shorter / min(width, height))
        inner = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        stacked = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images])).to(
            device
        )
        values = stacked.permute(0, 3, 1, 2).float()
        scaled = interpolate(values, size=inner, mode="bilinear", align_corners=False).round() / 255
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (self.mean, self.std))
        high, wide = (-edge % DIVISOR for edge in inner)
        return pad((scaled - mean) / std, (0, wide, 0, high)), inner


class Detector:
    """A detector on one device.

    Args:
        part: which kind it is, its configuration says.
        size: the image processor's `size` in place of the checkpoint's own, None for that.
        classes: names that it has to know, by GenEval's words.

    Raises:
        ConfigError: it is no detector, its weights are missing, no safetensors or do not fit, or it lacks a class.
    """

    def __init__(self, part: Part, size: Mapping[str, int] | None, classes: Iterable[str]) -> None:
        from transformers import AutoConfig

        self.config = load(AutoConfig, part)
        kind = _class_of(self.config, part.source)
        self.has_masks = self.config.model_type in SEGMENTERS
        self.names = class_names(self.config.id2label)
        unknown = sorted(set(classes) - set(self.names.values()))
        if unknown:
            raise ConfigError(
                f"the detector '{part.source}' has no class {', '.join(unknown)}; it has {len(self.names)}: name "
                "one that was trained on COCO's 80"
            )
        self.model = load_model(kind, part)
        changes = {} if size is None else {"size": dict(size)}
        self.processor = load_image_processor(part, **changes)
        self.frame = Frame.of(self.processor) if self.has_masks else None
        self.device, self.dtype = part.device, getattr(torch, part.dtype)

    def find(
        self, images: Sequence[Image.Image], names: Sequence[Iterable[str]], least: float, batch_size: int
    ) -> list[dict[str, list[Sighting]]]:
        """Of each picture, all boxes of the classes asked of it, in the model's order; a class unseen has none.

        Args:
            images: RGB, of any size.
            names: classes of each picture.
            least: masks are kept of boxes whose score is above it.
            batch_size: pictures of one size computed at once; smaller remainders are padded to it.
        """
        found: list[dict[str, list[Sighting]]] = [{} for _ in images]
        by_size: dict[tuple[int, int], list[int]] = {}
        for place, image in enumerate(images):
            by_size.setdefault(image.size, []).append(place)
        # Pictures of one size: a processor pads others to the largest, and what is seen would depend on neighbours.
        for places in by_size.values():
            for batch, count in batches(places, batch_size):
                shown = [images[place] for place in batch]
                asked = [set(names[place]) for place in batch]
                for place, seen in zip(batch[:count], self._see(shown, asked, least), strict=False):
                    found[place] = seen
        return found

    @torch.inference_mode()
    def _see(
        self, images: list[Image.Image], names: list[set[str]], least: float
    ) -> list[dict[str, list[Sighting]]]:
        if self.frame is not None:
            pixels, inner = self.frame.pixels(images, self.device)
            inputs = {"pixel_values": pixels}
        else:
            inputs = self.processor(images=images, return_tensors="pt").to(self.device)
            inner = tuple(inputs["pixel_values"].shape[-2:])
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        outputs = self.model(**inputs)
        width, height = images[0].size
        if self.has_masks:
            shapes = (tuple(inputs["pixel_values"].shape[-2:]), inner, (height, width))
            return [
                self._segments(classes.float(), masks, shapes, wanted, least)
                for classes, masks, wanted in zip(
                    outputs.class_queries_logits, outputs.masks_queries_logits, names, strict=True
                )
            ]
        sizes = torch.tensor([[height, width]] * len(images), device=self.device)
        raw = self.processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        return [self._boxes(one, wanted, (height, width)) for one, wanted in zip(raw, names, strict=True)]

    def _segments(
        self,
        classes: Tensor,
        masks: Tensor,
        shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, int]],
        wanted: set[str],
        least: float,
    ) -> dict[str, list[Sighting]]:
        """Objects of one picture: classes [queries, classes + 1], masks [queries, h, w], logits.

        `shapes`: (height, width) of what the model saw, of the picture in it, and of the picture itself.
        """
        seen_as, inner, size = shapes
        probabilities = classes.softmax(-1)[:, :-1]
        scores, pairs = probabilities.flatten().topk(len(classes))
        queries, labels = pairs // probabilities.shape[1], pairs % probabilities.shape[1]
        places = [n for n, label in enumerate(labels.tolist()) if self.names.get(label) in wanted]
        found: dict[str, list[Sighting]] = {}
        for start in range(0, len(places), MASKS_AT_ONCE):
            some = places[start : start + MASKS_AT_ONCE]
            logits = masks[queries[some]].float()[None]
            logits = interpolate(logits, size=seen_as, mode="bilinear", align_corners=False)
            logits = logits[..., : inner[0], : inner[1]]
            logits = interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]
            for place, layer in zip(some, logits, strict=True):
                seen = sighting(layer, float(scores[place]), least)
                if seen is not None:
                    found.setdefault(self.names[int(labels[place])], []).append(seen)
        return found

    def _boxes(
        self, raw: Mapping[str, Tensor], wanted: set[str], size: tuple[int, int]
    ) -> dict[str, list[Sighting]]:
        height, width = size
        found: dict[str, list[Sighting]] = {}
        for score, label, edges in zip(
            raw["scores"].tolist(), raw["labels"].tolist(), raw["boxes"].float().tolist(), strict=True
        ):
            name = self.names.get(label)
            if name in wanted and name is not None:
                x0, x1 = (min(max(edges[n], 0.0), float(width)) for n in (0, 2))
                y0, y1 = (min(max(edges[n], 0.0), float(height)) for n in (1, 3))
                found.setdefault(name, []).append(Sighting((x0, y0, x1, y1, score)))
        return found


def sighting(logits: Tensor, probability: float, least: float) -> Sighting | None:
    """The object of one mask, [height, width] logits; None for an empty one, which has no box.

    The score is the class's probability times the mean of the mask's own over the pixels that it holds.
    """
    mask = logits > 0
    if not bool(mask.any()):
        return None
    score = probability * float(logits.sigmoid()[mask].mean())
    columns, rows = mask.any(0).nonzero().flatten(), mask.any(1).nonzero().flatten()
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1), score)
    return Sighting(box, mask.cpu().numpy() if score > least else None)


def class_names(labels: Mapping[Any, str]) -> dict[int, str]:
    """GenEval's name of each class of a detector's `id2label`."""
    known = {int(number): label.strip().lower() for number, label in labels.items()}
    return {number: ALIASES.get(label, label) for number, label in known.items()}


def _class_of(config: Any, source: str) -> Any:
    from transformers import AutoModelForObjectDetection
    from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

    if config.model_type == "mask2former":
        return bare_mask2former()
    if config.model_type == "maskformer":
        from transformers import MaskFormerForInstanceSegmentation

        return MaskFormerForInstanceSegmentation
    if config.model_type in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
        return AutoModelForObjectDetection
    raise ConfigError(
        f"'{source}' is of type '{config.model_type}', no detector; give one of {', '.join(SEGMENTERS)} or of "
        "transformers' object detectors (detr, rt_detr, yolos ...)"
    )


def bare_mask2former() -> Any:
    """Mask2FormerForUniversalSegmentation without its loss, whose constructor asks for scipy; all else is inherited."""
    from torch import nn
    from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerModel
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerPreTrainedModel

    class Mask2Former(Mask2FormerForUniversalSegmentation):  # type: ignore[misc]
        # Published weights are of 2022: they hold the loss's class weights and tables that follow from the size of
        # Swin's window, and have no norm over Swin's last layer, of which a backbone makes no use.
        _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
            r"^criterion\.empty_weight$",
            r"\.attention\.self\.relative_position_index$",
        ]
        _keys_to_ignore_on_load_missing: ClassVar[list[str]] = [r"\.encoder\.swin\.layernorm\.(weight|bias)$"]

        def __init__(self, config: Any) -> None:
            Mask2FormerPreTrainedModel.__init__(self, config)
            self.model = Mask2FormerModel(config)
            self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
            self.post_init()

    # What `save_pretrained` writes into a configuration.
    Mask2Former.__name__ = Mask2FormerForUniversalSegmentation.__name__
    return Mask2Former
