"""Generators at full size, without a weight: what they are made of, how many parameters, what a picture costs.

    python -m recipes.full_size

Each file beside this one holds the configurations of a model's components, facts of its own `config.json` files, and
the parameter counts of the published checkpoints; built on the meta device they take no memory and two seconds.
"""

from __future__ import annotations

from rankray.models.components import BYTES, Component, build, read

__all__ = ["BYTES", "MODELS", "Component", "build", "components", "weights_gb"]

MODELS = (
    "sdxl",
    "sd3-medium",
    "pixart-sigma",
    "stable-cascade",
    "sd15",
    "sd3.5-medium",
    "sd3.5-large",
    "flux-schnell",
    "flux-dev",
    "sana",
)


def components(model: str) -> list[Component]:
    """The parts of a model that have weights.

    Raises:
        KeyError: it is none of `MODELS`.
    """
    if model not in MODELS:
        raise KeyError(f"{model}; there are {', '.join(MODELS)}")
    return read("rankray.models.generators.full_size", model)


def weights_gb(model: str, dtype: str) -> float:
    """Gigabytes (1e9 bytes) of all weights and buffers at one precision; activations come on top."""
    return sum(part.parameters + part.buffers for part in components(model)) * BYTES[dtype] / 1e9
