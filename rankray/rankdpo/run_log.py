"""What a run says of itself: a line a step in `metrics.jsonl`, and where asked for TensorBoard and Weights & Biases.

Only rank 0 writes. The file is written whole at every checkpoint and every few seconds between: object stores cannot
append, and 400 lines are 150 KB. A resumed run takes up the lines of its checkpoint and drops those after it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs

from rankray import losses, store
from rankray.rankdpo.checkpoints import RunState

if TYPE_CHECKING:
    from rankray.rankdpo.training import TrainJob

FLUSH_S = 10.0
SAY_S = 15.0
SAMPLE_PROMPTS = 4


class RunLog:
    """The log of one worker; on all but rank 0 it only counts."""

    def __init__(
        self, job: TrainJob, state: RunState, rank: int, world: int, parameters: Mapping[str, int]
    ) -> None:
        self._job, self._first, self._world = job, rank == 0, world
        self._fs, self._place = store.filesystem(job.output)
        self._lines = (
            [line for line in _read(self._fs, self._path) if line["step"] <= state.step] if rank == 0 else []
        )
        self._right, self._pairs = 0.0, 0.0
        self._elapsed_s = 0.0
        self._cpu_s = time.process_time()
        self._flushed_s = self._said_s = time.monotonic()
        self._start = state
        self._parameters = dict(parameters)
        self._board: Any = _tensorboard(job) if self._first else None
        self._wandb: Any = _wandb(job) if self._first else None

    @property
    def _path(self) -> str:
        return f"{self._place}/metrics.jsonl"

    def step(
        self,
        state: RunState,
        sums: Mapping[str, float],
        rate: float,
        norm: float | None,
        step_s: float,
        wait_s: float,
        bad: bool,
    ) -> None:
        """One finished step."""
        self._elapsed_s += step_s
        if not bad:
            self._right += sums["right"]
            self._pairs += sums["pairs"]
        if not self._first:
            return
        config, cpu_s = self._job.config, time.process_time()
        line: dict[str, Any] = {
            "step": state.step,
            "epoch": round(state.step * config.batch_size / max(1, self._rows()), 4),
            **{k: _finite(v) for k, v in losses.metrics(sums).items()},
            "grad_norm": None if norm is None else _finite(norm),
            "learning_rate": rate,
            "step_s": round(step_s, 4),
            "data_wait_s": round(wait_s, 4),
            "cpu_s": round(cpu_s - self._cpu_s, 4),  # this worker's, with what it read, drew and saved since
            "prompts_per_s": round(config.batch_size / step_s, 3),
            "memory_gb": round(_memory_gb(self._job.device), 3),
            "usd": round(self.usd(self.spent(state)), 4),
            "skipped_steps": state.skipped,
            "workers": self._world,
        }
        self._cpu_s = cpu_s
        self._lines.append(line)
        for name, value in line.items():
            if self._board is not None and name != "step" and value is not None:
                self._board.add_scalar(name, value, state.step)
        if self._wandb is not None:
            self._wandb.log(line, step=state.step)
        now = time.monotonic()
        if now - self._said_s > SAY_S or state.step in (1, config.steps):
            self._said_s = now
            print(_sentence(line, config.steps), flush=True)
        if now - self._flushed_s > FLUSH_S:
            self.flush()

    def _rows(self) -> int:
        return self._job.rows

    def spent(self, state: RunState) -> RunState:
        """The state with the time and resources of this start added to the checkpoint's."""
        workers = self._job.config.workers
        return dataclasses.replace(
            state,
            elapsed_s=self._start.elapsed_s + self._elapsed_s,
            gpu_s=self._start.gpu_s + self._elapsed_s * self._world * workers.num_gpus,
            cpu_s=self._start.cpu_s + self._elapsed_s * self._world * workers.num_cpus,
        )

    def usd(self, state: RunState) -> float:
        """What steps cost so far: GPUs where workers have some, else CPUs."""
        prices = self._job.config.prices
        if self._job.config.workers.num_gpus:
            return state.gpu_s / 3600 * prices.gpu_usd_per_hour
        return state.cpu_s / 3600 * prices.cpu_usd_per_hour

    def accuracy_since_last(self) -> float:
        """Implicit accuracy of all pairs since this was last asked; the same on every worker."""
        found = self._right / self._pairs if self._pairs else 0.0
        self._right = self._pairs = 0.0
        return found

    def sample_prompts(self) -> list[str]:
        """Prompts of the picture grids."""
        return list(self._job.sample_prompts)

    def flush(self) -> None:
        """Writes `metrics.jsonl` whole, and how many parameters are held."""
        self._flushed_s = time.monotonic()
        store.write_text(self._path, "".join(json.dumps(line) + "\n" for line in self._lines), self._fs)
        store.write_json(f"{self._place}/_work/parameters.json", self._parameters, self._fs)

    def diverged(self, state: RunState) -> None:
        """Notes that the run stopped for too many bad steps; the driver says so."""
        if self._first:
            self.flush()
            store.write_json(
                f"{self._place}/_work/diverged.json", {"step": state.step, "skipped": state.skipped}, self._fs
            )
        self.close()

    def close(self) -> None:
        """Ends the writers."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def open_log(job: TrainJob, state: RunState, rank: int, world: int, parameters: Mapping[str, int]) -> RunLog:
    """The log of a worker, going on from `state`."""
    return RunLog(job, state, rank, world, parameters)


def _read(fs: pafs.FileSystem, path: str) -> list[dict[str, Any]]:
    if fs.get_file_info(path).type == pafs.FileType.NotFound:
        return []
    with fs.open_input_stream(path) as stream:
        return [json.loads(line) for line in stream.read().decode().splitlines()]


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _memory_gb(device: str) -> float:
    """Most memory this worker has had: of its GPU, or of its process."""
    if device == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated() / 1e9)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _sentence(line: Mapping[str, Any], steps: int) -> str:
    loss = "skipped" if line["loss"] is None else f"loss {line['loss']:.4f}"
    accuracy = (
        "" if line["implicit_accuracy"] is None else f"  implicit accuracy {line['implicit_accuracy']:.1%}"
    )
    return f"[rankray] step {line['step']}/{steps}  {loss}{accuracy}  {line['prompts_per_s']:.1f} prompts/s"


def _tensorboard(job: TrainJob) -> Any:
    if not job.config.checkpoints.tensorboard:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(f"{job.output}/tensorboard")


def _wandb(job: TrainJob) -> Any:
    if job.config.checkpoints.wandb is None:
        return None
    import wandb

    return wandb.init(
        project=job.config.checkpoints.wandb, config=job.config.model_dump(mode="json"), resume="allow"
    )
