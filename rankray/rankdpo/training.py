"""A run on Ray Train's workers: its steps from the last checkpoint to the last one, and what is kept between.

    weights.safetensors          float32, of what is trained
    ema.safetensors              their average, where there is one
    optimizer.KEY.safetensors    each of the optimizer's tensors
    state.json                   step, skipped steps, what held-out prompts said, what was spent

Of several workers each writes the tensors of its share, NAME-00001-of-00008.safetensors and so on, and Ray Train stores
them while training goes on: all wait only until each has its share on its own disk. No random state is in it: all
randomness is a function of seed, epoch and prompt, and the place in the data is the step. Ray Train names a checkpoint
only once all of it is stored, and keeps the last N; the best one's weights are copied beside them.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.fs as pafs
import ray.train
from safetensors.torch import save_file
from torch import distributed

from rankray import store
from rankray.rankdpo import step, validation, zero
from rankray.rankdpo.feed import Rows
from rankray.rankdpo.held_out import HeldOut
from rankray.rankdpo.log import RunLog
from rankray.rankdpo.samples import keep_grid
from rankray.rankdpo.step import Training
from rankray.rankdpo.train_job import (
    SNAPSHOT,
    CheckpointState,
    RunState,
    TrainJob,
    best_name,
    checkpoint_state,
)


def train(job: TrainJob) -> None:
    """One worker's run, from its last checkpoint to the last step (Algorithm 2), or to where validation ends it."""
    begun_s = time.monotonic()
    config, context, rows = job.config, ray.train.get_context(), Rows(job)
    training = step.begin(job, rows, context.get_world_rank(), context.get_world_size())
    state = restore(training)
    log = RunLog(training, state, begun_s)
    held_out = HeldOut(training, rows) if rows.held_out else None
    if held_out is not None and not state.points:
        state = _validated(training, held_out, state, log)
    keep_grid(training, state.step)
    if not validation.stops(state.points, config.validation):
        for taken in training.steps(rows, state.step):
            state = state.after(taken.bad, taken.sums)
            log.step(state, taken)
            if state.skipped > config.checkpoints.bad_steps:
                log.diverged(state)
                return
            keep_grid(training, state.step)
            last = state.step == config.steps
            if held_out is not None and (last or state.step % config.validation.every == 0):
                state = _validated(training, held_out, state, log)
                last = last or validation.stops(state.points, config.validation)
            if last or state.step % config.checkpoints.every == 0:
                state = save(training, state, log)
            if last:
                break
    log.close()


def _validated(training: Training, held_out: HeldOut, state: RunState, log: RunLog) -> RunState:
    """Validates, and keeps the weights where they are the best so far; returns the state with the new point."""
    state = state.validated(held_out.measure(state))
    log.validated(state)
    if state.step and validation.best(state.points, training.job.config.validation).step == state.step:
        _keep_best(training, state.step)
    return state


def restore(training: Training) -> RunState:
    """Takes up the last checkpoint, if Ray Train has one: weights, optimizer, average; returns its state."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return RunState(step=0)
    with checkpoint.as_directory() as directory:
        return _load(training, Path(directory))


def _load(training: Training, directory: Path) -> RunState:
    found, engine = checkpoint_state(pafs.LocalFileSystem(), str(directory)), training.engine
    if training.average is not None:
        with training.average.swapped():
            zero.scatter(engine, zero.Stored(directory, "ema"))
    weights = zero.Stored(directory, "weights")
    zero.scatter(engine, weights)
    zero.refresh(engine, weights)
    tensors = {key: zero.Stored(directory, f"optimizer.{key}") for key in found.optimizer_tensors}
    zero.restore_optimizer(engine, tensors, found.optimizer_scalars)
    return found.run


def save(training: Training, state: RunState, log: RunLog) -> RunState:
    """Writes a checkpoint of all workers' slices; returns the state with what was spent."""
    state = log.spent(state)
    directory = Path(tempfile.mkdtemp(prefix="rankray-checkpoint-"))
    try:
        keys, scalars = zero.state_keys(training.engine)
        _write(training, directory, keys)
        if training.rank == 0:
            log.flush()
            text = json.dumps(dataclasses.asdict(CheckpointState(state, tuple(keys), scalars)))
            (directory / "state.json").write_text(text)
            _remove_bests(training.job)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    ray.train.report(
        {"step": state.step},
        checkpoint=ray.train.Checkpoint.from_directory(directory),
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )
    return state


def _write(training: Training, directory: Path, optimizer_keys: Sequence[str] = ()) -> None:
    """Writes this worker's share of the weights, of the optimizer's tensors of those keys, and of the average."""
    engine, rank, world = training.engine, training.rank, training.world
    part = "" if world == 1 else f"-{rank + 1:05}-of-{world:05}"
    mine = zero.share(engine, rank, world)
    for name, key in (("weights", None), *((f"optimizer.{key}", key) for key in optimizer_keys)):
        save_file(zero.gather(engine, key, mine), directory / f"{name}{part}.safetensors")
    if training.average is not None:
        with training.average.swapped():
            save_file(zero.gather(engine, None, mine), directory / f"ema{part}.safetensors")


def _keep_best(training: Training, step: int) -> None:
    """Writes the weights to OUTPUT/checkpoints/best-STEP and names it in best.json; those before stay for a while."""
    fs, output = store.filesystem(training.job.output)
    root, name = f"{output}/checkpoints", best_name(step)
    best = f"{root}/{name}"
    if training.rank == 0:
        if fs.get_file_info(best).type != pafs.FileType.NotFound:  # what a killed start left
            fs.delete_dir(best)
        fs.create_dir(best, recursive=True)
    distributed.barrier()
    with tempfile.TemporaryDirectory(prefix="rankray-best-") as scratch:
        _write(training, Path(scratch))
        pafs.copy_files(scratch, best, pafs.LocalFileSystem(), fs)
    distributed.barrier()
    if training.rank == 0:
        store.write_json(f"{root}/best.json", {"checkpoint": name, "step": step}, fs)


def _remove_bests(job: TrainJob) -> None:
    """Removes the best weights before those that a start now would go on with. Checkpoints wait to be stored, several
    of them where that takes longer than training to the next, so Ray Train's own list says which is the last."""
    fs, output = store.filesystem(job.output)
    root = f"{output}/checkpoints"
    try:
        last = store.read_json(f"{root}/{SNAPSHOT}", fs)["latest_checkpoint_result"]["checkpoint_dir_name"]
        points = checkpoint_state(fs, f"{root}/{last}").run.points
    except (OSError, ValueError, TypeError):  # none yet, or just being replaced: the next one removes them
        return
    needed = best_name(validation.best(points, job.config.validation).step) if points else ""
    for info in fs.get_file_info(pafs.FileSelector(root)):
        if info.base_name.startswith("best-") and info.base_name < needed:
            fs.delete_dir(info.path)
