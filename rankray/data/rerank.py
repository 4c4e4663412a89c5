"""Another ranking of a finished dataset from its stored scores: fewer rewards, weights, another aggregation, and
people's votes as one more reward. No model.

Everything but strengths, ranks and dropped scores is carried over as Arrow columns, pictures untouched, so the cost is
that of copying the files: 1,834 prompts of 4 small pictures take a second, 58,000 of the paper's 420 GB as long as the
disk needs. The old dataset stays as it is; the new one says in `dataset.json` what it was made from, and how.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rankray import ranking, schema, store
from rankray.config import ConfigError, nearest
from rankray.data import owner, votes
from rankray.data.place import (
    IO_THREADS,
    Output,
    Publish,
    claim,
    complete,
    count_failures,
    open_output,
    stamp,
)
from rankray.words import Say

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reranking:
    """How to rank.

    Attributes:
        rewards: those that stay, in this order; None keeps all.
        weights: of rewards that stay; 1 for those that are not named.
        aggregation: of `rankray.ranking.AGGREGATIONS`.
        votes: files of `rankray browse`, which become the last reward, `human`.
    """

    rewards: Sequence[str] | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    aggregation: str = "win_probability"
    votes: Sequence[str] = ()


def run(dataset: str, output: str, how: Reranking, say: Say, report: Publish | None = None) -> dict[str, Any]:
    """Writes the dataset at `dataset`, ranked as `how` says, to `output`; returns its `dataset.json`.

    A run that was killed goes on where it was; one that is complete does nothing.

    Raises:
        DatasetError: there is no finished dataset.
        ConfigError: `how` does not fit it, or `output` holds something else, or another job is at work there.
    """
    source = store.read(dataset)
    people = _votes(source, how.votes) if how.votes else None
    names = [reward["name"] for reward in source.info["rewards"]] + ([votes.HUMAN] if people else [])
    rewards, weights = _checked(names, how, least_of(source.info))
    made = open_output(output, in_job=False)
    identity = _identity(source, rewards, weights, how.aggregation)
    if people:
        identity["rerank.votes"] = people.digest
    if made.uri == source.path:
        raise ConfigError(f"output {made.uri} is the dataset itself; take another output")
    keep = [names.index(name) for name in rewards]

    def make() -> dict[str, Any]:
        store.require_whole(source)
        claim(made, "dataset.json", identity)
        made.make("data")
        for file in source.files:
            _rewrite(source, file, made, keep, [weights[name] for name in rewards], how.aggregation, people)
        return _summary(source, made, rewards, weights, how.aggregation, identity, people)

    found = functools.partial(complete, made, "dataset.json", identity, say)
    return owner.once(made, "rerank", "dataset.json", found, make, report)


def _votes(source: store.RankedDataset, paths: Sequence[str]) -> votes.Counted:
    """The votes about the dataset's candidates.

    Raises:
        ConfigError: there are none, or it has such a reward already.
    """
    if votes.HUMAN in [reward["name"] for reward in source.info["rewards"]]:
        raise ConfigError(
            f"{source.path} has a reward '{votes.HUMAN}' already; give the votes to a dataset without one"
        )
    cast = votes.read(paths)
    found = votes.count(cast, source.rows())
    if not found.votes:
        raise ConfigError(
            f"none of {len(cast):,} votes in {', '.join(paths)} is about a candidate of {source.path}; give the votes "
            "that `rankray browse` took on it"
        )
    return found


def _checked(
    names: list[str], how: Reranking, least: Mapping[str, float]
) -> tuple[list[str], dict[str, float]]:
    """(rewards that stay, weight of each)."""
    rewards = names if how.rewards is None else list(how.rewards)
    for name in rewards:
        if name not in names:
            raise ConfigError(
                f"the dataset has no reward '{name}'{nearest(name, names)}; it has {', '.join(names)}"
            )
    if not rewards or len(set(rewards)) < len(rewards):
        raise ConfigError(f"rewards {', '.join(rewards) or '(none)'}: name at least one, and each once")
    for name in how.weights:
        if name not in rewards:
            raise ConfigError(
                f"a weight for '{name}'{nearest(name, rewards)}, which is not ranked by; weigh {', '.join(rewards)}"
            )
    for name in least:
        if name not in rewards:
            raise ConfigError(
                f"the dataset leaves candidates out that '{name}' scores low, so that stays among the rewards; add it, "
                "with the weight 0 if it is to have no vote"
            )
    weights = {name: float(how.weights.get(name, 1.0)) for name in rewards}
    try:
        ranking.strength(how.aggregation, np.zeros((2, len(rewards))), list(weights.values()))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return rewards, weights


def least_of(info: Mapping[str, Any]) -> dict[str, float]:
    """The rewards of a dataset that leave candidates out, each with its threshold; another ranking keeps them."""
    return dict(info.get("ranking", {}).get("least", {}))


def _identity(
    source: store.RankedDataset, rewards: list[str], weights: dict[str, float], name: str
) -> dict[str, Any]:
    return {
        **source.info["identity"],
        "rerank.dataset": source.path,
        "rerank.created": source.info["created"],
        "rerank.rewards": rewards,
        "rerank.weights": weights,
        "rerank.aggregation": name,
    }


def _rewrite(
    source: store.RankedDataset,
    file: str,
    output: Output,
    keep: Sequence[int],
    weights: Sequence[float],
    name: str,
    people: votes.Counted | None,
) -> None:
    """One file, row group by row group: pictures of one are in memory at a time."""
    target = output.at("data", file.rpartition("/")[2])
    if output.exists("data", file.rpartition("/")[2]):
        return
    parquet = pq.ParquetFile(file, filesystem=source.fs)
    generators, rewards = schema.schema_names(parquet.schema_arrow)
    labels = {**rewards, **({votes.HUMAN: people.digest} if people else {})}
    kept = {label: labels[label] for label in (list(labels)[n] for n in keep)}
    schema_out = schema.ranked_schema(generators, kept)
    passing = f"{target}.tmp"
    with pq.ParquetWriter(passing, schema_out, filesystem=output.fs) as writer:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group)
            if source.info["identity"].get("images.store") == "files":
                _copy_pictures(table, source, output)
            rows = table["candidates"].combine_chunks()
            more = _human(people, table["prompt_id"].to_pylist(), rows) if people else None
            candidates = _reranked(rows, list(rewards), keep, weights, name, least_of(source.info), more)
            columns = [table["prompt_id"], table["prompt"], candidates]
            writer.write_table(pa.table(columns, schema=schema_out))
    store.settle(passing, target, output.fs)


def _copy_pictures(table: pa.Table, source: store.RankedDataset, output: Output) -> None:
    """The files that rows name, where they name them in the new dataset, which so stands by itself."""
    output.make(store.IMAGES)
    images = pc.struct_field(table["candidates"].combine_chunks().flatten(), "image")
    paths = [path for path in pc.struct_field(images, "path").to_pylist() if path]

    def copy(path: str) -> None:
        data = store.image_bytes({"bytes": None, "path": store.image_place(path, source.path)})
        store.put(output.at(store.IMAGES, path.rpartition("/")[2]), data, output.fs)

    with ThreadPoolExecutor(IO_THREADS) as pool:
        list(pool.map(copy, paths))


def _human(people: votes.Counted, ids: Sequence[str], rows: pa.ListArray) -> Floats:
    """float32[rows * K, 1]: the votes' score of each candidate."""
    counts = pc.list_value_length(rows).to_pylist()
    scores = [people.scores(("", row_id), k) for row_id, k in zip(ids, counts, strict=True)]
    return np.concatenate([np.zeros(0, np.float32), *scores])[:, None]


def _reranked(
    rows: pa.ListArray,
    names: Sequence[str],
    keep: Sequence[int],
    weights: Sequence[float],
    name: str,
    least: Mapping[str, float],
    more: Floats | None = None,
) -> pa.ListArray:
    """Candidates of all rows with scores chosen, strengths and ranks made anew, and all else as it is.

    Args:
        more: float32[rows * K, 1] of a reward behind those of `names`.
    """
    flat = rows.flatten()
    counts = pc.list_value_length(rows).to_numpy()
    bounds = np.concatenate([[0], np.cumsum(counts)])
    scores = np.array(pc.struct_field(flat, "scores").to_pylist(), np.float32)
    scores = (scores if more is None else np.concatenate([scores, more], axis=1))[:, list(keep)]
    admitted = ranking.admitted(scores, [[*names, votes.HUMAN][n] for n in keep], least)  # [rows * K, N]
    strengths, ranks = np.empty(len(scores)), np.empty(len(scores), np.int64)
    for start, stop in pairwise(bounds):
        strengths[start:stop] = ranking.strength(name, admitted[start:stop], weights)
        ranks[start:stop] = ranking.rank(strengths[start:stop])
    changed = {
        "scores": pa.array(list(scores), pa.list_(pa.float32())),
        "win_probability": pa.array(strengths.astype(np.float32), pa.float32(), from_pandas=False),
        "rank": pa.array(ranks, pa.int8()),
        **_errors(flat, names, keep, least),
    }
    fields = [
        changed[f.name] if f.name in changed else pc.struct_field(flat, f.name) for f in schema.CANDIDATE_TYPE
    ]
    values = pa.StructArray.from_arrays(fields, fields=list(schema.CANDIDATE_TYPE))
    return pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), values)


def _errors(
    flat: pa.StructArray, names: Sequence[str], keep: Sequence[int], least: Mapping[str, float]
) -> dict[str, pa.Array]:
    """What is left of failures: a generator's, and those of rewards that stay; and what thresholds leave out."""
    plain = [field.name for field in flat.type if field.name in ("error", "scores", "score_errors")]
    candidates = pa.StructArray.from_arrays(
        [pc.struct_field(flat, name) for name in plain], plain
    ).to_pylist()
    pictures = pc.is_valid(pc.struct_field(flat, "image")).to_pylist()
    texts, told = [], []
    for candidate, image in zip(candidates, pictures, strict=True):
        # No vote is no error.
        every = [*schema.score_errors({**candidate, "image": image or None}, names), None]
        kept = [every[n] for n in keep]
        scores = [[*candidate["scores"], math.nan][n] for n in keep]
        text = schema.joined_errors([[*names, votes.HUMAN][n] for n in keep], kept, scores, least)
        texts.append(text if image else candidate["error"])
        told.append(kept)
    return {"error": pa.array(texts, pa.string()), "score_errors": pa.array(told, pa.list_(pa.string()))}


def _summary(
    source: store.RankedDataset,
    output: Output,
    rewards: list[str],
    weights: dict[str, float],
    name: str,
    identity: dict[str, Any],
    people: votes.Counted | None,
) -> dict[str, Any]:
    described = {reward["name"]: reward for reward in source.info["rewards"]}
    more: dict[str, Any] = {}
    if people:
        human = {"name": votes.HUMAN, "model": "votes", "revision": people.digest}
        described[votes.HUMAN] = {**human, "partial": True}
        more["votes"] = votes.summary(people, ((row, list(described)[:-1]) for row in source.rows()))
    partial = [reward for reward in rewards if described[reward].get("partial")]
    return {
        **source.info,
        **stamp(),
        "identity": identity,
        "rewards": [described[reward] for reward in rewards],
        "ranking": {**source.info.get("ranking", {}), "aggregation": name, "weights": weights},
        "failures": {**source.info["failures"], **count_failures(output, rewards, partial)},
        **more,
    }
