"""A dataset's directory while it is being made: whose it is, what is staged in it, what is finished.

    OUTPUT/config.toml         the resolved configuration
    OUTPUT/data/*.parquet      finished rows
    OUTPUT/images/             candidates, where images.store = "files"
    OUTPUT/dataset.json        written last: the dataset is complete
    OUTPUT/report.html
    OUTPUT/_work/              identity, staged prompts, phases, checkpoints, usage; removed at the end
    OUTPUT/_owner.*            who is at work there (`data.owner`); removed at the end

All of it goes through a pyarrow filesystem, so OUTPUT may be a directory or s3://, gs:// and the like.
Prompts are staged as Parquet sorted by id because Ray Data's checkpoint filters only what a `read_*` source
reads (rows from memory would silently be made twice), and sorted rows make the same blocks at every start.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import math
import os
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import tomli_w

import rankray
from rankray import schema, store
from rankray.config import ConfigError, SynPicConfig, differing_keys
from rankray.config.ablate import AblationConfig
from rankray.config.evaluate import EvaluateConfig
from rankray.config.rankdpo import RankDPOConfig
from rankray.data.prompts import PromptsRead
from rankray.words import Say, first_line

JobConfig = SynPicConfig | RankDPOConfig | AblationConfig | EvaluateConfig
Publish = Callable[[str, dict[str, Any]], None]
"""Writes a page, given the output's URI and its summary: the surface's, handed down from above."""

IO_THREADS = 16
"""58,000 prompts are 3,625 files, and an object store takes some 50 ms for one."""

OWNER = "_owner."
"""How the names of marks begin that say who is at work on an output."""

MARKERS = {
    "align.json": "alignment",
    "results.json": "evaluation",
    "ablation.json": "ablation",
    "run.json": "training",
    "dataset.json": "dataset",
}
"""What an output is, by the file that its job writes last into it."""

NO_LONGER = frozenset({"objective.reference"})
"""Keys that identities once had: work that was begun with them goes on."""

WORDS = 200
"""Characters of what another library says of a damaged file."""

PARQUET_END = b"PAR1"

LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "pillow", "peft", "deepspeed")
"""By which models compute, read prompts and pictures, and write them."""

MAX_EXAMPLES = 20
"""Failures that `dataset.json` quotes; all of them stand in the rows."""


_DAMAGE = (
    *(LookupError, TypeError, AttributeError, ValueError, ArithmeticError, OSError, pa.ArrowException),
    *(SyntaxError, RecursionError),  # Pillow's, of a broken PNG; of JSON that is thousands deep
)
"""What reading changed or damaged files raises."""


@contextlib.contextmanager
def as_written(*places: str) -> Iterator[None]:
    """Around what reads finished work, which anybody may have changed: a key that is gone and a value of another kind
    are the place's fault, in one line.

    They are ours, and pass, where all `places` are as they were left: their markers have their seals, and a dataset's
    rows are well-formed. Of work that is not finished, and of others' files, that cannot be told: around what a job
    computes from them it would hide faults of ours.

    Raises:
        DatasetError: what is there is not as rankray wrote it. An `errno`, of a full disk say, passes.
    """
    try:
        yield
    except (ConfigError, store.DatasetError):
        raise
    except _DAMAGE as error:
        place = ", ".join(places)
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:WORDS]}"
        if isinstance(error, OSError):
            if error.errno is not None:
                raise
            raise store.DatasetError(
                f"{place} cannot be read ({what}); check the address, or get it again"
            ) from error
        if all(map(_as_left, places)):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise store.DatasetError(
            f"{place} is not as rankray wrote it ({what}, at {last.filename.rpartition('/')[2]}:{last.lineno}); it was "
            "changed or damaged: get it again, or let its job write it"
        ) from error


def _as_left(place: str) -> bool:
    """Whether finished work is what a job left there."""
    try:
        fs, path = store.filesystem(place)
        files = [path] if path.endswith(".json") else [f"{path}/{name}" for name in MARKERS]
        infos = [
            store.read_json(file, fs) for file in files if fs.get_file_info(file).type == pafs.FileType.File
        ]
        if not infos or any(info.get(store.SEAL) != store.sealed(info)[store.SEAL] for info in infos):
            return False
        return not store.complete(place) or store.well_formed(store.read(place))
    except _DAMAGE:
        return False


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

    def tables(self, *parts: str) -> list[str]:
        """The Parquet files of a directory that are whole: a kill leaves others under passing names."""
        found = [path for path in self.files(*parts) if path.endswith(".parquet")]
        return [path for path in found if not path.endswith(PENDING)]

    def make(self, *parts: str) -> str:
        self.fs.create_dir(self.at(*parts), recursive=True)
        return self.at(*parts)

    def remove(self, *parts: str) -> None:
        if self.exists(*parts):
            self.fs.delete_dir(self.at(*parts))

    def write_text(self, name: str, text: str) -> None:
        """Writes a small file whole, or not at all."""
        store.write_text(self.at(name), text, self.fs)


PENDING = ".pending.parquet"
"""How a note ends that Ray Data writes before the rows that it names."""

_ONE_SLASH = re.compile("(s3|gs|gcs|hdfs|abfss?|file):/(?!/)")


def open_output(uri: str, in_job: bool) -> Output:
    """The output directory at `uri`; nothing is written yet.

    Args:
        uri: a path or a URI.
        in_job: this process runs in a submitted job's copy of the working directory, which Ray deletes.

    Raises:
        ConfigError: a relative path in a submitted job, a file or a path through one, or a URI that lacks a slash,
            that pyarrow cannot open or that has options.
    """
    if in_job and "://" not in uri and not uri.startswith(("/", "~")):
        raise ConfigError(
            f"output '{uri}' is relative, and a submitted job runs in a copy of the working directory that Ray deletes "
            "afterwards; give an absolute path that every node sees, or a URI such as s3://bucket/name"
        )
    if scheme := _ONE_SLASH.match(uri):
        raise ConfigError(
            f"output '{uri}' is a path on this machine; a URI has two slashes: {scheme[1]}://BUCKET/NAME"
        )
    place = store.absolute(uri)
    if "://" not in place:
        for each in (place, *map(str, PurePath(place).parents)):
            if os.path.isfile(each):
                raise ConfigError(f"output '{place}' cannot be written, {each} is a file; give a directory")
    if "://" in place and "?" in place:
        raise ConfigError(
            f"output '{place}' has options after '?', which are not handed on to the places inside it; an object store "
            "of your own is named by AWS_ENDPOINT_URL in the environment of all nodes, and the output s3://bucket/name"
        )
    try:
        fs, path = store.filesystem(place)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"output '{place}' cannot be opened ({first_line(error)}); give a path or a URI"
        ) from None
    return Output(place, fs, path)


def identity_of(
    config: JobConfig, revisions: Mapping[str, str], contents: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What tells a job's output from another's, flat: the configuration's identity, and what it names by name alone.

    Args:
        revisions: of each model's weights, by its label.
        contents: what else decides, by a dotted name: digests of files, what models are run with.
    """
    named = {f"revision.{name}": revision for name, revision in revisions.items()}
    return {**config.identity(), **named, **(contents or {})}


def settings_of(identity: Mapping[str, Any], kind: str, label: str) -> dict[str, Any]:
    """What decides the output of the model called `label`, by the names of its own settings: neither samples do, nor
    `least`, a threshold by which its scores are ranked.

    Nothing where the identity knows no such model, as that of an import.
    """
    for number in sorted({key.split(".")[1] for key in identity if key.startswith(f"{kind}.")}):
        prefix = f"{kind}.{number}."
        own = {key.removeprefix(prefix): value for key, value in identity.items() if key.startswith(prefix)}
        if (own["name"] or own["model"]) == label:
            own = {key: value for key, value in own.items() if key not in ("samples", "least")}
            return {**own, "name": label, "revision": identity.get(f"revision.{label}")}
    return {}


_CONTENT = re.compile(r"sha256:[0-9a-f]+|[0-9a-f]{40}")
"""A revision that identifies weights by itself: their hash, or a commit."""


def wherever(settings: Mapping[str, Any], revision: str) -> dict[str, Any]:
    """A model's settings without the place of weights that `revision` identifies, wherever they lie; that one is named
    stays, as the table's own are read by their variant. So does a server's place, and that of weights of which nothing
    is known."""
    if _CONTENT.fullmatch(revision) is None or settings.get("source") is None:
        return dict(settings)
    return {**settings, "source": "elsewhere"}


def complete(
    output: Output,
    marker: str,
    identity: Mapping[str, Any],
    say: Say,
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
    with as_written(output.uri_of(marker)):
        _require_same(output, info["identity"], identity)
        if check is not None:
            check(info)
    say(f"{output.uri} is complete already; nothing to do")
    return info


def claim(output: Output, marker: str, identity: Mapping[str, Any], config: JobConfig | None = None) -> None:
    """Makes the directory this identity's, or finds that it already is; keeps the resolved configuration there, with
    what may change between starts as it is in this one, unless the work is finished.

    Raises:
        ConfigError: another configuration's rows are there (the differing keys are named), files are there that
            nothing of ours began.
    """
    name = next((name for name in (marker, "_work/identity.json") if output.exists(name)), None)
    if name is not None:
        with as_written(output.uri_of(name)):
            _require_same(output, store.read_json(output.at(name), output.fs)["identity"], identity)
    else:
        _require_unused(output, config)
        output.make("_work")
        begun = {"identity": dict(identity), "versions": versions()}
        store.write_json(output.at("_work/identity.json"), begun, output.fs)
    if config is not None and name != marker:
        write_config(output, config)


def _require_unused(output: Output, config: JobConfig | None) -> None:
    """Refuses a directory in which files are that a job would write over, or take for its own.

    Raises:
        ConfigError: so it is; one of them is named.
    """
    foreign = ["data"] if output.files("data") else []
    if config is None:
        names = [path.rpartition("/")[2] for path in output.files()]
        foreign += [name for name in names if not name.startswith(OWNER)]
    else:  # notes and logs of the user's may stand beside what a job makes
        ours = ("config.toml", "report.html", "pipeline", "pytorch_lora_weights.safetensors")
        foreign += [name for name in ours if output.exists(name)]
    if foreign:
        raise ConfigError(
            f"{output.uri}/{foreign[0]} is there, and no rankray job began it; take another output"
        )


def _require_same(output: Output, begun: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    lines = differing_keys({key: begun[key] for key in begun if key not in NO_LONGER}, identity)
    if lines:
        raise ConfigError(
            f"{output.uri} was begun with another configuration; take another output, or go back to it:\n  "
            + "\n  ".join(lines)
        )


def claimed(output: Output) -> dict[str, Any]:
    """The identity under which the work in `output` was begun."""
    with as_written(output.uri_of("_work/identity.json")):
        found: dict[str, Any] = store.read_json(output.at("_work/identity.json"), output.fs)["identity"]
    return found


def versions() -> dict[str, str]:
    """Which of `LIBRARIES` this process has; overlay environments have their own, which their pins name."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def note_versions(output: Output) -> dict[str, str]:
    """By which libraries the work in `output` is made, with those of this start: `{"torch": "2.13.0, 2.14.1"}` where it
    was begun by another version. Nothing of finished work."""
    if not output.exists("_work/identity.json"):
        return {}
    name = output.at("_work/identity.json")
    with as_written(output.uri_of("_work/identity.json")):
        begun = store.read_json(name, output.fs)
        noted: dict[str, str] = dict(begun.get("versions", {}))
        for library, now in versions().items():
            then = noted.setdefault(library, now)
            if then.rpartition(", ")[2] != now:
                noted[library] = f"{then}, {now}"
    if noted != begun.get("versions"):
        store.write_json(name, {**begun, "versions": noted}, output.fs)
    return noted


def publish(
    output: Output, marker: str, info: dict[str, Any], report: Publish | None = None
) -> dict[str, Any]:
    """Ends the work: the surface's `report` of the summary, then the marker, then what only the making needed goes."""
    if report is not None:
        report(output.uri, info)
    info = store.sealed(info)
    store.write_json(output.at(marker), info, output.fs)
    output.remove("_work")
    return info


def write_config(output: Output, config: JobConfig) -> None:
    """Writes the resolved configuration."""
    output.write_text("config.toml", tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))


def prompts_digest(prompts: Sequence[str]) -> str:
    """What tells one set of prompts from another, whatever their order."""
    return hashlib.sha256("".join(sorted(map(schema.prompt_id, prompts))).encode()).hexdigest()


def stage_prompts(
    output: Output,
    prompts: PromptsRead,
    rows_per_block: int,
    reused: str | None = None,
    more: Mapping[str, pa.Array] | None = None,
    recut: bool = True,
) -> list[str]:
    """Writes the prompts as Parquet sorted by id, a file a block; returns the ids.

    Args:
        reused: what is taken over from where, told apart by any text; None is nothing.
        more: further columns, in the prompts' order.
        recut: whether those that are staged in blocks of another size are staged again. Rows are known by their ids, so
            that costs a start in the middle of a phase nothing; what a finished phase wrote has blocks of its own.

    Raises:
        ConfigError: other prompts were staged there before, as the file was changed in between, or they were to
            reuse something else.
    """
    ids = [schema.prompt_id(row) for row in prompts.rows]
    table = pa.table({"prompt_id": ids, "prompt": prompts.rows, **(more or {})}).sort_by("prompt_id")
    note = {"sha256": prompts_digest(prompts.rows), "rows": table.num_rows, "reused": reused}
    size = _staged_size(output, prompts.source, note, rows_per_block)
    if not size or (recut and size != rows_per_block) or lost_ids(output, ids, ("_work", "prompts")):
        name = output.at("_work/staged.json")
        if size is not None:  # whoever starts after a kill in between stages them again
            store.write_json(name, {**note, "rows_per_block": 0}, output.fs)
        _write_blocks(output, table, rows_per_block)
        store.write_json(name, {**note, "rows_per_block": rows_per_block}, output.fs)
    return list(table["prompt_id"].to_pylist())


def _staged_size(output: Output, source: str, note: Mapping[str, Any], rows_per_block: int) -> int | None:
    """Prompts of a block as they are staged, 0 where that did not come to an end, None where nothing was staged; those
    that were staged before sizes were noted are taken to be in blocks of `rows_per_block`.

    Raises:
        ConfigError: `note`, of the prompts from `source`, is of others than were staged, or of another reuse.
    """
    if not output.exists("_work/staged.json"):
        return None
    found = store.read_json(output.at("_work/staged.json"), output.fs)
    with as_written(output.uri_of("_work/staged.json")):
        then, rows, size = str(found["sha256"]), int(found["rows"]), found.get("rows_per_block")
        size = rows_per_block if size is None else int(size)
    if then != note["sha256"]:
        raise ConfigError(
            f"{source} holds other prompts than when {output.uri} was begun ({rows} then, {note['rows']} now); put the "
            "file back, or take another output"
        )
    if found.get("reused") != note["reused"]:
        raise ConfigError(
            f"{output.uri} was begun with reuse of {found.get('reused') or 'nothing'}, not of "
            f"{note['reused'] or 'nothing'}; go on as it was begun, or take another output"
        )
    return size


def _write_blocks(output: Output, table: pa.Table, rows_per_block: int) -> None:
    """The staged prompts, in the place of any that are there: of another size, or of a kill or a power cut, the last
    one perhaps by half."""
    output.remove("_work", "prompts")
    output.make("_work", "prompts")

    def write_block(start: int) -> None:
        place = output.at("_work", "prompts", f"{start // rows_per_block:06}.parquet")
        pq.write_table(table.slice(start, rows_per_block), place, filesystem=output.fs)

    with ThreadPoolExecutor(IO_THREADS) as pool:
        list(pool.map(write_block, range(0, table.num_rows, rows_per_block)))


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


def mended_ids(output: Output, sink: Sequence[str], checkpoint: Sequence[str]) -> list[str]:
    """The prompt ids that the `checkpoint` of `sink` names, once what a power cut left of either is gone.

    Ray Data notes a file's rows when it has written them, which is before a disk has them: after a power cut the file
    or the note may end anywhere, or the file be gone. A row whose file or note has no end is to be made again. What was
    being written has no note yet, and is Ray Data's own to remove; objects in a store are there whole or not at all,
    but a store knows no renaming (`_remove_unpaired`).
    """
    if isinstance(output.fs, pafs.LocalFileSystem):
        _remove_halves(output, output.tables(*sink), output.tables(*checkpoint), ended=False)
    else:
        _remove_unpaired(output, sink, checkpoint)
    return finished_ids(output, *checkpoint)


def _remove_unpaired(output: Output, sink: Sequence[str], checkpoint: Sequence[str]) -> None:
    """Removes what a kill left between the two halves of a note's renaming in a store, a copy and a removal.

    With both names there Ray Data takes the rows as finished and then removes their file, as that of a pending note:
    they would be missing for good. So a pending note beside a note goes, and a note without a file, which it left so.
    """
    notes = {path.rpartition("/")[2].removesuffix(".parquet"): path for path in output.tables(*checkpoint)}
    written = {path.rpartition("/")[2].rpartition("-")[0] for path in output.tables(*sink)}
    pending = [path for path in output.files(*checkpoint) if path.endswith(PENDING)]
    twice = [path for path in pending if path.rpartition("/")[2].removesuffix(PENDING) in notes]
    for path in [*twice, *(path for name, path in notes.items() if name not in written)]:
        output.fs.delete_file(path)


def lost_ids(
    output: Output, ids: Sequence[str], sink: Sequence[str], checkpoint: Sequence[str] | None = None
) -> list[str]:
    """Those of `ids` that a power cut took of a `sink` that was finished, once what it left is gone."""
    if not isinstance(output.fs, pafs.LocalFileSystem):
        return []
    notes = [] if checkpoint is None else output.tables(*checkpoint)
    _remove_halves(output, output.tables(*sink), notes, ended=True)
    kept = set(finished_ids(output, *sink))
    return [row_id for row_id in ids if row_id not in kept]


def _remove_halves(output: Output, files: Sequence[str], notes: Sequence[str], ended: bool) -> None:
    """Removes notes and noted files on this machine that have no end, each with the other, and notes without a file;
    where all writing has `ended`, other files without an end too."""
    noted = {path.rpartition("/")[2].removesuffix(".parquet"): path for path in notes}
    gone, halves = dict(noted), [path for path in notes if not _has_end(path)]
    for path in files:
        name = path.rpartition("/")[2].rpartition("-")[0]
        gone.pop(name, None)
        if (ended or name in noted) and not _has_end(path):
            halves += [path, *([noted[name]] if name in noted else [])]
    for path in dict.fromkeys([*halves, *gone.values()]):
        output.fs.delete_file(path)


def stage_again(output: Output, ids: Sequence[str]) -> None:
    """Puts the staged prompts of `ids` into a place of their own, `_work/again`, as nothing else is there."""
    output.remove("_work", "again")
    place = output.make("_work", "again", "prompts")
    for path in output.tables("_work", "prompts"):
        table = pq.read_table(path, filesystem=output.fs)
        table = table.filter(pc.is_in(table["prompt_id"], pa.array(ids, pa.string())))
        if table.num_rows:
            pq.write_table(table, f"{place}/{path.rpartition('/')[2]}", filesystem=output.fs)


def _has_end(path: str) -> bool:
    """Whether a Parquet file on this machine ends as one does."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(PARQUET_END)))
        return size > len(PARQUET_END) and file.read() == PARQUET_END


def _ids_by_file(output: Output, *parts: str) -> list[tuple[str, list[str]]]:
    """(file, its prompt ids) in the files' order; half-committed checkpoints are left out."""
    files = output.tables(*parts)
    with ThreadPoolExecutor(IO_THREADS) as pool:
        ids = pool.map(functools.partial(store.row_ids, fs=output.fs), files)
        return list(zip(files, ids, strict=True))


def files_with(output: Output, ids: Iterable[str], *parts: str) -> list[str]:
    """The Parquet files in a directory of the output that hold a row of `ids`, in their order."""
    wanted = set(ids)
    return [file for file, found in _ids_by_file(output, *parts) if not wanted.isdisjoint(found)]


def drop_repeats(output: Output, *parts: str, row_group_size: int | None = None) -> tuple[int, int]:
    """Removes rows whose id stands in an earlier file; returns how many, and how many stay.

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
        store.settle(passing, path, output.fs)
    return dropped, len(seen)


def require_rows(output: Output, rows: int, row_group_size: int | None = None) -> int:
    """Every one of `rows` is in `data`, and once; returns how many were there twice.

    Raises:
        RuntimeError: rows are missing although Ray Data says that it wrote them.
    """
    repeats, found = drop_repeats(output, "data", row_group_size=row_group_size)
    if found != rows:
        raise RuntimeError(
            f"{rows - found} of {rows} rows are missing in {output.uri}/data; run the command again"
        )
    return repeats


def stamp() -> dict[str, str]:
    """By which rankray a summary was written, and when."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"rankray_version": rankray.__version__, "created": now.isoformat(timespec="seconds")}


def head(output: Output, seed: int | None) -> dict[str, Any]:
    """What every `dataset.json` begins with, whoever made it."""
    own = {"complete": True, "seed": seed, "identity": claimed(output)}
    return {"schema_version": schema.SCHEMA_VERSION, **stamp(), **own}


def count_failures(output: Output, rewards: Sequence[str], partial: Collection[str] = ()) -> dict[str, Any]:
    """`failures` of a `dataset.json`: total, by_model, and up to 20 examples by prompt id, read from the finished rows
    without their images.

    A candidate without an image is its generator's failure; a NaN score of one with an image, that reward's, unless it
    is one of `partial`.
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
                    if math.isnan(score) and name not in partial
                ]
                models = [candidate["generator"]] if candidate["width"] is None else failed
                fault = {"prompt_id": row["prompt_id"], "error": candidate["error"]}
                found += [{**fault, "model": model} for model in models]
        return found

    by_model: dict[str, int] = {}
    examples: list[dict[str, str]] = []
    with ThreadPoolExecutor(IO_THREADS) as pool:
        for found in pool.map(faults, output.tables("data")):
            # by id, as files come in the order in which tasks happened to end
            examples = sorted([*examples, *found], key=lambda fault: fault["prompt_id"])[:MAX_EXAMPLES]
            for fault in found:
                by_model[fault["model"]] = by_model.get(fault["model"], 0) + 1
    return {"total": sum(by_model.values()), "by_model": by_model, "examples": examples}
