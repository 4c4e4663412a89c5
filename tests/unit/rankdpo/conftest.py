"""A run of the embedded SDXL on four prompts, encoded once, for whatever trains in this process."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from rankray import config, schema
from rankray.config import GeneratorChoice
from rankray.config.rankdpo import RankDPOConfig
from rankray.models import generators
from rankray.rankdpo.encoded import layout_of
from rankray.rankdpo.encoding import EncodeActor, EncodeJob
from rankray.rankdpo.train_job import RowSet, TrainJob
from rankray.shapes import pipeline_dir

PROMPTS = ("a red circle", "two blue squares", "a green triangle", "a red square")
UNET, VAE = (f"{name}/diffusion_pytorch_model.safetensors" for name in ("unet", "vae"))
Make = Callable[..., TrainJob]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shapes-sdxl, which is in float16, with an autoencoder whose float32 no shorter dtype holds."""
    place = tmp_path_factory.mktemp("published") / "model"
    shutil.copytree(pipeline_dir("shapes-sdxl"), place)
    weights = {name: value.float() * (1 + 1e-5) for name, value in load_file(place / VAE).items()}
    save_file(weights, place / VAE, metadata={"format": "pt"})
    return place


def spec_of(place: Path) -> Any:
    choice = GeneratorChoice(model="shapes-sdxl", source=str(place))
    return generators.resolve(choice).kwargs["spec"]


def ranked(prompt: str, count: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(len(prompt))
    candidates = []
    for rank in range(1, count + 1):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": None}
        candidates.append(
            {
                "image": image,
                "win_probability": (count - rank) / (count - 1),
                "rank": rank,
                "scores": [-float(rank)],
            }
        )
    return {"prompt_id": schema.prompt_id(prompt), "prompt": prompt, "candidates": candidates}


@pytest.fixture(scope="module")
def make(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make(dotted options)` is a run of that model on four prompts."""
    place, spec = tmp_path_factory.mktemp("encoded"), spec_of(published)
    actor = EncodeActor(EncodeJob(spec, "cpu", "float32", "float32", 8, str(place)))
    table = actor.encode([ranked(prompt) for prompt in PROMPTS])
    pq.write_table(table, place / "rows.parquet", row_group_size=1)

    def job(**changes: Any) -> TrainJob:
        tables: dict[str, Any] = {
            "dataset": "/d",
            "output": str(place / "output"),
            "model": {"model": "shapes-sdxl", "source": str(published)},
            "steps": 2,
            "batch_size": 4,
            "tuned": {"dtype": "bfloat16"},
            "validation": {"share": 0.0},
        }
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        return TrainJob(
            config=config.build(RankDPOConfig, config.with_options(tables, dotted)),
            spec=spec,
            sets=(RowSet((str(place / "rows.parquet"),), str(place), layout_of(table.schema)),),
            encoded=str(place),
            encoders=(),
            reward=None,
            rows=len(PROMPTS),
            sample_prompts=PROMPTS[:1],
            output=str(place / "output"),
            device="cpu",
        )

    return job


@pytest.fixture
def mixed(make: Make, published: Path, tmp_path: Path) -> Make:
    """People's pairs, of which two are of one prompt, beside four candidates each of four prompts, one to three."""
    place = tmp_path / "people"
    actor = EncodeActor(EncodeJob(spec_of(published), "cpu", "float32", "float32", 8, str(place)))
    first, *rest = (ranked(prompt) for prompt in ("a red circle", "a blue circle", "a blue square"))
    table = actor.encode([first, *rest, {**rest[0], "prompt_id": "f" * 32}])
    pq.write_table(table, place / "people.parquet", row_group_size=1)
    people = RowSet((str(place / "people.parquet"),), str(place), layout_of(table.schema), weight=1.0)
    four = actor.encode([ranked(prompt, 4) for prompt in PROMPTS])
    pq.write_table(four, place / "four.parquet", row_group_size=2)
    drawn = RowSet((str(place / "four.parquet"),), str(place), layout_of(four.schema), weight=3.0)

    def job(**changes: Any) -> TrainJob:
        same = {"tuned__dtype": "float32", "optimizer__name": "sgd", "optimizer__learning_rate": 0.05}
        return replace(make(batch_size=4, **{**same, **changes}), sets=(people, drawn))

    return job
