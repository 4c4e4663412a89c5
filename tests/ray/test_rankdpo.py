"""Algorithm 2 as users run it: Ray Train, DeepSpeed, real models, a dataset that Syn-Pic made."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import tomli_w
import torch
from safetensors.torch import load_file

from rankray import config, rankdpo, store, synpic
from rankray.checkpoints import Stored
from rankray.config import SynPicConfig
from rankray.training_config import RankDPOConfig

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PROMPTS = 24
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def dataset(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 prompts, two candidates of the shapes world's quickest model, ranked by one reward."""
    place = tmp_path_factory.mktemp("synpic") / "dataset"
    settings = {
        "prompts": {"path": "shapes:train", "limit": PROMPTS},
        "generators": [{"model": "shapes-sdxl", "samples": 3, "steps": 4}],
        "rewards": [{"model": "shapes-pickscore"}, {"model": "shapes-clipscore"}],
        "output": str(place),
        "execution": {"rows_per_block": 8},
    }
    synpic.run(config.build(SynPicConfig, settings), say=lambda line: None)
    return place


def settings(dataset: Path, output: Path, **changes: Any) -> RankDPOConfig:
    tables: dict[str, Any] = {
        "dataset": str(dataset),
        "output": str(output),
        "model": {"model": "shapes-sdxl"},
        "steps": 4,
        "batch_size": 8,
        "objective": {"beta": 200.0},
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
        "workers": {"count": 1, "num_cpus": 0.5, "zero_stage": 2, "max_failures": 0},
    }
    return config.build(RankDPOConfig, config.with_options(tables, changes))


@pytest.fixture
def train(dataset: Path, tmp_path: Path) -> Run:
    def run(name: str, **changes: Any) -> Path:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        rankdpo.run(settings(dataset, tmp_path / name, **dotted), say=lambda line: None)
        return tmp_path / name

    return run


def weights(run: Path, name: str = "weights") -> dict[str, torch.Tensor]:
    last = sorted(place for place in (run / "checkpoints").glob("checkpoint_*") if place.is_dir())[-1]
    return dict(Stored(last, name))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_weights_do_not_depend_on_how_a_batch_is_split(train: Run) -> None:
    """1 worker x 8, 2 x 4, 2 x 2 x 2 accumulated, at ZeRO 0, 2 and 3 (float32, SGD)."""
    whole = train("whole", workers__zero_stage=0, workers__micro_batch=8)
    split = train("split", workers__count=2, workers__micro_batch=4)
    accumulated = train("accumulated", workers__count=2, workers__micro_batch=2, workers__zero_stage=3)
    assert distance(weights(whole), weights(split)) < 1e-5
    assert distance(weights(whole), weights(accumulated)) < 1e-5
    assert distance(weights(whole), initial_weights()) > 1e-3, "they moved a hundred times as far"
    assert all(line["grad_norm"] > 1.0 for line in lines(split)), "all of them clip"
    for run in (split, accumulated):
        for ours, theirs in zip(lines(whole), lines(run), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-5)
            assert (ours["pairs"], ours["prompts"]) == (theirs["pairs"], theirs["prompts"])


def initial_weights() -> dict[str, torch.Tensor]:
    from diffusers import UNet2DConditionModel

    from rankray.shapes import pipeline_dir

    unet = UNet2DConditionModel.from_pretrained(
        pipeline_dir("shapes-sdxl") / "unet", torch_dtype=torch.float32
    )
    return {name: value.detach() for name, value in unet.named_parameters()}


def test_three_sources_of_reference_errors_agree(train: Run) -> None:
    """A second model, the model without its adapters, and a stage ahead of training."""
    lora = {"tuned__train": "lora", "tuned__lora_rank": 4, "noise__prompt_dropout": 0.3}
    runs = {
        mode: train(mode, objective__reference=mode, **lora)
        for mode in ("copy", "adapter_off", "precomputed")
    }
    for run in runs.values():
        for ours, theirs in zip(lines(runs["copy"]), lines(run), strict=True):
            # beta times differences of float32 errors about 1, whose last bit is 1e-7; kernels differ by batch size
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
            assert ours["ref_error"] == pytest.approx(theirs["ref_error"], abs=1e-5)
    info = {mode: json.loads((run / "run.json").read_text()) for mode, run in runs.items()}
    # the second model is the UNet without adapters
    unet = sum(value.numel() for value in initial_weights().values())
    assert info["copy"]["held_parameters"] - info["precomputed"]["held_parameters"] == unet
    assert info["adapter_off"]["held_parameters"] == info["precomputed"]["held_parameters"]
    assert lines(runs["copy"])[0]["implicit_accuracy"] == 0.5  # adapters start as no change


@pytest.mark.slow
def test_streaming_encoders_train_the_same_model(train: Run) -> None:
    stored = train("stored")
    streamed = train("streamed", encoding__mode="stream")
    assert distance(weights(stored), weights(streamed)) < 1e-6
    assert not list((streamed / "..").resolve().glob("streamed/encoded"))


def test_what_comes_out_loads_with_diffusers_alone_and_draws(train: Run) -> None:
    run = train("exported", tuned__ema=0.5, checkpoints__sample_every=2, checkpoints__export_dtype="float32")
    code = (
        "import sys, torch, diffusers\n"
        "pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])\n"
        "image = pipe('a red circle', num_inference_steps=4, height=64, width=64).images[0]\n"
        "assert 'rankray' not in sys.modules\n"
        "print(type(pipe).__name__, image.size)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(run / "pipeline")],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert found.stdout.strip().endswith("StableDiffusionXLPipeline (64, 64)")
    average, last = weights(run, "ema"), weights(run)
    assert distance(average, last) > 0
    shipped = load_file(run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert distance(average, {name: shipped[name] for name in average}) == 0.0
    grids = sorted((run / "samples").glob("step-*.png"))
    assert [grid.name for grid in grids] == ["step-000000.png", "step-000002.png", "step-000004.png"]
    info = json.loads((run / "run.json").read_text())
    assert info["parameters"]["trained"] == sum(value.numel() for value in last.values())


def test_a_loss_that_explodes_is_skipped_and_then_ends_the_run(dataset: Path, tmp_path: Path) -> None:
    settings_ = settings(
        dataset, tmp_path / "o", **{"checkpoints.explode_at": 1e-6, "checkpoints.bad_steps": 2, "steps": 8}
    )
    with pytest.raises(
        rankdpo.TrainingError, match="3 of 3 steps had a loss or gradient that was not finite"
    ):
        rankdpo.run(settings_, say=lambda line: None)
    found = lines(tmp_path / "o")
    assert [line["skipped_steps"] for line in found] == [1, 2, 3]
    assert all(line["loss"] is None for line in found)
    assert not (tmp_path / "o" / "run.json").exists()


SLOW = pytest.mark.slow


@pytest.mark.parametrize("stage", [pytest.param(0, marks=SLOW), 2, pytest.param(3, marks=SLOW)])
def test_skipped_steps_change_nothing(train: Run, stage: int) -> None:
    run = train(f"skipped-{stage}", checkpoints__explode_at=1e-6, workers__zero_stage=stage, steps=2)
    assert distance(weights(run), initial_weights()) == 0.0


KILLED = {
    "steps": 60,
    "batch_size": 8,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-3,
    "optimizer.schedule": "cosine",
    "tuned.ema": 0.9,
    "workers.count": 2,
    "checkpoints.every": 10,
    "checkpoints.keep": 10,
}


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=SLOW)])
def test_a_killed_run_ends_as_if_it_had_not_been(
    dataset: Path, train: Run, tmp_path: Path, stage: int
) -> None:
    """SIGKILL of everything after step 30; the same command: the same weights to the bit, each prompt once an epoch."""
    whole = train("whole", **{**KILLED, "workers.zero_stage": stage})
    tables = settings(dataset, tmp_path / "killed", **{**KILLED, "workers.zero_stage": stage})
    file = tmp_path / "run.toml"
    file.write_text(tomli_w.dumps(tables.model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, str(ROOT / "jobs" / "rankdpo.py"), "--config", str(file)]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    first = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    kept = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 300
    while not any(step_of(place) >= 30 for place in kept.glob("checkpoint_*/state.json")):
        assert first.poll() is None, first.stdout.read().decode()[-3000:] if first.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "killed" / "run.json").exists()
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stdout[-3000:] + second.stderr[-3000:]
    for name in ("weights", "ema", "optimizer.exp_avg", "optimizer.exp_avg_sq"):
        assert distance(weights(whole, name), weights(tmp_path / "killed", name)) == 0.0, name
    assert [line["step"] for line in lines(tmp_path / "killed")] == list(range(1, 61))
    ours, theirs = ([line["loss"] for line in lines(run)] for run in (whole, tmp_path / "killed"))
    assert ours == theirs


def step_of(state: Path) -> int:
    try:
        return int(json.loads(state.read_text())["run"]["step"])
    except (OSError, ValueError):
        return 0


@pytest.mark.slow
def test_another_number_of_workers_and_stage_goes_on_from_a_checkpoint(
    dataset: Path, train: Run, tmp_path: Path
) -> None:
    # Not AdamW: it divides rounding by the square root of next to nothing, 1.6e-4 in the weights after two steps.
    changes = {"optimizer.momentum": 0.9, "checkpoints.every": 2}
    whole = train("whole", **changes, steps=4)
    run = train("half", **changes, steps=4)
    # Back to its second step, as a kill would have left it.
    (run / "run.json").unlink()
    rewind(run, 2)
    second = settings(dataset, run, **changes, **{"workers.count": 2, "workers.zero_stage": 3})
    rankdpo.run(second, say=lambda line: None)
    assert distance(weights(whole), weights(run)) < 1e-5
    momenta = [weights(place, "optimizer.momentum_buffer") for place in (whole, run)]
    assert distance(*momenta) < 1e-5
    assert [line["workers"] for line in lines(run)] == [1, 1, 2, 2]


def rewind(run: Path, step: int) -> None:
    """Removes a finished run's checkpoints after `step`, in Ray Train's own list too, and gives back its identity."""
    places = run / "checkpoints"
    snapshot = json.loads((places / "checkpoint_manager_snapshot.json").read_text())
    for place in sorted(places.glob("checkpoint_*")):
        if place.is_dir() and step_of(place / "state.json") > step:
            for file in place.iterdir():
                file.unlink()
            place.rmdir()
    left = {place.name for place in places.glob("checkpoint_*") if place.is_dir()}
    snapshot["checkpoint_report_indices"] = snapshot["checkpoint_report_indices"][: len(left)]
    kept = [item for item in snapshot["checkpoint_results"] if item["checkpoint_dir_name"] in left]
    snapshot["checkpoint_results"] = kept
    snapshot["latest_checkpoint_result"] = kept[-1]
    (places / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))
    shutil.rmtree(run / "pipeline")
    (run / "config.toml").unlink()
    (run / "report.html").unlink(missing_ok=True)


def test_every_prompt_of_an_epoch_is_seen_once(train: Run, dataset: Path) -> None:
    run = train("epochs", steps=6, objective__reference="precomputed")
    found = lines(run)
    assert [line["epoch"] for line in found] == pytest.approx([n / 3 for n in range(1, 7)], abs=1e-3)
    usable = sum(
        sum(candidate["rank"] > 0 for candidate in row["candidates"]) >= 2
        for row in store.read(str(dataset)).rows()
    )
    for epoch in (found[:3], found[3:]):
        assert sum(line["prompts"] for line in epoch) == usable
    assert np.isfinite([line["grad_norm"] for line in found]).all()
