"""Algorithm 2 on real models and a dataset that Syn-Pic made: by Ray Train's workers, or by its loop in this process.

Four steps take 0.6 to 3 s in this process and 19 to 31 s by workers, who import everything anew. So what a step, a loss
or a source of errors comes to is asked here; workers run where it is about them: how they split a batch, and kills.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import psutil
import pyarrow.fs as pafs
import pytest
import small_dataset
import tomli_w
import torch
from conftest import Killed, in_this_process, left, nothing_left, start, wait_for
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from rankray import config, store
from rankray.config.rankdpo import RankDPOConfig
from rankray.data import convert, pickapic
from rankray.data.pickapic import Importing
from rankray.rankdpo import job as rankdpo
from rankray.rankdpo.zero import Stored
from rankray.report.run import write_run_report

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

Run = Callable[..., Path]


def settings(dataset: Path, output: Path, **changes: Any) -> RankDPOConfig:
    tables: dict[str, Any] = {
        "dataset": str(dataset),
        "output": str(output),
        "rehearse": True,
        "model": {"model": "shapes-sdxl"},
        "steps": 4,
        "batch_size": 8,
        "objective": {"beta": 200.0},
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
        "workers": {"count": 1, "num_cpus": 0.5, "num_gpus": 1, "zero_stage": 2, "max_failures": 0},
        "encoding": {"num_gpus": 0.5},
        "checkpoints": {"sample_every": 0},
        "validation": {"share": 0.0},
    }
    return config.build(RankDPOConfig, config.with_options(tables, changes))


@pytest.fixture
def by_workers(cluster: Cluster, dataset: Path, tmp_path: Path) -> Run:
    """`by_workers(name, **changes)` trains into a directory of that name; `a__b` stands for `a.b`."""

    def run(name: str, **changes: Any) -> Path:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        taken = dotted.pop("dataset", dataset)
        rankdpo.run(settings(taken, tmp_path / name, **dotted), say=lambda line: None)
        nothing_left()
        return tmp_path / name

    return run


@pytest.fixture
def train(by_workers: Run) -> Run:
    """The same in this process, killed where it would store its checkpoint of the number `killed_at`."""

    def run(name: str, killed_at: int = 0, **changes: Any) -> Path:
        with in_this_process(killed_at):
            return by_workers(name, **changes)

    return run


def weights(run: Path, name: str = "weights") -> dict[str, torch.Tensor]:
    """Tensors of the last checkpoint."""
    last = max(place for place in (run / "checkpoints").glob("checkpoint_*") if place.is_dir())
    return dict(Stored(last, name))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


HELD_OUT = {
    "validation__share": 0.2,
    "validation__min_prompts": 5,
    "validation__every": 2,
    "validation__draws": 4,
}


def test_weights_and_validation_do_not_depend_on_how_a_batch_is_split(train: Run, by_workers: Run) -> None:
    """8 at once at ZeRO 0, 2 + 2 + 2 + 2 accumulated at ZeRO 2, and two workers' 2 x 2 at ZeRO 3 (float32, SGD).

    Five prompts are held out: the second worker's share of them is one less than the first's.
    """
    held_out = {**HELD_OUT, "tuned__ema": 0.5}
    whole = train("whole", workers__zero_stage=0, workers__micro_batch=8, **held_out)
    accumulated = train("accumulated", workers__micro_batch=2, **held_out)
    split = by_workers("split", workers__count=2, workers__micro_batch=2, workers__zero_stage=3, **held_out)
    assert distance(weights(whole), initial_weights()) > 1e-3, "they moved a hundred times as far"
    assert all(line["grad_norm"] > 1.0 for line in lines(accumulated)), "all of them clip"
    for run in (split, accumulated):
        assert distance(weights(whole), weights(run)) < 1e-5
        for ours, theirs in zip(lines(whole), lines(run), strict=True):
            # beta times what float32 rounds of weights and errors: its last bits differ by machine
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
            assert (ours["pairs"], ours["prompts"]) == (theirs["pairs"], theirs["prompts"])
            for name in validated(ours) | validated(theirs):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=2e-5), name
    assert [bool(validated(line)) for line in lines(split)] == [False, True, False, True]
    assert lines(split)[-1]["validation_chosen_rise"] != 0.0
    assert [line["workers"] for line in lines(split)] == [2] * 4
    assert json.loads((split / "run.json").read_text())["cost"]["gpu_hours"] > 0


def validated(line: dict[str, Any]) -> set[str]:
    """Names of a validation's figures in a line."""
    return {name for name in line if name.startswith("validation_")}


@pytest.mark.slow
def test_a_mixed_run_depends_on_neither_workers_nor_kills_nor_reference(
    train: Run, by_workers: Run, dataset: Path, tmp_path: Path
) -> None:
    """Rankings of three beside pairs of them, as somebody's choices come in, three to one; prompts are the same."""
    convert.run(str(dataset), str(tmp_path / "pairs"), "pickapic", lambda line: None)
    people = str(tmp_path / "people")
    pickapic.run([str(tmp_path / "pairs" / "data")], people, Importing(), lambda line: None)
    changes: dict[str, Any] = {"mix": [{"dataset": people, "weight": 1 / 3}], **HELD_OUT}
    whole = train("whole", workers__micro_batch=8, **changes)
    split = by_workers(
        "split", workers__count=2, workers__zero_stage=3, objective__reference="precomputed", **changes
    )
    with pytest.raises(Killed):
        train("killed", killed_at=2, checkpoints__every=2, **changes)
    killed = train("killed", checkpoints__every=2, **changes)
    for run in (split, killed):
        assert distance(weights(whole), weights(run)) < 1e-5
        for ours, theirs in zip(lines(whole), lines(run), strict=True):
            # as with three sources of reference errors: beta times the last bits of errors about 1
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
            assert ours["pairs"] == theirs["pairs"]
            for name in validated(ours) | validated(theirs):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=2e-5), name
    info = json.loads((split / "run.json").read_text())
    assert [(one["weight"], one["drawn"]) for one in info["datasets"]] == [(1.0, 24), (1 / 3, 8)]
    assert [item["name"] for item in info["data"]["rewards"]] == [
        "shapes-pickscore",
        "shapes-clipscore",
        "human",
    ]
    write_run_report(str(split), info)
    assert f"1 × {dataset} + 0.333333 × {people}" in (split / "report.html").read_text()


@pytest.mark.slow
def test_a_dataset_elsewhere_trains_the_same_weights(
    train: Run, dataset: Path, bucket: str, tmp_path: Path
) -> None:
    """Moved, with pictures beside its rows; copied into a bucket, under a key that an URI escapes, where it is encoded
    too; copied back from there."""
    whole = weights(train("whole"))
    shutil.copytree(dataset, tmp_path / "made here")
    small_dataset.as_files(tmp_path / "made here")
    moved = (tmp_path / "made here").rename(tmp_path / "moved elsewhere, ü")
    there = f"s3://{bucket}/{quote('trained on, ü 100%+#')}"
    fs, key = store.filesystem(there)
    pafs.copy_files(str(moved), key, pafs.LocalFileSystem(), fs)
    pafs.copy_files(key, str(tmp_path / "back"), fs, pafs.LocalFileSystem())
    places = {"moved": str(moved), "there": there, "back": str(tmp_path / "back")}
    assert distance(whole, initial_weights()) > 1e-3
    for name, place in places.items():
        assert distance(whole, weights(train(f"by-{name}", dataset=place))) == 0.0, name


@pytest.mark.slow
def test_two_workers_split_a_batch_at_zero_2(train: Run, by_workers: Run) -> None:
    whole = train("whole", workers__zero_stage=0, workers__micro_batch=8)
    split = by_workers("split", workers__count=2, workers__micro_batch=4)
    assert distance(weights(whole), weights(split)) < 1e-5


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


def test_streaming_encoders_train_the_same_model(train: Run) -> None:
    stored = train("stored")
    streamed = train("streamed", encoding__mode="stream")
    assert distance(weights(stored), weights(streamed)) < 1e-6
    assert not list((streamed / "..").resolve().glob("streamed/encoded"))


def test_what_comes_out_loads_with_diffusers_alone_and_draws(
    by_workers: Run, golden: Callable[..., None]
) -> None:
    """One worker of Ray Train, its last checkpoint, its average, its pictures."""
    run = by_workers(
        "exported",
        tuned__ema=0.5,
        checkpoints__sample_every=2,
        checkpoints__export_dtype="float32",
        **HELD_OUT,
    )
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
    golden("rankdpo.json", left(run, "run.json", "metrics.jsonl"), rel=1e-2)  # beta enlarges a CPU's rounding


def test_a_loss_that_explodes_is_skipped_and_then_ends_the_run(train: Run, tmp_path: Path) -> None:
    explosive = {"checkpoints__explode_at": 1e-6, "checkpoints__bad_steps": 2}
    with pytest.raises(
        rankdpo.TrainingError, match="3 of 3 steps had a loss or gradient that was not finite"
    ):
        train("o", steps=8, **explosive)
    found = lines(tmp_path / "o")
    assert [line["skipped_steps"] for line in found] == [1, 2, 3]
    assert all(line["loss"] is None for line in found)
    assert not (tmp_path / "o" / "run.json").exists()
    nothing_left()


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_skipped_steps_change_nothing(train: Run, stage: int) -> None:
    run = train(f"skipped-{stage}", checkpoints__explode_at=1e-6, workers__zero_stage=stage, steps=2)
    assert distance(weights(run), initial_weights()) == 0.0


KILLED = {
    "steps": 40,
    "batch_size": 8,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-3,
    "optimizer.schedule": "cosine",
    "tuned.ema": 0.9,
    "checkpoints.every": 5,
    "checkpoints.keep": 10,
    "validation.share": 0.2,
    "validation.min_prompts": 5,
    "validation.every": 3,
}


def same(whole: Path, killed: Path, steps: int) -> None:
    """The same weights and optimizer to the bit, each step once with the same loss, the same validations."""
    for name in ("weights", "ema", "optimizer.exp_avg", "optimizer.exp_avg_sq"):
        assert distance(weights(whole, name), weights(killed, name)) == 0.0, name
    assert [line["step"] for line in lines(killed)] == list(range(1, steps + 1))
    for ours, theirs in zip(lines(whole), lines(killed), strict=True):
        assert ours["loss"] == theirs["loss"]
        assert {name: ours[name] for name in validated(ours)} == {
            name: theirs[name] for name in validated(theirs)
        }
    assert sum(bool(validated(line)) for line in lines(killed)) == -(-steps // 3)
    first, second = (json.loads((run / "run.json").read_text())["validation"] for run in (whole, killed))
    assert first == second


def test_killed_before_its_third_checkpoint_it_goes_on_from_the_second(train: Run, tmp_path: Path) -> None:
    changes = {key.replace(".", "__"): value for key, value in KILLED.items()}
    changes |= {"steps": 8, "checkpoints__every": 2}
    whole = train("whole", **changes)
    with pytest.raises(Killed):
        train("killed", killed_at=3, **changes)
    assert [line["step"] for line in lines(tmp_path / "killed")] == [1, 2, 3, 4, 5, 6], (
        "the last two are lost"
    )
    assert not (tmp_path / "killed" / "run.json").exists()
    same(whole, train("killed", **changes), 8)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "stage"), [(1, 2), (2, 2), (2, 3)])
def test_a_killed_run_ends_as_if_it_had_not_been(
    cluster: Cluster,
    dataset: Path,
    by_workers: Run,
    tmp_path: Path,
    workers: int,
    stage: int,
) -> None:
    """SIGKILL of driver and workers after step 10; the same command: the same weights to the bit, each prompt once."""
    changes = {**KILLED, "workers.zero_stage": stage, "workers.count": workers}
    whole = by_workers("whole", **changes)  # in this process floats are rounded otherwise
    file = tmp_path / "run.toml"
    tables = settings(dataset, tmp_path / "killed", **changes)
    file.write_text(tomli_w.dumps(tables.model_dump(mode="json", exclude_none=True)))
    process = start(cluster.address, "rankdpo", "--config", str(file))
    kept = tmp_path / "killed" / "checkpoints"
    wait_for(lambda: any(step_of(place) >= 10 for place in kept.glob("checkpoint_*/state.json")), process)
    for worker in training_workers(cluster):
        worker.kill()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "run.json").exists()
    by_workers("killed", **changes)
    same(whole, tmp_path / "killed", KILLED["steps"])


def training_workers(cluster: Cluster) -> list[psutil.Process]:
    """Processes of Ray Train's workers on the session's Ray."""
    raylet = cluster.head_node.all_processes["raylet"][0].process.pid
    children = psutil.Process(raylet).children(recursive=True)
    return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]


def step_of(state: Path) -> int:
    try:
        return int(json.loads(state.read_text())["run"]["step"])
    except (OSError, ValueError):
        return 0


@pytest.mark.slow
def test_another_number_of_workers_and_stage_goes_on_from_a_checkpoint(
    dataset: Path, by_workers: Run, tmp_path: Path
) -> None:
    # Not AdamW: it divides rounding by the square root of next to nothing, 1.6e-4 in the weights after two steps.
    changes = {"optimizer.momentum": 0.9, "checkpoints.every": 2, "tuned.ema": 0.5}
    whole = by_workers("whole", **changes, steps=4)
    run = by_workers("half", **changes, steps=4)
    # Back to its second step, as a kill would have left it.
    (run / "run.json").unlink()
    rewind(run, 2)
    second = settings(dataset, run, **changes, **{"workers.count": 2, "workers.zero_stage": 3})
    rankdpo.run(second, say=lambda line: None)
    assert distance(weights(whole), weights(run)) < 1e-5
    for name in ("optimizer.momentum_buffer", "ema"):
        assert distance(*(weights(place, name) for place in (whole, run))) < 1e-5
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


def test_every_prompt_of_an_epoch_is_seen_once(cluster: Cluster, dataset: Path, tmp_path: Path) -> None:
    """With reference errors that an actor of a whole GPU computes ahead, of both epochs."""
    ahead = {"objective.reference": "precomputed"}
    said: list[str] = []
    with in_this_process():
        rankdpo.run(settings(dataset, tmp_path / "o", steps=6, **ahead), said.append)
    nothing_left()
    found = lines(tmp_path / "o")
    assert [line["epoch"] for line in found] == pytest.approx([n / 3 for n in range(1, 7)], abs=1e-3)
    ranked = [sum(c["rank"] > 0 for c in row["candidates"]) for row in store.read(str(dataset)).rows()]
    usable = sum(count >= 2 for count in ranked)
    for epoch in (found[:3], found[3:]):
        assert sum(line["prompts"] for line in epoch) == usable
    assert (
        f"reference ahead: 2.00 epochs of {usable} prompts, {2 * sum(ranked)} forward passes on 1 actor"
        in said
    )
    assert np.isfinite([line["grad_norm"] for line in found]).all()
