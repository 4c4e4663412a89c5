"""Finished datasets as one: further prompts, other generators' pictures of the same ones, people's pairs side by side.

Scores are compared within a row, so what is merged was scored by the same rewards of the same revisions and settings.
A label is one model in all of them, so a generator's picture of a seed is there once. Where scores mean the same in
every row, a prompt of several datasets becomes one row with all their candidates, ranked anew as the first dataset was.
Ranks and choices mean something among the pictures that were judged together alone: such rows stay apart, further ones
of a prompt under the id of their pictures. Pictures go into the rows, so what comes out stands by itself; a file of the
dataset, and those rows of others that belong to it, are in memory at a time.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from rankray import ranking, schema, store
from rankray.config import ConfigError, differing_keys
from rankray.data import hub, owner
from rankray.data.pickapic import PAIRS, imported_prompts, no_job
from rankray.data.place import (
    Output,
    Publish,
    claim,
    complete,
    count_failures,
    head,
    open_output,
    settings_of,
    wherever,
)
from rankray.data.prompts import HUB
from rankray.words import Say

MOST = 127
"""Candidates of a row: a rank is kept in eight bits."""

Where = dict[str, list[tuple[int, str]]]
"""Of each prompt id the datasets, by number, and their files that have it."""


@dataclass(frozen=True)
class _Merge:
    """What is merged, into what.

    Attributes:
        joined: whether a prompt's rows become one.
        names: "generators" and "rewards", label -> revision, of all.
        settings: the same, label -> what the model was set to, of those of which that is known.
    """

    sources: Sequence[store.RankedDataset]
    joined: bool
    names: Mapping[str, Mapping[str, str]]
    settings: Mapping[str, Mapping[str, Mapping[str, Any]]]
    where: Where
    made: Output


def run(inputs: Sequence[str], output: str, say: Say, report: Publish | None = None) -> dict[str, Any]:
    """Writes the datasets `inputs` (places, or `hub:OWNER/NAME`) as one to `output`; its `dataset.json`.

    One alone is copied, and stays what it is. A run that was killed goes on with the file that it was in.

    Raises:
        DatasetError: one of them is not finished, or lacks its pictures.
        ConfigError: they do not go together, or `output` holds something else.
    """
    places = [hub.fetch(name.removeprefix(HUB)) if name.startswith(HUB) else name for name in inputs]
    sources = [store.read(place) for place in places]
    names, settings = _names(inputs, sources), _settings(inputs, sources)
    made = open_output(output, in_job=False)
    if made.uri in {source.path for source in sources}:
        raise ConfigError(f"output {made.uri} is one of the datasets; take another output")
    alone = sources[0].info["identity"] if len(sources) == 1 else {}
    created = [source.info["created"] for source in sources]
    identity = {**alone, "import.datasets": list(inputs), "import.created": created, "images.store": "inline"}

    def make() -> dict[str, Any]:
        for source in sources:
            store.require_whole(source)
        claim(made, "dataset.json", identity)
        made.make("data")
        joined = len(sources) > 1 and all(map(_comparable, sources))
        merge = _Merge(sources, joined, names, settings, _where(sources), made)
        return _summary(merge, identity, _write(merge, say))

    found = functools.partial(complete, made, "dataset.json", identity, say)
    return owner.once(made, "import", "dataset.json", found, make, report)


def _comparable(source: store.RankedDataset) -> bool:
    """Whether scores of it mean the same in every row."""
    return bool(source.info.get("imported", {"comparable": True}).get("comparable"))


def _names(inputs: Sequence[str], sources: Sequence[store.RankedDataset]) -> dict[str, dict[str, str]]:
    """Labels and revisions of all.

    Raises:
        ConfigError: other rewards, or another revision under a label.
    """
    every = [
        {
            kind: {item["name"]: item["revision"] for item in source.info[kind]}
            for kind in ("generators", "rewards")
        }
        for source in sources
    ]
    found = {kind: dict(labels) for kind, labels in every[0].items()}
    thresholds = [source.info.get("ranking", {}).get("least", {}) for source in sources]
    if any(one != thresholds[0] for one in thresholds):
        raise ConfigError(
            f"{inputs[0]} leaves candidates out by {thresholds[0] or 'no threshold'}, another by others; datasets that "
            "are merged leave out by the same"
        )
    for name, labels in zip(inputs[1:], every[1:], strict=True):
        if set(labels["rewards"]) != set(found["rewards"]):
            raise ConfigError(
                f"{inputs[0]} is ranked by {', '.join(found['rewards'])}, {name} by {', '.join(labels['rewards'])}; "
                "candidates are compared by the same rewards: `rankray rerank --rewards` keeps those in common"
            )
        for kind, own in labels.items():
            for label, revision in own.items():
                if found[kind].setdefault(label, revision) != revision:
                    raise ConfigError(
                        f"{kind[:-1]} '{label}' is of revision {found[kind][label]} in {inputs[0]} or one behind it, "
                        f"and of {revision} in {name}; the same label is due to mean the same weights"
                    )
    return found


_REMEDY = {
    "generators": "make one of them under another `name`, and they are two",
    "rewards": "leave it out of both by `rankray rerank --rewards`, or score one of them anew",
}


def _settings(
    inputs: Sequence[str], sources: Sequence[store.RankedDataset]
) -> dict[str, dict[str, Mapping[str, Any]]]:
    """What each label's model was set to, where that is known: nothing tells it of imported pictures.

    Raises:
        ConfigError: a label's settings are others in one dataset than in another.
    """
    found: dict[str, dict[str, list[tuple[str, Mapping[str, Any]]]]] = {"generators": {}, "rewards": {}}
    for name, source in zip(inputs, sources, strict=True):
        for kind, known in found.items():
            for item in source.info[kind]:
                label = item["name"]
                # As the hub has them, where places are cut; `_names` compares revisions.
                own = hub.public(settings_of(source.info["identity"], kind, label)) or item.get(
                    "settings", {}
                )
                own.pop("revision", None)
                if not own:
                    continue
                # With each, as the first may not know what it was run with.
                for first, theirs in known.setdefault(label, []):
                    if lines := differing_keys(*(wherever(each, item["revision"]) for each in (theirs, own))):
                        raise ConfigError(
                            f"{kind[:-1]} '{label}' was set otherwise in {first} than here, in {name} "
                            f"({'; '.join(lines)}); the same label is due to mean the same model: {_REMEDY[kind]}"
                        )
                known[label].append((name, own))
    return {
        kind: {label: _known_of(every) for label, every in known.items() if every}
        for kind, known in found.items()
    }


def _known_of(every: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """A label's settings: the first dataset's, and what any knows of what the model was run with."""
    run_with = {key: value for _, own in every for key, value in own.items() if key.startswith("run_with.")}
    return {**run_with, **every[0][1]}


def _where(sources: Sequence[store.RankedDataset]) -> Where:
    found: Where = {}
    for n, source in enumerate(sources):
        for file in source.files:
            for row_id in source.ids(file):
                found.setdefault(row_id, []).append((n, file))
    return found


def _write(merge: _Merge, say: Say) -> Counter[str]:
    """Writes a file for each of theirs; counts of rows, candidates and pictures, and of what became one."""
    counts = Counter[str]()
    taken: set[str] = set()
    for n, source in enumerate(merge.sources):
        for number, file in enumerate(source.files):
            place = merge.made.at("data", f"{n:02}-{number:06}.parquet")
            if merge.made.exists("data", place.rpartition("/")[2]):  # before a kill
                table = store.read_table(place, merge.made.fs, images=not merge.joined)
                taken.update(each for row in table.to_pylist() for each in _ids(merge, row))
            else:
                store.write_rows(place, _rows(merge, n, file, taken), merge.names, merge.made.fs)
            for row in store.read_table(place, merge.made.fs).to_pylist():
                counts["rows"] += 1
                counts["candidates"] += len(row["candidates"])
                counts["images"] += sum(c["width"] is not None for c in row["candidates"])
        say(f"{n + 1} of {len(merge.sources)} datasets: {counts['rows']:,} rows")
    counts["read"] = sum(source.info["rows"] for source in merge.sources)
    return counts


def _rows(merge: _Merge, n: int, file: str, taken: set[str]) -> Iterator[dict[str, Any]]:
    """What becomes of the rows of dataset `n`'s file, where `taken` are the ids of those before, which it adds to."""
    source = merge.sources[n]
    others = _others(merge, n, source.ids(file)) if merge.joined else {}
    for row in (row for rows in source.groups(file) for row in rows):
        if merge.joined and merge.where[row["prompt_id"]][0][0] != n:
            continue  # in its first dataset's row
        parts = [(n, row), *others.get(row["prompt_id"], [])]
        found = _joined(merge, row, parts) if len(merge.sources) > 1 else store.with_images(row)
        *_, pictures = _ids(merge, found)
        if not merge.joined and pictures in taken:
            continue
        if found["prompt_id"] in taken:
            found["prompt_id"] = pictures
        taken.update((found["prompt_id"], pictures))
        yield found


def _ids(merge: _Merge, row: dict[str, Any]) -> tuple[str, str]:
    """A row's id, and where rows stay apart that of its pictures."""
    if merge.joined or len(merge.sources) == 1:
        return row["prompt_id"], row["prompt_id"]
    images = [candidate["image"]["bytes"] for candidate in row["candidates"] if candidate["image"]]
    return row["prompt_id"], schema.pair_id(row["prompt"], images)


def _others(merge: _Merge, n: int, own: Sequence[str]) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """The rows of further datasets that belong to dataset `n`'s rows of these ids."""
    wanted: dict[tuple[int, str], list[str]] = {}
    for row_id in own:
        for place in merge.where[row_id][1:] if merge.where[row_id][0][0] == n else ():
            wanted.setdefault(place, []).append(row_id)
    found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for (m, file), ids in sorted(wanted.items()):
        source = merge.sources[m]
        table = pq.read_table(file, filesystem=source.fs, filters=[("prompt_id", "in", ids)])
        for row in store.located(table.to_pylist(), source.path):
            found.setdefault(row["prompt_id"], []).append((m, row))
    return found


def _joined(
    merge: _Merge, row: dict[str, Any], parts: Sequence[tuple[int, dict[str, Any]]]
) -> dict[str, Any]:
    """One row of a prompt's rows: each candidate once, scores in the first dataset's order, ranked as it was.

    Raises:
        ConfigError: more candidates than a row has room for.
    """
    due = list(merge.names["rewards"])
    candidates: dict[Any, dict[str, Any]] = {}
    for n, part in parts:
        names = [item["name"] for item in merge.sources[n].info["rewards"]]
        order = [names.index(name) for name in due]
        for candidate in store.with_images(part)["candidates"]:
            errors = schema.score_errors(candidate, names)
            changed = {
                **candidate,
                "scores": [candidate["scores"][place] for place in order],
                "score_errors": [errors[place] for place in order],
            }
            mark = candidate["seed"] if candidate["seed"] is not None else candidate["image"]["bytes"]
            candidates.setdefault((candidate["generator"], mark), changed)
    found = list(candidates.values())
    if len(found) > MOST:
        raise ConfigError(f"{len(found)} candidates of '{row['prompt'][:40]}' together; a row holds {MOST}")
    how = merge.sources[0].info.get("ranking", {"aggregation": "win_probability", "weights": {}})
    weights = [how["weights"].get(name, 1.0) for name in due]
    scores = ranking.admitted([candidate["scores"] for candidate in found], due, how.get("least", {}))
    phi = ranking.strength(how["aggregation"], scores, weights)
    for candidate, value, place in zip(found, phi, ranking.rank(phi), strict=True):
        candidate.update(win_probability=value, rank=int(place))
    return {"prompt_id": row["prompt_id"], "prompt": row["prompt"], "candidates": found}


def _summary(merge: _Merge, identity: dict[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """The contents of `dataset.json`: of one dataset what it was, of several what they are together."""
    first = merge.sources[0].info
    if len(merge.sources) == 1:
        return {**first, "identity": identity}
    described = {
        kind: {item["name"]: item for source in reversed(merge.sources) for item in source.info[kind]}
        for kind in ("generators", "rewards")
    }
    for kind, known in merge.settings.items():  # as a merge's identity does not have them
        described[kind] |= {
            label: {**described[kind][label], "settings": own} for label, own in known.items()
        }
    rewards = [described["rewards"][name] for name in merge.names["rewards"]]
    partial = [reward["name"] for reward in rewards if reward.get("partial")]
    found = Counter(read=counts["read"], kept=counts["rows"])
    own = {"format": "merge", "ties": None, "pairs": PAIRS[0], "comparable": merge.joined}
    repeated = Counter(repeated=counts["read"] - counts["rows"])
    return {
        **head(merge.made, None),
        "imported": {**own, "counts": dict(found)},
        "prompts": imported_prompts(f"{len(merge.sources)} datasets", found + repeated, merge.where),
        # Rows have other numbers of candidates, so none is said.
        "generators": [{**described["generators"][name], "samples": 0} for name in merge.names["generators"]],
        "rewards": rewards,
        "ranking": first.get("ranking", {"aggregation": "win_probability", "weights": {}}),
        "candidates": counts["candidates"],
        "images": counts["images"],
        "failures": {
            **count_failures(merge.made, list(merge.names["rewards"]), partial),
            "tolerance": max(source.info["failures"]["tolerance"] for source in merge.sources),
        },
        "throughput": {"wall_s": 0.0, "images_per_s": 0.0, "rows_per_s": 0.0},
        **no_job(counts["rows"]),
    }
