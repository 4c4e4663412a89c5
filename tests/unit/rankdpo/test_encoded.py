"""Encoded rows: what is written is what is read, one row at a time, in an order that can be repeated."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from rankray.rankdpo.encoded import (
    EncodedRow,
    Layout,
    RowReader,
    decoded_row,
    encoded_table,
    index,
)

LAYOUT = Layout((4, 8, 8), {"text": (3, 5), "pooled": (7,)}, "float32", (64, 64))
LOCAL = pafs.LocalFileSystem()


def ranked(name: str, k: int = 3) -> dict[str, Any]:
    return {
        "prompt_id": name,
        "prompt": f"prompt {name}",
        "candidates": [
            {"win_probability": 1.0 - n / k, "rank": n + 1, "scores": [float(n), 2.0 * n]} for n in range(k)
        ],
    }


def table(names: list[str], layout: Layout = LAYOUT, missing: int | None = 1) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(len(names))
    rows = [ranked(name) for name in names]
    latents = [
        [None if k == missing else (rng.normal(size=(4, 8, 8)), rng.random((4, 8, 8))) for k in range(3)]
        for _ in names
    ]
    text = {"text": rng.normal(size=(len(names), 3, 5)), "pooled": rng.normal(size=(len(names), 7))}
    return encoded_table(rows, latents, text, layout), latents, text


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-7), ("float16", 2e-3)])
def test_a_row_comes_back(dtype: str, tolerance: float) -> None:
    layout = Layout(LAYOUT.latent, LAYOUT.text, dtype, (64, 64))
    found, latents, text = table(["a", "b"], layout)
    row: EncodedRow = decoded_row(found.to_pylist()[1], layout)
    assert row.prompt_id == "b"
    assert row.rank.tolist() == [1, 0, 3], "a candidate without a picture is left out of the ranking"
    np.testing.assert_allclose(row.mean[0], latents[1][0][0], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(row.std[2], latents[1][2][1], rtol=tolerance, atol=tolerance)
    assert not row.mean[1].any()
    np.testing.assert_allclose(row.text["pooled"], text["pooled"][1], rtol=tolerance, atol=tolerance)
    assert row.scores.tolist() == [[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]]


def test_layout_stands_in_the_metadata() -> None:
    assert Layout.from_json(json.loads(json.dumps(asdict(LAYOUT)))) == LAYOUT


@pytest.mark.parametrize("group", [1, 3])
def test_rows_are_read_alone_and_in_any_order(tmp_path: Path, group: int) -> None:
    whole, *_ = table([f"p{n:02}" for n in range(10)], missing=None)
    pq.write_table(whole.slice(0, 4), tmp_path / "z.parquet", row_group_size=group)
    pq.write_table(whole.slice(4), tmp_path / "a.parquet", row_group_size=group)
    files = [str(tmp_path / "a.parquet"), str(tmp_path / "z.parquet")]
    places = index(files, LOCAL)
    assert [place.prompt_id for place in places] == [f"p{n:02}" for n in range(10)]
    assert index(files[::-1], LOCAL) == places
    reader = RowReader([LOCAL])
    wanted = [7, 0, 9, 3, 3]
    found = reader.read([places[n] for n in wanted])
    assert found == [whole.slice(n, 1).to_pylist()[0] for n in wanted]
