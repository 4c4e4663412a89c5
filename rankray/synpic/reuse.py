"""What a finished dataset already holds of a larger job: pictures and scores that need not be made again.

A job with more generators, samples, rewards or prompts than an earlier one takes that one's pictures and scores over
and computes the rest; the result equals the dataset that one job would have made of everything, row for row. Rows
are looked up by prompt id and never moved, so the job stays a chain of maps: the price is that old pictures are
read and pass through the row once more: 11 ms of one core for a PNG of 1.8 MB, where an A100 draws one in seconds.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rankray import schema, store
from rankray.cluster.actors import GENERATED_TYPE, SCORED_TYPE, JobContext, Stage
from rankray.config import ConfigError, SynPicConfig, differing_keys
from rankray.data.pictures import image_key, stored
from rankray.data.place import settings_of, wherever
from rankray.schema import score_errors

FILE, ROW = "reused_file", "reused_row"
"""Columns of staged prompts: where a prompt's finished row stands, null where it has none."""


@dataclass(frozen=True)
class Reuse:
    """The part of a finished dataset that a job takes over.

    Attributes:
        path: the dataset.
        created: when it was finished; a dataset made anew at the same place is another one.
        old_rewards: those whose scores are there, in the order of `scores`.
        samples: what the job takes of generators that are there: label -> candidates a prompt.
        rewards: what the job takes of rewards that are there.
        places: prompt id -> (file, row in it), of the job's prompts that are there.
    """

    path: str
    created: str
    old_rewards: tuple[str, ...]
    samples: Mapping[str, int]
    rewards: tuple[str, ...]
    places: Mapping[str, tuple[str, int]]

    @classmethod
    def nothing(cls) -> Reuse:
        """Of a job that makes everything."""
        return cls("", "", (), {}, (), {})

    def without_places(self) -> Reuse:
        """For the actors, who find the places in their rows."""
        return replace(self, places={})

    def missing(self, stage: Stage, k: int, ids: Iterable[str]) -> int:
        """Pictures or scores that a stage has to make for the prompts `ids`; k is the job's candidates a prompt."""
        if stage.kind == "generator":
            known, due = self.samples.get(stage.target.name, 0), stage.samples
        else:
            known, due = sum(self.samples.values()) if stage.target.name in self.rewards else 0, k
        return sum(due - known if row_id in self.places else due for row_id in ids)

    def staged(self, prompts: Sequence[str]) -> tuple[str, dict[str, pa.Array]]:
        """What staging writes beside the prompts: whose rows these are, and the columns `FILE` and `ROW`."""
        found = [self.places.get(schema.prompt_id(prompt), (None, None)) for prompt in prompts]
        columns = {
            FILE: pa.array([file for file, _ in found], pa.string()),
            ROW: pa.array([row for _, row in found], pa.int64()),
        }
        return f"{self.path} of {self.created}", columns

    @property
    def explanation(self) -> str:
        """One line for the log."""
        return (
            f"reusing {len(self.places):,} prompts of {self.path}: {sum(self.samples.values())} pictures of each "
            f"({', '.join(self.samples) or 'no generator'}), scores of {', '.join(self.rewards) or 'no reward'}"
        )

    def described(self) -> dict[str, Any]:
        """For `dataset.json`."""
        pictures = len(self.places) * sum(self.samples.values())
        origin = {"dataset": self.path, "created": self.created, "prompts": len(self.places)}
        return {**origin, "images": pictures, "scores": pictures * len(self.rewards)}


def find(config: SynPicConfig, identity: Mapping[str, Any], prompts: Sequence[str], path: str) -> Reuse:
    """What the job of `config` over `prompts` can take over from the finished dataset at `path`.

    Args:
        identity: the job's (`stages.identity_of`).

    Raises:
        ConfigError: there is no finished dataset, nothing in it is of use, nothing is left to make, or seed, pictures'
            format or the settings of a model that both name differ, so that the result would not be what one job
            would make.
    """
    try:
        dataset = store.read(path)
    except store.DatasetError as error:
        raise ConfigError(f"nothing to reuse: {error}") from None
    info = dataset.info
    lines, taken = _compared(config, identity, info)
    if lines:
        raise ConfigError(
            f"{dataset.path} cannot be reused, it was made with other settings; go back to them, or give a model that "
            "changed another `name`:\n  " + "\n  ".join(lines)
        )
    held = {item["name"]: item["samples"] for item in info["generators"]}
    asked = {choice.label: choice.samples for choice in config.generators}
    samples = {name: min(asked[name], held[name]) for name in taken["generators"]}
    places = _places(dataset, {schema.prompt_id(prompt) for prompt in prompts})
    if not places or not samples:
        raise ConfigError(
            f"{dataset.path} holds nothing of this job: {len(places):,} of its prompts, pictures of "
            f"{', '.join(samples) or 'none of its generators'}; leave `reuse` out"
        )
    if len(places) == len(prompts) and samples == asked and len(taken["rewards"]) == len(config.rewards):
        raise ConfigError(
            f"{dataset.path} holds all of this job; `rankray rerank` drops or weighs its rewards without a model, and "
            "another `least` is taken where there is something else to make"
        )
    rewards = tuple(item["name"] for item in info["rewards"])
    return Reuse(dataset.path, info["created"], rewards, samples, tuple(taken["rewards"]), places)


def _compared(
    config: SynPicConfig, ours: Mapping[str, Any], info: Mapping[str, Any]
) -> tuple[list[str], dict[str, list[str]]]:
    """(settings that differ, a line each; labels of generators and rewards that are there)."""
    theirs = info["identity"]
    keys = ("seed", "images.format", *(["images.quality"] if config.images.format == "jpeg" else []))
    lines = differing_keys({key: theirs.get(key) for key in keys}, {key: ours.get(key) for key in keys})
    taken: dict[str, list[str]] = {}
    for kind, choices in (("generators", config.generators), ("rewards", config.rewards)):
        held = {item["name"] for item in info[kind]}
        taken[kind] = [choice.label for choice in choices if choice.label in held]
        for label in taken[kind]:
            sides = [settings_of(identity, kind, label) for identity in (theirs, ours)]
            apart = [wherever(side, str(side.get("revision"))) for side in sides]
            lines += [f"{kind}.{label}.{line}" for line in differing_keys(*apart)]
    return lines, taken


def _places(dataset: store.RankedDataset, wanted: Collection[str]) -> dict[str, tuple[str, int]]:
    found = {}
    for file in dataset.files:
        found.update(
            {row_id: (file, row) for row, row_id in enumerate(dataset.ids(file)) if row_id in wanted}
        )
    return found


def attach(table: pa.Table, *, held: Reuse, context: JobContext) -> pa.Table:
    """Staged prompts with the columns `generated:*` and `scored:*` of `cluster.actors`, as far as they are known.

    A generated list is shorter than its samples, and a score is null, where there is something to make.
    """
    old = _old_rows(table, held.path)
    columns = [table["prompt_id"], table["prompt"]]
    names = ["prompt_id", "prompt"]
    for name, samples in held.samples.items():
        entries = [
            [
                _entry(candidate, image_key(candidate_of, name, sample), context)
                for sample, candidate in enumerate(_of(row, name)[:samples])
            ]
            for candidate_of, row in zip(table["prompt_id"].to_pylist(), old, strict=True)
        ]
        columns.append(pa.array(entries, GENERATED_TYPE))
        names.append(f"generated:{name}")
    for reward in held.rewards:
        scores = [list(_scores(row, reward, held, context)) for row in old]
        columns.append(pa.array(scores, SCORED_TYPE))
        names.append(f"scored:{reward}")
    return pa.table(columns, names=names)


def _old_rows(table: pa.Table, path: str) -> list[dict[str, Any] | None]:
    """The finished row of each staged prompt, None where there is none; only the row groups in question are read."""
    fs, _ = store.filesystem(path)
    wanted: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
    for b, (file, row) in enumerate(zip(table[FILE].to_pylist(), table[ROW].to_pylist(), strict=True)):
        if file is not None:
            wanted[file].append((b, row))
    found: list[dict[str, Any] | None] = [None] * table.num_rows
    for file, pairs in wanted.items():
        parquet = pq.ParquetFile(file, filesystem=fs)
        sizes = [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)]
        ends = np.cumsum(sizes)
        for group in sorted({int(np.searchsorted(ends, row, side="right")) for _, row in pairs}):
            start = int(ends[group]) - sizes[group]
            inside = [(b, row - start) for b, row in pairs if start <= row < ends[group]]
            picked = parquet.read_row_group(group).take([row for _, row in inside]).to_pylist()
            taken = store.located(picked, path)
            for (b, _), item in zip(inside, taken, strict=True):
                found[b] = item
    return found


def _of(row: dict[str, Any] | None, generator: str) -> list[dict[str, Any]]:
    return [] if row is None else [c for c in row["candidates"] if c["generator"] == generator]


def _entry(candidate: dict[str, Any], key: str, context: JobContext) -> dict[str, Any]:
    """The candidate as its generator left it; its picture goes where this job keeps pictures."""
    kept = {name: candidate[name] for name in ("seed", "width", "height")}
    image = candidate["image"]
    if image is None:
        return {**kept, "error": candidate["error"]}
    return {**kept, **stored(store.image_bytes(image), key, context.images, context.output)}


def _scores(
    row: dict[str, Any] | None, reward: str, held: Reuse, context: JobContext
) -> Iterator[dict[str, Any] | None]:
    """The reward's entry for each candidate of the job, in its order; None where it has to be made."""
    n = held.old_rewards.index(reward)
    for name, samples in context.generators:
        known = _of(row, name)[: held.samples.get(name, 0)]
        for candidate in known:
            yield {"score": candidate["scores"][n], "error": score_errors(candidate, held.old_rewards)[n]}
        yield from [None] * (samples - len(known))
