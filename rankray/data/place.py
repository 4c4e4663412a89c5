"""A dataset's directory while it is being made: whose it is, what is staged in it, what is finished.

    OUTPUT/config.toml         the resolved configuration
    OUTPUT/data/*.parquet      finished rows
    OUTPUT/images/             candidates, where images.store = "files"
    OUTPUT/dataset.json        written last: the dataset is complete
    OUTPUT/report.html
    OUTPUT/_work/              identity, staged prompts, phases, checkpoints, usage; removed at the end

All of it goes through a pyarrow filesystem, so OUTPUT may be a directory or s3://, gs:// and the like.
Prompts are staged as Parquet sorted by id because Ray Data's checkpoint filters only what a `read_*` source
reads (rows from memory would silently be made twice), and sorted rows make the same blocks at every start.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import tomli_w

from rankray import schema, store
from rankray.config import ConfigError, SynPicConfig, differing_keys
from rankray.config.ablate import AblationConfig
from rankray.config.evaluate import EvaluateConfig
from rankray.config.rankdpo import RankDPOConfig
from rankray.data.prompts import PromptsRead

JobConfig = SynPicConfig | RankDPOConfig | AblationConfig | EvaluateConfig
Publish = Callable[[str, dict[str, Any]], None]
"""Writes a page, given the output's URI and its summary: the surface's, handed down from above."""

IO_THREADS = 16
"""58,000 prompts are 3,625 files, and an object store takes some 50 ms for one."""

NO_LONGER = frozenset({"objective.reference"})
"""Keys that identities once had: work that was begun with them goes on."""

MAX_EXAMPLES = 20
"""Failures that `dataset.json` quotes; all of them stand in the rows."""


@dataclass(frozen=True)
class Output:
    """An output directory: `uri` as the user gave it, `fs` and `path` as pyarrow wants them."""

    uri: str
    fs: pafs.FileSystem
    path: str

    def at(self, *parts: str) -> str:
        return "/".join((self.path, *parts))

    def uri_of(self, *parts: str) -> str:
        return "/".join((self.uri.rstrip("/"), *parts))

    def exists(self, *parts: str) -> bool:
        return bool(self.fs.get_file_info(self.at(*parts)).type != pafs.FileType.NotFound)

    def files(self, *parts: str) -> list[str]:
        selector = pafs.FileSelector(self.at(*parts), allow_not_found=True, recursive=False)
        return sorted(
            info.path for info in self.fs.get_file_info(selector) if info.type == pafs.FileType.File
        )

    def make(self, *parts: str) -> str:
        self.fs.create_dir(self.at(*parts), recursive=True)
        return self.at(*parts)

    def remove(self, *parts: str) -> None:
        if self.exists(*parts):
            self.fs.delete_dir(self.at(*parts))

    def write_text(self, name: str, text: str) -> None:
        """Writes a small file whole, or not at all."""
        store.write_text(self.at(name), text, self.fs)


def open_output(uri: str, in_job: bool) -> Output:
    """The output directory at `uri`; nothing is written yet.

    Args:
        uri: a path or an URI.
        in_job: this process runs in a submitted job's copy of the working directory, which Ray deletes.

    Raises:
        ConfigError: a relative path in a submitted job, or an URI that pyarrow cannot open or that has options.
    """
    if in_job and "://" not in uri and not uri.startswith(("/", "~")):
        raise ConfigError(
            f"output '{uri}' is relative, and a submitted job runs in a copy of the working directory that Ray deletes "
            "afterwards; give an absolute path that every node sees, or an URI such as s3://bucket/name"
        )
    place = store.absolute(uri)
    if "://" in place and "?" in place:
        raise ConfigError(
            f"output '{place}' has options after '?', which are not handed on to the places inside it; an object store "
            "of your own is named by AWS_ENDPOINT_URL in the environment of all nodes, and the output s3://bucket/name"
        )
    try:
        fs, path = store.filesystem(place)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"output '{place}' cannot be opened ({_first_line(error)}); give a path or an URI"
        ) from None
    return Output(place, fs, path)


def identity_of(
    config: JobConfig, revisions: Mapping[str, str], contents: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What tells a job's output from another's, flat: the configuration's identity, and what it names by name alone.

    Args:
        revisions: of each model's weights, by its label.
        contents: digests of files, by a dotted name.
    """
    named = {f"revision.{name}": revision for name, revision in revisions.items()}
    return {**config.identity(), **named, **(contents or {})}


def complete(
    output: Output,
    marker: str,
    identity: Mapping[str, Any],
    say: Callable[[str], None],
    check: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any] | None:
    """The summary of a finished output, or None where something is left to do.

    Args:
        marker: the file, written last, whose presence means that the work is complete.
        check: refuses a summary of something else that no identity tells.

    Raises:
        ConfigError: another configuration's results are there; the differing keys are named.
    """
    if not output.exists(marker):
        return None
    info: dict[str, Any] = store.read_json(output.at(marker), output.fs)
    _require_same(output, info["identity"], identity)
    if check is not None:
        check(info)
    output.remove("_work")  # a kill after the last write leaves it
    say(f"{output.uri} is complete already; nothing to do")
    return info


def claim(output: Output, marker: str, identity: Mapping[str, Any], config: JobConfig | None = None) -> None:
    """Makes the directory this identity's, or finds that it already is; keeps the resolved configuration there.

    Raises:
        ConfigError: another configuration's rows are there (the differing keys are named), files are there that
            nothing of ours began, or the place cannot be written.
    """
    for name in (marker, "_work/identity.json"):
        if output.exists(name):
            begun = store.read_json(output.at(name), output.fs)["identity"]
            return _require_same(output, begun, identity)
    foreign = ["data"] if output.files("data") else []
    if config is None:
        foreign += [path.rpartition("/")[2] for path in output.files()]
    else:  # notes and logs of the user's may stand beside what a job makes
        ours = ("config.toml", "report.html", "pipeline", "pytorch_lora_weights.safetensors")
        foreign += [name for name in ours if output.exists(name)]
    if foreign:
        raise ConfigError(
            f"{output.uri}/{foreign[0]} is there, and no rankray job began it; take another output"
        )
    try:
        output.make("_work")
        output.write_text("_work/writable", "yes")
    except OSError as error:
        raise ConfigError(
            f"output '{output.uri}' cannot be written ({_first_line(error)}); give a directory that can be"
        ) from None
    store.write_json(output.at("_work/identity.json"), {"identity": dict(identity)}, output.fs)
    if config is not None:
        write_config(output, config)


def _require_same(output: Output, begun: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    lines = differing_keys({key: begun[key] for key in begun if key not in NO_LONGER}, identity)
    if lines:
        raise ConfigError(
            f"{output.uri} was begun with another configuration; take another output, or go back to it:\n  "
            + "\n  ".join(lines)
        )


def claimed(output: Output) -> dict[str, Any]:
    """The identity under which the work in `output` was begun."""
    found: dict[str, Any] = store.read_json(output.at("_work/identity.json"), output.fs)["identity"]
    return found


def publish(
    output: Output, marker: str, info: dict[str, Any], report: Publish | None = None
) -> dict[str, Any]:
    """Ends the work: the surface's `report` of the summary, then the marker, then what only the making needed goes."""
    if report is not None:
        report(output.uri, info)
    store.write_json(output.at(marker), info, output.fs)
    output.remove("_work")
    return info


def write_config(output: Output, config: JobConfig) -> None:
    """Writes the resolved configuration."""
    output.write_text("config.toml", tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def prompts_digest(prompts: Sequence[str]) -> str:
    """What tells one set of prompts from another, whatever their order."""
    return hashlib.sha256("".join(sorted(map(schema.prompt_id, prompts))).encode()).hexdigest()


def stage_prompts(
    output: Output,
    prompts: PromptsRead,
    rows_per_block: int,
    reused: str | None = None,
    more: Mapping[str, pa.Array] | None = None,
) -> list[str]:
    """Writes the prompts as Parquet sorted by id, a file a block; returns the ids.

    Args:
        reused: what is taken over from where, told apart by any text; None is nothing.
        more: further columns, in the prompts' order.

    Raises:
        ConfigError: other prompts were staged there before, as the file was changed in between, or they were to
            reuse something else.
    """
    ids = [schema.prompt_id(row) for row in prompts.rows]
    table = pa.table({"prompt_id": ids, "prompt": prompts.rows, **(more or {})}).sort_by("prompt_id")
    digest = prompts_digest(prompts.rows)
    if output.exists("_work/staged.json"):
        found = store.read_json(output.at("_work/staged.json"), output.fs)
        if found["sha256"] != digest:
            raise ConfigError(
                f"{prompts.source} holds other prompts than when {output.uri} was begun ({found['rows']} then, "
                f"{table.num_rows} now); put the file back, or take another output"
            )
        if found.get("reused") != reused:
            raise ConfigError(
                f"{output.uri} was begun with reuse of {found.get('reused') or 'nothing'}, not of "
                f"{reused or 'nothing'}; go on as it was begun, or take another output"
            )
    else:
        output.remove(
            "_work", "prompts"
        )  # a kill while they were written leaves some of them, or a half of one
        output.make("_work", "prompts")

        def write_block(start: int) -> None:
            place = output.at("_work", "prompts", f"{start // rows_per_block:06}.parquet")
            pq.write_table(table.slice(start, rows_per_block), place, filesystem=output.fs)

        with ThreadPoolExecutor(IO_THREADS) as pool:
            list(pool.map(write_block, range(0, table.num_rows, rows_per_block)))
        store.write_json(
            output.at("_work/staged.json"),
            {"sha256": digest, "rows": table.num_rows, "reused": reused},
            output.fs,
        )
    return list(table["prompt_id"].to_pylist())


def require_prompts(output: Output, prompts: PromptsRead, info: Mapping[str, Any]) -> None:
    """Refuses a finished dataset, of the summary `info`, that was made of other prompts.

    Raises:
        ConfigError: so it is.
    """
    if info["prompts"]["sha256"] != prompts_digest(prompts.rows):
        raise ConfigError(
            f"{output.uri} is complete with {info['rows']:,} prompts, and {prompts.source} now holds others; "
            "take another output"
        )


def finished_ids(output: Output, *parts: str) -> list[str]:
    """The prompt ids of all Parquet files in a directory of the output, with repeats, without their images."""
    return [row_id for _, ids in _ids_by_file(output, *parts) for row_id in ids]


def _ids_by_file(output: Output, *parts: str) -> list[tuple[str, list[str]]]:
    """(file, its prompt ids) in the files' order; half-committed checkpoints are left out."""
    files = [path for path in output.files(*parts) if path.endswith(".parquet")]
    files = [path for path in files if not path.endswith(".pending.parquet")]

    def ids(path: str) -> list[str]:
        column = pq.read_table(path, columns=["prompt_id"], filesystem=output.fs)["prompt_id"]
        return [str(value) for value in column.to_pylist()]

    with ThreadPoolExecutor(IO_THREADS) as pool:
        return list(zip(files, pool.map(ids, files), strict=True))


def drop_repeats(output: Output, *parts: str, row_group_size: int | None = None) -> int:
    """Removes rows whose id stands in an earlier file; returns how many.

    Ray Data's checkpoint writes a row once. What it cannot see is a writing task of a killed driver that
    outlives it by a second and commits after the next run has read the checkpoint.
    """
    seen: set[str] = set()
    dropped = 0
    for path, ids in _ids_by_file(output, *parts):
        keep = []
        for row_id in ids:
            keep.append(row_id not in seen)
            seen.add(row_id)
        if all(keep):
            continue
        dropped += keep.count(False)
        table = pq.read_table(path, filesystem=output.fs).filter(pa.array(keep))
        if table.num_rows == 0:
            output.fs.delete_file(path)
            continue
        passing = f"{path}.tmp"
        pq.write_table(table, passing, filesystem=output.fs, row_group_size=row_group_size)
        output.fs.move(passing, path)
    return dropped


def require_rows(output: Output, rows: int, row_group_size: int | None = None) -> int:
    """Every one of `rows` is in `data`, and once; returns how many were there twice.

    Raises:
        RuntimeError: rows are missing although Ray Data says that it wrote them.
    """
    repeats = drop_repeats(output, "data", row_group_size=row_group_size)
    missing = rows - len(finished_ids(output, "data"))
    if missing:
        raise RuntimeError(
            f"{missing} of {rows} rows are missing in {output.uri}/data; run the command again"
        )
    return repeats


def count_failures(output: Output, rewards: Sequence[str]) -> tuple[dict[str, int], list[dict[str, str]]]:
    """Failures by model, and up to 20 examples by prompt id, read from the finished rows without their images.

    A candidate without an image is its generator's failure; a NaN score of one with an image, that reward's.
    """
    leaves = ("generator", "width", "scores", "error")
    columns = ["prompt_id", *(f"candidates.list.element.{leaf}" for leaf in leaves)]

    def faults(path: str) -> list[dict[str, str]]:
        found = []
        for row in pq.ParquetFile(path, filesystem=output.fs).read(columns).to_pylist():
            for candidate in row["candidates"]:
                failed = [
                    name
                    for name, score in zip(rewards, candidate["scores"], strict=True)
                    if math.isnan(score)
                ]
                models = [candidate["generator"]] if candidate["width"] is None else failed
                fault = {"prompt_id": row["prompt_id"], "error": candidate["error"]}
                found += [{**fault, "model": model} for model in models]
        return found

    by_model: dict[str, int] = {}
    examples: list[dict[str, str]] = []
    with ThreadPoolExecutor(IO_THREADS) as pool:
        for found in pool.map(faults, output.files("data")):
            # by id, as files come in the order in which tasks happened to end
            examples = sorted([*examples, *found], key=lambda fault: fault["prompt_id"])[:MAX_EXAMPLES]
            for fault in found:
                by_model[fault["model"]] = by_model.get(fault["model"], 0) + 1
    return by_model, examples
