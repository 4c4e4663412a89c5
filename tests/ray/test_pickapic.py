"""RankDPO learns from choices under Pick-a-Pic's columns: pictures that follow their captions, or do not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import nothing_left
from PIL import Image
from ray.cluster_utils import Cluster

from rankray import config, shapes, store
from rankray.config.rankdpo import RankDPOConfig
from rankray.data import convert, pickapic
from rankray.rankdpo import job as rankdpo
from rankray.shapes.renderer import render

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
CAPTIONS = 12


def jpeg(prompt: str, seed: int) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(render(prompt, np.random.default_rng(seed)))
    picture.resize((96, 80), Image.Resampling.NEAREST).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_a_model_is_trained_on_imported_choices(cluster: Cluster, tmp_path: Path) -> None:
    """Pairs of the right picture and another prompt's, two a caption; four steps, and pairs counted are the file's."""
    prompts = shapes.prompts("train")[: 2 * CAPTIONS]
    rows = []
    for n, prompt in enumerate(prompts[:CAPTIONS]):
        for turn in (0, 1):
            right, wrong = jpeg(prompt, 2 * n + turn), jpeg(prompts[CAPTIONS + n], 2 * n + turn)
            rows.append(
                {
                    "caption": prompt,
                    "jpg_0": right if turn else wrong,
                    "jpg_1": wrong if turn else right,
                    "label_0": float(turn),
                    "label_1": float(1 - turn),
                    "has_label": True,
                    "model_0": "one",
                    "model_1": "other",
                }
            )
    pq.write_table(pa.Table.from_pylist(rows, convert.PICKAPIC_SCHEMA), tmp_path / "human.parquet")
    dataset = tmp_path / "dataset"
    pickapic.run([str(tmp_path / "human.parquet")], str(dataset), pickapic.Importing(), lambda line: None)
    assert store.validate(str(dataset)).rows == 2 * CAPTIONS
    settings = {
        "dataset": str(dataset),
        "output": str(tmp_path / "run"),
        "model": {"model": "shapes-sdxl"},
        "steps": 4,
        "batch_size": 12,
        "objective": {"name": "rank_dpo", "beta": 200.0},
        "validation": {"share": 0.0},
        "optimizer": {"name": "adamw", "learning_rate": 3e-4},
        "workers": {"count": 1, "num_cpus": 0.5, "num_gpus": 1, "max_failures": 0},
        "encoding": {"num_gpus": 0.5},
        "rehearse": True,
    }
    rankdpo.run(config.build(RankDPOConfig, settings), say=lambda line: None)
    nothing_left()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["prompts"], line["pairs"]) for line in lines] == [(12, 12)] * 4, "each row is one pair"
    assert lines[0]["implicit_accuracy"] == 0.5, "at the start the model is the reference"
    assert lines[-1]["implicit_accuracy"] > 0.6
    assert (tmp_path / "run" / "pipeline" / "model_index.json").exists()
