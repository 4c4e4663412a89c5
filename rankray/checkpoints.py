"""A run's checkpoints: whole tensors by name, written through Ray Train to any filesystem, read by any workers.

    weights.safetensors          float32, of what is trained
    ema.safetensors              their average, where there is one
    optimizer.KEY.safetensors    each of the optimizer's tensors
    state.json                   step, skipped steps, best value, what was spent

No random state is in it: all randomness is a function of seed, epoch and prompt, and the place in the data is the step.
Ray Train names a checkpoint only once all of it is stored, and keeps the last N; the best is copied beside them.
Gathering to rank 0 takes a second for a million parameters on two CPU workers, and a training run waits for it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs
import ray.train

from rankray import store

if TYPE_CHECKING:
    from rankray.run_log import RunLog
    from rankray.training import TrainJob


@dataclass(frozen=True)
class RunState:
    """What a run knows of itself beside its tensors.

    Attributes:
        step: steps done.
        skipped: of these, left out for a loss or gradient that was not finite, or a loss that exploded.
        best: highest implicit accuracy between two checkpoints, and the step of the second.
        elapsed_s: time spent on steps, of all starts.
        gpu_s, cpu_s: the same times the workers' GPUs and CPUs.
    """

    step: int = 0
    skipped: int = 0
    best: float | None = None
    best_step: int | None = None
    elapsed_s: float = 0.0
    gpu_s: float = 0.0
    cpu_s: float = 0.0

    def after(self, bad: bool) -> RunState:
        """The state one step later."""
        return dataclasses.replace(self, step=self.step + 1, skipped=self.skipped + bad)


def restore(engine: Any, average: Any) -> RunState:
    """Takes up the last checkpoint, if Ray Train has one: weights, optimizer, average; returns its state."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return RunState()
    with checkpoint.as_directory() as directory:
        return _load(engine, average, Path(directory))


def _load(engine: Any, average: Any, directory: Path) -> RunState:
    from safetensors.torch import load_file

    from rankray import zero

    found = json.loads((directory / "state.json").read_text())
    if average is not None:
        with average.swapped():
            zero.scatter(engine, load_file(directory / "ema.safetensors"))
    weights = load_file(directory / "weights.safetensors")
    zero.scatter(engine, weights)
    zero.refresh(engine, weights)
    tensors = {
        key: load_file(directory / f"optimizer.{key}.safetensors") for key in found["optimizer_tensors"]
    }
    zero.restore_optimizer(engine, tensors, found["optimizer_scalars"])
    return RunState(**found["run"])


def save(job: TrainJob, engine: Any, average: Any, state: RunState, rank: int, log: RunLog) -> RunState:
    """Writes a checkpoint of all workers' slices; returns the state with its new best."""
    from rankray import zero

    first = rank == 0
    accuracy = log.accuracy_since_last()
    is_best = state.best is None or accuracy > state.best
    if is_best:
        state = dataclasses.replace(state, best=accuracy, best_step=state.step)
    state = log.spent(state)
    keys, scalars = zero.state_keys(engine)
    tensors = {"weights": zero.gather(engine, keep=first)}
    tensors |= {f"optimizer.{key}": zero.gather(engine, key, keep=first) for key in keys}
    if average is not None:
        with average.swapped():
            tensors["ema"] = zero.gather(engine, keep=first)
    if not first:
        ray.train.report({"step": state.step})
        return state
    log.flush()
    directory = Path(tempfile.mkdtemp(prefix="rankray-checkpoint-"))
    try:
        _write(directory, tensors, keys, scalars, state)
        if is_best:
            _keep_best(job.output, directory, state.step)
        checkpoint = ray.train.Checkpoint.from_directory(directory)
        ray.train.report({"step": state.step, "implicit_accuracy": accuracy}, checkpoint=checkpoint)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return state


def _write(
    directory: Path, tensors: dict[str, Any], keys: list[str], scalars: dict[str, float], state: RunState
) -> None:
    from safetensors.torch import save_file

    for name, values in tensors.items():
        save_file(values, directory / f"{name}.safetensors")
    text = {"run": dataclasses.asdict(state), "optimizer_tensors": keys, "optimizer_scalars": scalars}
    (directory / "state.json").write_text(json.dumps(text))


def _keep_best(output: str, directory: Path, step: int) -> None:
    """Copies a checkpoint to OUTPUT/checkpoints/best-STEP, names it in best.json, then removes the one before."""
    fs, place = store.filesystem(output)
    root = f"{place}/checkpoints"
    upload(directory, fs, f"{root}/best-{step:06}")
    store.write_json(f"{root}/best.json", {"checkpoint": f"best-{step:06}", "step": step}, fs)
    for info in fs.get_file_info(pafs.FileSelector(root)):
        if info.base_name.startswith("best-") and info.base_name != f"best-{step:06}":
            fs.delete_dir(info.path)


def upload(directory: Path, fs: pafs.FileSystem, place: str) -> None:
    """Copies a local directory to a place on an Arrow filesystem, replacing what is there."""
    if fs.get_file_info(place).type != pafs.FileType.NotFound:
        fs.delete_dir(place)
    fs.create_dir(place, recursive=True)
    pafs.copy_files(
        str(directory), place, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs
    )


def keep_samples(job: TrainJob, engine: Any, average: Any, step: int, rank: int, log: RunLog) -> None:
    """Every `sample_every` steps: a grid of pictures by the model as it is, from seeds that never change."""
    every = job.config.checkpoints.sample_every
    if not every or step % every:
        return
    import contextlib

    from rankray import samples, zero

    with average.swapped() if average is not None else contextlib.nullcontext():
        weights = zero.gather(engine, keep=rank == 0)
    if rank == 0:
        samples.write_grid(job, weights, step, log.sample_prompts())
