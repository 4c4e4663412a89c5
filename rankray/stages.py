"""The map stages: reuse, generate, score, rank. The only file that calls `map_batches`.

A stage takes a block of prompts and appends its own columns; no row ever moves between blocks, so blocks
stream through all pools at once and a restart repeats only blocks in flight. The cost is that images are
copied from stage to stage: nine stages over four 1.5 MB pictures pass 38 rows/s on two cores, where one A100
draws 0.27 images/s. `images.store = "files"` takes the bytes out of the rows where that matters.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from rankray import ranking, reuse, schema
from rankray.actors import Actors, GenerateActor, JobContext, ScoreActor, Stage, candidates_of
from rankray.encode_actors import EncodeActor, EncodeJob, ReferenceActor, ReferenceJob

IO_CPUS = 0.1
"""Ray CPUs that a reading, ranking or writing task claims: they mostly wait, and models need the cores."""

BLOCKS_IN_ACTOR = 2
"""One block is computed while the pictures of another are encoded or decoded."""

WAITING_FOR_SLOT = 2
"""Blocks queued at an actor for each that is in it. Ray Data lets a pool grow where queued and running blocks together
are 1.75 times what runs: with 1.5 a pool stayed at its least size for ever, 4 images/s on one node and 4 on four."""


def model_stage(
    dataset: ray.data.Dataset, stage: Stage, context: JobContext, size: int | None = None
) -> ray.data.Dataset:
    """`dataset` with the stage's column, computed by a pool that begins with `size` actors, `min_size` if None."""
    actor = GenerateActor if stage.kind == "generator" else ScoreActor
    arguments = {"stage": stage, "context": context}
    return _pool(dataset, actor, arguments, stage.actors, BLOCKS_IN_ACTOR, size)


def reuse_stage(dataset: ray.data.Dataset, held: reuse.Reuse, context: JobContext) -> ray.data.Dataset:
    """The first stage of a job that takes an earlier dataset's pictures and scores over: their columns."""
    return dataset.map_batches(
        functools.partial(reuse.attach, held=held, context=context),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=IO_CPUS,
    )


def encode_stage(dataset: ray.data.Dataset, job: EncodeJob, actors: Actors) -> ray.data.Dataset:
    """Ranked rows become encoded ones: latents of each candidate, embeddings of each prompt."""
    return _pool(dataset, EncodeActor, {"job": job}, actors)


def reference_stage(dataset: ray.data.Dataset, job: ReferenceJob, actors: Actors) -> ray.data.Dataset:
    """Encoded rows become the untrained model's errors on them, for each coming epoch."""
    return _pool(dataset, ReferenceActor, {"job": job}, actors)


def _pool(
    dataset: ray.data.Dataset,
    actor: type,
    arguments: dict[str, Any],
    actors: Actors,
    at_once: int = 1,
    size: int | None = None,
) -> ray.data.Dataset:
    """`dataset` through a pool of `actor(**arguments)`, a block a call, `at_once` of them in an actor.

    `map_batches` refuses a pool with GPUs that names no batch size, and one that it names would join blocks, on which
    a resume's batches would depend. What `map_groups` calls takes blocks as they are.
    """
    return dataset.map_batches_internal(
        actor,
        fn_constructor_kwargs=arguments,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(
            min_size=actors.min_size,
            max_size=actors.max_size,
            initial_size=size,
            max_tasks_in_flight_per_actor=at_once * WAITING_FOR_SLOT,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=at_once > 1,
        ),
        num_cpus=actors.num_cpus,
        num_gpus=actors.num_gpus or None,
        memory=actors.memory_bytes,
        resources=dict(actors.resources) or None,
        runtime_env=dict(actors.runtime_env) or None,
    )


def rank_stage(dataset: ray.data.Dataset, context: JobContext, schema_out: pa.Schema) -> ray.data.Dataset:
    """The last stage: in-flight columns become the ranked dataset's."""
    return dataset.map_batches(
        functools.partial(rank_block, context=context, schema_out=schema_out),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=IO_CPUS,
    )


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
    phi = ranking.win_probability(scores)
    ranks = ranking.rank(phi)
    rows = []
    for b, row in enumerate(candidates):
        finished = []
        for k, entry in enumerate(row):
            errors = [entry["error"]] if entry["error"] else []
            errors += [
                f"{name}: {column[b][k]['error']}"
                for name, column in zip(context.rewards, columns, strict=True)
                if column[b][k]["error"] is not None
            ]
            has_image = entry["error"] is None
            finished.append(
                {
                    "generator": entry["generator"],
                    "seed": entry["seed"],
                    "image": {"bytes": entry["image"], "path": entry["path"]} if has_image else None,
                    "width": entry["width"],
                    "height": entry["height"],
                    "scores": scores[b, k],
                    "win_probability": phi[b, k],
                    "rank": int(ranks[b, k]),
                    "error": "; ".join(errors) or None,
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
