"""One resumable pipeline by itself."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import ray.data
from conftest import nothing_left
from ray.cluster_utils import Cluster
from ray.data.exceptions import ExecutionTimeoutError

from rankray.cluster import streaming
from rankray.cluster.actors import Actors
from rankray.cluster.streaming import pooled, stream
from rankray.data import place

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


class Hangs:
    """A stage whose call comes back when there is a file `end`: it outlives its pipeline."""

    def __init__(self, end: str) -> None:
        self.end = Path(end)

    def __call__(self, table: pa.Table) -> pa.Table:
        while not self.end.exists():
            time.sleep(0.1)
        return table


def test_a_stage_that_nobody_watches_fails_where_nothing_moves(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "STILL_S", 5.0)
    output = place.open_output(str(tmp_path / "o"), in_job=False)
    output.make("data")
    output.make("_work", "checkpoint")
    source = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"prompt_id": ["a"]}), source)

    def build(dataset: ray.data.Dataset) -> ray.data.Dataset:
        return pooled(dataset, Hangs, {"end": str(tmp_path / "end")}, Actors(1, 1, 0.1, 1.0))

    with pytest.raises(ExecutionTimeoutError):
        stream([source], pafs.LocalFileSystem(), output, ("data",), ("_work", "checkpoint"), build, {})
    (tmp_path / "end").touch()
    gc.collect()  # a failed pipeline and its error refer to each other
    nothing_left()
