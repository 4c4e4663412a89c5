"""OWLv2, a detector that takes the names of objects as words: T2I-CompBench's stand-in for UniDet.

A score is a sigmoid of similarity and no calibrated probability: the two cats of transformers' own example have 0.61
and 0.67. A picture's 2-D spatial score adds a quarter of both objects' scores and is 0 below one half, so it comes out
lower than by UniDet, and an object seen without its place fails sooner. Compare models by one detector, and not with
figures that were made by another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from rankray.evals.loading import CLIP_MEAN, CLIP_STD, Part, load, load_model
from rankray.models.loading import require_vocabulary
from rankray.models.rewards.clip import batches

Box = tuple[float, float, float, float, float]
QUERY = "a photo of a {}"


class OpenDetector:
    """OWLv2 on one device.

    Args:
        part: its weights.
        vocabulary: size that its CLIP tokenizer must have; None takes the model's.

    Raises:
        ConfigError: weights (safetensors alone) or tokenizer are missing, or not what the model needs.
    """

    def __init__(self, part: Part, vocabulary: int | None) -> None:
        from transformers import CLIPTokenizer, Owlv2ForObjectDetection

        self.tokenizer = load(CLIPTokenizer, part)
        self.model = load_model(Owlv2ForObjectDetection, part)
        text, vision = self.model.config.text_config, self.model.config.vision_config
        require_vocabulary(self.tokenizer, part.source, text.vocab_size, vocabulary or text.vocab_size)
        self.length, self.side = text.max_position_embeddings, vision.image_size
        self.device, self.dtype = part.device, getattr(torch, part.dtype)

    def best(
        self, images: Sequence[Image.Image], names: Sequence[Sequence[str]], least: float, batch_size: int
    ) -> list[dict[str, Box]]:
        """The most confident box of each name, (x0, y0, x1, y1, confidence) in pixels; none below `least`.

        A box is of the name for which its score is highest, as a detector of a fixed list has it.

        Args:
            images: RGB, of any size.
            names: what to look for in each picture, such as "old van".
            batch_size: pictures computed at once.
        """
        found: list[dict[str, Box]] = [{} for _ in images]
        by_number: dict[int, list[int]] = {}
        for place, asked in enumerate(names):
            by_number.setdefault(len(dict.fromkeys(asked)), []).append(place)
        for number, places in by_number.items():
            if number == 0:
                continue
            for batch, count in batches(places, batch_size):
                wanted = [list(dict.fromkeys(names[place])) for place in batch]
                scores, boxes = self._see([images[place] for place in batch], wanted)
                for n, place in enumerate(batch[:count]):
                    found[place] = _best(scores[n], boxes[n], wanted[n], images[place].size, least)
        return found

    @torch.inference_mode()
    def _see(self, images: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Scores [pictures, boxes, names], and boxes [pictures, boxes, 4] as (x, y, width, height), 0 to 1."""
        tokens = self.tokenizer(
            [QUERY.format(name) for asked in names for name in asked],
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        ).to(self.device)
        pixels = torch.stack([owl_pixels(image, self.side) for image in images]).to(self.device, self.dtype)
        outputs = self.model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels
        )
        return outputs.logits.float().sigmoid().cpu(), outputs.pred_boxes.float().cpu()


def _best(
    scores: Tensor, boxes: Tensor, names: Sequence[str], size: tuple[int, int], least: float
) -> dict[str, Box]:
    found: dict[str, Box] = {}
    label = scores.argmax(-1)
    for n, name in enumerate(names):
        own = torch.where(label == n, scores[:, n], torch.full_like(scores[:, n], -1.0))
        place = int(own.argmax())
        if float(own[place]) >= least:
            found[name] = (*_corners(boxes[place].tolist(), size), float(own[place]))
    return found


def _corners(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box of the padded square, in pixels of the picture and within it."""
    side, (x, y, width, height) = max(size), box
    edges = (
        (x - width / 2, size[0]),
        (y - height / 2, size[1]),
        (x + width / 2, size[0]),
        (y + height / 2, size[1]),
    )
    x0, y0, x1, y1 = (min(max(edge * side, 0.0), float(limit)) for edge, limit in edges)
    return x0, y0, x1, y1


def owl_pixels(image: Image.Image, side: int) -> Tensor:
    """A picture as OWLv2 takes it, float32[3, side, side]: padded to a square at right and bottom, resized, normalised.

    Before it is made smaller it is blurred by a Gaussian of (factor - 1) / 2 pixels, as the authors' preprocessing is.
    """
    pixels = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / 255.0)
    height, width = pixels.shape[1:]
    longest = max(height, width)
    pixels = pad(pixels, (0, longest - width, 0, longest - height))
    pixels = interpolate(
        _blurred(pixels, (longest / side - 1) / 2)[None],
        size=(side, side),
        mode="bilinear",
        align_corners=False,
    )[0]
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def _blurred(pixels: Tensor, sigma: float) -> Tensor:
    """[3, h, w] under a Gaussian of three standard deviations, mirrored at the edges; as it is for sigma 0 or less."""
    if sigma <= 0:
        return pixels
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).reshape(1, 1, -1)
    found = pad(pixels[:, None], (reach, reach, reach, reach), mode="reflect")
    found = conv2d(conv2d(found, weights[..., None, :]), weights[..., None])
    return found[:, 0]
