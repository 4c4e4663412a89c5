"""The shapes world: small pictures whose truth can be checked exactly, and four trained pipelines that draw them.

Everything here needs numpy alone; torch is imported by the training modules. The world is a bench and a demo,
not a benchmark of real models: 64 x 64 pixels and 30 words.
"""

from __future__ import annotations

from pathlib import Path

from rankray.shapes.checker import check
from rankray.shapes.prompts import CATEGORIES, SPLITS, category, prompts

PIPELINES = ("shapes-sdxl", "shapes-sd3", "shapes-pixart", "shapes-cascade")


def pipeline_dir(name: str) -> Path:
    """The directory of a trained model that ships with the package, as `from_pretrained` takes it.

    Raises:
        ValueError: no model of that name ships with the package.
    """
    weights = Path(__file__).parent / "weights"
    shipped = sorted(entry.name for entry in weights.iterdir() if entry.is_dir()) if weights.is_dir() else []
    if name not in shipped:
        raise ValueError(
            f"no shapes model called {name!r} ships here: there are {', '.join(shipped) or 'none'}"
        )
    return weights / name


__all__ = ["CATEGORIES", "PIPELINES", "SPLITS", "category", "check", "pipeline_dir", "prompts"]
