"""A run on Ray Train's workers: its steps from the last checkpoint to the last one, and what is kept between.

    weights.safetensors          float32, of what is trained
    ema.safetensors              their average, where there is one
    optimizer.KEY.safetensors    each of the optimizer's tensors
    state.json                   step, skipped steps, best value, what was spent

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
from pathlib import Path

import pyarrow.fs as pafs
import ray.train
from safetensors.torch import save_file
from torch import distributed

from rankray import store
from rankray.rankdpo import step, zero
from rankray.rankdpo.feed import Rows
from rankray.rankdpo.log import RunLog
from rankray.rankdpo.samples import keep_grid
from rankray.rankdpo.step import Training
from rankray.rankdpo.train_job import RunState, TrainJob


def train(job: TrainJob) -> None:
    """One worker's run, from its last checkpoint to the last step (Algorithm 2)."""
    settings, context, rows = job.config.checkpoints, ray.train.get_context(), Rows(job)
    training = step.begin(job, rows, context.get_world_rank(), context.get_world_size())
    state = restore(training)
    log = RunLog(training, state)
    keep_grid(training, state.step)
    for taken in training.steps(rows, state.step):
        state = state.after(taken.bad)
        log.step(state, taken)
        if state.skipped > settings.bad_steps:
            log.diverged(state)
            return
        keep_grid(training, state.step)
        if state.step % settings.every == 0 or state.step == job.config.steps:
            state = save(training, state, log)
    log.close()


def restore(training: Training) -> RunState:
    """Takes up the last checkpoint, if Ray Train has one: weights, optimizer, average; returns its state."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return RunState()
    with checkpoint.as_directory() as directory:
        return _load(training, Path(directory))


def _load(training: Training, directory: Path) -> RunState:
    found, engine = json.loads((directory / "state.json").read_text()), training.engine
    if training.average is not None:
        with training.average.swapped():
            zero.scatter(engine, zero.Stored(directory, "ema"))
    weights = zero.Stored(directory, "weights")
    zero.scatter(engine, weights)
    zero.refresh(engine, weights)
    tensors = {key: zero.Stored(directory, f"optimizer.{key}") for key in found["optimizer_tensors"]}
    zero.restore_optimizer(engine, tensors, found["optimizer_scalars"])
    return RunState(**found["run"])


def save(training: Training, state: RunState, log: RunLog) -> RunState:
    """Writes a checkpoint of all workers' slices; returns the state with its new best."""
    accuracy = log.accuracy_since_last()
    is_best = state.best is None or accuracy > state.best
    if is_best:
        state = dataclasses.replace(state, best=accuracy, best_step=state.step)
    state = log.spent(state)
    directory = Path(tempfile.mkdtemp(prefix="rankray-checkpoint-"))
    try:
        keys, scalars = _write_share(training, directory)
        if training.rank == 0:
            log.flush()
            text = {"run": dataclasses.asdict(state), "optimizer_tensors": keys, "optimizer_scalars": scalars}
            (directory / "state.json").write_text(json.dumps(text))
        if is_best:
            _keep_best(training, directory, state.step)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    ray.train.report(
        {"step": state.step, "implicit_accuracy": accuracy},
        checkpoint=ray.train.Checkpoint.from_directory(directory),
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )
    return state


def _write_share(training: Training, directory: Path) -> tuple[list[str], dict[str, float]]:
    """Writes this worker's share of the tensors; returns the optimizer's, as `zero.state_keys` names them."""
    engine, rank, world = training.engine, training.rank, training.world
    mine, (keys, scalars) = zero.share(engine, rank, world), zero.state_keys(engine)
    part = "" if world == 1 else f"-{rank + 1:05}-of-{world:05}"
    for name, key in {"weights": None, **{f"optimizer.{key}": key for key in keys}}.items():
        save_file(zero.gather(engine, key, mine), directory / f"{name}{part}.safetensors")
    if training.average is not None:
        with training.average.swapped():
            save_file(zero.gather(engine, None, mine), directory / f"ema{part}.safetensors")
    return keys, scalars


def _keep_best(training: Training, directory: Path, step: int) -> None:
    """Copies a checkpoint's weights to OUTPUT/checkpoints/best-STEP, names it in best.json, removes the one before."""
    fs, output = store.filesystem(training.job.output)
    root, name = f"{output}/checkpoints", f"best-{step:06}"
    best = f"{root}/{name}"
    if training.rank == 0:
        if fs.get_file_info(best).type != pafs.FileType.NotFound:  # what a killed start left
            fs.delete_dir(best)
        fs.create_dir(best, recursive=True)
    distributed.barrier()
    for file in directory.iterdir():
        if not file.name.startswith("optimizer."):
            pafs.copy_files(str(file), f"{best}/{file.name}", pafs.LocalFileSystem(), fs)
    distributed.barrier()
    if training.rank > 0:
        return
    store.write_json(f"{root}/best.json", {"checkpoint": name, "step": step}, fs)
    for info in fs.get_file_info(pafs.FileSelector(root)):
        if info.base_name.startswith("best-") and info.base_name != name:
            fs.delete_dir(info.path)
