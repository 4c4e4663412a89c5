"""Before and after: two models' pictures of held-out prompts from the same seeds, and the paired difference.

Pictures and scores are made by Syn-Pic itself, so this resumes, distributes and reports as it does. On prompts of the
shapes world the exact checker is a metric beside the rewards: it alone knows the truth, and no reward has seen it. It
costs 0.7 ms a picture on the driver.
"""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from rankray import store
from rankray.comparison import compare

CHECKER = "checker"


def metrics_of(path: str) -> tuple[list[str], dict[str, npt.NDArray[np.float64]]]:
    """Prompt ids in order, and each metric's values [P, S] of the pictures in a finished dataset of one model."""
    dataset = store.read(path)
    names = [reward["name"] for reward in dataset.info["rewards"]]
    rows = sorted(dataset.rows(images=True), key=lambda row: row["prompt_id"])
    scores = np.array([[c["scores"] for c in row["candidates"]] for row in rows], np.float64)
    found = {name: scores[..., n] for n, name in enumerate(names)}
    if all(_is_shapes(row["prompt"]) for row in rows):
        found[CHECKER] = np.array([[_passes(c, row["prompt"]) for c in row["candidates"]] for row in rows])
    return [row["prompt_id"] for row in rows], found


def _is_shapes(prompt: str) -> bool:
    from rankray.shapes.prompts import parse

    try:
        parse(prompt)
    except ValueError:
        return False
    return True


def _passes(candidate: dict[str, Any], prompt: str) -> float:
    """1 where the picture shows the prompt, NaN where there is none."""
    from PIL import Image

    from rankray.shapes import check

    if candidate["image"] is None:
        return float("nan")
    with Image.open(io.BytesIO(store.image_bytes(candidate["image"]))) as picture:
        return float(check(np.asarray(picture.convert("RGB")), prompt))


def difference(before: str, after: str) -> dict[str, Any]:
    """The paired difference of every metric between two finished datasets of the same prompts and seeds.

    Raises:
        ValueError: their prompts differ.
    """
    ids, first = metrics_of(before)
    others, second = metrics_of(after)
    if ids != others:
        raise ValueError(f"{before} and {after} hold different prompts")
    return {name: asdict(compare(first[name], second[name])) for name in first if name in second}


def table(found: dict[str, Any]) -> str:
    """The difference as a Markdown table; the checker's figures are shares and stand in points."""
    lines = [
        "| metric | before | after | gain | 95 % interval | wins : losses |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        scale, unit = (100.0, " %") if name == CHECKER else (1.0, "")
        digits = 1 if name == CHECKER else 4
        before, after, gain, low, high = (
            f"{scale * row[key]:+.{digits}f}"
            if key in ("gain", "low", "high")
            else f"{scale * row[key]:.{digits}f}"
            for key in ("before", "after", "gain", "low", "high")
        )
        label = f"{name}{unit}"
        lines.append(
            f"| {label} | {before} | {after} | {gain} | {low} to {high} | {row['wins']} : {row['losses']} |"
        )
    return "\n".join(lines)
