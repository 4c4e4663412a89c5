"""What finished datasets say of their models' pictures, and how two models compare: same prompts, same seeds.

Pictures and scores are made by Syn-Pic itself, so an evaluation resumes, distributes and reports as it does. On prompts
of the shapes world the exact checker is a metric beside the rewards: it alone knows the truth, and no reward has seen
it. It costs 0.7 ms a picture on the driver.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from rankray import store
from rankray.config.ablate import CHECKER
from rankray.evals import shapes
from rankray.models.targets import Judgement
from rankray.stats import compare
from rankray.words import MISSING, markdown

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pictures:
    """P prompts in the order of their ids, S pictures each, without the pictures.

    Attributes:
        seeds: int64[P, S].
        scores: by scorer, float64[P, S]; NaN where it or the generator failed.
        details: what judges said of each picture, by judge; {} where none saw it.
    """

    path: str
    ids: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: npt.NDArray[np.int64]
    scores: Mapping[str, Floats]
    details: tuple[tuple[Mapping[str, Any], ...], ...]

    def judgements(self, name: str) -> dict[str, list[Judgement | None]]:
        """By prompt, what the scorer called `name` says of each picture; None where it or the generator failed."""
        found: dict[str, list[Judgement | None]] = {}
        for prompt, scores, details in zip(self.prompts, self.scores[name], self.details, strict=True):
            found[prompt] = [
                None if np.isnan(score) else Judgement(float(score), detail.get(name, {}))
                for score, detail in zip(scores, details, strict=True)
            ]
        return found


def read(path: str) -> Pictures:
    """The finished dataset at `path`, all its candidates beside each other; its pictures are not read.

    Raises:
        DatasetError: there is none, or it is not finished.
    """
    return _read(path)[0]


def _read(path: str) -> tuple[Pictures, list[str]]:
    """The dataset, and the generator of each of a prompt's candidates, which every row has in the same order."""
    dataset = store.read(path)
    leaves = [f"candidates.list.element.{name}" for name in ("generator", "seed", "scores")]
    rows = []
    for file in dataset.files:
        parquet = pq.ParquetFile(file, filesystem=dataset.fs)
        more = ["details"] if "details" in parquet.schema_arrow.names else []
        rows += parquet.read(["prompt_id", "prompt", *leaves, *more]).to_pylist()
    rows.sort(key=lambda row: str(row["prompt_id"]))
    scores = np.array([[c["scores"] for c in row["candidates"]] for row in rows], np.float64)
    names = [reward["name"] for reward in dataset.info["rewards"]]
    nothing: dict[str, Any] = {}
    pictures = Pictures(
        path=dataset.path,
        ids=tuple(row["prompt_id"] for row in rows),
        prompts=tuple(row["prompt"] for row in rows),
        seeds=np.array([[c["seed"] for c in row["candidates"]] for row in rows], np.int64),
        scores={name: scores[..., n] for n, name in enumerate(names)},
        details=tuple(
            tuple(
                json.loads(text) if text else nothing
                for text in row.get("details") or [None] * len(row["candidates"])
            )
            for row in rows
        ),
    )
    return pictures, [candidate["generator"] for candidate in rows[0]["candidates"]] if rows else []


def by_model(path: str) -> dict[str, Pictures]:
    """The finished dataset at `path` by generator; "checker" is a scorer beside the rewards where prompts and pictures
    are those of the shapes world.

    Raises:
        DatasetError: there is none, or it is not finished.
    """
    found, drawn_by = _read(path)
    scores = dict(found.scores)
    if shapes.reads(found.prompts, _sizes(path)):
        rows = sorted(store.read(path).rows(images=True), key=lambda row: str(row["prompt_id"]))
        verdicts = [
            [_checked(candidate["image"], row["prompt"]) for candidate in row["candidates"]] for row in rows
        ]
        scores[CHECKER] = np.array(verdicts)
    models = {}
    for model in dict.fromkeys(drawn_by):
        own = [place for place, name in enumerate(drawn_by) if name == model]
        models[model] = replace(
            found,
            seeds=found.seeds[:, own],
            scores={name: values[:, own] for name, values in scores.items()},
            details=tuple(tuple(row[place] for place in own) for row in found.details),
        )
    return models


def _sizes(path: str) -> set[tuple[int, int]]:
    """(width, height) of the dataset's pictures."""
    rows = store.read(path).rows()
    return {(c["width"], c["height"]) for row in rows for c in row["candidates"] if c["error"] is None}


def _checked(image: dict[str, Any] | None, prompt: str) -> float:
    """1 where the picture shows the prompt, 0 where not, NaN where there is none."""
    if image is None:
        return float("nan")
    with store.opened(store.image_bytes(image)) as picture:
        return shapes.ShapesJudge().judge([store.shown(picture)], [prompt])[0].score


def check_comparable(before: Pictures, after: Pictures) -> None:
    """Whether pictures can be paired.

    Raises:
        ValueError: their prompts or seeds differ.
    """
    if before.prompts != after.prompts:
        raise ValueError(f"{before.path} and {after.path} hold different prompts")
    if not np.array_equal(before.seeds, after.seeds):
        raise ValueError(f"{before.path} and {after.path} were drawn from different seeds")


def difference(before: str, after: str) -> dict[str, Any]:
    """The paired difference of every metric between two finished datasets, of one model each.

    Raises:
        ValueError: their prompts or seeds differ.
    """
    (first,), (second,) = by_model(before).values(), by_model(after).values()
    check_comparable(first, second)
    return {
        name: asdict(compare(values, second.scores[name]))
        for name, values in first.scores.items()
        if name in second.scores
    }


def most_changed(change: Floats, count: int) -> list[tuple[int, int]]:
    """Places (prompt, picture) of up to `count` largest gains of float[P, S], then of as many largest losses.

    What did not change is neither, nor is NaN; among equals the first prompt's come first, one a prompt before two.
    """
    found: list[tuple[int, int]] = []
    for sign in (1.0, -1.0):
        size = np.where(sign * change > 0, sign * change, 0.0)
        rank = np.argsort(np.argsort(-size, axis=1, kind="stable"), axis=1)
        order = sorted(zip(*np.nonzero(size), strict=True), key=lambda at: (-size[at], rank[at], at))
        found += [(int(p), int(s)) for p, s in order[:count]]
    return found


def images_of(path: str, wanted: Collection[tuple[str, int]]) -> dict[tuple[str, int], bytes]:
    """The encoded pictures of some candidates, by (prompt id, place in the row); those without one are left out."""
    dataset = store.read(path)
    ids = {row_id for row_id, _ in wanted}
    found = {}
    for file in dataset.files:
        rows = [n for n, row_id in enumerate(dataset.ids(file)) if row_id in ids]
        if not rows:
            continue
        picked = store.read_table(file, dataset.fs, images=True).take(rows).to_pylist()
        for row in store.located(picked, dataset.path):
            for k, candidate in enumerate(row["candidates"]):
                if (row["prompt_id"], k) in wanted and candidate["image"] is not None:
                    found[row["prompt_id"], k] = store.image_bytes(candidate["image"])
    return found


def table(found: dict[str, Any]) -> str:
    """The difference as a Markdown table; the checker's figures are shares and stand in points."""
    rows = []
    for name, row in found.items():
        scale, digits, unit = (100.0, 1, " %") if name == CHECKER else (1.0, 4, "")
        before, after = (f"{scale * row[key]:.{digits}f}" for key in ("before", "after"))
        ends = [] if row["low"] is None else [row["low"], row["high"]]
        gain, *between = (f"{scale * value:+.{digits}f}" for value in (row["gain"], *ends))
        votes = f"{row['wins']} : {row['losses']}"
        rows.append([f"{name}{unit}", before, after, gain, " to ".join(between) or MISSING, votes])
    heads = ("metric", "before", "after", "gain", "95 % interval", "wins : losses")
    return "\n".join(markdown(heads, rows))
