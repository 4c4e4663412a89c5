"""A run's loop in this process: what its pipeline holds in the end of what was published and of what was learnt."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankray.config import GeneratorChoice
from rankray.models import generators
from rankray.models.denoisers import parts
from rankray.rankdpo import samples, training, zero
from rankray.rankdpo.encoding import ReferenceActor, ReferenceJob
from rankray.rankdpo.feed import Rows, feed, reads, taken
from rankray.rankdpo.held_out import HeldOut
from rankray.rankdpo.labels import Labelling
from rankray.rankdpo.step import Step, begin, train_alone
from rankray.rankdpo.train_job import SNAPSHOT, CheckpointState, RunState, TrainJob, best_name
from rankray.rankdpo.validation import Point
from rankray.shapes import pipeline_dir

PROMPTS = ("a red circle", "two blue squares", "a green triangle", "a red square")
UNET, VAE = (f"{name}/diffusion_pytorch_model.safetensors" for name in ("unet", "vae"))
Make = Callable[..., TrainJob]


def trained(job: TrainJob) -> dict[str, Tensor]:
    ((step, weights),) = train_alone(job, job.config.steps)
    assert step == job.config.steps
    return weights


def exported(job: TrainJob, place: Path) -> dict[str, dict[str, Tensor]]:
    """The weights of each part of the run's pipeline, after it was trained."""
    checkpoint = place / "checkpoint"
    checkpoint.mkdir(parents=True)
    name = "ema" if job.config.tuned.ema else "weights"
    save_file(trained(job), checkpoint / f"{name}.safetensors")
    samples.export_pipeline(job.spec, job.config, str(checkpoint), str(place / "pipeline"))
    return tensors(place / "pipeline")


def tensors(place: Path) -> dict[str, dict[str, Tensor]]:
    return {file.parent.name: load_file(file) for file in place.glob("*/*.safetensors")}


UNTRAINED: dict[str, dict[str, Any]] = {
    "ZeRO 1": {"workers__zero_stage": 1},
    "ZeRO 2": {},
    "ZeRO 3": {"workers__zero_stage": 3},
    "ZeRO 0": {"workers__zero_stage": 0, "tuned__dtype": "float32"},
    "offload": {"workers__offload": True},
    "average": {"tuned__ema": 0.5},
    "LoRA": {"tuned__train": "lora", "tuned__lora_rank": 4},
    "modules": {"tuned__train": ["attn2"]},
    "float32": {"tuned__dtype": "float32"},
}


@pytest.mark.parametrize("changes", UNTRAINED.values(), ids=UNTRAINED.keys())
def test_at_learning_rate_zero_the_model_comes_out_as_it_was_published(
    make: Make, published: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    found, due = exported(make(optimizer__learning_rate=0, **changes), tmp_path), tensors(published)
    assert {name: part.keys() for name, part in found.items()} == {name: p.keys() for name, p in due.items()}
    for name, part in due.items():
        for key, value in part.items():
            assert found[name][key].dtype == value.dtype, (name, key)
            assert torch.equal(found[name][key], value), (name, key)
    whole = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    assert {part.dtype for part in whole.components.values() if hasattr(part, "dtype")} == {torch.float32}
    assert {value.dtype for value in due["unet"].values()} == {torch.float16}
    assert {value.dtype for value in due["vae"].values()} == {torch.float32}


def test_what_is_learnt_is_not_rounded_away(make: Make, published: Path, tmp_path: Path) -> None:
    """Updates far below bfloat16's spacing reach the pipeline, which is asked for in float32."""
    rate, start = 1e-6, load_file(published / UNET)
    job = make(optimizer__learning_rate=rate, checkpoints__export_dtype="float32")
    found = exported(job, tmp_path)["unet"]
    assert {value.dtype for value in found.values()} == {torch.float32}
    moves = torch.cat([(found[name] - value.float()).flatten() for name, value in start.items()]).abs()
    assert float((moves > 0).float().mean()) > 0.9, "all weights but those without a gradient"
    assert float(moves.max()) < 3 * rate, "two steps of AdamW, and none by rounding"


def test_adapters_are_merged_into_unrounded_weights(make: Make, published: Path, tmp_path: Path) -> None:
    job = make(tuned__train="lora", tuned__lora_rank=4, checkpoints__export_dtype="float32")
    found, start = exported(job, tmp_path)["unet"], load_file(published / UNET)
    changed = {name for name, value in start.items() if not torch.equal(found[name], value.float())}
    assert changed
    assert all(".attn" in name and name.endswith("weight") for name in changed)
    for name in changed:
        assert torch.linalg.matrix_rank(found[name].double() - start[name].double(), rtol=1e-3) <= 4, name


def test_adapters_leave_a_run_by_themselves(make: Make, published: Path, tmp_path: Path) -> None:
    """What the file adds to the published weights is what the pipeline holds."""
    tuned = {"tuned__train": "lora", "tuned__lora_rank": 4, "tuned__lora_alpha": 8, "tuned__ema": 0.5}
    job = make(optimizer__learning_rate=1e-2, checkpoints__export_dtype="float32", **tuned)
    save_file(trained(job), tmp_path / "ema.safetensors")
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    samples.export_pipeline(job.spec, job.config, str(tmp_path), str(run / "pipeline"), str(run))
    start, merged = load_file(published / UNET), load_file(run / "pipeline" / UNET)
    learnt = load_file(run / "pytorch_lora_weights.safetensors")
    layers = [key.removesuffix(".lora_A.weight") for key in learnt if key.endswith(".lora_A.weight")]
    moves = []
    for layer in layers:
        name = f"{layer.removeprefix('unet.')}.weight"
        move = 8 / 4 * learnt[f"{layer}.lora_B.weight"] @ learnt[f"{layer}.lora_A.weight"]
        torch.testing.assert_close(start[name].float() + move, merged[name], atol=1e-6, rtol=1e-6)
        moves.append(float(move.abs().max()))
    assert max(moves) > 1e-3
    changed = {name for name, value in start.items() if not torch.equal(merged[name], value.float())}
    assert len(changed) == len(layers)
    assert (run / "notes.txt").read_text() == "mine", "what else lies there stays"


def test_each_part_is_loaded_as_it_computes(published: Path) -> None:
    pipe = parts.load_encoders(
        generators.resolve(GeneratorChoice(model="shapes-sdxl", source=str(published))).kwargs["spec"],
        "cpu",
        torch.bfloat16,
    )
    for name, value in load_file(published / VAE).items():
        assert torch.equal(pipe.vae.state_dict()[name], value), name
    assert pipe.text_encoder.dtype == torch.bfloat16


def test_workers_draw_the_grid_that_one_draws(make: Make) -> None:
    job = make()
    painter = samples.painter(job, [])
    prompts = PROMPTS[:2]
    whole = samples.draw_grid(job.spec, painter, prompts, 0, 1)
    assert whole.shape == (128, 4 * 64, 3)
    shares = [samples.draw_grid(job.spec, painter, prompts, rank, 3) for rank in range(3)]
    assert torch.equal(torch.stack(shares).sum(0, dtype=torch.uint8), whole)
    tiles = whole.unfold(0, 64, 64).unfold(1, 64, 64).flatten(0, 1)
    assert len({tuple(tile.flatten().tolist()) for tile in tiles}) == 8, "no two pictures are the same"


@pytest.mark.parametrize("train", ["full", "lora"])
def test_pictures_are_drawn_with_what_was_trained(make: Make, tmp_path: Path, train: str) -> None:
    """By the weights in a pipeline that draws as by the pipeline that is written."""
    job = make(optimizer__learning_rate=1e-3, tuned__train=train)
    weights = trained(job)
    drawn = samples.painter(job, weights.items())
    save_file(weights, tmp_path / "weights.safetensors")
    changed = job.config.checkpoints.model_copy(update={"export_dtype": "float32"})
    config_ = job.config.model_copy(update={"checkpoints": changed})
    samples.export_pipeline(job.spec, config_, str(tmp_path), str(tmp_path / "pipeline"))
    due = load_file(tmp_path / "pipeline" / UNET)
    found = drawn.pipe.unet.state_dict()
    assert found.keys() == due.keys()
    assert all(torch.equal(found[name], value) for name, value in due.items())
    start = load_file(pipeline_dir("shapes-sdxl") / UNET)
    assert any(not torch.equal(value, start[name].float()) for name, value in due.items())


def test_weights_of_another_model_are_refused(make: Make) -> None:
    job = make()
    with pytest.raises(ValueError, match=r"do not fit the model: [0-9]+ names, such as "):
        samples.denoiser_with(job.spec, job.config, {"conv_in.weight": torch.zeros(1)})


def test_a_part_without_rows_changes_nothing(make: Make) -> None:
    """Three workers of a batch of eight have 3, 3 and 2 prompts, each cut in three."""
    changes = {"optimizer__name": "sgd", "optimizer__learning_rate": 0.1, "tuned__dtype": "float32"}
    learnt = {}
    for batch_size in (2, 3):
        job = make(batch_size=batch_size, workers__micro_batch=1, steps=1, **changes)
        zero.alone()
        training = begin(job, Rows(job))
        (loaded,) = feed(Rows(job), 0, 1, 2, job.config.seed, 0, 1)
        sums, _ = training.step(loaded)
        assert (training.micro_batches, sums["prompts"]) == (batch_size, 2)
        learnt[batch_size] = zero.gather(training.engine)
    assert max(float((learnt[2][name] - learnt[3][name]).abs().max()) for name in learnt[2]) < 1e-6
    start = load_file(pipeline_dir("shapes-sdxl") / UNET)
    assert any(not torch.allclose(learnt[3][name], value.float(), atol=1e-5) for name, value in start.items())


def test_a_step_tells_the_parts_of_its_loss(make: Make) -> None:
    zero.alone()
    found = {}
    for nll in (0.0, 100.0):
        job = make(
            objective__options={"nll": nll}, optimizer__learning_rate=0.0, steps=1, workers__micro_batch=2
        )
        (step,) = begin(job, Rows(job)).steps(Rows(job))
        found[nll] = step.sums
    assert "loss_preference" not in found[0.0]
    apart = found[100.0]
    assert apart["loss_preference"] == pytest.approx(found[0.0]["loss"], rel=1e-6)
    assert apart["loss_nll"] == pytest.approx(100 * apart["model_error"] / 2, rel=0.5)  # of the best of two
    assert apart["loss"] == pytest.approx(apart["loss_preference"] + apart["loss_nll"], rel=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 2])
@pytest.mark.parametrize("stage", [0, 2])
def test_whether_a_step_explodes_does_not_depend_on_how_its_batch_is_cut(
    make: Make, micro_batch: int, stage: int
) -> None:
    """One prompt's loss is above the mean, and with it the bound: the batch's is not."""

    def taken_step(explode_at: float) -> Step:
        job = make(
            objective__options={"nll": 100.0},
            optimizer__learning_rate=0.0,
            steps=1,
            workers__micro_batch=micro_batch,
            workers__zero_stage=stage,
            tuned__dtype="float32",
            checkpoints__explode_at=explode_at,
        )
        zero.alone()
        (step,) = begin(job, Rows(job)).steps(Rows(job))
        return step

    free = taken_step(1e4)
    mean = free.sums["loss"] / free.sums["prompts"]
    assert (free.sums["prompts"], taken_step(1.001 * mean).bad) == (4.0, False)
    exploded = taken_step(0.999 * mean)
    assert exploded.bad
    assert math.isnan(exploded.sums["loss"])


@pytest.mark.parametrize("stage", [0, 2])
def test_a_step_that_exploded_is_not_taken_by_a_last_part_without_a_pair(
    make: Make, tmp_path: Path, stage: int
) -> None:
    """Its loss reaches no parameter, and what is said of the whole batch is said in its backward pass."""
    bounds = {"checkpoints__explode_at": 1e-3, "optimizer__learning_rate": 1e-2, "workers__micro_batch": 1}
    job = make(steps=1, tuned__dtype="float32", workers__zero_stage=stage, **bounds)
    (whole,) = feed(Rows(job), 0, 1, 4, job.config.seed, 0, 1)
    table = pq.read_table(job.sets[0].files[0])
    phi = [
        [0.5] * len(old) if row == whole.rows[-1].prompt_id else old
        for row, old in zip(table["prompt_id"].to_pylist(), table["win_probability"].to_pylist(), strict=True)
    ]
    place = table.column_names.index("win_probability")
    column = pa.array(phi, table.schema.field(place).type)
    file = tmp_path / "rows.parquet"
    pq.write_table(table.set_column(place, table.schema.field(place), column), file, row_group_size=1)
    job = replace(job, sets=(replace(job.sets[0], files=(str(file),)),))
    zero.alone()
    rows = Rows(job)
    training = begin(job, rows)
    before = zero.gather(training.engine)
    (step,) = training.steps(rows)
    assert step.bad
    assert all(torch.equal(value, before[name]) for name, value in zero.gather(training.engine).items())


@pytest.mark.parametrize("stage", [0, 2])
def test_a_gradient_that_is_not_finite_is_not_taken(make: Make, stage: int) -> None:
    """Its loss is: a backward pass may overflow alone."""
    job = make(steps=1, workers__zero_stage=stage, tuned__dtype="float32")
    zero.alone()
    training = begin(job, Rows(job))
    next(p for p in training.model.module.parameters() if p.requires_grad).register_hook(
        lambda gradient: gradient * math.inf
    )
    before = zero.gather(training.engine)
    (step,) = training.steps(Rows(job))
    assert step.bad
    assert math.isfinite(step.sums["loss"])
    assert all(torch.equal(value, before[name]) for name, value in zero.gather(training.engine).items())


def test_a_step_needs_no_ray() -> None:
    """A GPU can be measured where it is not installed; only what starts workers or asks actors imports it."""
    modules = "rankdpo.step, rankdpo.feed, models.denoisers.parts, models.generators.diffusers_pipeline"
    names = ", ".join(f"rankray.{name}" for name in modules.split(", "))
    code = f"import sys; sys.modules['ray'] = sys.modules['deepspeed'] = None; import {names}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pairs_that_may_not_be_compared_teach_nothing(make: Make) -> None:
    """Two candidates of two generators: pairs across are all there are, and within there are none."""
    every = Labelling((0, 1), (0,), "win_probability", 1.0, 0, "all", (0, 1))

    def sums(pairs: str) -> dict[str, float]:
        job = make(tuned__dtype="float32")
        job = replace(job, sets=(replace(job.sets[0], labelling=replace(every, pairs=pairs)),))
        zero.alone()
        rows = Rows(job)
        return next(iter(begin(job, rows).steps(rows))).sums

    both, across, within = sums("all"), sums("across"), sums("within")
    assert both["pairs"] == 4.0
    assert across == both
    assert (within["pairs"], within["loss"]) == (0.0, 0.0)


def test_best_weights_stay_until_a_later_checkpoint_is_stored(make: Make, tmp_path: Path) -> None:
    """Two checkpoints wait to be stored: a start now goes on from step 10, whose best is step 5's."""
    job = replace(make(validation__share=0.05), output=str(tmp_path))
    kept = tmp_path / "checkpoints"
    start = Point(0, 0.5, 0.0, 0.0, 0.7, 0.2, 0.2, 0.0, 0.0)
    points = tuple(replace(start, step=step, implicit_accuracy=0.5 + step / 100) for step in (0, 5))
    for step in (2, 5, 15):
        (kept / best_name(step)).mkdir(parents=True)
    training._remove_bests(job)  # nothing is stored yet
    assert len(list(kept.glob("best-*"))) == 3
    (kept / "stored").mkdir()
    (kept / "stored" / "state.json").write_text(
        json.dumps(asdict(CheckpointState(RunState(10, points=points), (), {})))
    )
    (kept / SNAPSHOT).write_text(json.dumps({"latest_checkpoint_result": {"checkpoint_dir_name": "stored"}}))
    training._remove_bests(job)
    assert sorted(place.name for place in kept.glob("best-*")) == ["best-000005", "best-000015"]


def test_people_and_models_are_learnt_from_side_by_side(mixed: Make) -> None:
    """Of each four rows one is a pair (1 preference) and three are rankings of four (6 each)."""
    job = mixed(steps=4)
    zero.alone()
    rows = Rows(job)
    steps = list(begin(job, rows).steps(rows))
    assert [step.sums["prompts"] for step in steps] == [4.0] * 4
    assert [step.sums["pairs"] for step in steps] == [1 + 3 * 6.0] * 4
    seen = list(feed(rows, 0, 4, 4, job.config.seed, 0, 1))
    judged = [row.prompt_id for loaded in seen for row in loaded.rows if len(row.rank) == 2]
    assert sorted(judged) == sorted(place.prompt_id for place in rows.places[0]), "an epoch: each pair once"
    later = next(iter(feed(rows, 2, 4, 4, job.config.seed, 0, 1)))
    assert [row.prompt_id for row in later.rows] == [row.prompt_id for row in seen[2].rows]
    assert later.epochs == seen[2].epochs


def test_shares_of_a_mixed_step_add_up_to_it(mixed: Make) -> None:
    job = mixed(steps=1, optimizer__learning_rate=0.0)
    zero.alone()
    rows = Rows(job)
    training = begin(job, rows)
    (whole,) = (training.step(one)[0] for one in feed(rows, 0, 1, 4, 0, 0, 1))
    parts = [training.step(one)[0] for rank in (0, 1) for one in feed(rows, 0, 1, 4, 0, rank, 2)]
    for name, value in whole.items():
        assert sum(part[name] for part in parts) == pytest.approx(value, rel=1e-5), name


def test_reference_errors_ahead_are_each_set_s_own(mixed: Make, tmp_path: Path) -> None:
    """One prompt has a row in both sets, with other pictures: what is computed ahead is what a copy would say."""
    job = mixed(steps=6, objective__reference="precomputed")
    ids = [[place.prompt_id for place in places] for places in Rows(job).places]
    assert set(ids[0]) & set(ids[1])
    sets = []
    for one, names, drawn in zip(job.sets, ids, taken(24, [1.0, 3.0]), strict=True):
        ahead = ReferenceJob(job.spec, "cpu", job.config, job.encoded, reads(names, drawn, job.config.seed))
        (tmp_path / f"{drawn}" / "data").mkdir(parents=True)
        errors = ReferenceActor(ahead)(pq.read_table(one.files[0]))
        pq.write_table(errors, tmp_path / f"{drawn}" / "data" / "0.parquet")
        sets.append(replace(one, reference=str(tmp_path / f"{drawn}")))
    learnt = [trained(mixed(steps=6)), trained(replace(job, sets=tuple(sets)))]
    assert max(float((learnt[0][name] - learnt[1][name]).abs().max()) for name in learnt[0]) < 1e-5
    crossed = [replace(one, reference=other.reference) for one, other in zip(sets, sets[::-1], strict=True)]
    with pytest.raises((KeyError, ValueError, RuntimeError)):
        trained(replace(job, sets=tuple(crossed)))


def test_a_prompt_is_held_out_of_all_sets(mixed: Make) -> None:
    job = mixed(validation__share=0.25, validation__min_prompts=2)
    rows = Rows(job)
    away = {place.prompt for place in rows.held_out}
    assert len(rows.held_out) == 2
    assert not away & {place.prompt for places in rows.places for place in places}
    zero.alone()
    point = HeldOut(begin(job, rows), rows).measure(RunState(0))
    assert (point.implicit_accuracy, point.chosen_rise) == (0.5, 0.0)
