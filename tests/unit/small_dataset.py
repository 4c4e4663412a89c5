"""A finished dataset of three prompts, written by hand: valid, with one failed image and one failed score."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rankray import ranking, schema
from rankray.config import PricesConfig
from rankray.data.cost import ActorUsage, ledger

SEED = 3
SLOTS = [("one", 0), ("one", 1), ("two", 0)]
REWARDS = {"r": "x", "s": "y", "t": "z"}
NAN = float("nan")
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
    Image.new("RGB", (4, 2), (ord(prompt), 100 * k, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def row(prompt: str) -> dict[str, Any]:
    scores = np.array(SCORES[prompt], np.float32)
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


def write(path: Path) -> str:
    """Writes it to `path`: two files, the first of two row groups."""
    (path / "data").mkdir(parents=True)
    due = schema.ranked_schema({"one": "r1", "two": "r2"}, REWARDS)
    for name, prompts in (("0", "ab"), ("1", "c")):
        table = pa.Table.from_pylist([row(prompt) for prompt in prompts], due)
        pq.write_table(table, path / "data" / f"{name}.parquet", row_group_size=1)
    usage = ActorUsage("one", "generator", "1", 30.0, 5.0, 60.0, 6, 0, 0, 0.0, 1.0)
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
        "rows": 3,
        "candidates": 9,
        "images": 8,
        "failures": {"total": 2, "by_model": {"t": 1, "two": 1}, "tolerance": 0.5, "examples": [fault, gone]},
        "throughput": {"wall_s": 10.0, "images_per_s": 1.0, "rows_per_s": 1.0},
        "cost": ledger([usage], PricesConfig(cpu_usd_per_hour=1.0)),
    }
    (path / "dataset.json").write_text(json.dumps(info))
    return str(path)
