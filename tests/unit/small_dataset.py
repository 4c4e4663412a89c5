"""A finished dataset of three prompts, written by hand: valid, with one failed image and one failed score."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rankray import ranking, schema, store
from rankray.config import PricesConfig
from rankray.data.cost import ActorUsage, ledger

SEED = 3
SLOTS = [("one", 0), ("one", 1), ("two", 0)]
REWARDS = {"r": "x", "s": "y", "t": "z"}
NAN = float("nan")
USAGE = ActorUsage("one", "generator", "1", 30.0, 5.0, 60.0, 6, 0, 0, 0.0, 1.0)
SCORES: dict[str, list[list[float]]] = {
    # 0 is first for r and s, 1 for t alone.
    "a": [[3, 30, 0], [2, 20, 9], [1, 10, 5]],
    # t failed for the first candidate.
    "b": [[1, 1, NAN], [2, 2, 2], [2, 2, 2]],
    # No image came of the last.
    "c": [[5, 5, 5], [5, 5, 5], [NAN, NAN, NAN]],
}


def picture(prompt: str, k: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2), (ord(prompt[0]), 100 * k, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def row(prompt: str, given: Mapping[str, list[list[float]]] = MappingProxyType(SCORES)) -> dict[str, Any]:
    scores = np.array(given[prompt], np.float32)
    phi = ranking.win_probability(scores)
    row_id = schema.prompt_id(prompt)
    candidates = []
    for k, (name, sample) in enumerate(SLOTS):
        gone = prompt == "c" and k == 2
        error = "one: out of memory" if gone else "t: too dark" if prompt == "b" and k == 0 else None
        candidates.append(
            {
                "generator": name,
                "seed": schema.candidate_seed(SEED, row_id, name, sample),
                "image": None if gone else {"bytes": picture(prompt, k), "path": None},
                "width": None if gone else 4,
                "height": None if gone else 2,
                "scores": scores[k].tolist(),
                "win_probability": phi[k],
                "rank": int(ranking.rank(phi)[k]),
                "error": error,
                "score_errors": [None, None, "too dark" if prompt == "b" and k == 0 else None],
            }
        )
    return {"prompt_id": row_id, "prompt": prompt, "candidates": candidates}


def write(
    path: Path,
    files: Mapping[str, Sequence[str]] = MappingProxyType({"0": "ab", "1": "c"}),
    scores: Mapping[str, list[list[float]]] = MappingProxyType(SCORES),
) -> str:
    """Writes it to `path`: two files, the first of two row groups; or others, of prompts that `scores` has."""
    (path / "data").mkdir(parents=True)
    every = [prompt for prompts in files.values() for prompt in prompts]
    due = schema.ranked_schema({"one": "r1", "two": "r2"}, REWARDS)
    for name, prompts in files.items():
        table = pa.Table.from_pylist([row(prompt, scores) for prompt in prompts], due)
        pq.write_table(table, path / "data" / f"{name}.parquet", row_group_size=1)
    fault = {"prompt_id": schema.prompt_id("b"), "model": "t", "error": "t: too dark"}
    gone = {"prompt_id": schema.prompt_id("c"), "model": "two", "error": "one: out of memory"}
    info = {
        "schema_version": 1,
        "rankray_version": "0",
        "created": "2026-01-01T00:00:00+00:00",
        "seed": SEED,
        "identity": {"seed": SEED, "images.store": "inline"},
        "layout": "streaming",
        "runs": 1,
        "prompts": {"source": "p.txt", "read": 3, "duplicates": 0, "empty": 0, "undecodable": 0, "rows": 3},
        "generators": [
            {"name": "one", "model": "one", "revision": "r1", "samples": 2},
            {"name": "two", "model": "two", "revision": "r2", "samples": 1},
        ],
        "rewards": [
            {"name": name, "model": name, "revision": revision} for name, revision in REWARDS.items()
        ],
        "rows": len(every),
        "candidates": 3 * len(every),
        "images": 3 * len(every) - ("c" in every),
        "failures": {
            "total": ("b" in every) + ("c" in every),
            "by_model": {"t": 1, "two": 1},
            "tolerance": 0.5,
            "examples": [fault, gone],
        },
        "throughput": {"wall_s": 10.0, "images_per_s": 1.0, "rows_per_s": 1.0},
        "cost": ledger([USAGE], PricesConfig(cpu_usd_per_hour=1.0)),
    }
    (path / "dataset.json").write_text(json.dumps(store.sealed(info)))
    return str(path)


def as_files(dataset: Path, root: str | None = None) -> None:
    """The small dataset with its pictures beside its rows, named from `root` as they once were, or within it."""
    (dataset / store.IMAGES).mkdir()
    for file in sorted((dataset / "data").iterdir()):
        table = pq.read_table(file)
        rows = table.to_pylist()
        for row in rows:
            for k, candidate in enumerate(row["candidates"]):
                if candidate["image"] is not None:
                    name = f"{store.IMAGES}/{row['prompt_id']}-{candidate['generator']}-{k}.png"
                    (dataset / name).write_bytes(candidate["image"]["bytes"])
                    candidate["image"] = {"bytes": None, "path": f"{root}/{name}" if root else name}
        pq.write_table(pa.Table.from_pylist(rows, table.schema), file, row_group_size=1)
    info = json.loads((dataset / "dataset.json").read_text())
    info["identity"]["images.store"] = "files"
    (dataset / "dataset.json").write_text(json.dumps(info))
