"""Many trainings side by side, and many models measured together: what an ablation does most of the time.

A trial is one RankDPO job run in a Ray task, so as many go on at once as the cluster has room for, and each resumes by
itself. Models are measured through Syn-Pic, several in one job that loads each reward once. All draw from the same
seeds, so that differences are paired.

    P prompts, S pictures a prompt
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from rankray import rankdpo, store, synpic
from rankray.ablation_config import CHECKER, AblationConfig, DrawnConfig
from rankray.config import MAX_CANDIDATES
from rankray.output import Output
from rankray.training_config import REFERENCE_FREE, RankDPOConfig

Say = Callable[[str], None]
TASK_CPUS = 0.01
"""A trial's task waits for its workers, who claim what they need."""


@dataclass(frozen=True)
class Trial:
    """One training: its name in the output, and its configuration with dataset and output in place."""

    name: str
    config: RankDPOConfig


@dataclass(frozen=True)
class Trained:
    """What a trial left: its pipeline and the CPU minutes it took, or why it stopped."""

    pipeline: str | None
    cpu_minutes: float
    failed: str | None = None


@dataclass(frozen=True)
class Measured:
    """A model's values: metric -> float[P, S], NaN where a picture or score failed; prompts in the order of P."""

    prompts: tuple[str, ...]
    values: Mapping[str, npt.NDArray[np.float64]]


def train_all(trials: Sequence[Trial], parallel: int | None, say: Say) -> dict[str, Trained]:
    """Runs what is left of all trials, `parallel` at once; by name.

    A run that diverges is a result; what is wrong with all of them, such as a dataset that is gone, propagates.
    """
    for config in _preparations(trials):
        rankdpo.prepare(config, say)
    room = parallel or _room(trials)
    task = ray.remote(num_cpus=TASK_CPUS)(_train)
    waiting = list(trials)
    running: dict[Any, Trial] = {}
    found: dict[str, Trained] = {}
    begin_s = time.monotonic()
    while waiting or running:
        while waiting and len(running) < room:
            trial = waiting.pop(0)
            running[task.remote(trial.config)] = trial
        done, _ = ray.wait(list(running))
        for reference in done:
            trial = running.pop(reference)
            trained = found[trial.name] = Trained(**ray.get(reference))
            say(
                f"[{(time.monotonic() - begin_s) / 60:.1f} min] {len(found)} of {len(trials)} trainings: {trial.name} "
                f"{trained.failed or f'{trained.cpu_minutes:.1f} CPU minutes'}"
            )
    return {trial.name: found[trial.name] for trial in trials}


def _train(config: RankDPOConfig) -> dict[str, Any]:
    """One trial, in a Ray task; of builtins alone, as it passes between processes."""
    try:
        result = rankdpo.run(config, say=lambda line: None)
    except rankdpo.TrainingError as error:
        return {"pipeline": None, "cpu_minutes": 0.0, "failed": str(error)}
    return {
        "pipeline": f"{result.path}/pipeline",
        "cpu_minutes": result.info["throughput"]["cpu_minutes"],
    }


def _preparations(trials: Sequence[Trial]) -> list[RankDPOConfig]:
    """One trial of each kind that shares an encoded set and reference errors: trials that start together would both
    make them."""
    kinds: dict[tuple[Any, ...], RankDPOConfig] = {}
    for trial in trials:
        config = trial.config
        samples = tuple(sorted(config.labels.samples.items()))
        free = config.objective.name in REFERENCE_FREE
        asked = () if free else (config.seed, samples, config.labels.prompt_share, config.steps)
        kinds.setdefault((free, *asked), config)
    return list(kinds.values())


def _room(trials: Sequence[Trial]) -> int:
    """Trainings that the cluster has room for at once."""
    cluster, workers = ray.cluster_resources(), trials[0].config.workers
    needs = {"CPU": workers.num_cpus, "GPU": workers.num_gpus}
    rooms = [cluster.get(name, 0.0) // (workers.count * each) for name, each in needs.items() if each]
    return max(1, int(min(rooms)))


def measure_all(
    config: AblationConfig,
    output: Output,
    drawn: DrawnConfig,
    models: Mapping[str, str | None],
    say: Say,
) -> dict[str, Measured]:
    """Pictures and scores of models by name, several in one job; None is the model as it starts."""
    found: dict[str, Measured] = {}
    for group in grouped(list(models), MAX_CANDIDATES // drawn.samples):
        key = hashlib.sha256("\0".join(group).encode()).hexdigest()[:12]
        job = config.evaluation(
            output.uri_of("evaluation", key), drawn, {name: models[name] for name in group}
        )
        say(f"measuring {len(group)} models: {', '.join(group)}")
        found |= read(synpic.run(job, say=lambda line: None).path)
    return found


def grouped(names: Sequence[str], most: int) -> list[list[str]]:
    """`names` in order in as few groups of at most `most` as there need be, none of one name if it can be helped."""
    count = -(-len(names) // most)
    return [list(part) for part in np.array_split(np.array(names, dtype=object), count)] if names else []


def read(path: str) -> dict[str, Measured]:
    """Each generator's values in a finished dataset: every reward's, and on shapes prompts the checker's."""
    dataset = store.read(path)
    rewards = [item["name"] for item in dataset.info["rewards"]]
    rows = sorted(dataset.rows(images=True), key=lambda row: str(row["prompt_id"]))
    prompts = tuple(row["prompt"] for row in rows)
    checked = _shapes_prompts(prompts)
    found: dict[str, dict[str, list[list[float]]]] = {}
    for row in rows:
        by_name: dict[str, dict[str, list[float]]] = {}
        for candidate in row["candidates"]:
            own = by_name.setdefault(candidate["generator"], {})
            for name, score in zip(rewards, candidate["scores"], strict=True):
                own.setdefault(name, []).append(float(score))
            if checked:
                own.setdefault(CHECKER, []).append(_passes(candidate["image"], row["prompt"]))
        for name, values in by_name.items():
            for metric, of_prompt in values.items():
                found.setdefault(name, {}).setdefault(metric, []).append(of_prompt)
    return {
        name: Measured(prompts, {metric: np.array(table) for metric, table in values.items()})
        for name, values in found.items()
    }


def _shapes_prompts(prompts: Sequence[str]) -> bool:
    from rankray.shapes.prompts import parse

    try:
        for prompt in prompts:
            parse(prompt)
    except ValueError:
        return False
    return True


def _passes(image: dict[str, Any] | None, prompt: str) -> float:
    """1 where the picture shows the prompt, 0 where not, NaN where there is none."""
    from PIL import Image

    from rankray.shapes import check

    if image is None:
        return float("nan")
    with Image.open(io.BytesIO(store.image_bytes(image))) as picture:
        return float(check(np.asarray(picture.convert("RGB")), prompt))
