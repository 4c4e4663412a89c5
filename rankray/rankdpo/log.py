"""What a run says of itself: a line a step in `metrics.jsonl`, in the trackers that are asked for (`trackers`),
and in Ray's metrics.

Only rank 0 writes. The file is written whole at every checkpoint and every few seconds between: object stores cannot
append, and 400 lines are 150 KB. A resumed run takes up the lines of its checkpoint and drops those after it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import time
from collections.abc import Mapping
from typing import Any

import torch

from rankray import losses, store
from rankray.cluster import metrics
from rankray.cluster.progress import clock
from rankray.config.rankdpo import REFERENCE_FREE
from rankray.rankdpo import validation
from rankray.rankdpo.step import Step, Training
from rankray.rankdpo.trackers import Trackers
from rankray.rankdpo.train_job import RunState

FLUSH_S = 10.0
SAY_S = 15.0


class RunLog:
    """The log of one worker, at work since `begun_s` (`time.monotonic`) and going on from `state`; on all but rank 0 it
    only counts."""

    def __init__(self, training: Training, state: RunState, begun_s: float) -> None:
        self._job, self._writes, self._world = training.job, training.rank == 0, training.world
        self._parameters = training.model.parameters
        self._fs, self._output = store.filesystem(self._job.output)
        self._start = state
        self._begun_s, self._busy_s = begun_s, 0.0
        self._warned: set[str] = set()
        self._cpu_s = time.process_time()
        self._flushed_s = self._said_s = time.monotonic()
        self._lines: list[dict[str, Any]] = []
        self._usd_before = state.usd(self._job.config)
        if self._writes:
            kept = store.read_json_lines(f"{self._output}/metrics.jsonl", self._fs)
            self._lines = [line for line in kept if line["step"] <= state.step]
            self._trackers = Trackers(self._job)

    def step(self, state: RunState, step: Step) -> None:
        """One finished step, after which the run is at `state`."""
        self._busy_s += step.step_s - step.wait_s
        if not self._writes:
            return
        line, steps = self._line(state, step), self._job.config.steps
        self._lines.append(line)
        self._trackers.log(line, state.step)
        self._tell(state, line)
        now = time.monotonic()
        if now - self._said_s > SAY_S or state.step in (1, steps):
            self._said_s = now
            print(_sentence(line, steps), flush=True)
        if now - self._flushed_s > FLUSH_S:
            self.flush()

    def _line(self, state: RunState, step: Step) -> dict[str, Any]:
        job, cpu_s = self._job, time.process_time()
        norm, batch_size = step.gradient_norm, job.config.batch_size
        # Without a reference pairs would be judged by the model's errors alone, and held-out ones are not.
        judged = step.sums["pairs"] and job.config.objective.name not in REFERENCE_FREE
        line: dict[str, Any] = {
            "step": state.step,
            "epoch": round(state.step * batch_size / max(1, job.rows), 4),
            **{k: _finite(v) for k, v in losses.metrics(step.sums).items()},
            **({} if judged else dict.fromkeys(("implicit_accuracy", "margin"))),
            "grad_norm": None if norm is None else _finite(norm),
            "learning_rate": step.learning_rate,
            "step_s": round(step.step_s, 4),
            "data_wait_s": round(step.wait_s, 4),
            "cpu_s": round(cpu_s - self._cpu_s, 4),  # this worker's, with what it read, drew and saved since
            "prompts_per_s": round(batch_size / step.step_s, 3),
            "memory_gb": round(_memory_gb(job.device), 3),
            "usd": self._usd(state),
            "skipped_steps": state.skipped,
            "workers": self._world,
        }
        self._cpu_s = cpu_s
        return line

    def _tell(self, state: RunState, line: Mapping[str, Any]) -> None:
        """The line as metrics; seconds are of all workers, as if each were as busy as this one."""
        config, start = self._job.config, self._start
        totals = {
            "items": (state.step - start.step) * config.batch_size,
            "failures": state.skipped - start.skipped,
            "busy_seconds": self._busy_s * self._world,
            "alive_seconds": (time.monotonic() - self._begun_s) * self._world,
            "usd": self._usd(state) - self._usd_before,
        }
        now = {**line, "left": (config.steps - state.step) * config.batch_size}
        metrics.tell((self._job.output, "training", config.model.model), totals, now)

    def _usd(self, state: RunState) -> float:
        """What was spent until now."""
        return self.spent(state).usd(self._job.config)

    def spent(self, state: RunState) -> RunState:
        """The state with the time and resources of this start added to the checkpoint's: all that its workers were held
        for, loading, validating, drawing and saving included."""
        workers, start, elapsed_s = self._job.config.workers, self._start, time.monotonic() - self._begun_s
        workers_s = elapsed_s * self._world
        return dataclasses.replace(
            state,
            elapsed_s=start.elapsed_s + elapsed_s,
            gpu_s=start.gpu_s + workers_s * workers.num_gpus,
            cpu_s=start.cpu_s + workers_s * workers.num_cpus,
        )

    def validated(self, state: RunState) -> None:
        """A validation, which `state` ends with; its figures stand in the line of its step."""
        if not self._writes:
            return
        config, point = self._job.config, state.points[-1]
        if point.step == 0:
            return
        if self._lines and self._lines[-1]["step"] == point.step:
            self._lines[-1] |= {**point.line(), "usd": self._usd(state)}
        self._trackers.log(point.line(), point.step)
        self._tell(state, point.line())
        print(f"[rankray] {validation.sentence(point, config.steps)}", flush=True)
        for kind, text in validation.warnings(state.points, config.validation, config.steps).items():
            if kind not in self._warned:
                print(f"[rankray] warning, {kind}: {text}", flush=True)
                self._warned.add(kind)

    def flush(self) -> None:
        """Writes `metrics.jsonl` whole, and how many parameters are held."""
        self._flushed_s = time.monotonic()
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        store.write_text(f"{self._output}/metrics.jsonl", text, self._fs)
        store.write_json(f"{self._output}/_work/parameters.json", self._parameters, self._fs)
        self._trackers.flush()

    def diverged(self, state: RunState) -> None:
        """Notes that the run stopped for too many bad steps; the driver says so."""
        if self._writes:
            self.flush()
            found = {"step": state.step, "skipped": state.skipped}
            store.write_json(f"{self._output}/_work/diverged.json", found, self._fs)
        self.close()

    def close(self) -> None:
        """Ends the trackers."""
        if self._writes:
            self._trackers.close()


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _memory_gb(device: str) -> float:
    """Most memory this worker has had: of its GPU, or of its process."""
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated() / 1e9)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _sentence(line: Mapping[str, Any], steps: int) -> str:
    apart = [
        f"{k.removeprefix('loss_')} {v:.4f}"
        for k, v in line.items()
        if k.startswith("loss_") and v is not None
    ]
    sum_of = f" = {' + '.join(apart)}" if apart else ""
    loss = "skipped" if line["loss"] is None else f"loss {line['loss']:.4f}{sum_of}"
    accuracy = (
        "" if line["implicit_accuracy"] is None else f"  implicit accuracy {line['implicit_accuracy']:.1%}"
    )
    left = clock((steps - line["step"]) * line["step_s"])
    speed = f"left {left}  {line['prompts_per_s']:.1f} prompts/s"
    return f"[rankray] step {line['step']}/{steps}  {speed}  {loss}{accuracy}"
