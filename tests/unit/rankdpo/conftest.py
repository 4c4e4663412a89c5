"""A run of the embedded SDXL on four prompts, encoded once, for whatever trains in this process."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
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
from rankray.rankdpo.train_job import TrainJob
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


def ranked(prompt: str) -> dict[str, Any]:
    rng = np.random.default_rng(len(prompt))
    candidates = []
    for rank in (1, 2):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": None}
        candidates.append(
            {"image": image, "win_probability": 2.0 - rank, "rank": rank, "scores": [-float(rank)]}
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
            files=(str(place / "rows.parquet"),),
            files_uri=str(place),
            layout=layout_of(table.schema),
            encoded=str(place),
            reference=None,
            encoders=(),
            reward=None,
            labelling=None,
            rows=len(PROMPTS),
            sample_prompts=PROMPTS[:1],
            output=str(place / "output"),
            device="cpu",
        )

    return job
