"""A ranked dataset as WebDataset shards, and back: tar files that are read from front to end, as object stores like it.

    OUTPUT/000000.tar        a prompt: ID.json, ID.txt (the prompt), ID.0.png, ID.1.png ... (its candidates)
    OUTPUT/webdataset.json   written last; what `dataset.json` said, so that the way back ends where it began

A shard is some of the dataset's files, up to 500 MB of them with their pictures: 70 prompts of four 1024-pixel PNGs.
Written and read by the standard library: the published reader needs nothing else than the names.
"""

from __future__ import annotations

import functools
import io
import json
import math
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rankray import store
from rankray.config import ConfigError
from rankray.data import owner, pictures
from rankray.data.place import Output, Publish, claim, complete, open_output
from rankray.words import Say, first_line

MARKER = "webdataset.json"
NAMED = ("generators", "rewards")
SHARD_BYTES = 500_000_000
_PLAIN = ("generator", "seed", "width", "height", "rank", "error", "score_errors")


def write(source: store.RankedDataset, made: Output) -> dict[str, Any]:
    """Writes the shards that are not there yet; what `webdataset.json` says of them and of the dataset."""
    names = [reward["name"] for reward in source.info["rewards"]]
    shards = []
    for number, files in enumerate(_grouped(source)):
        shards.append(f"{number:06}.tar")
        if made.exists(shards[-1]):
            continue
        passing = made.at("_work", shards[-1])
        with made.fs.open_output_stream(passing) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
            for row in (row for file in files for rows in source.groups(file) for row in rows):
                _add(tar, row, names)
        store.settle(passing, made.at(shards[-1]), made.fs)
    return {"shards": shards, "dataset": source.info}


def _grouped(source: store.RankedDataset) -> Iterator[list[str]]:
    """The dataset's files, in their order, as many as make a shard."""
    rows = [pq.read_metadata(file, filesystem=source.fs).num_rows for file in source.files]
    beside = source.bytes_beside(sum(rows))
    group: list[str] = []
    size = 0.0
    for info, count in zip(source.fs.get_file_info(list(source.files)), rows, strict=True):
        due = info.size + beside * count
        if group and size + due > SHARD_BYTES:
            yield group
            group, size = [], 0.0
        group, size = [*group, info.path], size + due
    if group:
        yield group


def _add(tar: tarfile.TarFile, row: dict[str, Any], names: list[str]) -> None:
    """One sample: what is known of the prompt, then its pictures."""
    candidates, found = [], []
    for k, candidate in enumerate(row["candidates"]):
        file = None
        if candidate["image"] is not None:
            data = store.image_bytes(candidate["image"])
            file = f"{k}.{pictures.suffix(data)}"
            found.append((file, data))
        phi = candidate["win_probability"]
        scores = dict(zip(names, map(_written, candidate["scores"]), strict=True))
        plain = {key: candidate.get(key) for key in _PLAIN}
        candidates.append({"image": file, "scores": scores, "win_probability": _written(phi), **plain})
    about = {**{key: value for key, value in row.items() if key != "candidates"}, "candidates": candidates}
    parts = [("json", json.dumps(about, allow_nan=False).encode()), ("txt", row["prompt"].encode()), *found]
    for name, data in parts:
        member = tarfile.TarInfo(f"{row['prompt_id']}.{name}")
        member.size, member.mode = len(data), 0o644
        tar.addfile(member, io.BytesIO(data))


def _written(value: float) -> float | str | None:
    """A number as JSON can hold it: NaN as null, an infinite one as text."""
    return None if math.isnan(value) else str(value) if math.isinf(value) else value


def _read(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def read(directory: str, output: str, say: Say, report: Publish | None = None) -> dict[str, Any]:
    """Writes the ranked dataset that the shards in `directory` were made of; its `dataset.json`.

    A run that was killed goes on with the shard that it was in; one that is complete does nothing.

    Raises:
        ConfigError: a shard is missing or damaged, or holds something else than `write` put there; or `output` does.
    """
    fs, place = store.filesystem(directory)
    about = store.read_json(f"{place}/{MARKER}", fs)
    made = open_output(output, in_job=False)
    info = about["dataset"]
    identity = {**info["identity"], "images.store": "inline", "import.webdataset": store.absolute(directory)}

    def make() -> dict[str, Any]:
        for name in about["shards"]:
            if fs.get_file_info(f"{place}/{name}").type != pafs.FileType.File:
                raise ConfigError(f"{directory}: shard {name} is missing; get it again")
        claim(made, "dataset.json", identity)
        made.make("data")
        names = {kind: {item["name"]: item["revision"] for item in info[kind]} for kind in NAMED}
        for number, name in enumerate(about["shards"]):
            if made.exists("data", f"{number:06}.parquet"):
                continue
            with fs.open_input_stream(f"{place}/{name}") as stream:
                samples = _rows(stream, f"{directory}/{name}", list(names["rewards"]))
                store.write_rows(made.at("data", f"{number:06}.parquet"), samples, names, made.fs)
            say(f"{number + 1} of {len(about['shards'])} shards")
        rows = sum(pq.read_metadata(file, filesystem=made.fs).num_rows for file in made.tables("data"))
        if rows != info.get("rows", rows):
            made.remove("data")  # of shards that are got again none is skipped
            raise ConfigError(
                f"{directory}: {rows:,} rows in its shards, and rows are due: {info['rows']}; get it again"
            )
        return {**info, "identity": identity}

    found = functools.partial(complete, made, "dataset.json", identity, say)
    return owner.once(made, "import", "dataset.json", found, make, report)


def _rows(stream: BinaryIO, where: str, rewards: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of one shard. Members are read and never unpacked.

    Raises:
        ConfigError: it is damaged, or a sample is not what it says.
    """
    last = "its beginning"
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for key, parts in _samples(tar):
                yield _row(parts, rewards)
                last = key
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError, SyntaxError, RecursionError) as error:
        raise ConfigError(
            f"{where} cannot be read beyond {last} ({first_line(error)}); get it again"
        ) from None


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, name -> content) of each sample: consecutive members of one name up to its first dot."""
    key, parts = "", dict[str, bytes]()
    for member in tar:
        if member.size > pictures.MAX_BYTES:
            raise ValueError(f"{member.name[:80]} has {member.size:,} bytes")
        content = tar.extractfile(member)
        if content is None:
            continue
        prefix, _, name = member.name.partition(".")
        if prefix != key and parts:
            yield key, parts
            parts = {}
        key, parts[name] = prefix, content.read()
    if parts:
        yield key, parts


def _row(parts: dict[str, bytes], rewards: list[str]) -> dict[str, Any]:
    about = json.loads(parts["json"])
    candidates = []
    for stated in about["candidates"]:
        image = None
        if stated["image"] is not None:
            data, size = pictures.imported(parts[stated["image"]])
            if size != (stated["width"], stated["height"]):
                raise ValueError(
                    f"a picture of {size[0]}x{size[1]}, stated are {stated['width']}x{stated['height']}"
                )
            image = {"bytes": data, "path": None}
        candidates.append(
            {
                **{key: stated[key] for key in _PLAIN},
                "image": image,
                "scores": [_read(stated["scores"][name]) for name in rewards],
                "win_probability": _read(stated["win_probability"]),
            }
        )
    return {**about, "candidates": candidates}
