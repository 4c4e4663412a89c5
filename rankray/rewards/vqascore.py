"""VQAScore (Lin et al. 2024): P("Yes" | image, "Does this figure show ...?") of CLIP-FlanT5, by t2v-metrics.

The package's model takes paths and truly batches them; its `Score` object loops. Writing a picture out for it costs
3 ms against the 100 ms that 3 billion parameters take to look at it. It needs transformers 4.57 (5.x silently drops
55 tensors), so its actors run in an environment of their own: `pool.runtime_env`.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rankray.config import ConfigError
from rankray.rewards import RewardSpec
from rankray.rewards.clip import in_batches
from rankray.targets import locate

_MODULE = "t2v_metrics.models.vqascore_models.clip_t5_model"


class VqaScore:
    """The reward on one device.

    Args:
        spec: its row; option `model`, the package's name of the model.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: the package is missing, or this transformers would drop weights in silence.
    """

    def __init__(self, spec: RewardSpec, device: str) -> None:
        import transformers

        if int(transformers.__version__.split(".")[0]) >= 5:
            raise ConfigError(
                f"reward 'vqascore' needs transformers 4.57, here is {transformers.__version__}, which would drop "
                "weights in silence; run its pool in an environment with transformers==4.57.6 and t2v_metrics==1.2"
            )
        try:
            module = importlib.import_module(_MODULE)
        except ImportError as error:
            raise ConfigError(
                f"reward 'vqascore' cannot import its package ({error}); pip install --no-deps t2v_metrics==1.2"
            ) from None
        self.batch_size = spec.batch_size
        cache = str(Path(locate(spec.source))) if Path(locate(spec.source)).exists() else None
        arguments = {"model_name": spec.options["model"], "device": device}
        self.model: Any = module.CLIPT5Model(**arguments, **({"cache_dir": cache} if cache else {}))

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """float32[len(images)] in 0 .. 1, higher is better."""
        return in_batches(self._score_batch, images, prompts, self.batch_size)

    def _score_batch(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        with tempfile.TemporaryDirectory() as directory:
            paths = [f"{directory}/{i}.png" for i in range(len(images))]
            for image, path in zip(images, paths, strict=True):
                image.convert("RGB").save(path, compress_level=0)
            scores: Tensor = torch.as_tensor(self.model.forward(paths, prompts)).flatten()
        return scores
