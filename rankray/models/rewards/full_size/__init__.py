"""The rewards' models at full size, without a weight: what they are made of, and what a score costs.

Several rewards stand on one model: HPSv2, PickScore and MPS on CLIP-H. BLIP, beneath ImageReward, is counted in the
classes of transformers, which come to within 1 % of the package's own file.
"""

from __future__ import annotations

from rankray.models.components import Component, read

MODELS = ("clip-h", "clip-l", "clip-b", "mps", "imagereward", "clip-flant5-xxl", "clip-flant5-xl", "qalign")


def components(model: str) -> list[Component]:
    """The parts of one of `MODELS`.

    Raises:
        KeyError: it is none of them.
    """
    if model not in MODELS:
        raise KeyError(f"{model}; there are {', '.join(MODELS)}")
    return read("rankray.models.rewards.full_size", model)
