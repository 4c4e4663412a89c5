"""The map stages: reuse, generate, score, rank.

A stage takes a block of prompts and appends its own columns; no row ever moves between blocks, so blocks
stream through all pools at once and a restart repeats only blocks in flight. The cost is that images are
copied from stage to stage: nine stages over four 1.5 MB pictures pass 38 rows/s on two cores, where one A100
draws 0.27 images/s. `images.store = "files"` takes the bytes out of the rows where that matters.
"""

from __future__ import annotations

import functools
import json

import numpy as np
import pyarrow as pa
import ray.data

from rankray import ranking, schema
from rankray.cluster.actors import GenerateActor, JobContext, ScoreActor, Stage, candidates_of
from rankray.cluster.streaming import pooled, unpooled
from rankray.synpic import reuse

BLOCKS_IN_ACTOR = 2
"""One block is computed while the pictures of another are encoded or decoded."""


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
    phi = ranking.win_probability(scores)
    ranks = ranking.rank(phi)
    rows = []
    for b, row in enumerate(candidates):
        finished = []
        for k, entry in enumerate(row):
            has_image = entry["error"] is None
            errors = [column[b][k]["error"] for column in columns]
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
                    "error": entry["error"] or schema.joined_errors(context.rewards, errors),
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
