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

import datetime
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray

import rankray
from rankray import schema, store
from rankray.cluster.job import Job, Result, Say, connect, open_output
from rankray.config import ConfigError, GeneratorChoice, device_of, nearest
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
from rankray.rankdpo import encoding, feed, labels, trackers, validation
from rankray.rankdpo import forecast as training_forecast
from rankray.rankdpo import nodes as training_nodes
from rankray.rankdpo.encoding import EncodeActor, EncodeJob, ReferenceJob
from rankray.rankdpo.train_job import RunState, TrainJob, best_name

SAMPLE_PROMPTS = 4


class TrainingError(RuntimeError):
    """A run that stopped by itself: one line that says why and what is kept."""


@dataclass(frozen=True)
class Plan:
    """A run whose inputs were found good: the model's row and revision, the dataset, the objective's reward.

    `labelling` is None where the dataset's own ranking is learnt; `rows` are prompts that are learnt from, and
    `held_out` those that the run validates on.
    """

    config: RankDPOConfig
    spec: GeneratorSpec
    revision: str
    dataset: store.RankedDataset
    reward: int | None
    labelling: labels.Labelling | None
    rows: int
    held_out: frozenset[str]
    device: str


def run(config: RankDPOConfig, say: Say = print, publish: Publish | None = None) -> Result:
    """Trains as `config` says, or what is left of it, or nothing where it is complete.

    Raises:
        ConfigError: the configuration, the dataset, the model, the output or the cluster do not fit; nothing was begun.
        TrainingError: too many steps were not finite.
    """
    plan = check(config)
    output = open_output(config.output)
    revisions = {"model": plan.revision, "dataset": plan.dataset.info["prompts"]["sha256"]}
    job = Job("rankdpo", config, output, "run.json", place.identity_of(config, revisions), say)

    def prepare() -> Plan:
        training_nodes.require(training_nodes.workers(config.workers), config.workers.wait_for_nodes_s, say)
        return _settled(plan, say)

    info = job.complete() or job.run(prepare, lambda settled, _: _make(settled, output, say), publish)
    return Result(output.uri, info)


def check(config: RankDPOConfig) -> Plan:
    """Looks at everything that a run needs, without loading a model.

    Raises:
        ConfigError: named fault, what is allowed, what to do.
    """
    spec, revision = check_model(config.model)
    dataset = _dataset(config.dataset)
    labelling = labels.resolve(dataset.info, config.seed, **config.labels.model_dump())
    reward = check_reward(config, [item["name"] for item in dataset.info["rewards"]])
    trackers.check(config.checkpoints, config.output)
    device = device_of(config.workers.num_gpus, config.rehearse)
    ids = [row["prompt_id"] for row in dataset.rows()]
    if labelling is not None:
        ids = labelling.taken(ids)
    _check_pairs(dataset, labelling, config.objective)
    held_out = feed.held_out(ids, config.validation)
    if config.validation.stop == "patience" and not any(
        len(set(usable)) >= 2 for name, usable in _ranked(dataset, labelling) if name in held_out
    ):
        raise ConfigError(
            f"validation.stop = 'patience': the candidates of each of {len(held_out):,} held-out prompts are tied, so "
            "no pair says which step is best; raise validation.share, or take stop = 'none'"
        )
    return Plan(
        config, spec, revision, dataset, reward, labelling, len(ids) - len(held_out), held_out, device
    )


def _dataset(path: str) -> store.RankedDataset:
    """The dataset, opened and found fit to train on, by its scores and the places of its images."""
    try:
        dataset = store.read(path)
    except store.DatasetError as error:
        raise ConfigError(f"dataset {error}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"dataset '{path}' cannot be opened: {str(error).splitlines()[0]}") from None
    version = dataset.info.get("schema_version")
    if version != schema.SCHEMA_VERSION:
        raise ConfigError(
            f"dataset {dataset.path} has schema version {version}, and this rankray reads "
            f"{schema.SCHEMA_VERSION}; make it again, or take the rankray that wrote it"
        )
    try:
        store.require_images(dataset)
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
    found = training_forecast.settled(plan.config, plan.spec, plan.dataset, plan.device, say)
    return replace(plan, config=found)


def _make(plan: Plan, output: Output, say: Say) -> dict[str, Any]:
    """Encodes, computes the reference, trains and exports what is left of a run; returns its summary."""
    config = plan.config
    if output.exists("_work", "diverged.json"):
        output.fs.delete_file(output.at("_work", "diverged.json"))
    job, _encoders = _encoded(plan, output.uri, say)
    say(
        f"training {denoisers.family(plan.spec)} with {config.workers.count} workers, ZeRO "
        f"{config.workers.zero_stage}; {len(plan.held_out):,} prompts are held out"
    )
    say(feed.epochs_line(config.steps, config.batch_size, plan.rows))
    checkpoint = _train(job, output)
    if output.exists("_work", "diverged.json"):
        found = store.read_json(output.at("_work", "diverged.json"), output.fs)
        raise TrainingError(
            f"{found['skipped']} of {found['step']} steps had a loss or gradient that was not finite or exploded, more "
            f"than checkpoints.bad_steps = {config.checkpoints.bad_steps}; the last good checkpoint is kept in "
            f"{output.uri}/checkpoints. Lower optimizer.learning_rate or raise objective.beta, with another output."
        )
    state = _state(output, checkpoint)
    chosen = validation.chosen(state.points, config.validation) if state.points else None
    if chosen is None or chosen.step == state.step:
        weights: str | None = output.uri_of("checkpoints", checkpoint)
    else:
        weights = output.uri_of("checkpoints", best_name(chosen.step)) if chosen.step else None
    say(f"writing the pipeline: {validation.decision(state.points, config.validation, config.steps)}")
    lora = output.uri if config.tuned.train == "lora" else None
    export_pipeline(plan.spec, config, weights, output.uri_of("pipeline"), lora)
    return _summary(plan, output, state)


def _state(output: Output, checkpoint: str) -> RunState:
    return RunState.from_json(
        store.read_json(output.at("checkpoints", checkpoint, "state.json"), output.fs)["run"]
    )


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
    """What a worker needs to train into `output`, once dataset and reference are there; and the actors that encode
    while it trains, where they do: one that has a name lives no longer than the handle that made it."""
    config, dataset, settings = plan.config, plan.dataset, plan.config.encoding
    device = device_of(settings.num_gpus, config.rehearse)
    dtype = "float32" if device == "cpu" else "bfloat16"
    todo = EncodeJob(
        spec=plan.spec,
        device=device,
        dtype=dtype,
        stored_dtype=settings.dtype,
        batch_size=settings.batch_size,
        encoded="",
        reencode=settings.reencode,
        dataset=dataset.path,
    )
    todo = replace(todo, encoded=encoding.encoded_uri(dataset, todo, plan.revision, settings))
    job = TrainJob(
        config=config,
        spec=plan.spec,
        files=dataset.files,
        files_uri=dataset.path,
        layout=None,
        encoded=todo.encoded,
        reference=None,
        encoders=(),
        reward=plan.reward,
        labelling=plan.labelling,
        rows=plan.rows,
        sample_prompts=config.checkpoints.sample_prompts or _some_prompts(dataset),
        output=output,
        device=plan.device,
    )
    wait_s = config.workers.wait_for_nodes_s
    if settings.mode == "stream":
        wanted = [*training_nodes.encoders(settings), *training_nodes.workers(config.workers)]
        training_nodes.require(wanted, wait_s, say)
        actor = ray.remote(EncodeActor)
        options = {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus, "max_restarts": -1}
        names = tuple(f"encoder {n} of {todo.encoded}" for n in range(settings.min_size))
        encoders = [actor.options(name=name, **options).remote(todo) for name in names]
        return replace(job, encoders=names), encoders
    encoded = encoding.encode(dataset, todo, settings, say, wait_s)
    job = replace(job, files=encoded.files, files_uri=encoded.uri, layout=encoded.layout)
    if config.objective.reference == "precomputed" and config.objective.name not in REFERENCE_FREE:
        ids = [name for name in encoded.prompt_ids(plan.labelling) if name not in plan.held_out]
        reads = feed.reads(ids, config.steps, config.batch_size, config.seed, plan.held_out)
        ahead = ReferenceJob(plan.spec, plan.device, config, encoded.uri, reads, plan.labelling)
        uri = encoding.reference_uri(encoded, ahead, plan.revision)
        forecast = training_forecast.ahead_line(ahead, len(ids), dataset)
        uri = encoding.precompute(encoded, ahead, uri, config.workers, say, forecast)
        job = replace(job, reference=uri)
    return job, []


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


def _train(job: TrainJob, output: Output) -> str:
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
        "worker_runtime_env": {"env_vars": _environment(job.device)},
    }
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(**scaling),
        torch_config=TorchConfig(backend="nccl" if job.device == "cuda" else "gloo"),
        run_config=RunConfig(**storage),
    )
    result = trainer.fit()
    if result.checkpoint is None:
        return ""
    return str(result.checkpoint.path).rstrip("/").rpartition("/")[2]


def _environment(device: str) -> dict[str, str]:
    return {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"} if device == "cpu" else {}


def _worker(settings: dict[str, Any]) -> None:
    from rankray.rankdpo.training import train

    train(settings["job"])


def _some_prompts(dataset: store.RankedDataset) -> tuple[str, ...]:
    rows = dataset.rows()
    return tuple(row["prompt"] for row, _ in zip(rows, range(SAMPLE_PROMPTS), strict=False))


def _model(plan: Plan) -> dict[str, Any]:
    """What was tuned, and how it is loaded and called, for `run.json`."""
    spec, family = plan.spec, denoisers.family(plan.spec)
    row = denoisers.DENOISERS[family]
    size = {"height": spec.height, "width": spec.width}
    return {
        "source": spec.source,
        "revision": plan.revision,
        "family": family,
        "licence": spec.licence,
        "pipeline": spec.pipeline,
        "denoiser": row.denoiser,
        "lora_form": row.lora_form,
        "load": {**({"variant": spec.variant} if spec.variant else {}), **spec.load},
        "call": {spec.steps_argument: spec.steps, spec.guidance_argument: spec.guidance, **size, **spec.call},
    }


def _summary(plan: Plan, output: Output, state: RunState) -> dict[str, Any]:
    """The contents of `run.json`."""
    import json

    config = plan.config
    with output.fs.open_input_stream(output.at("metrics.jsonl")) as stream:
        lines = [json.loads(line) for line in stream.read().decode().splitlines()]
    parameters = store.read_json(output.at("_work", "parameters.json"), output.fs)
    wall_s = max(state.elapsed_s, 1e-9)
    wait_s = sum(line["data_wait_s"] for line in lines)
    return {
        "rankray_version": rankray.__version__,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "identity": place.claimed(output),
        "dataset": plan.dataset.path,
        "model": _model(plan),
        "data": {
            "rows": plan.rows,
            "generators": plan.dataset.info["generators"],
            "rewards": [
                {**item, "licence": rewards.licence(item.get("model"))}
                for item in plan.dataset.info["rewards"]
            ],
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
            "wall_s": wall_s,
            "prompts_per_s": state.step * config.batch_size / wall_s,
            "data_wait_share": wait_s / wall_s,
            "cpu_minutes": sum(line["cpu_s"] * line["workers"] for line in lines) / 60,  # used, not claimed
        },
        "skipped_steps": state.skipped,
        "validation": _validation(plan, state) if state.points else None,
        "cost": {
            "usd": lines[-1]["usd"],
            "gpu_hours": state.gpu_s / 3600,
            "cpu_hours": state.cpu_s / 3600,
        },
    }


def _validation(plan: Plan, state: RunState) -> dict[str, Any]:
    """What held-out prompts said in the end, which step was exported, and why."""
    config = plan.config.validation
    return {
        "prompts": len(plan.held_out),
        "exported": asdict(validation.chosen(state.points, config)),
        "best": asdict(validation.best(state.points, config)),
        "last": asdict(state.points[-1]),
        "decision": validation.decision(state.points, config, plan.config.steps),
        "warnings": validation.warnings(state.points, config),
    }
