"""The shipped configuration with its real diffusion pipelines and rewards, read back by the tools that users have."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

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

ROWS = 16


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words that the tiny text encoders know, and words that they have never seen."""
    path = tmp_path_factory.mktemp("prompts") / "p.txt"
    known = ["a red circle", "two blue squares", "a green triangle left of a yellow circle"]
    unknown = ["a photograph of an astronaut, 35mm, 🚀", "x" * 10_000, "<i>one</i> & two"]
    path.write_text("\n".join([*known, *unknown, *(f"a red circle {i}" for i in range(ROWS - 6))]))
    return path


@pytest.fixture
def dataset(job: Callable[..., Ended], prompts: Path, tmp_path: Path) -> Path:
    """Seven pools on eight GPUs, one each."""
    tables = config.read_toml(REPOSITORY / "jobs" / "synpic-shapes.toml")
    for one in (*tables["generators"], *tables["rewards"]):
        one["pool"] = {"num_gpus": 1, "num_cpus": 0.5}
    tables["prompts"] = {"path": str(prompts)}
    file = tmp_path / "gpus.toml"
    file.write_text(tomli_w.dumps(tables))
    block = ("--execution.rows_per_block", "4")
    ended = job("synpic", "--config", str(file), "--output", str(tmp_path / "o"), *block, *REHEARSE)
    assert ended.code == 0, ended.text
    assert "streaming: all 7 pools fit" in ended.text
    return tmp_path / "o"


def test_the_shipped_configuration_makes_a_dataset_that_everyone_can_read(dataset: Path) -> None:
    validation = store.validate(str(dataset))
    assert (validation.rows, validation.candidates) == (ROWS, 4 * ROWS)
    info = store.read(str(dataset)).info
    assert info["failures"]["total"] == 0
    assert [g["name"] for g in info["generators"]] == [
        "shapes-sdxl",
        "shapes-sd3",
        "shapes-pixart",
        "shapes-cascade",
    ]
    assert all(model["revision"].startswith("sha256:") for model in info["generators"] + info["rewards"])

    for row in rows(dataset).values():
        scores = np.array([c["scores"] for c in row["candidates"]], np.float32)
        wins = (scores[:, None, :] > scores[None, :, :]).sum((1, 2))
        phi = (wins / (3 * 3)).astype(np.float32)
        assert [c["win_probability"] for c in row["candidates"]] == phi.tolist()
        assert np.argsort(np.argsort(-phi, kind="stable"), kind="stable").tolist() == [
            c["rank"] - 1 for c in row["candidates"]
        ]

    files = str(dataset / "data" / "*.parquet")
    hub = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(dataset / "cache"))
    picture = hub[0]["candidates"][0]["image"]
    assert isinstance(picture, Image.Image)
    assert picture.size == (64, 64)
    frame = pd.read_parquet(dataset / "data")
    assert len(frame) == ROWS
    assert Image.open(io.BytesIO(frame["candidates"][0][0]["image"]["bytes"])).size == (64, 64)
    firsts = f"from (select unnest(candidates) as c from '{files}') where c.rank = 1"
    query = f"select c.generator, count(*) {firsts} group by 1"
    assert sum(count for _, count in duckdb.sql(query).fetchall()) == ROWS
    ranks = polars.read_parquet(files)["candidates"].explode().struct.field("rank").to_list()
    assert sorted(ranks) == sorted([1, 2, 3, 4] * ROWS)
