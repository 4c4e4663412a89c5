"""What a training is said to take, against by-hand figures and against what small ones took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_dataset

from rankray import config
from rankray.cluster.seats import Node
from rankray.config.rankdpo import RankDPOConfig
from rankray.models import hardware
from rankray.models.generators import GENERATORS
from rankray.rankdpo import forecast as training_forecast
from rankray.rankdpo.encoded import Layout, encoded_table
from rankray.rankdpo.encoding import EncodeActor, EncodeJob

JOBS = Path(__file__).parents[3] / "jobs"
A100, L4 = hardware.GPU_TYPES["A100-80"], hardware.GPU_TYPES["L4"]


def settings(job: str = "rankdpo-sdxl", **changes: Any) -> RankDPOConfig:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return config.build(RankDPOConfig, config.with_options(config.read_toml(JOBS / f"{job}.toml"), dotted))


@pytest.mark.parametrize(
    ("model", "text", "latent"),
    [
        ("sdxl", {"text": (77, 2048), "pooled": (1280,)}, (4, 128, 128)),
        ("sd3-medium", {"text": (333, 4096), "pooled": (2048,)}, (16, 128, 128)),
        ("pixart-sigma", {"text": (300, 4096), "text_mask": (300,)}, (4, 128, 128)),
        ("sd15", {"text": (77, 768)}, (4, 64, 64)),
    ],
)
def test_shapes_of_the_published_models(model: str, text: dict[str, Any], latent: tuple[int, ...]) -> None:
    """As the models' cards have them: SD3 joins 77 tokens of CLIP and 256 of T5."""
    found = training_forecast.facts(GENERATORS[model])
    assert found is not None
    assert (dict(found.text), found.latent) == (text, latent)


def test_sd3_s_encoded_set_is_said_to_be_hundreds_of_gigabytes() -> None:
    found = training_forecast.facts(GENERATORS["sd3-medium"])
    assert found is not None
    by_hand = 2 * (4 * 2 * 16 * 128 * 128 + 333 * 4096 + 2048)
    assert found.prompt_bytes(4, "float16") - training_forecast.ROW_BYTES == by_hand
    made = training_forecast.stored(
        settings("rankdpo-sd3", output="s3://b/o"), found, [("s3://b/d", 58_000, 4)], "copy"
    )
    (line,) = training_forecast.disk_lines(made)
    assert line.startswith("on disk: encoded set (6.93 MB a prompt) 402 GB, checkpoints (up to 4 of 24 GB)")


@pytest.mark.parametrize(
    ("mode", "lines"), [("store", ["on disk: encoded set (6.93 MB a prompt) 402 GB"]), ("stream", [])]
)
def test_of_adapters_no_checkpoint_needs_room(mode: str, lines: list[str]) -> None:
    found = training_forecast.facts(GENERATORS["sd3-medium"])
    assert found is not None
    lora = settings("rankdpo-sd3", output="s3://b/o", tuned__train="lora", encoding__mode=mode)
    made = training_forecast.stored(lora, found, [("s3://b/d", 58_000, 4)], "adapter_off")
    assert training_forecast.disk_lines(made) == lines


@pytest.mark.parametrize("model", ["shapes-sdxl", "shapes-sd3", "shapes-pixart"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_encoded_set_is_as_large_as_was_said(tmp_path: Path, model: str, dtype: str) -> None:
    place = small_dataset.write(tmp_path / "dataset")
    rows = pq.read_table(f"{place}/data").to_pylist()
    full = [row for row in rows if all(c["image"] is not None for c in row["candidates"])]
    job = EncodeJob(GENERATORS[model], "cpu", "float32", dtype, 4, str(tmp_path / "encoded"))
    table: pa.Table = EncodeActor(job).encode(full)
    said = training_forecast.facts(GENERATORS[model])
    assert said is not None
    row = table.to_pylist()[0]
    arrays = sum(len(pair[key]) for pair in row["latents"] for key in ("mean", "std"))
    arrays += sum(map(len, row["text"].values()))
    candidates = len(full[0]["candidates"])
    assert said.prompt_bytes(candidates, dtype) - training_forecast.ROW_BYTES == arrays


def test_parquet_adds_next_to_nothing_at_full_size(tmp_path: Path) -> None:
    """Random numbers of SDXL's shapes, which no compression makes smaller."""
    said = training_forecast.facts(GENERATORS["sdxl"])
    assert said is not None
    draw = np.random.default_rng(0).standard_normal
    candidate = {"win_probability": 0.5, "rank": 1, "scores": [1.0] * 5}
    rows = [
        {"prompt_id": f"{n:064}", "prompt": "a red circle " * 5, "candidates": [candidate] * 4}
        for n in (0, 1)
    ]
    latents = [[(draw(said.latent), draw(said.latent)) for _ in range(4)] for _ in rows]
    text = {name: draw((2, *shape)) for name, shape in said.text.items()}
    layout = Layout(said.latent, said.text, "float16", (1024, 1024))
    table = encoded_table(rows, latents, text, layout)
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=1)
    size = (tmp_path / "rows.parquet").stat().st_size / 2
    assert size == pytest.approx(said.prompt_bytes(4, "float16"), rel=0.02)


def test_the_reference_is_a_copy_where_the_gpus_have_room_for_it() -> None:
    found = training_forecast.facts(GENERATORS["sdxl"])
    assert found is not None
    extra = [
        training_forecast.trainer(settings(), found, 4, mode).memory_gb for mode in ("copy", "precomputed")
    ]
    assert extra[0] - extra[1] == pytest.approx(2 * 2.567463684), "bfloat16 weights of the UNet"
    taken, why = training_forecast.reference(settings(), found, 4, "cuda", A100)
    assert (taken, why.partition(" of the ")[2]) == (
        "copy",
        "76.0 usable of A100-80, and nothing waits for a stage ahead",
    )
    one = settings(workers__count=1, optimizer__name="adamw")
    assert training_forecast.reference(one, found, 4, "cuda", L4)[0] == "precomputed"
    assert training_forecast.reference(settings(), found, 4, "cuda", None)[0] == "precomputed"
    assert training_forecast.reference(settings(), found, 4, "cpu", None)[0] == "copy"
    lora = settings(tuned__train="lora")
    assert training_forecast.reference(lora, found, 4, "cuda", L4)[0] == "adapter_off"
    stream = settings(encoding__mode="stream")
    assert training_forecast.reference(stream, found, 4, "cuda", L4)[0] == "copy"


def test_a_trainer_holds_its_shards_and_what_a_pass_or_a_step_takes() -> None:
    """SDXL's UNet in bfloat16 with activation checkpointing: on one GPU the step of the optimizer is the most, with
    one float32 tensor a weight more, on eight a pass; gradients are summed in float32, masters and two moments are."""
    found = training_forecast.facts(GENERATORS["sdxl"])
    assert found is not None
    weights = 2_567_463_684
    tuned = {"tuned__activation_checkpointing": True, "tuned__ema": None, "workers__micro_batch": 1}
    alone = settings(workers__count=1, optimizer__name="adamw", **tuned)
    plan = training_forecast.trainer(alone, found, 4, "copy")
    assert plan.allocated == (2 + 2 + 4 + 12 + 4) * weights
    of_eight = settings(workers__count=8, optimizer__name="adamw", **tuned)
    one_forward = 2 * (161_863 + 82_640_896)
    due = 2 * weights + 16 * weights / 8 + 4 * 5.8 * one_forward + 2 * 500_000_000
    assert training_forecast.trainer(of_eight, found, 4, "precomputed").allocated == pytest.approx(due)


def test_the_smallest_of_the_nodes_gpus_counts() -> None:
    def node(gpus: int, *names: str) -> Node:
        return Node(8, 1e9, gpus, {f"accelerator_type:{name}": 1.0 for name in names})

    found = training_forecast.smallest_gpu([node(0), node(8, "A100-80G"), node(4, "L4")])
    assert found == L4
    assert training_forecast.smallest_gpu([node(8, "A100-80G")]) == A100
    assert training_forecast.smallest_gpu([node(8, "A100")]) == hardware.GPU_TYPES["A100-40"]
    assert training_forecast.smallest_gpu([node(8, "A100-80G"), node(8)]) is None
    assert training_forecast.smallest_gpu([node(0)]) is None


def test_too_little_room_is_one_line(tmp_path: Path) -> None:
    made = [training_forecast.Stored("encoded set", 1e18, str(tmp_path / "not" / "yet"))]
    size, warning = training_forecast.disk_lines(made)
    assert size == "on disk: encoded set 1,000,000,000 GB"
    assert warning.startswith(f"warning: {tmp_path}/not/yet has ")
    small = [training_forecast.Stored("encoded set", 1.0, str(tmp_path))]
    assert len(training_forecast.disk_lines(small)) == 1
    both = [training_forecast.Stored(name, 0.6 * _free(tmp_path), str(tmp_path)) for name in "ab"]
    assert len(training_forecast.disk_lines(both)) == 2, "each alone has room, both together have not"


def _free(place: Path) -> float:
    import shutil

    return float(shutil.disk_usage(place).free)


def test_who_computes_the_reference_is_no_part_of_a_run_s_identity() -> None:
    modes = ("auto", "copy", "precomputed")
    found = [settings(objective__reference=mode).identity() for mode in modes]
    assert found[0] == found[1] == found[2]
    assert settings(objective__beta=1.0).identity() != found[0]
