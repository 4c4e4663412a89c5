"""A configuration's models as stages, each with its pool, and what each adds to a row: reuse, generate, score, rank.

A stage takes a block of prompts and appends its own columns; no row ever moves between blocks, so blocks
stream through all pools at once and a restart repeats only blocks in flight. The cost is that images are
copied from stage to stage: nine stages over four 1.5 MB pictures pass 38 rows/s on two cores, where one A100
draws 0.27 images/s. `images.store = "files"` takes the bytes out of the rows where that matters.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from rankray import ranking, schema
from rankray.cluster.actors import Actors, GenerateActor, JobContext, ScoreActor, Stage, candidates_of
from rankray.cluster.streaming import pooled, unpooled
from rankray.config import ConfigError, GeneratorChoice, ModelChoice, RewardChoice, SynPicConfig, device_of
from rankray.data import place
from rankray.models import environments, generators, rewards
from rankray.models.targets import Target, left_to_row, resolve_all
from rankray.synpic import reuse

Choice = GeneratorChoice | RewardChoice
BLOCKS_IN_ACTOR = 2
"""One block is computed while the pictures of another are encoded or decoded."""


def stages_of(
    config: SynPicConfig, judges: Mapping[str, Target] | None = None, look_up: bool = True
) -> list[Stage]:
    """Every model as a stage, generators first, in the configuration's order; `look_up` as in `generators.resolve`.

    Raises:
        ConfigError: a line for each model that cannot be had as it is configured.
    """
    choices: tuple[Choice, ...] = (*config.generators, *config.rewards)
    try:
        found = resolve_all(choices, _resolve, look_up)
    except ConfigError as error:
        raise ConfigError("\n".join([str(error), *_not_built(config)])) from None
    targets = {**(judges or {}), **{target.name: target for target in found}}
    stages_: list[Stage] = []
    for generator in config.generators:
        target = targets[generator.label]
        stages_.append(Stage("generator", target, _actors(generator, target, config), generator.samples))
    for scorer in config.scorers:
        target = targets[scorer.label]
        stages_.append(Stage("reward", target, _actors(scorer, target, config)))
    return stages_


def identity_of(config: SynPicConfig, models: Sequence[Stage]) -> dict[str, Any]:
    """What tells the dataset of `config`, made by `models`, from another (`place.identity_of`)."""
    tables = [
        (f"{kind}.{n}", choice)
        for kind in ("generators", "judges", "rewards")
        for n, choice in enumerate(getattr(config, kind, ()))
    ]
    targets = {stage.target.name: stage.target for stage in models}
    rows = {
        f"{table}.{key}": value
        for table, choice in tables
        for key, value in left_to_row(choice, targets[choice.label]).items()
    }
    return place.identity_of(config, {name: one.revision for name, one in targets.items()}, rows)


def _resolve(choice: Choice, look_up: bool) -> Target:
    if isinstance(choice, GeneratorChoice):
        return generators.resolve(choice, look_up)
    return rewards.resolve(choice, look_up)


def _not_built(config: SynPicConfig) -> list[str]:
    """A line for each overlay that this machine lacks and nobody is to build: told with what refuses the job already,
    as nodes are asked for theirs only where weights are found."""
    if config.execution.build_environments:
        return []
    needed: dict[str, list[str]] = {}
    choices: tuple[Choice, ...] = (*config.generators, *config.rewards)
    for choice in choices:
        try:
            name = overlay_of(choice, _resolve(choice, False))
        except ConfigError:
            continue  # told already
        if name is not None and environments.check(name, environments.spec_of(name)).fault is not None:
            needed.setdefault(name, []).append(choice.label)
    return [
        f"{', '.join(labels)}: environment '{name}' is not built on this machine; run `rankray envs build {name}` "
        "where it is to run, or let the job do it: --execution.build_environments true"
        for name, labels in needed.items()
    ]


def overlays_of(config: SynPicConfig, models: Sequence[Stage], plan: Sequence[Stage]) -> list[str]:
    """The overlay environments that the stages of `plan` need."""
    needed = {stage.target.name for stage in plan}
    choices = zip((*config.generators, *config.scorers), models, strict=True)
    names = {overlay_of(choice, stage.target) for choice, stage in choices if choice.label in needed}
    return sorted(name for name in names if name is not None)


def _actors(choice: ModelChoice, target: Target, config: SynPicConfig) -> Actors:
    """The pool: the configuration's numbers, or the table's where it is silent. CPU jobs ask for no GPU."""
    pool, forced = choice.pool, config.execution.device
    num_gpus = target.num_gpus if pool.num_gpus is None else pool.num_gpus
    if forced == "cpu":
        num_gpus = 0.0
    return Actors(
        min_size=pool.min_size,
        max_size=pool.max_size or pool.min_size,
        num_cpus=target.num_cpus if pool.num_cpus is None else pool.num_cpus,
        num_gpus=num_gpus,
        memory_bytes=None if pool.memory_gb is None else int(pool.memory_gb * 1024**3),
        resources=pool.resources,
        runtime_env={**_interpreter(choice, target), **pool.runtime_env},
        device=device_of(num_gpus or forced == "cuda", config.rehearse),
    )


def overlay_of(choice: ModelChoice, target: Target) -> str | None:
    """The overlay that a model's actors run in, None for the job's own environment or one that the user names."""
    name = choice.pool.environment or target.environment
    return None if name in (None, "main") or "py_executable" in choice.pool.runtime_env else name


def _interpreter(choice: ModelChoice, target: Target) -> dict[str, str]:
    name = overlay_of(choice, target)
    if name is None:
        return {}
    spec = environments.spec_of(name)
    return {"py_executable": str(environments.place_of(name, spec) / "bin" / "python")}


def model_stage(
    dataset: ray.data.Dataset, stage: Stage, context: JobContext, size: int | None = None
) -> ray.data.Dataset:
    """`dataset` with the stage's column, computed by a pool that begins with `size` actors, `min_size` if None."""
    actor = GenerateActor if stage.kind == "generator" else ScoreActor
    arguments = {"stage": stage, "context": context}
    return pooled(dataset, actor, arguments, stage.actors, BLOCKS_IN_ACTOR, size)


def reuse_stage(dataset: ray.data.Dataset, held: reuse.Reuse, context: JobContext) -> ray.data.Dataset:
    """The first stage of a job that takes an earlier dataset's pictures and scores over: their columns."""
    return unpooled(dataset, functools.partial(reuse.attach, held=held, context=context))


def rank_stage(dataset: ray.data.Dataset, context: JobContext, schema_out: pa.Schema) -> ray.data.Dataset:
    """The last stage: in-flight columns become the ranked dataset's."""
    return unpooled(dataset, functools.partial(rank_block, context=context, schema_out=schema_out))


def rank_block(table: pa.Table, *, context: JobContext, schema_out: pa.Schema) -> pa.Table:
    """The finished rows: win probability and rank of each candidate (Algorithm 1, lines 5 to 8)."""
    candidates = candidates_of(table, context)
    columns = [table[f"scored:{name}"].to_pylist() for name in context.rewards]
    # scores [B, K, N]
    scores = np.array(
        [
            [[column[b][k]["score"] for column in columns] for k in range(len(row))]
            for b, row in enumerate(candidates)
        ],
        dtype=np.float32,
    )
    phi = ranking.win_probability(ranking.admitted(scores, context.rewards, context.least))
    ranks = ranking.rank(phi)
    rows = []
    for b, row in enumerate(candidates):
        finished = []
        for k, entry in enumerate(row):
            has_image = entry["error"] is None
            errors = [column[b][k]["error"] for column in columns]
            finished.append(
                {
                    **{key: entry[key] for key in ("generator", "seed", "width", "height")},
                    "image": {"bytes": entry["image"], "path": entry["path"]} if has_image else None,
                    "scores": scores[b, k],
                    "win_probability": phi[b, k],
                    "rank": int(ranks[b, k]),
                    "error": entry["error"]
                    or schema.joined_errors(context.rewards, errors, scores[b, k], context.least),
                    "score_errors": errors,
                }
            )
        rows.append(finished)
    arrays = [table["prompt_id"], table["prompt"], pa.array(rows, pa.list_(schema.CANDIDATE_TYPE))]
    if context.judges:
        arrays.append(_details(table, context))
    return pa.table(arrays, schema=schema_out)


def _details(table: pa.Table, context: JobContext) -> pa.Array:
    """What each judge's verdict on a candidate was made from, as one JSON object; null where none saw it."""
    columns = [table[f"detailed:{name}"].to_pylist() for name in context.judges]
    rows = []
    for entries in zip(*columns, strict=True):
        by_candidate = [dict(zip(context.judges, texts, strict=True)) for texts in zip(*entries, strict=True)]
        known = [{n: json.loads(text) for n, text in found.items() if text} for found in by_candidate]
        rows.append([json.dumps(found) if found else None for found in known])
    return pa.array(rows, schema.DETAILS_TYPE)
