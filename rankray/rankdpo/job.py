"""RankDPO as a job (paper section 3.3, Algorithm 2): check, encode, compute the reference, train, export.

    OUTPUT/pipeline/        the better model, as `save_pretrained` writes it
    OUTPUT/pytorch_lora_weights*.safetensors    the adapters by themselves, with tuned.train = "lora"
    OUTPUT/checkpoints/     Ray Train's, the last N and the best
    OUTPUT/samples/         picture grids while it trained
    OUTPUT/metrics.jsonl    a line a step
    OUTPUT/config.toml, report.html
    OUTPUT/run.json         written last: the run is complete

Everything that can be known of a bad input is found before a model loads. Killed anywhere, the same command goes on:
the encoded set and the reference errors by row, the training from its last checkpoint, which costs at most
`checkpoints.every` steps.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow.fs as pafs
import ray

from rankray import schema, store
from rankray.cluster import terminal
from rankray.cluster.job import Job, Result, connect, open_output
from rankray.config import ConfigError, Faults, GeneratorChoice, SynPicConfig, device_of, nearest
from rankray.config.rankdpo import (
    REFERENCE_FREE,
    SCORED,
    WITHOUT_PAIRS,
    ObjectiveConfig,
    RankDPOConfig,
    TrainingSettings,
)
from rankray.data import place
from rankray.data.place import Output, Publish
from rankray.models import denoisers, generators, rewards
from rankray.models.generators import GeneratorSpec
from rankray.models.targets import Spec, licence_of, require_resolved
from rankray.rankdpo import checkpoints, encoding, feed, labels, trackers, validation
from rankray.rankdpo import forecast as training_forecast
from rankray.rankdpo import nodes as training_nodes
from rankray.rankdpo.encoding import EncodeActor, EncodeJob, ReferenceJob
from rankray.rankdpo.train_job import RowSet, RunState, TrainJob, best_name, checkpoint_state
from rankray.words import Say, first_line

SAMPLE_PROMPTS = 4
ON_CPU = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
SAID_ONCE = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
"""Ray Train's `print` writes a line and logs it: the driver would show each twice."""


class TrainingError(RuntimeError):
    """A run that stopped by itself: one line that says why and what is kept."""


@dataclass(frozen=True)
class Source:
    """A dataset that a run learns from: `labelling` is None where its own ranking is learnt, `weight` is its share
    beside other sources' weights; of its rows, by id, those that are `learnt` from, those `held_out`, and of these
    the `validated`, one a prompt."""

    dataset: store.RankedDataset
    labelling: labels.Labelling | None
    weight: float
    learnt: tuple[str, ...] = ()
    held_out: frozenset[str] = frozenset()
    validated: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Plan:
    """A run whose inputs were found good: the model's row and revision, the datasets, the objective's reward."""

    config: RankDPOConfig
    spec: GeneratorSpec
    revision: str
    sources: tuple[Source, ...]
    reward: int | None
    device: str

    @property
    def rows(self) -> int:
        """Prompts that are learnt from."""
        return sum(len(source.learnt) for source in self.sources)

    @property
    def held_out(self) -> int:
        """Prompts that the run validates on."""
        return sum(len(source.validated) for source in self.sources)

    @property
    def drawn(self) -> list[int]:
        """Rows that the run will see of each source."""
        weights = [source.weight for source in self.sources]
        return feed.taken(self.config.steps * self.config.batch_size, weights)


def run(
    config: RankDPOConfig, say: Say = print, publish: Publish | None = None, wait: Say | None = None
) -> Result:
    """Trains as `config` says, or what is left of it, or nothing where it is complete.

    Another at work on the output is an error, or, where `wait` is given, is told to it and waited for.

    Raises:
        ConfigError: the configuration, the dataset, the model, the output or the cluster do not fit; nothing was begun.
        TrainingError: too many steps were not finite.
    """
    plan = check(config)
    output = open_output(config.output)
    first, *others = (source.dataset.info["prompts"]["sha256"] for source in plan.sources)
    mixed = {f"mix.{n}": prompts for n, prompts in enumerate(others)}
    revisions = {"model": plan.revision, "dataset": first, **mixed}
    job = Job("rankdpo", config, output, "run.json", place.identity_of(config, revisions), say)

    def prepare() -> Plan:
        connect()
        training_nodes.require(training_nodes.workers(config.workers), config.workers.wait_for_nodes_s, say)
        return _settled(plan, say)

    info = job.run(prepare, lambda settled, _: _make(settled, output, say), publish, wait=wait)
    return Result(output.uri, info)


def check(config: RankDPOConfig) -> Plan:
    """Looks at everything that a run needs, without loading a model.

    Raises:
        ConfigError: named fault, what is allowed, what to do.
    """
    faults = Faults()
    with faults.kept():
        spec, revision = check_model(config.model)
    with faults.kept():
        check_places(config)
    found: list[Source] = []
    for one in config.sets:
        with faults.kept(), place.as_written(store.absolute(one.dataset)):
            dataset = _dataset(one.dataset)
            labelling = labels.resolve(dataset.info, config.seed, **one.labels.model_dump())
            found.append(Source(dataset, labelling, one.weight))
    faults.raise_any()
    with place.as_written(*(source.dataset.path for source in found)):
        reward = check_reward(config, [item["name"] for item in found[0].dataset.info["rewards"]])
        device = device_of(config.workers.num_gpus, config.rehearse)
        for source in found:
            _check_pairs(source.dataset, source.labelling, config.objective)
        plan = Plan(config, spec, revision, _parted(found, config), reward, device)
        _check_parts(plan)
        if config.validation.stop == "patience" and not any(
            len(set(usable)) >= 2
            for source in plan.sources
            for name, usable in _ranked(source.dataset, source.labelling)
            if name in source.validated
        ):
            raise ConfigError(
                f"validation.stop = 'patience': the candidates of each of {plan.held_out:,} held-out prompts are tied, "
                "so no pair says which step is best; raise validation.share, or take stop = 'none'"
            )
    return plan


def check_ahead(config: RankDPOConfig, dataset: SynPicConfig, prompts: Iterable[str]) -> None:
    """What `check` can ask of a run before the job `dataset` has made what it learns from, a row of each prompt.

    Raises:
        ConfigError: as `check` does.
    """
    names = [choice.label for choice in dataset.rewards]
    check_reward(config, names)
    drawn = {
        "generators": [{"name": choice.label, "samples": choice.samples} for choice in dataset.generators],
        "rewards": [{"name": name} for name in names],
    }
    labelling = labels.resolve(drawn, config.seed, **config.labels.model_dump())
    ids = [schema.prompt_id(prompt) for prompt in prompts]
    feed.held_out(ids if labelling is None else labelling.taken(ids), config.validation)


def check_places(config: RankDPOConfig) -> None:
    """Whether a run can write to where it writes beside its output: the encoded set's place, and trackers.

    Raises:
        ConfigError: it cannot, or a tracker's package is missing.
    """
    if config.encoding.place is not None:
        open_output(config.encoding.place)
    trackers.check(config.checkpoints, config.output)


def _parted(sources: Sequence[Source], config: RankDPOConfig) -> tuple[Source, ...]:
    """The sources with their rows parted: a prompt that several of them have is held out of all or of none.

    Raises:
        ConfigError: none takes part, or too few are left.
    """
    every: list[dict[str, str]] = []  # of each source, rows' ids and their prompts'
    for source in sources:
        ids = {row["prompt_id"]: schema.prompt_id(row["prompt"]) for row in source.dataset.rows()}
        taking = ids if source.labelling is None else source.labelling.taken(ids)
        every.append({row_id: ids[row_id] for row_id in taking})
    away = feed.held_out([prompt for ids in every for prompt in ids.values()], config.validation)
    out = {(n, one): prompt for n, ids in enumerate(every) for one, prompt in ids.items() if prompt in away}
    judged = feed.validated(out)
    return tuple(
        replace(
            source,
            learnt=tuple(row_id for row_id, prompt in ids.items() if prompt not in away),
            held_out=frozenset(row_id for row_id, prompt in ids.items() if prompt in away),
            validated=frozenset(row_id for row_id in ids if (n, row_id) in judged),
        )
        for n, (source, ids) in enumerate(zip(sources, every, strict=True))
    )


def _check_parts(plan: Plan) -> None:
    """Whether each source has rows to learn from, and is asked for any.

    Raises:
        ConfigError: one is not.
    """
    for source, drawn in zip(plan.sources, plan.drawn, strict=True):
        if not source.learnt:
            raise ConfigError(
                f"dataset {source.dataset.path}: all of its {len(source.held_out):,} prompts are held out, and none is "
                "left to learn from; leave it out of mix, or lower validation.share"
            )
        if not drawn:
            raise ConfigError(
                f"dataset {source.dataset.path}: weight {source.weight:g} beside the others' comes to none of the "
                f"{sum(plan.drawn):,} rows that the run sees; give weights nearer to each other, or leave a dataset out"
            )


def _dataset(path: str) -> store.RankedDataset:
    """The dataset, opened and found fit to train on, by its scores and the places of its images."""
    try:
        dataset = store.read(path)
    except store.DatasetError as error:
        raise ConfigError(f"dataset {error}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"dataset '{path}' cannot be opened: {first_line(error)}") from None
    version = dataset.info.get("schema_version")
    if version != schema.SCHEMA_VERSION:
        raise ConfigError(
            f"dataset {dataset.path} has schema version {version}, and this rankray reads "
            f"{schema.SCHEMA_VERSION}; make it again, or take the rankray that wrote it"
        )
    try:
        store.require_whole(dataset)
    except store.DatasetError as error:
        raise ConfigError(f"dataset {error}") from None
    return dataset


def _check_pairs(
    dataset: store.RankedDataset, labelling: labels.Labelling | None, objective: ObjectiveConfig
) -> None:
    """Whether any prompt has what the objective learns from: two ranked candidates, one preferred to the other.

    Raises:
        ConfigError: none has.
    """
    ranked = total = 0
    for _, usable in _ranked(dataset, labelling):
        total += 1
        ranked += len(usable) >= 2
        if len(usable) >= 2 and (len(set(usable)) >= 2 or objective.name in WITHOUT_PAIRS):
            return
    if not ranked:
        raise ConfigError(
            f"dataset {dataset.path}: none of {total:,} prompts has two ranked candidates, so there is nothing to "
            "prefer; look at the failures in its report"
        )
    raise ConfigError(
        f"dataset {dataset.path}: the candidates of each of {total:,} prompts are tied, as where a reward says the "
        f"same of every picture, and {objective.name} learns from preferences; look at the scores in its report, give "
        "other [labels], or take objective.name = 'sft'"
    )


def _ranked(
    dataset: store.RankedDataset, labelling: labels.Labelling | None
) -> Iterator[tuple[str, list[float]]]:
    """Of each prompt that takes part: its id, and the win probabilities of its ranked candidates."""
    for row in dataset.rows():
        if labelling is not None and not labelling.takes(row["prompt_id"]):
            continue
        found = row["candidates"]
        rank, phi = [one["rank"] for one in found], [one["win_probability"] for one in found]
        if labelling is not None:
            taken, ranks = labelling(row["prompt_id"], [one["scores"] for one in found], rank)
            rank, phi = ranks.tolist(), taken.tolist()
        yield row["prompt_id"], [value for value, place in zip(phi, rank, strict=True) if place > 0]


def check_model(choice: GeneratorChoice) -> tuple[GeneratorSpec, str]:
    """The row and revision of a model that can be trained; its weights are not read.

    Raises:
        ConfigError: a class of the user's own, or a pipeline of which no family trains.
    """
    target = generators.resolve(choice)
    spec = target.kwargs.get("spec")
    if not isinstance(spec, GeneratorSpec):
        raise ConfigError(
            f"model '{choice.model}' is a class of your own; name a row of the generators' table"
        )
    require_resolved([target])  # before a file of it is asked for, over and over
    denoisers.check_family(spec)
    return spec, target.revision


def check_reward(config: TrainingSettings, names: list[str]) -> int | None:
    """The place of the objective's reward among a candidate's scores, None where it needs none.

    Raises:
        ConfigError: the dataset has no such reward.
    """
    if config.objective.name not in SCORED:
        return None
    name = str(config.objective.reward)
    if name not in names:
        raise ConfigError(
            f"objective {config.objective.name} needs the scores of '{name}'{nearest(name, names)}, which the dataset "
            f"lacks; it has: {', '.join(names)}"
        )
    return names.index(name)


def _settled(plan: Plan, say: Say) -> Plan:
    row = denoisers.DENOISERS[denoisers.family(plan.spec)]
    if plan.config.tuned.train == "lora" and row.lora_form == "peft":
        say(
            f"{row.pipeline} has no load_lora_weights: beside the merged pipeline, the adapters leave in peft's form "
            f"(adapter_model.safetensors), for PeftModel.from_pretrained(pipe.{row.denoiser}, OUTPUT)"
        )
    datasets = [source.dataset for source in plan.sources]
    found = training_forecast.settled(plan.config, plan.spec, datasets, plan.device, say)
    return replace(plan, config=found)


def _make(plan: Plan, output: Output, say: Say) -> dict[str, Any]:
    """Encodes, computes the reference, trains and exports what is left of a run; returns its summary."""
    config = plan.config
    if output.exists("_work", "diverged.json"):
        output.fs.delete_file(output.at("_work", "diverged.json"))
    say(
        f"{config.model.label}: {config.steps:,} steps of {config.batch_size:,} prompts, {config.objective.name}, "
        f"{config.tuned.train}; {plan.rows:,} rows of {_told(plan)}"
    )
    job, _encoders = _encoded(plan, output.uri, say)
    say(
        f"training {denoisers.family(plan.spec)} with {config.workers.count} workers, ZeRO "
        f"{config.workers.zero_stage}; {plan.held_out:,} prompts are held out"
    )
    for source, drawn in zip(plan.sources, plan.drawn, strict=True):
        what = f"{config.steps:,} steps of {config.batch_size:,}"
        if len(plan.sources) > 1:
            what = f"{drawn:,} rows of {source.dataset.path}, {drawn / sum(plan.drawn):.0%} of {what},"
        say(feed.epochs_line(what, drawn, len(source.learnt), config.validation.stop))
    checkpoint = _train(job, output, say)
    if output.exists("_work", "diverged.json"):
        found = store.read_json(output.at("_work", "diverged.json"), output.fs)
        kept = f"; the last checkpoint before is kept in {output.uri}/checkpoints" if checkpoint else ""
        raise TrainingError(
            f"{found['skipped']} of {found['step']} steps had a loss or gradient that was not finite or exploded, more "
            f"than checkpoints.bad_steps = {config.checkpoints.bad_steps}{kept}. Lower optimizer.learning_rate or "
            "raise objective.beta, with another output."
        )
    state = checkpoint_state(output.fs, output.at("checkpoints", checkpoint)).run
    chosen = validation.chosen(state.points, config.validation) if state.points else None
    if chosen is None or chosen.step == state.step:
        weights: str | None = output.uri_of("checkpoints", checkpoint)
    else:
        weights = output.uri_of("checkpoints", best_name(chosen.step)) if chosen.step else None
    say(f"writing the pipeline: {validation.decision(state.points, config.validation, config.steps)}")
    lora = output.uri if config.tuned.train == "lora" else None
    export_pipeline(plan.spec, config, weights, output.uri_of("pipeline"), lora)
    return _summary(plan, output, state)


def export_pipeline(
    spec: GeneratorSpec, config: RankDPOConfig, checkpoint: str | None, pipeline: str, lora: str | None = None
) -> None:
    """Writes the tuned pipeline of a checkpoint to `pipeline`, and adapters into `lora` (all are URIs), in a task: no
    driver loads a model. Without a checkpoint it is the model as it started."""
    ray.get(ray.remote(num_cpus=0.5)(_export).remote(spec, config, checkpoint, pipeline, lora))


def _export(*arguments: Any) -> None:
    from rankray.rankdpo import samples

    samples.export_pipeline(*arguments)


def _encoded(plan: Plan, output: str, say: Say) -> tuple[TrainJob, list[Any]]:
    """What a worker needs to train into `output`, once datasets and reference are there; and the actors that encode
    while it trains, where they do: one that has a name lives no longer than the handle that made it."""
    config, settings = plan.config, plan.config.encoding
    todos = [_encode_job(plan, source.dataset) for source in plan.sources]
    job = TrainJob(
        config=config,
        spec=plan.spec,
        sets=tuple(
            RowSet(one.dataset.files, one.dataset.path, None, None, one.labelling, one.weight)
            for one in plan.sources
        ),
        encoded=todos[0].encoded,
        encoders=(),
        reward=plan.reward,
        rows=plan.rows,
        sample_prompts=config.checkpoints.sample_prompts
        or tuple(row["prompt"] for row in itertools.islice(plan.sources[0].dataset.rows(), SAMPLE_PROMPTS)),
        output=output,
        device=plan.device,
    )
    if settings.mode == "stream":
        # Trainers know whose rows they send, and name the pictures' files themselves.
        todo, wait_s = replace(todos[0], dataset=""), config.workers.wait_for_nodes_s
        wanted = [*training_nodes.encoders(settings), *training_nodes.workers(config.workers)]
        training_nodes.require(wanted, wait_s, say)
        actor = ray.remote(EncodeActor)
        options = {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus, "max_restarts": -1}
        names = tuple(f"encoder {n} of {todo.encoded}" for n in range(settings.min_size))
        encoders = [actor.options(name=name, **options).remote(todo) for name in names]
        return replace(job, encoders=names), encoders
    sets = [_stored(plan, *each, say) for each in zip(plan.sources, plan.drawn, todos, strict=True)]
    return replace(job, sets=tuple(sets)), []


def _encode_job(plan: Plan, dataset: store.RankedDataset) -> EncodeJob:
    settings = plan.config.encoding
    device = device_of(settings.num_gpus, plan.config.rehearse)
    todo = EncodeJob(
        spec=plan.spec,
        device=device,
        dtype="float32" if device == "cpu" else "bfloat16",
        stored_dtype=settings.dtype,
        batch_size=settings.batch_size,
        encoded="",
        reencode=settings.reencode,
        dataset=dataset.path,
    )
    return replace(todo, encoded=encoding.encoded_uri(dataset, todo, plan.revision, settings))


def _stored(plan: Plan, source: Source, drawn: int, todo: EncodeJob, say: Say) -> RowSet:
    """A source's encoded set, with its reference errors where these are computed ahead, made as far as they are not."""
    config = plan.config
    encoded = encoding.encode(source.dataset, todo, config.encoding, say, config.workers.wait_for_nodes_s)
    uri = None
    if config.objective.reference == "precomputed" and config.objective.name not in REFERENCE_FREE:
        reads = feed.reads(source.learnt, drawn, config.seed, source.held_out)
        ahead = ReferenceJob(plan.spec, plan.device, config, encoded.uri, reads, source.labelling)
        uri = encoding.reference_uri(encoded, ahead, plan.revision)
        forecast = training_forecast.ahead_line(ahead, len(source.learnt), source.dataset)
        uri = encoding.precompute(encoded, ahead, uri, config.workers, say, forecast)
    return RowSet(encoded.files, encoded.uri, encoded.layout, uri, source.labelling, source.weight)


def prepare(config: RankDPOConfig, say: Say = print) -> TrainJob:
    """Encodes the dataset, and computes the reference ahead where the run wants it so; what is left is to train.

    Runs that share either, as an ablation's do, may then start together.

    Raises:
        ConfigError: as `run`.
    """
    plan = check(config)
    connect()
    job, _ = _encoded(_settled(plan, say), config.output, say)
    return job


def _train(job: TrainJob, output: Output, say: Say) -> str:
    """Runs the workers to the end; returns the last checkpoint's name."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    workers = job.config.workers
    resources = {"CPU": workers.num_cpus, **({"GPU": workers.num_gpus} if workers.num_gpus else {})}
    scaling: dict[str, Any] = {
        "num_workers": (workers.count, workers.max_count) if workers.max_count else workers.count,
        "use_gpu": bool(workers.num_gpus),
        "resources_per_worker": resources,
        "elastic_resize_monitor_interval_s": workers.resize_every_s,
    }
    storage: dict[str, Any] = {
        "name": "checkpoints",
        "storage_path": output.path,
        "storage_filesystem": output.fs,
        "failure_config": FailureConfig(max_failures=workers.max_failures),
        "checkpoint_config": CheckpointConfig(num_to_keep=job.config.checkpoints.keep),
        "worker_runtime_env": {"env_vars": SAID_ONCE if job.device == "cuda" else {**ON_CPU, **SAID_ONCE}},
    }
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(**scaling),
        torch_config=TorchConfig(backend="nccl" if job.device == "cuda" else "gloo"),
        run_config=RunConfig(**storage),
    )
    handler = signal.getsignal(signal.SIGINT)
    checkpoints.mend(output, job.config.tuned.ema is not None, say)
    try:
        result = trainer.fit()
    except SystemExit as leaving:
        if leaving.code == signal.SIGTERM:
            raise
        raise KeyboardInterrupt from None  # Ray Train answers Ctrl-C itself, by an end with 0 or 1 and without a word
    finally:
        if signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)
    terminal.clear()
    if result.checkpoint is None:
        return ""
    return str(result.checkpoint.path).rstrip("/").rpartition("/")[2]


def _worker(settings: dict[str, Any]) -> None:
    from rankray.rankdpo.training import train

    train(settings["job"])


def _model(plan: Plan) -> dict[str, Any]:
    """What was tuned, and how it is loaded and called, for `run.json`."""
    spec, family = plan.spec, denoisers.family(plan.spec)
    row = denoisers.DENOISERS[family]
    size = {"height": spec.height, "width": spec.width}
    return {
        "source": spec.source,
        "revision": plan.revision,
        **_origin(plan.config.model.source),
        "family": family,
        "licence": spec.licence,
        "pipeline": spec.pipeline,
        "denoiser": row.denoiser,
        "lora_form": row.lora_form,
        "load": {**({"variant": spec.variant} if spec.variant else {}), **spec.load},
        "call": {spec.steps_argument: spec.steps, spec.guidance_argument: spec.guidance, **size, **spec.call},
        "run_with": spec.settings(),
    }


def _origin(source: str | None) -> dict[str, Any]:
    """`base`, what was tuned first, where `source` is the pipeline of an earlier run, as a later round's is."""
    run, _, name = (source or "").rstrip("/").rpartition("/")
    if name != "pipeline":
        return {}
    fs, path = store.filesystem(run)
    if fs.get_file_info(f"{path}/run.json").type != pafs.FileType.File:
        return {}
    model = store.read_json(f"{path}/run.json", fs).get("model", {})
    base = model.get("base") or {key: model.get(key) for key in ("source", "revision", "licence")}
    return {"base": base} if base["source"] else {}


def _summary(plan: Plan, output: Output, state: RunState) -> dict[str, Any]:
    """The contents of `run.json`."""
    config = plan.config
    lines = store.read_json_lines(output.at("metrics.jsonl"), output.fs)
    parameters = store.read_json(output.at("_work", "parameters.json"), output.fs)
    steps_s = max(sum(line["step_s"] for line in lines), 1e-9)
    wait_s = sum(line["data_wait_s"] for line in lines)
    return {
        **place.stamp(),
        "versions": place.note_versions(output),
        "identity": place.claimed(output),
        "dataset": _told(plan),
        "datasets": [
            {"dataset": one.dataset.path, "weight": one.weight, "rows": len(one.learnt), "drawn": drawn}
            for one, drawn in zip(plan.sources, plan.drawn, strict=True)
        ],
        "model": _model(plan),
        "data": {
            "rows": plan.rows,
            "generators": _named(plan, "generators"),
            "rewards": _named(plan, "rewards"),
        },
        "objective": config.objective.model_dump(mode="json", exclude={"reference"}),
        "loss": config.objective.name,
        "beta": config.objective.beta,
        "steps": state.step,
        "batch_size": config.batch_size,
        "workers": config.workers.count,
        "zero_stage": config.workers.zero_stage,
        "lora_rank": config.tuned.lora_rank if config.tuned.train == "lora" else 0,
        "lora_alpha": config.tuned.lora_alpha or config.tuned.lora_rank,
        "reference": config.objective.reference,  # as it was chosen, where "auto" left it open
        "encode": config.encoding.mode,
        "parameters": {"trained": parameters["trained"], "total": parameters["total"]},
        "held_parameters": parameters["held"],
        "throughput": {
            "wall_s": state.elapsed_s,
            "prompts_per_s": state.step * config.batch_size / steps_s,
            "data_wait_share": wait_s / steps_s,
            "cpu_minutes": cpu_minutes(lines),
        },
        "skipped_steps": state.skipped,
        "validation": _validation(plan, state) if state.points else None,
        "cost": {
            "usd": state.usd(config),
            "gpu_hours": state.gpu_s / 3600,
            "cpu_hours": state.cpu_s / 3600,
        },
    }


def cpu_minutes(lines: Sequence[Mapping[str, Any]]) -> float:
    """What all workers used, not claimed, by the lines of `metrics.jsonl`."""
    return sum(float(line["cpu_s"] * line["workers"]) for line in lines) / 60


def _told(plan: Plan) -> str:
    """The datasets in words: of one its place, of several `1 × /data/human + 3 × /data/pairs`."""
    if len(plan.sources) == 1:
        return plan.sources[0].dataset.path
    return " + ".join(f"{one.weight:g} × {one.dataset.path}" for one in plan.sources)


def _named(plan: Plan, kind: str) -> list[dict[str, Any]]:
    """The generators or rewards of all sources with their weights' licences, each revision once."""
    table: Mapping[str, Spec] = rewards.REWARDS if kind == "rewards" else generators.GENERATORS
    every = [
        {**item, "licence": licence_of(item, kind, info["identity"], table)}
        for info in (source.dataset.info for source in plan.sources)
        for item in info[kind]
    ]
    return list({(item["name"], item["revision"]): item for item in every}.values())


def _validation(plan: Plan, state: RunState) -> dict[str, Any]:
    """What held-out prompts said in the end, which step was exported, and why."""
    config = plan.config.validation
    return {
        "prompts": plan.held_out,
        "exported": asdict(validation.chosen(state.points, config)),
        "best": asdict(validation.best(state.points, config)),
        "last": asdict(state.points[-1]),
        "decision": validation.decision(state.points, config, plan.config.steps),
        "warnings": validation.warnings(state.points, config, plan.config.steps),
    }
