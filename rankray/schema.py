"""The ranked dataset, version 1: its Arrow schema, its prompt ids and its seeds.

One row is a prompt with its k candidate images. Images travel inside the row, so that one Parquet file is
a whole answer for `datasets`, pandas, duckdb or polars; the price is that a reader who wants the scores
alone must project nested columns (`rankray.store` does): a 1024x1024 PNG is 1.8 MB, its scores 20 bytes.

Everything that identifies a row or a candidate is a content hash. Nothing depends on arrival order, on the
number of workers or on a restart.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1

IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])

CANDIDATE_TYPE = pa.struct(
    [
        pa.field("generator", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("image", IMAGE_TYPE),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("scores", pa.list_(pa.float32())),
        pa.field("win_probability", pa.float32()),
        pa.field("rank", pa.int8()),
        pa.field("error", pa.string()),
        pa.field("score_errors", pa.list_(pa.string())),
    ]
)
"""One candidate. `scores` are in the order of the metadata's rewards; NaN where a reward failed, and then
`score_errors`, in the same order, have what it said. A candidate without an image has null image and size, NaN scores
and win_probability, rank 0, and its generator's `error`; of one with an image `error` is all `score_errors` in one
text, for people, and says where a reward's threshold left it out of the ranking: rank 0, and its scores are kept."""

FIRST_CANDIDATE_TYPE = pa.struct(list(CANDIDATE_TYPE)[:-1])
"""What candidates were before they had `score_errors`; such datasets are read as ever."""

DETAILS_TYPE = pa.list_(pa.string())
"""A further column, `details`, where benchmarks' judges were among the scorers: an entry a candidate, JSON of what each
judge's verdict was made from, by its label; null where no judge saw the candidate."""


def joined_errors(
    names: Sequence[str],
    errors: Iterable[str | None],
    scores: Iterable[float] = (),
    least: Mapping[str, float] | None = None,
) -> str | None:
    """`error` of a candidate with an image: what its rewards said, as `a: what; b: what`, and which of its `scores`
    are below a reward's threshold `least`, which leaves it out of the ranking; None where there is nothing to say."""
    told = [f"{name}: {error}" for name, error in zip(names, errors, strict=True) if error is not None]
    for name, score in zip(names, scores, strict=False):
        if least and name in least and float(score) < least[name]:
            told.append(f"{name}: {score:.3g} is below least = {least[name]:g}: left out of the ranking")
    return "; ".join(told) or None


def score_errors(candidate: Mapping[str, Any], names: Sequence[str]) -> list[str | None]:
    """What each reward of `names` said of a candidate that it failed on, None where it did not.

    In a dataset from before there was the field it is read out of `error`, which is a guess where a reward's own words
    hold the name of the next one that failed.
    """
    if candidate.get("score_errors") is not None:
        return list(candidate["score_errors"])
    if candidate["image"] is None or not candidate["error"]:
        return [None] * len(names)
    failed = [name for name, score in zip(names, candidate["scores"], strict=True) if math.isnan(score)]
    text, found = candidate["error"], dict[str, str]()
    for name, following in zip(failed, [*failed[1:], None], strict=True):
        text = text.removeprefix(f"{name}: ")
        found[name], _, text = text.partition(f"; {following}: ") if following else (text, "", "")
    return [found.get(name) for name in names]


def prompt_id(prompt: str) -> str:
    """The prompt's content hash: the first 128 bits of SHA-256 over its UTF-8 bytes, as 32 hex digits."""
    return hashlib.sha256(prompt.encode("utf-8")).hexdigest()[:32]


def pair_id(prompt: str, images: Iterable[bytes]) -> str:
    """The id of a further row of a prompt, in a dataset that was imported with a row a compared pair: as `prompt_id`, a
    hash of the prompt and of its pictures' bytes, whatever their order."""
    pictures = sorted(hashlib.sha256(image).hexdigest() for image in images)
    return hashlib.sha256("\0".join(("rankray.pair.v1", prompt, *pictures)).encode("utf-8")).hexdigest()[:32]


def candidate_seed(dataset_seed: int, prompt_id: str, generator: str, sample: int) -> int:
    """The seed of one candidate, in 0 .. 2**63 - 1: a hash of what identifies the candidate.

    `generator` is the label that the configuration gives it (its table name unless renamed), `sample` its
    index among that generator's samples. The fields are joined by NUL, which no label may contain.
    """
    key = "\0".join(("rankray.seed.v1", str(dataset_seed), prompt_id, generator, str(sample)))
    return int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big") >> 1


def ranked_schema(
    generators: Mapping[str, str],
    rewards: Mapping[str, str],
    details: bool = False,
    candidate: pa.DataType = CANDIDATE_TYPE,
) -> pa.Schema:
    """Schema of the ranked dataset's files, with their metadata.

    Args:
        generators: label -> revision, in candidate order (one entry a generator, whatever its samples).
        rewards: label -> revision, in the order of `scores`.
        details: with the column `details`.
        candidate: `CANDIDATE_TYPE`, or what it was at first.
    """
    fields = [
        pa.field("prompt_id", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("candidates", pa.list_(candidate)),
        *([pa.field("details", DETAILS_TYPE)] if details else []),
    ]
    metadata = {
        "rankray.schema_version": str(SCHEMA_VERSION),
        "rankray.generators": json.dumps(dict(generators)),
        "rankray.rewards": json.dumps(dict(rewards)),
        **hugging_face(fields),
    }
    return pa.schema(fields, metadata=metadata)


def schema_names(schema: pa.Schema) -> tuple[dict[str, str], dict[str, str]]:
    """(generators, rewards), each label -> revision, as `ranked_schema` wrote them into a file's metadata.

    Raises:
        ValueError: the schema carries no rankray metadata, or that of another version.
    """
    metadata = schema.metadata or {}
    version = metadata.get(b"rankray.schema_version")
    if version is None:
        raise ValueError("no rankray metadata in this Parquet file: it was not written by rankray")
    if int(version) != SCHEMA_VERSION:
        raise ValueError(f"schema version {int(version)}, this rankray reads version {SCHEMA_VERSION}")
    return json.loads(metadata[b"rankray.generators"]), json.loads(metadata[b"rankray.rewards"])


def hugging_face(fields: Iterable[pa.Field]) -> dict[str, str]:
    """The metadata by which `datasets` reads columns, and shows `IMAGE_TYPE` as pictures.

    Lists are JSON's own, which every version from 3.0 on reads as such; `List` is a type of 4.0, and a `Sequence` of
    structs is a struct of lists to those before it.
    """

    def feature(kind: pa.DataType) -> Any:
        if kind == IMAGE_TYPE:
            return {"_type": "Image"}
        if pa.types.is_list(kind):
            return [feature(kind.value_type)]
        if pa.types.is_struct(kind):
            return {field.name: feature(field.type) for field in kind}
        return {"dtype": "float32" if kind == pa.float32() else str(kind), "_type": "Value"}

    features = {field.name: feature(field.type) for field in fields}
    return {"huggingface": json.dumps({"info": {"features": features}})}
