"""Encoded rows: what is written is what is read, one row at a time, in an order that can be repeated."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from rankray import store
from rankray.data import place
from rankray.rankdpo.encoded import (
    EncodedRow,
    Layout,
    RowReader,
    decoded_row,
    encoded_table,
    index,
    read_reference,
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


class Far(LocalFileSystem):
    """A store that takes 5 ms an answer, and knows how many were waited for at once."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.waiting = self.most = 0
        self.lock = threading.Lock()

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Any:
        return FarFile(self, open(path, mode))


@dataclass
class FarFile:
    far: Far
    file: Any

    def read(self, size: int = -1) -> bytes:
        with self.far.lock:
            self.far.waiting += 1
            self.far.most = max(self.far.most, self.far.waiting)
        time.sleep(0.005)
        with self.far.lock:
            self.far.waiting -= 1
        return bytes(self.file.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Arrow as on nodes whose launcher says OMP_NUM_THREADS=1."""
    before = pa.cpu_count()
    pa.set_cpu_count(1)
    yield
    pa.set_cpu_count(before)


@pytest.mark.usefixtures("one_thread")
def test_files_of_a_store_are_asked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoded set has a row group a row, and each is a request of its own."""
    (tmp_path / "data").mkdir()
    names = [f"{n:02}" for n in range(24)]
    for n in range(0, 24, 3):
        made, _, _ = table(names[n : n + 3])
        errors = pa.array([[[0.5] * 3]] * 3)
        file = tmp_path / "data" / f"{n:02}.parquet"
        pq.write_table(made.append_column("ref_error", errors), file, row_group_size=1)
    output = place.open_output(str(tmp_path), in_job=False)

    def far() -> pafs.PyFileSystem:
        return pafs.PyFileSystem(pafs.FSSpecHandler(Far()))

    def most(fs: pafs.PyFileSystem) -> int:
        return int(fs.handler.fs.most)

    there = far()
    assert [one.prompt_id for one in index(output.tables("data"), there)] == names
    assert most(there) >= 4
    there = far()
    monkeypatch.setattr(store, "filesystem", lambda uri: (there, uri))
    assert sorted(read_reference(str(tmp_path))) == names
    assert most(there) >= 4
    there = far()
    found = place.finished_ids(replace(output, fs=there), "data")
    assert (sorted(found), most(there) >= 4) == (names, True)
