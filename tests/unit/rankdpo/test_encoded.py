"""Encoded rows: what is written is what is read, one row at a time, in an order that can be repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankray.rankdpo.encoded import (
    EncodedRow,
    Layout,
    RowReader,
    decoded_row,
    encoded_table,
    epoch_order,
    epochs_of,
    index,
    reads,
    step_rows,
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
    assert (row.prompt_id, row.prompt) == ("b", "prompt b")
    assert row.rank.tolist() == [1, 0, 3], "a candidate without a picture is left out of the ranking"
    np.testing.assert_allclose(row.mean[0], latents[1][0][0], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(row.std[2], latents[1][2][1], rtol=tolerance, atol=tolerance)
    assert not row.mean[1].any()
    np.testing.assert_allclose(row.text["pooled"], text["pooled"][1], rtol=tolerance, atol=tolerance)
    assert row.scores.tolist() == [[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]]


def test_layout_stands_in_the_metadata() -> None:
    assert Layout.from_json(LAYOUT.as_json()) == LAYOUT


@pytest.mark.parametrize("group", [1, 3])
def test_rows_are_read_alone_and_in_any_order(tmp_path: Path, group: int) -> None:
    whole, *_ = table([f"p{n:02}" for n in range(10)], missing=None)
    pq.write_table(whole.slice(0, 4), tmp_path / "z.parquet", row_group_size=group)
    pq.write_table(whole.slice(4), tmp_path / "a.parquet", row_group_size=group)
    files = [str(tmp_path / "a.parquet"), str(tmp_path / "z.parquet")]
    places = index(files, LOCAL)
    assert [place.prompt_id for place in places] == [f"p{n:02}" for n in range(10)]
    assert index(files[::-1], LOCAL) == places
    reader = RowReader(LOCAL)
    wanted = [7, 0, 9, 3, 3]
    found = reader.read([places[n] for n in wanted])
    assert found == [whole.slice(n, 1).to_pylist()[0] for n in wanted]
    assert RowReader(LOCAL, ["prompt"]).read(places[:1]) == [{"prompt": "prompt p00"}]


@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 5))
def test_every_epoch_holds_each_row_once_whatever_the_batch(rows: int, batch: int, seed: int) -> None:
    steps = -(-3 * rows // batch)
    seen = [pair for step in range(steps) for pair in step_rows(step, batch, rows, seed)]
    for epoch in range(3):
        assert sorted(row for e, row in seen if e == epoch) == list(range(rows))
    assert epochs_of(steps, batch, rows) == max(e for e, _ in seen) + 1


@given(st.integers(1, 40), st.integers(1, 17), st.integers(1, 12), st.integers(0, 5))
def test_reads_are_the_pairs_of_all_steps_and_no_others(rows: int, batch: int, steps: int, seed: int) -> None:
    ids = [f"p{row:02}" for row in range(rows)]
    due = {(ids[row], epoch) for step in range(steps) for epoch, row in step_rows(step, batch, rows, seed)}
    found = reads(ids[::-1], steps, batch, seed)
    assert {(name, epoch) for name in ids for epoch in found.epochs(name)} == due


def test_the_paper_s_run_reads_its_eighth_epoch_in_part() -> None:
    found = reads(map(str, range(58_000)), 400, 1024, 0)
    assert (found.whole, len(found.last)) == (7, 3_600)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert tuple(epoch_order(50, 0, 0)) == orders[0]
