"""Many trainings side by side, and what their models draw measured: what an ablation does most of the time.

There are two ways. As "jobs" each trial is a RankDPO job in a Ray task, any number of workers large,
that resumes by itself, and models are measured through Syn-Pic, several in one job. In "actors" (`trial_actor`)
small trials run one after another in processes that keep what they imported. Either way as many go on at once as the
cluster has room for, and all draw from the same seeds, so that differences are paired.

    P prompts, S pictures a prompt
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.fs as pafs
import ray

from rankray import store
from rankray.ablate.trial_actor import MARKER, Drawing, Task, TrialActor
from rankray.config import MAX_CANDIDATES, device_of
from rankray.config.ablate import CHECKER, SEED_NAME, AblationConfig, DrawnConfig
from rankray.config.rankdpo import REFERENCE_FREE, RankDPOConfig
from rankray.data.place import Output
from rankray.data.prompts import read_prompts
from rankray.rankdpo import job as rankdpo
from rankray.synpic import job as synpic

Say = Callable[[str], None]
START = "start"
"""The model as every row starts from it."""

TASK_CPUS = 0.01
"""A trial's task waits for its workers, who claim what they need."""


@dataclass(frozen=True)
class Measured:
    """A model's values: metric -> float[P, S], NaN where a picture or score failed; prompts in the order of P."""

    prompts: tuple[str, ...]
    values: Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: its measurements by step, the last one last; or why it stopped; and CPU minutes."""

    points: Mapping[int, Measured]
    cpu_minutes: float
    failed: str | None = None

    @property
    def last(self) -> Measured:
        """The trained model's measurement."""
        return self.points[max(self.points)]


@dataclass(frozen=True)
class Bench:
    """What all trials of an ablation share; `dataset` is the ranked one's place."""

    config: AblationConfig
    output: Output
    dataset: str
    say: Say

    def placed(self, name: str, config: RankDPOConfig) -> RankDPOConfig:
        """A trial's configuration with its dataset and output in place."""
        place = {"dataset": self.dataset, "output": self.output.uri_of("trials", name)}
        return config.model_copy(update=place)


def outcomes(
    bench: Bench, trials: Mapping[str, RankDPOConfig], drawn: DrawnConfig, every: int | None = None
) -> dict[str, Outcome]:
    """Trains and measures what is left of `trials`, by name, and the model as it starts, as `START`.

    Args:
        every: steps between measurements; None measures the last alone.
    """
    placed = {name: bench.placed(name, config) for name, config in _lone(trials).items()}
    return (_by_actors if bench.config.trials == "actors" else _by_jobs)(bench, placed, drawn, every)


def _lone(trials: Mapping[str, RankDPOConfig]) -> dict[str, RankDPOConfig]:
    """`trials`, those that share their reference errors with no other computing them as they train."""
    sharers = collections.Counter(_kind(trial) for trial in trials.values())
    found = {}
    for name, trial in trials.items():
        objective = trial.objective
        if objective.reference == "auto":
            taken = "adapter_off" if trial.tuned.train == "lora" else "precomputed"
            objective = objective.model_copy(update={"reference": taken})
        if objective.reference == "precomputed" and sharers[_kind(trial)] == 1:
            objective = objective.model_copy(update={"reference": "copy"})
        found[name] = trial.model_copy(update={"objective": objective})
    return found


def _by_actors(
    bench: Bench, trials: Mapping[str, RankDPOConfig], drawn: DrawnConfig, every: int | None
) -> dict[str, Outcome]:
    config, drawing = bench.config, _drawing(bench.config, drawn)
    start = f"{START}-{hashlib.sha256(repr(drawing).encode()).hexdigest()[:8]}"
    found = {name: told for name in (start, *trials) if (told := _told(bench, name)) is not None}
    left = {name: trials[name] for name in trials if name not in found}
    prepared = {kind: rankdpo.prepare(one, bench.say) for kind, one in _kinds(list(left.values())).items()}
    tasks = (
        {start: Task(None, 1, drawing, bench.output.uri_of("trials", start))} if start not in found else {}
    )
    for name, trial in left.items():
        plan = rankdpo.check(trial)
        job = dataclasses.replace(
            prepared[_kind(trial)],
            config=trial,
            reward=plan.reward,
            labelling=plan.labelling,
            output=trial.output,
        )
        tasks[name] = Task(job, every or trial.steps, drawing, trial.output)
    workers = config.training.workers
    device = device_of(workers.num_gpus, config.rehearse)
    count = min(len(tasks), config.parallel or _room(workers.num_cpus, workers.num_gpus))
    claims: dict[str, Any] = {"num_cpus": workers.num_cpus, "num_gpus": workers.num_gpus}
    actor: Any = ray.remote(max_restarts=-1, max_task_retries=2, **claims)(TrialActor)
    idle = [actor.remote(device) for _ in range(count)]
    waiting, begin_s = list(tasks), time.monotonic()
    running: dict[Any, tuple[str, Any]] = {}
    while waiting or running:
        while waiting and idle:
            name, free = waiting.pop(0), idle.pop()
            running[free.run.remote(tasks[name])] = (name, free)
        done, _ = ray.wait(list(running))
        for reference in done:
            name, free = running.pop(reference)
            idle.append(free)
            found[name] = ray.get(reference)
            left_now = len(waiting) + len(running)
            bench.say(
                f"[{(time.monotonic() - begin_s) / 60:.1f} min] {_line(name, found[name])}; {left_now} left"
            )
    for one in idle:
        ray.kill(one)
    named = {START: start, **{name: name for name in trials}}
    return {name: _outcome(found[place], drawing.prompts) for name, place in named.items()}


def _line(name: str, told: Mapping[str, Any]) -> str:
    return f"{name}: {told['failed'] or 'done'}, {told['cpu_minutes']:.1f} CPU minutes"


def _drawing(config: AblationConfig, drawn: DrawnConfig) -> Drawing:
    prompts = tuple(read_prompts(drawn.prompts).rows)
    checked = _shapes_prompts(prompts)
    return Drawing(config.model, prompts, drawn.samples, drawn.seed, SEED_NAME, config.rewards, checked)


def _told(bench: Bench, name: str) -> dict[str, Any] | None:
    """What an actor left of a trial that it finished."""
    if not bench.output.exists("trials", name, MARKER):
        return None
    return dict(store.read_json(bench.output.at("trials", name, MARKER), bench.output.fs))


def _outcome(told: Mapping[str, Any], prompts: tuple[str, ...]) -> Outcome:
    points = {
        point["step"]: Measured(prompts, {k: np.array(v, np.float64) for k, v in point["values"].items()})
        for point in told["points"]
    }
    return Outcome(points, told["cpu_minutes"], told["failed"])


def _by_jobs(
    bench: Bench, trials: Mapping[str, RankDPOConfig], drawn: DrawnConfig, every: int | None
) -> dict[str, Outcome]:
    keep = {} if every is None else {"every": every, "keep": MAX_CANDIDATES}
    trials = {
        name: trial.model_copy(update={"checkpoints": trial.checkpoints.model_copy(update=keep)})
        for name, trial in trials.items()
    }
    trained = _train_all(bench, trials)
    models: dict[str, str | None] = {START: None}
    marks: dict[str, dict[int, str]] = {}
    for name, told in trained.items():
        if told["failed"] is None:
            steps = trials[name].steps
            marks[name] = {
                step: f"{name} at step {step}" for step in range(every or steps, steps + 1, every or steps)
            }
            models |= {label: _pipeline(bench, trials[name], step) for step, label in marks[name].items()}
    measured = _measure_all(bench, drawn, models)
    found = {START: Outcome({0: measured[START]}, 0.0)}
    for name, told in trained.items():
        points = {step: measured[label] for step, label in marks.get(name, {}).items()}
        found[name] = Outcome(points, told["cpu_minutes"], told["failed"])
    return found


def _train_all(bench: Bench, trials: Mapping[str, RankDPOConfig]) -> dict[str, dict[str, Any]]:
    """Runs what is left of all trials as jobs; cpu_minutes and failed of each.

    A run that diverges is a result; what is wrong with all of them, such as a dataset that is gone, propagates.
    """
    for one in _kinds(list(trials.values())).values():
        rankdpo.prepare(one, bench.say)
    workers = bench.config.training.workers
    room = bench.config.parallel or _room(workers.count * workers.num_cpus, workers.count * workers.num_gpus)
    task = ray.remote(num_cpus=TASK_CPUS)(_train)
    waiting = list(trials)
    running: dict[Any, str] = {}
    found: dict[str, dict[str, Any]] = {}
    begin_s = time.monotonic()
    while waiting or running:
        while waiting and len(running) < room:
            name = waiting.pop(0)
            running[task.remote(trials[name])] = name
        done, _ = ray.wait(list(running))
        for reference in done:
            name = running.pop(reference)
            found[name] = ray.get(reference)
            left = len(trials) - len(found)
            bench.say(
                f"[{(time.monotonic() - begin_s) / 60:.1f} min] {_line(name, found[name])}; {left} left"
            )
    return {name: found[name] for name in trials}


def _train(config: RankDPOConfig) -> dict[str, Any]:
    """One trial, in a Ray task; of builtins alone, as it passes between processes."""
    try:
        result = rankdpo.run(config, say=lambda line: None)
    except rankdpo.TrainingError as error:
        return {"cpu_minutes": 0.0, "failed": str(error)}
    return {"cpu_minutes": result.info["throughput"]["cpu_minutes"], "failed": None}


def _pipeline(bench: Bench, config: RankDPOConfig, step: int) -> str:
    """The pipeline of a run after `step` steps: its last one's, or that of a checkpoint, which is written once."""
    if step == config.steps:
        return f"{config.output}/pipeline"
    name = config.output.rpartition("/")[2]
    place = bench.output.uri_of("trials", name, f"pipeline-{step}")
    if not bench.output.exists("trials", name, f"pipeline-{step}", "model_index.json"):
        spec, _ = rankdpo.check_model(config.model)
        rankdpo.export_pipeline(spec, config, _checkpoint(bench.output, name, step), place)
    return place


def _checkpoint(output: Output, name: str, step: int) -> str:
    """The URI of the checkpoint that a run wrote after `step` steps."""
    root = output.at("trials", name, "checkpoints")
    # The last of that step: a kill may have left a part of one before.
    infos = output.fs.get_file_info(pafs.FileSelector(root))
    for info in sorted(infos, key=lambda info: str(info.base_name), reverse=True):
        state = f"{info.path}/state.json"
        there = output.fs.get_file_info(state).type != pafs.FileType.NotFound
        if there and store.read_json(state, output.fs)["run"]["step"] == step:
            return output.uri_of("trials", name, "checkpoints", info.base_name)
    raise RuntimeError(f"no checkpoint of step {step} in {root}; remove that directory and run again")


def _kind(config: RankDPOConfig) -> tuple[Any, ...]:
    """What an encoded set and reference errors depend on: trials of a kind that start together would both make them."""
    if config.objective.name in REFERENCE_FREE:
        return ("no reference", config.labels.prompt_share)
    samples_ = tuple(sorted(config.labels.samples.items()))
    return (config.seed, samples_, config.labels.prompt_share, config.steps)


def _kinds(trials: Sequence[RankDPOConfig]) -> dict[tuple[Any, ...], RankDPOConfig]:
    """The first trial of each kind."""
    return {_kind(trial): trial for trial in reversed(trials)}


def _room(num_cpus: float, num_gpus: float) -> int:
    """Trials that the cluster has room for at once."""
    cluster, needs = ray.cluster_resources(), {"CPU": num_cpus, "GPU": num_gpus}
    return max(1, int(min(cluster.get(name, 0.0) // each for name, each in needs.items() if each)))


def _measure_all(bench: Bench, drawn: DrawnConfig, models: Mapping[str, str | None]) -> dict[str, Measured]:
    """Pictures and scores of models by name, several in one Syn-Pic job; None is the model as it starts."""
    found: dict[str, Measured] = {}
    for group in grouped(list(models), MAX_CANDIDATES // drawn.samples):
        key = hashlib.sha256("\0".join([repr(drawn), *group]).encode()).hexdigest()[:12]
        place = bench.output.uri_of("evaluation", key)
        job = bench.config.evaluation(place, drawn, {name: models[name] for name in group})
        bench.say(f"measuring {len(group)} models: {', '.join(group)}")
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
