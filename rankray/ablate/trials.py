"""Many trainings side by side, and what their models draw measured: what an ablation does most of the time.

There are two ways. As "jobs" each trial is a RankDPO job in a Ray task, any number of workers large, that resumes by
itself, and models are measured through Syn-Pic, several in one job. In "actors" small trials run one after another in
processes that keep what they imported, without which such trials would spend most of their time importing: four steps
and ten pictures of the shapes world took 0.0 to 0.2 CPU minutes. The price: a killed trial starts over, it has one
worker, and rewards that need an environment of their own cannot be asked. Either way as many go on at once as the
cluster has room for, and all draw from the same seeds, so that differences are paired.

    P prompts, S pictures a prompt
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow.fs as pafs
import ray

from rankray import schema, store
from rankray.ablate.table import Values
from rankray.cluster.item_safe import ItemSafe, of_each
from rankray.cluster.job import Failed
from rankray.config import MAX_CANDIDATES, device_of
from rankray.config.ablate import CHECKER, SEED_NAME, AblationConfig, DrawnConfig
from rankray.config.rankdpo import REFERENCE_FREE, RankDPOConfig
from rankray.data.place import Output
from rankray.evals import scores, shapes
from rankray.evals.scores import Pictures
from rankray.models import generators, rewards
from rankray.models.targets import load
from rankray.rankdpo import job as rankdpo
from rankray.rankdpo.train_job import TrainJob, checkpoint_state
from rankray.synpic import job as synpic
from rankray.words import Say

START = "start"
"""The model as every row starts from it."""

MARKER = "trial.json"
TASK_CPUS = 0.01
"""A trial's task waits for its workers, who claim what they need."""


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        prompts: in the order of P.
        points: by step, each metric's values float[P, S], NaN where a picture or score failed.
        cpu_minutes: of training, and in actors of measuring too.
        failed: why it stopped, None where it did not.
    """

    prompts: tuple[str, ...]
    points: Mapping[int, Mapping[str, Values]]
    cpu_minutes: float
    failed: str | None = None

    @property
    def last(self) -> Mapping[str, Values]:
        """The trained model's values."""
        return self.points[max(self.points)]


@dataclass(frozen=True)
class Bench:
    """What all trials of an ablation share, what failed in them, and what they took.

    Attributes:
        dataset: the ranked one's place.
        prompts: by their part's name; they are read once, as files may change within hours.
        failed: what has been drawn so far, by its place in the output.
        cpu_minutes: of each trial so far, those that tune too, and of each measurement of the model as it starts.
    """

    config: AblationConfig
    output: Output
    dataset: str
    say: Say
    prompts: Mapping[str, Sequence[str]]
    failed: dict[str, Failed] = dataclasses.field(default_factory=dict)
    cpu_minutes: dict[str, float] = dataclasses.field(default_factory=dict)

    def placed(self, name: str, config: RankDPOConfig) -> RankDPOConfig:
        """A trial's configuration with its dataset and output in place."""
        place = {"dataset": self.dataset, "output": self.output.uri_of("trials", name)}
        return config.model_copy(update=place)


def outcomes(
    bench: Bench,
    trials: Mapping[str, tuple[RankDPOConfig, Sequence[int]]],
    part: Literal["validation", "held_out"],
    tuning: bool = False,
) -> dict[str, Outcome]:
    """Trains and measures what is left of `trials`, by name, and the model as it starts, as `START`.

    Args:
        trials: a training, and the steps at which it is measured, rising; nothing after the last is looked at.
        part: whose prompts are drawn each time.
        tuning: settings are tried: actors ask no judge but the metric, and keep no weights.
    """
    configs = with_references({name: config for name, (config, _) in trials.items()})
    placed = {name: bench.placed(name, config) for name, config in configs.items()}
    marks = {name: tuple(steps) for name, (_, steps) in trials.items()}
    if bench.config.trials == "actors":
        came = _by_actors(bench, placed, part, marks, tuning)
    else:
        came = _by_jobs(bench, placed, getattr(bench.config, part), marks)
    for name, outcome in came.items():
        bench.cpu_minutes[f"{START} on {part}" if name == START else name] = outcome.cpu_minutes
    return came


def with_references(trials: Mapping[str, RankDPOConfig]) -> dict[str, RankDPOConfig]:
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


def _kind(config: RankDPOConfig) -> tuple[Any, ...]:
    """What an encoded set and reference errors depend on: trials of a kind that start together would both make them."""
    if config.objective.name in REFERENCE_FREE:
        return ("no reference", config.labels.prompt_share, config.encoding.reencode)
    samples_ = tuple(sorted(config.labels.samples.items()))
    return (config.seed, samples_, config.labels.prompt_share, config.steps, config.encoding.reencode)


def first_of_kinds(trials: Sequence[RankDPOConfig]) -> dict[tuple[Any, ...], RankDPOConfig]:
    """The first trial of each kind."""
    return {_kind(trial): trial for trial in reversed(trials)}


def room(bench: Bench, workers: int) -> int:
    """Trials of so many workers that may go on at once."""
    if bench.config.parallel is not None:
        return bench.config.parallel
    cluster, each = ray.cluster_resources(), bench.config.training.workers
    needs = {"CPU": workers * each.num_cpus, "GPU": workers * each.num_gpus}
    return max(1, int(min(cluster.get(name, 0.0) // need for name, need in needs.items() if need)))


def _all_done(
    bench: Bench, work: Mapping[str, tuple[Any, ...]], free: list[Any]
) -> dict[str, dict[str, Any]]:
    """What comes of each piece of work, which one of `free` (remote functions) does as soon as it has no other."""
    waiting, begin_s = list(work), time.monotonic()
    running: dict[Any, tuple[str, Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    while waiting or running:
        while waiting and free:
            name, begin = waiting.pop(0), free.pop()
            running[begin(*work[name])] = (name, begin)
        done, _ = ray.wait(list(running))
        for reference in done:
            name, begin = running.pop(reference)
            free.append(begin)
            found[name] = ray.get(reference)
            bench.say(
                f"[{(time.monotonic() - begin_s) / 60:.1f} min] {name}: {found[name]['failed'] or 'done'}, "
                f"{found[name]['cpu_minutes']:.1f} CPU minutes; {len(work) - len(found)} left"
            )
    return found


def _by_actors(
    bench: Bench,
    trials: Mapping[str, RankDPOConfig],
    part: Literal["validation", "held_out"],
    marks: Mapping[str, tuple[int, ...]],
    tuning: bool,
) -> dict[str, Outcome]:
    config, prompts = bench.config, tuple(bench.prompts[part])
    drawn: DrawnConfig = getattr(config, part)
    start = start_name(config, drawn, prompts)
    found = {
        name: store.read_json(bench.output.at("trials", name, MARKER), bench.output.fs)
        for name in (start, *trials)
        if bench.output.exists("trials", name, MARKER)
    }
    left = {name: trial for name, trial in trials.items() if name not in found}
    prepared = {
        kind: rankdpo.prepare(one, bench.say) for kind, one in first_of_kinds(list(left.values())).items()
    }
    work: dict[str, tuple[Any, ...]] = {}
    if start not in found:
        work[start] = (None, (), bench.output.uri_of("trials", start))
    for name, trial in left.items():
        plan = rankdpo.check(trial)
        shared = prepared[_kind(trial)]
        sets = (dataclasses.replace(shared.sets[0], labelling=plan.sources[0].labelling),)
        own: dict[str, Any] = {"reward": plan.reward, "sets": sets, "output": trial.output}
        job = dataclasses.replace(shared, config=trial, **own)
        work[name] = (job, marks[name], trial.output)
    workers = config.training.workers
    claims: dict[str, Any] = {"num_cpus": workers.num_cpus, "num_gpus": workers.num_gpus}
    actor: Any = ray.remote(max_restarts=-1, max_task_retries=2, **claims)(TrialActor)
    device = device_of(workers.num_gpus, config.rehearse)
    count = min(len(work), room(bench, 1))
    actors = [actor.remote(device, config, drawn, prompts, tuning) for _ in range(count)]
    found |= _all_done(bench, work, [one.run.remote for one in actors])
    for one in actors:
        ray.kill(one)
    came = {}
    for name in (START, *trials):
        told = found[start if name == START else name]
        points = {
            point["step"]: {
                metric: np.array(values, np.float64) for metric, values in point["values"].items()
            }
            for point in told["points"]
        }
        came[name] = Outcome(prompts, points, told["cpu_minutes"], told["failed"])
        place = f"trials/{start if name == START else name}"
        bench.failed[place] = failed_items(told["points"], config.model.label)
    return came


def start_name(config: AblationConfig, drawn: DrawnConfig, prompts: tuple[str, ...]) -> str:
    """What the model as it starts is called where actors measure it: another name on other prompts."""
    measured_on = repr((config.model, config.rewards, drawn, prompts))
    return f"{START}-{hashlib.sha256(measured_on.encode()).hexdigest()[:8]}"


def failed_items(points: Iterable[Mapping[str, Any]], painter: str) -> Failed:
    """What failed by the points of a trial (of `trial.json`): pictures are the painter's, scores their judge's.

    Returns:
        counts by model over all points; the worst one's share at a point.
    """
    counts, worst = collections.Counter[str](), 0.0
    for point in points:
        values = {metric: np.array(each, np.float64) for metric, each in point["values"].items()}
        undrawn = len(point.get("undrawn", ()))  # trials of before it was kept say nothing of it
        gone = {painter: undrawn}
        gone |= {metric: int(np.isnan(each).sum()) - undrawn for metric, each in values.items()}
        counts.update(gone)
        worst = max(worst, max(gone.values()) / next(iter(values.values())).size)
    return {name: count for name, count in counts.items() if count}, worst


class TrialActor:
    """Does trials one after another: train, draw, score, keep the figures. Models that judge are loaded once."""

    def __init__(
        self, device: str, config: AblationConfig, drawn: DrawnConfig, prompts: Sequence[str], tuning: bool
    ) -> None:
        os.environ.setdefault("TQDM_DISABLE", "1")
        import torch

        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self._device, self._config, self._drawn, self._prompts = device, config, drawn, prompts
        self._tuning = tuning
        self._judges: dict[str, Any] = {}

    def run(self, job: TrainJob | None, marks: Sequence[int], output: str) -> dict[str, Any]:
        """The contents of `trial.json`: failed, cpu_minutes, and points of step, values (metric -> [P][S]) and undrawn.

        Args:
            job: what is trained; None measures the model as it starts.
            marks: steps at which it is measured; it is not trained beyond the last.
            output: the trial's place.
        """
        fs, place = store.filesystem(output)
        fs.create_dir(place, recursive=True)
        begin_s = time.process_time()
        points, failed = [], None
        if job is None:
            points.append({"step": 0, **self._measured(self._painter())})
        else:
            from safetensors.torch import save

            from rankray.rankdpo.samples import place_weights
            from rankray.rankdpo.step import train_alone

            try:
                for step, weights in train_alone(job, math.gcd(*marks)):
                    if step in marks:
                        painter = self._painter()
                        place_weights(painter.pipe, job.spec, job.config, weights.items())
                        points.append({"step": step, **self._measured(painter)})
                        if not self._tuning:
                            kept = save({name: value.contiguous() for name, value in weights.items()})
                            store.write_bytes(f"{place}/step-{step:06}.safetensors", kept, fs)
                    if step == marks[-1]:
                        break
            except FloatingPointError as error:
                failed = str(error)
        found = {"failed": failed, "cpu_minutes": (time.process_time() - begin_s) / 60, "points": points}
        store.write_json(f"{place}/{MARKER}", found, fs)
        return found

    def _painter(self) -> Any:
        return load(generators.resolve(self._config.model), self._device)

    def _measured(self, painter: Any) -> dict[str, Any]:
        """Pictures from the seeds that Syn-Pic would take: the `values` of every reward and of the checker, and which
        places of P x S stayed `undrawn`."""
        items = [
            (text, schema.candidate_seed(self._drawn.seed, schema.prompt_id(text), SEED_NAME, sample))
            for text in self._prompts
            for sample in range(self._drawn.samples)
        ]

        def paint(some: Sequence[tuple[str, int]]) -> list[Any]:
            return list(painter.generate([text for text, _ in some], [seed for _, seed in some]))

        pictures = ItemSafe(painter, self._config.model.label).run(paint, items)
        shown = {
            n: (picture.convert("RGB"), items[n][0])
            for n, picture in enumerate(pictures)
            if not isinstance(picture, Exception)
        }
        if not self._judges:
            metric = self._config.metric
            for choice in self._config.rewards:
                if not self._tuning or choice.label == metric:
                    self._judges[choice.label] = load(rewards.resolve(choice), self._device)
            sizes = {picture.size for picture, _ in shown.values()}
            if (metric == CHECKER or not self._tuning) and shapes.reads(self._prompts, sizes):
                self._judges[CHECKER] = shapes.ShapesJudge()
        found = {}
        for name, judge in self._judges.items():
            values = np.full(len(items), np.nan)
            results = ItemSafe(judge, name).run(_score_by(judge), list(shown.values()))
            for n, result in zip(shown, results, strict=True):
                values[n] = np.nan if isinstance(result, Exception) else result
            found[name] = values.reshape(len(self._prompts), -1).tolist()
        return {"values": found, "undrawn": [n for n in range(len(items)) if n not in shown]}


def _score_by(judge: Any) -> Callable[[Sequence[Any]], list[float | Exception]]:
    """Pairs of picture and prompt -> the scores of a reward or a judge."""

    def score(pairs: Sequence[Any]) -> list[float | Exception]:
        images, texts = [image for image, _ in pairs], [text for _, text in pairs]
        if isinstance(judge, shapes.ShapesJudge):
            return [judgement.score for judgement in judge.judge(images, texts)]
        return of_each(float, judge.score(images, texts))

    return score


def _by_jobs(
    bench: Bench,
    trials: Mapping[str, RankDPOConfig],
    drawn: DrawnConfig,
    marks: Mapping[str, tuple[int, ...]],
) -> dict[str, Outcome]:
    trials = {name: kept(trial, marks[name]) for name, trial in trials.items()}
    for one in first_of_kinds(list(trials.values())).values():
        rankdpo.prepare(one, bench.say)
    task: Any = ray.remote(num_cpus=TASK_CPUS)(_train)
    at_once = room(bench, bench.config.training.workers.count)
    trained = _all_done(bench, {name: (trial,) for name, trial in trials.items()}, [task.remote] * at_once)
    models: dict[str, str | None] = {START: None}
    labels: dict[str, dict[int, str]] = {}
    for name, trial in trials.items():
        there = marks[name]
        if trained[name]["failed"] is not None:
            there = tuple(step for step in there if _checkpoint(bench.output, name, step) is not None)
        # An actor ends with the last of them: what came after it has no part.
        if there == marks[name]:
            trained[name]["failed"] = None
        labels[name] = {step: f"{name} at step {step}" for step in there}
        models |= {label: _pipeline(bench, trial, step) for step, label in labels[name].items()}
    measured = _measure_all(bench, drawn, models)
    prompts = measured[START].prompts
    found = {START: Outcome(prompts, {0: measured[START].scores}, 0.0)}
    for name in trials:
        points = {step: measured[label].scores for step, label in labels[name].items()}
        found[name] = Outcome(prompts, points, **trained[name])
    return found


def kept(trial: RankDPOConfig, marks: Sequence[int]) -> RankDPOConfig:
    """A training that keeps what it is at each of `marks`."""
    if list(marks) == [trial.steps]:
        return trial
    every = math.gcd(*marks)
    keep = {"every": every, "keep": -(-trial.steps // every)}
    return trial.model_copy(update={"checkpoints": trial.checkpoints.model_copy(update=keep)})


def _train(config: RankDPOConfig) -> dict[str, Any]:
    """One trial, in a Ray task; of builtins alone, as it passes between processes.

    A run that diverges is a result; what is wrong with all of them, such as a dataset that is gone, propagates.
    """
    try:
        # a killed ablation's trials are at work for the seconds until Ray notices
        result = rankdpo.run(config, say=lambda line: None, wait=lambda line: None)
    except rankdpo.TrainingError as error:
        fs, place = store.filesystem(config.output)
        lines = store.read_json_lines(f"{place}/metrics.jsonl", fs)
        return {"cpu_minutes": rankdpo.cpu_minutes(lines), "failed": str(error)}
    return {"cpu_minutes": result.info["throughput"]["cpu_minutes"], "failed": None}


def _pipeline(bench: Bench, config: RankDPOConfig, step: int) -> str:
    """The pipeline of a run after `step` steps: its last one's, or that of a checkpoint, which is written once."""
    if step == config.steps:
        return f"{config.output}/pipeline"
    name = config.output.rpartition("/")[2]
    place = bench.output.uri_of("trials", name, f"pipeline-{step}")
    if not bench.output.exists("trials", name, f"pipeline-{step}", "model_index.json"):
        checkpoint = _checkpoint(bench.output, name, step)
        if checkpoint is None:
            root = bench.output.at("trials", name, "checkpoints")
            raise RuntimeError(f"no checkpoint of step {step} in {root}; remove that directory and run again")
        spec, _ = rankdpo.check_model(config.model)
        rankdpo.export_pipeline(spec, config, checkpoint, place)
    return place


def _checkpoint(output: Output, name: str, step: int) -> str | None:
    """The URI of the checkpoint that a run wrote after `step` steps; None where there is none."""
    root = output.at("trials", name, "checkpoints")
    # The last of that step: a kill may have left a part of one before.
    infos = output.fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    for info in sorted(infos, key=lambda info: str(info.base_name), reverse=True):
        state = f"{info.path}/state.json"
        there = output.fs.get_file_info(state).type != pafs.FileType.NotFound
        if there and checkpoint_state(output.fs, info.path).run.step == step:
            return output.uri_of("trials", name, "checkpoints", info.base_name)
    return None


def _measure_all(bench: Bench, drawn: DrawnConfig, models: Mapping[str, str | None]) -> dict[str, Pictures]:
    """Pictures and scores of models by name, several in one Syn-Pic job; None is the model as it starts."""
    found: dict[str, Pictures] = {}
    for group in grouped(list(models), MAX_CANDIDATES // drawn.samples):
        key = hashlib.sha256("\0".join([repr(drawn), *group]).encode()).hexdigest()[:12]
        place = bench.output.uri_of("evaluation", key)
        job = bench.config.evaluation(place, drawn, {name: models[name] for name in group})
        bench.say(f"measuring {len(group)} models: {', '.join(group)}")
        made = synpic.run(job, say=lambda line: None)
        bench.failed[f"evaluation/{key}"] = synpic.failed(made)
        found |= scores.by_model(made.path)
    return found


def grouped(names: Sequence[str], most: int) -> list[list[str]]:
    """`names` in order in as few groups of at most `most` as there need be, none of one name if it can be helped."""
    count = -(-len(names) // most)
    return [list(part) for part in np.array_split(np.array(names, dtype=object), count)] if names else []
