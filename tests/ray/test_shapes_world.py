"""Datasets of real diffusion pipelines and rewards, read back by the tools that users have."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars
import pytest
import tomli_w
from conftest import REHEARSE, REPOSITORY, Ended, rows
from PIL import Image

from rankray import config, store

pytestmark = pytest.mark.ray

ODD = ("a photograph of an astronaut, 35mm, 🚀", "x" * 10_000, "<i>one</i> & two")
"""Prompts with words that the tiny text encoders have never seen."""


def check_that_everyone_can_read(place: Path, rows_: int, k: int, cache: Path) -> dict[str, Any]:
    """Each row is Algorithm 1 of its scores, and datasets, pandas, duckdb and polars read all; returns dataset.json."""
    validation = store.validate(str(place))
    assert (validation.rows, validation.candidates) == (rows_, k * rows_)
    info = store.read(str(place)).info
    assert info["failures"]["total"] == 0
    assert all(model["revision"].startswith("sha256:") for model in info["generators"] + info["rewards"])

    for row in rows(place).values():
        scores = np.array([c["scores"] for c in row["candidates"]], np.float32)
        assert scores.shape == (k, len(info["rewards"]))
        wins = (scores[:, None, :] > scores[None, :, :]).sum((1, 2))
        phi = (wins / ((k - 1) * scores.shape[1])).astype(np.float32)
        assert [c["win_probability"] for c in row["candidates"]] == phi.tolist()
        assert np.argsort(np.argsort(-phi, kind="stable"), kind="stable").tolist() == [
            c["rank"] - 1 for c in row["candidates"]
        ]

    files = str(place / "data" / "*.parquet")
    hub = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache))
    picture = hub[0]["candidates"][0]["image"]
    assert isinstance(picture, Image.Image)
    assert picture.size == (64, 64)
    frame = pd.read_parquet(place / "data")
    assert len(frame) == rows_
    assert Image.open(io.BytesIO(frame["candidates"][0][0]["image"]["bytes"])).size == (64, 64)
    firsts = f"from (select unnest(candidates) as c from '{files}') where c.rank = 1"
    query = f"select c.generator, count(*) {firsts} group by 1"
    assert sum(count for _, count in duckdb.sql(query).fetchall()) == rows_
    ranks = polars.read_parquet(files)["candidates"].explode().struct.field("rank").to_list()
    assert sorted(ranks) == sorted([*range(1, k + 1)] * rows_)
    return info


def test_a_dataset_is_one_that_everyone_can_read(dataset: Path, tmp_path: Path) -> None:
    check_that_everyone_can_read(dataset, 24, 3, tmp_path)


@pytest.mark.slow
def test_the_shipped_configuration_makes_one_too(job: Callable[..., Ended], tmp_path: Path) -> None:
    """Seven pools on eight GPUs, one each. `.ci/wheel-check` runs the same file with one of its generators."""
    prompts = ["a red circle", "two blue squares", "a green triangle left of a yellow circle", *ODD]
    (tmp_path / "p.txt").write_text("\n".join([*prompts, *(f"a red circle {i}" for i in range(10))]))
    tables = config.read_toml(REPOSITORY / "jobs" / "synpic-shapes.toml")
    for one in (*tables["generators"], *tables["rewards"]):
        one["pool"] = {"num_gpus": 1, "num_cpus": 0.5}
    tables["prompts"] = {"path": str(tmp_path / "p.txt")}
    file = tmp_path / "gpus.toml"
    file.write_text(tomli_w.dumps(tables))
    block = ("--execution.rows_per_block", "4")
    ended = job("synpic", "--config", str(file), "--output", str(tmp_path / "o"), *block, *REHEARSE)
    assert ended.code == 0, ended.text
    assert "streaming: all 7 pools fit" in ended.text
    info = check_that_everyone_can_read(tmp_path / "o", 16, 4, tmp_path)
    families = ("sdxl", "sd3", "pixart", "cascade")
    assert [g["name"] for g in info["generators"]] == [f"shapes-{family}" for family in families]
