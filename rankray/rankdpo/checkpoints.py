"""A run's checkpoints: whole tensors by name, written through Ray Train to any filesystem, read by any workers.

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

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs
import ray.train

from rankray import store

if TYPE_CHECKING:
    from torch import Tensor

    from rankray.rankdpo.run_log import RunLog
    from rankray.rankdpo.training import TrainJob


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
    from rankray.rankdpo import zero

    found = json.loads((directory / "state.json").read_text())
    if average is not None:
        with average.swapped():
            zero.scatter(engine, Stored(directory, "ema"))
    weights = Stored(directory, "weights")
    zero.scatter(engine, weights)
    zero.refresh(engine, weights)
    tensors = {key: Stored(directory, f"optimizer.{key}") for key in found["optimizer_tensors"]}
    zero.restore_optimizer(engine, tensors, found["optimizer_scalars"])
    return RunState(**found["run"])


class Stored(Mapping[str, "Tensor"]):
    """The tensors of a NAME in a checkpoint's directory, each read when it is asked for.

    Raises:
        FileNotFoundError: a worker's share is not there.
    """

    def __init__(self, directory: Path, name: str) -> None:
        from safetensors import safe_open

        whole = directory / f"{name}.safetensors"
        files = [whole] if whole.exists() else sorted(directory.glob(f"{name}-*-of-*.safetensors"))
        due = int(files[0].stem.rpartition("-of-")[2]) if files and files != [whole] else 1
        if len(files) != due:
            raise FileNotFoundError(f"{directory} holds {len(files)} of {due} files of {name}")
        opened: list[Any] = [safe_open(file, "pt") for file in files]
        self._places = {key: file for file in opened for key in file.keys()}  # noqa: SIM118

    def __getitem__(self, key: str) -> Tensor:
        found: Tensor = self._places[key].get_tensor(key)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def save(
    job: TrainJob, engine: Any, average: Any, state: RunState, rank: int, world: int, log: RunLog
) -> RunState:
    """Writes a checkpoint of all workers' slices; returns the state with its new best."""
    accuracy = log.accuracy_since_last()
    is_best = state.best is None or accuracy > state.best
    if is_best:
        state = dataclasses.replace(state, best=accuracy, best_step=state.step)
    state = log.spent(state)
    directory = Path(tempfile.mkdtemp(prefix="rankray-checkpoint-"))
    try:
        keys, scalars = _write_share(engine, average, directory, rank, world)
        if rank == 0:
            log.flush()
            text = {"run": dataclasses.asdict(state), "optimizer_tensors": keys, "optimizer_scalars": scalars}
            (directory / "state.json").write_text(json.dumps(text))
        if is_best:
            _keep_best(job.output, directory, state.step, rank)
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


def _write_share(
    engine: Any, average: Any, directory: Path, rank: int, world: int
) -> tuple[list[str], dict[str, float]]:
    """Writes this worker's share of the tensors; returns the optimizer's, as `zero.state_keys` names them."""
    from safetensors.torch import save_file

    from rankray.rankdpo import zero

    mine, (keys, scalars) = zero.share(engine, rank, world), zero.state_keys(engine)
    part = "" if world == 1 else f"-{rank + 1:05}-of-{world:05}"
    for name, key in {"weights": None, **{f"optimizer.{key}": key for key in keys}}.items():
        save_file(zero.gather(engine, key, mine), directory / f"{name}{part}.safetensors")
    if average is not None:
        with average.swapped():
            save_file(zero.gather(engine, None, mine), directory / f"ema{part}.safetensors")
    return keys, scalars


def _keep_best(output: str, directory: Path, step: int, rank: int) -> None:
    """Copies a checkpoint's weights to OUTPUT/checkpoints/best-STEP, names it in best.json, removes the one before."""
    from torch import distributed

    fs, place = store.filesystem(output)
    root = f"{place}/checkpoints"
    best = f"{root}/best-{step:06}"
    if rank == 0:
        if fs.get_file_info(best).type != pafs.FileType.NotFound:  # what a killed start left
            fs.delete_dir(best)
        fs.create_dir(best, recursive=True)
    distributed.barrier()
    for file in directory.iterdir():
        if not file.name.startswith("optimizer."):
            pafs.copy_files(str(file), f"{best}/{file.name}", pafs.LocalFileSystem(), fs)
    distributed.barrier()
    if rank > 0:
        return
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


def keep_samples(
    job: TrainJob, engine: Any, average: Any, step: int, rank: int, world: int, log: RunLog
) -> None:
    """Every `sample_every` steps: a grid of pictures by the model as it is, from seeds that never change.

    Each worker draws its share of them, and all wait for the slowest.
    """
    every = job.config.checkpoints.sample_every
    if not every or step % every:
        return
    from accelerate.utils.memory import release_memory

    from rankray.rankdpo import samples, zero

    with average.swapped() if average is not None else contextlib.nullcontext():
        painter = samples.painter(job, zero.each(engine))
    samples.write_grid(job, painter, step, log.sample_prompts(), rank, world)
    del painter
    release_memory()
