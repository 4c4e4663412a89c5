"""Where a run's lines go beside `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow, each where it is asked for.

A tracker is a class here and a row of `TRACKERS`; its package is imported where lines are written, and only if asked
for. Lines are sent in lots, when the run's own file is written: how far that goes is noted first, so a run that is
killed and resumed goes on in the same place and repeats no step. The price is that a kill between the note and the
sending costs a tracker the lines of some ten seconds, which `metrics.jsonl` has. W&B's own process holds lines back for
some seconds more.

Once a run has begun, a server that does not answer costs lines and not the training. Rank 0 sends while all others
wait for it, and collectives wait for half an hour at most: MLflow's own seven retries of two minutes each are beyond
that with the second line.
"""

from __future__ import annotations

import importlib.util
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pyarrow.fs as pafs

from rankray import store
from rankray.config import ConfigError, flatten
from rankray.config.rankdpo import CheckpointsConfig
from rankray.rankdpo.train_job import TrainJob
from rankray.words import first_line

PAUSE_S = 300.0
"""For which nothing is sent to an MLflow that did not answer: one call a pause, of some 20 s, is 7 % of the time."""

DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "WANDB_FINISH_TIMEOUT": "300",  # what has not left by then stays on disk, for `wandb sync`; W&B's own is for ever
}
"""Seconds and times that clients wait for their servers, where the environment does not say."""


class Tracker(Protocol):
    """What is asked of a tracker; `run` is the id of its run."""

    run: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Keeps the values of a step; steps come in order, each once."""

    def close(self) -> None:
        """Ends the run, which is complete or stopped by itself."""


class _TensorBoard:
    run = ""

    def __init__(self, job: TrainJob, run: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(f"{job.output}/tensorboard")

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, job: TrainJob, run: str | None) -> None:
        import wandb

        self.run, self._run = run or secrets.token_hex(8), None
        try:
            self._run = wandb.init(
                project=job.config.checkpoints.wandb,
                id=self.run,
                resume="allow",
                dir=None if "://" in job.output else job.output,  # else the worker's, which Ray removes
                config=dict(flatten(job.config.identity())),
            )
        except wandb.errors.CommError as error:
            if run is None:
                raise
            print(
                f"[rankray] W&B did not take up run {run}, and gets no lines: {first_line(error)}", flush=True
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self._run is not None:
            self._run.log(dict(values), step=step, commit=True)  # else it holds a step back until the next

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


class _Mlflow:
    def __init__(self, job: TrainJob, run: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        settings = job.config.checkpoints
        self._client, self._silent_until_s = MlflowClient(tracking_uri=_mlflow_uri(settings)), -math.inf
        if run is not None:
            self.run = run
            self._ask(f"take up run {run}", self._client.update_run, run, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(settings.mlflow)
        experiment = found.experiment_id if found else self._client.create_experiment(settings.mlflow)
        self.run = str(self._client.create_run(experiment, run_name=job.output).info.run_id)
        params = [Param(key, str(value)[:500]) for key, value in flatten(job.config.identity())]
        self._client.log_batch(self.run, params=params[:100])

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        if time.monotonic() < self._silent_until_s:
            return
        now_ms = int(time.time() * 1000)
        metrics = [Metric(*item, now_ms, step) for item in values.items()]
        self._ask(f"take step {step}", self._client.log_batch, self.run, metrics)

    def close(self) -> None:
        self._ask(f"end run {self.run}", self._client.set_terminated, self.run)

    def _ask(self, what: str, call: Callable[..., Any], *args: Any, **options: Any) -> None:
        from mlflow.exceptions import MlflowException

        try:
            call(*args, **options)
        except (MlflowException, OSError) as error:  # of a server, and of a directory
            self._silent_until_s = time.monotonic() + PAUSE_S
            print(
                f"[rankray] MLflow did not {what}, and gets no lines for {PAUSE_S / 60:g} minutes: {first_line(error)}",
                flush=True,
            )


TRACKERS: dict[str, Callable[[TrainJob, str | None], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
}
"""By the option of `checkpoints` that asks for it, which is its package's name too: (job, the id of its run where there
is one) -> the tracker."""


def asked(settings: CheckpointsConfig) -> list[str]:
    """The trackers that a run asks for."""
    return [name for name in TRACKERS if getattr(settings, name)]


def check(settings: CheckpointsConfig, output: str) -> None:
    """Finds on the driver, before anything starts, what a worker would fail at.

    Raises:
        ConfigError: a package is not installed, or a place cannot be written to by it.
    """
    for name in asked(settings):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"checkpoints.{name} needs a package that is not installed: pip install 'rankray[{name}]' on all nodes"
                ", or leave it out"
            )
    if settings.tensorboard and "://" in output:
        raise ConfigError(
            f"checkpoints.tensorboard writes to directories, and output is '{output}'; turn it off"
        )
    if settings.mlflow_uri and not settings.mlflow:
        raise ConfigError("checkpoints.mlflow_uri names a place, and no experiment: give checkpoints.mlflow")
    if settings.mlflow:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        uri = _mlflow_uri(settings)
        if uri is None:
            raise ConfigError(
                "checkpoints.mlflow needs a server: give checkpoints.mlflow_uri, such as 'http://host:5000', or "
                "MLFLOW_TRACKING_URI"
            )
        try:
            MlflowClient(tracking_uri=uri)  # asks no server yet
        except MlflowException as error:
            raise ConfigError(f"checkpoints.mlflow_uri '{uri}': {first_line(error)}") from None


def _mlflow_uri(settings: CheckpointsConfig) -> str | None:
    return settings.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")


class Trackers:
    """All that a run asks for, going on where a killed one's were."""

    def __init__(self, job: TrainJob) -> None:
        self._fs, output = store.filesystem(job.output)
        self._place = f"{output}/_work/trackers.json"
        self._kept: dict[str, Any] = {"runs": {}, "step": -1}
        if self._fs.get_file_info(self._place).type == pafs.FileType.File:
            self._kept = store.read_json(self._place, self._fs)
        self._known = int(self._kept["step"])
        self._waiting: dict[int, dict[str, float]] = {}
        self._trackers: list[Tracker] = []
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        for name in asked(job.config.checkpoints):
            self._trackers.append(TRACKERS[name](job, self._kept["runs"].get(name)))
            self._kept["runs"][name] = self._trackers[-1].run
        if self._trackers:
            store.write_json(self._place, self._kept, self._fs)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Takes the numbers among a step's values; those of steps that were sent before a kill are known already."""
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and name != "step"
        }
        if self._trackers and step > self._known:
            self._waiting.setdefault(step, {}).update(numbers)

    def flush(self, last: bool = False) -> None:
        """Sends what waits, but for the newest step unless it is the `last`: there may come more of it."""
        ready = sorted(self._waiting)[: None if last else -1]
        if not ready:
            return
        self._kept["step"] = ready[-1]
        store.write_json(self._place, self._kept, self._fs)
        for step in ready:
            values = self._waiting.pop(step)
            for tracker in self._trackers:
                tracker.log(values, step)

    def close(self) -> None:
        """Sends what waits, and ends each."""
        self.flush(last=True)
        for tracker in self._trackers:
            tracker.close()
