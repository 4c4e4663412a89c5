"""Weights: where they lie, what identifies them, and what can be known to be wrong before a model is loaded.

The driver names weights without loading one: a directory by the hash of its files (everything is read once, 1.2 s a GB
on one core), a hub repository by its commit (one request), a URI by the names, sizes and times of its files (one
listing; its price is that the same weights uploaded twice have two names, unless their user gives the hash of their
content as their revision). Headers of safetensors are read with the standard library alone, a millisecond a file, so a
job finds a cut, missing or pickled file before it asks for a GPU.

Libraries load from directories, so a node copies what a URI names, once, whichever of its actors comes first: the
others wait for it. It compares what lies there with what the driver saw, and reads a copy for a hash that was given.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs
from filelock import FileLock

from rankray import shapes, store
from rankray.config import ConfigError
from rankray.models import hub
from rankray.models.caches import cache, writing
from rankray.words import first_line

UNRECORDED = "unrecorded"
"""Revision of a user's own class that was given none."""
UNRESOLVED = "unresolved:"
"""Before the revision of a hub repository that could not be asked for its commit."""
SHAPES = "shapes:"
PACKAGE = "package:"
"""Before NAME/FILE: weights that lie within an installed package."""
URLS = ("http://", "https://")
HASH, LISTING = "sha256:", "listing:"
PIN = "#"
"""Between a URI and what identifies its content."""
AT_ONCE = 8
"""Files of one checkpoint that are copied side by side."""

SUFFIXES = frozenset(
    {".safetensors", ".json", ".txt", ".model", ".pt", ".pth", ".bin", ".ckpt", ".yaml", ".yml", ".jinja"}
)
"""Files of a checkpoint that can change what a model computes: weights, configurations, vocabularies."""
PICKLES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl"})
_NAMES = ("pytorch_model", "diffusion_pytorch_model", "model")
"""Weights' names; a trainer's own pickles (`optimizer.bin`) lie beside whole weights and are nobody's business."""
_HEADER_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Pinned:
    """Weights as the driver found them.

    Attributes:
        source, revision: what actors load: a hub's at its commit, a URI with what identifies its content.
        recorded: what identifies them in the dataset.
    """

    source: str
    revision: str
    recorded: str


def is_uri(source: str) -> bool:
    """Whether weights have to be copied to be loaded; a server's URL is no place of weights."""
    return "://" in source and not source.startswith(URLS)


def locate(source: str) -> str:
    """The directory of "shapes:NAME", of an existing path or of a URI's copy on this machine; a hub's name as it is.

    "package:NAME/FILE" is a file of an installed package.

    What a URI names is copied here where it is not yet, which may take minutes: actors do it, drivers do not.

    Raises:
        ConfigError: a path that does not exist, no such pipeline in the shapes world, or a URI that cannot be copied.
    """
    if is_uri(source):
        return str(copy_here(source))
    if source.startswith(SHAPES):
        try:
            return str(shapes.pipeline_dir(source[len(SHAPES) :]))
        except ValueError as error:
            raise ConfigError(str(error)) from None
    if source.startswith(PACKAGE):
        return str(_in_package(source[len(PACKAGE) :]))
    path = Path(source).expanduser()
    if path.exists():
        return str(path)
    if _HUB_NAME.fullmatch(source) and not source.startswith("."):
        return source
    raise ConfigError(
        f"no directory '{source}' here; give a directory, a URI, or a hub repository as 'owner/name'"
    )


def _in_package(source: str) -> Path:
    name, _, file = source.partition("/")
    found = importlib.util.find_spec(name)
    place = Path(found.origin).parent / file if found and found.origin else None
    if place is None or not place.exists():
        raise ConfigError(
            f"the weights {file} lie in the package {name.replace('_', '-')}, which is not installed here; install it, "
            "or its extra of rankray: docs/rewards.md"
        )
    return place


def weights_revision(source: str, revision: str) -> str:
    """What identifies the weights of `source`, without importing a model.

    Args:
        source: a directory or file, "shapes:NAME", a hub repository "owner/name", a URI of weights, or a server's URL.
        revision: branch, tag or commit of a hub repository, "sha256:..." of what a URI names, or what its user calls a
            server's model; not used for directories.

    Returns:
        "sha256:<hex>" over names and bytes of a directory's weight, configuration and vocabulary files; the commit
        of a hub repository, asked from the hub, or else from the local cache; "unresolved:<revision>" if neither
        knows it. A URI's is the hash that was given, or "listing:<hex>" over names, sizes and times of its files. A
        server's is the one given, or `UNRECORDED`.

    Raises:
        ConfigError: the directory is missing or holds no weights, or the hub says that there is no such
            repository or revision, or that this user may not read it.
    """
    if source.startswith(URLS):
        return UNRECORDED if revision == "main" else revision
    if is_uri(source):
        return revision if revision.startswith(HASH) else LISTING + _listing(_uri_files(source))
    place = locate(source)
    if Path(place).exists():
        return f"{HASH}{sha256(Path(place))}"
    if hub.COMMIT.fullmatch(revision):
        # Asked all the same, as a wrong one would show only where the model is loaded.
        return revision if hub.snapshot(place, revision).is_dir() else hub.commit(place, revision) or revision
    return hub.commit(place, revision) or hub.cached_commit(place, revision) or f"{UNRESOLVED}{revision}"


def pin(source: str, revision: str) -> Pinned:
    """What `weights_revision` says, and where an actor finds just that.

    Raises:
        ConfigError: as `weights_revision`.
    """
    recorded = weights_revision(source, revision)
    if is_uri(source):
        return Pinned(f"{source.partition(PIN)[0]}{PIN}{recorded}", revision, recorded)
    return Pinned(source, revision if ":" in recorded or recorded == UNRECORDED else recorded, recorded)


def same_place(one: str, other: str) -> bool:
    """Whether two sources are the same directory, repository or URI, whether or not they are there."""
    if is_uri(one) or is_uri(other):
        return one.rstrip("/") == other.rstrip("/")
    try:
        return locate(one) == locate(other)
    except ConfigError:
        return one == other


def check(source: str, pickles: bool) -> None:
    """Refuses weights on this machine that no model could be loaded from.

    Args:
        source: as in `weights_revision`; what is not on this machine is not looked at.
        pickles: pickles of plain tensors will do (they are read with `weights_only=True`); else safetensors alone.

    Raises:
        ConfigError: a file is cut short or missing, or a directory holds its weights as pickles alone.
    """
    if source.startswith(URLS) or is_uri(source) or not (place := Path(locate(source))).exists():
        return
    files = _files(place)
    safe = {file.parent for file in files.values() if file.suffix == ".safetensors"}
    for name, file in files.items():
        if file.suffix == ".safetensors":
            check_safetensors(file)
        elif name.endswith(".index.json"):
            _check_shards(file)
        elif file.suffix in PICKLES:
            is_weights = not safe or file.name.startswith(_NAMES)
            if not pickles and is_weights and file.parent not in safe:
                raise ConfigError(
                    f"{file} is a pickle, which can run code and is not loaded, and there is no safetensors file "
                    "beside it; save it again with `save_pretrained(..., safe_serialization=True)`, or get one that is"
                )
            _check_archive(file)


def sha256(path: Path) -> str:
    """Over names, sizes and bytes of a file, or of a directory's weight, configuration and vocabulary files.

    Raises:
        ConfigError: there are none.
    """
    files = sorted(_files(path).items())
    if not files:
        raise ConfigError(f"{path} holds no weights; it must hold what `save_pretrained` writes")
    digest = hashlib.sha256()
    for name, file in files:
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        update_by(digest, file)
    return digest.hexdigest()


def update_by(digest: hashlib._Hash, file: Path) -> hashlib._Hash:
    """The digest, once a file's bytes are in it."""
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest


def of_variant(file: Path, variant: str | None) -> bool:
    """Whether `from_pretrained` would read it: `model.fp16.safetensors` for the variant fp16 and for no other."""
    name = re.sub(r"-\d+-of-\d+", "", file.name)
    return name.split(".")[1:-1] == ([variant] if variant else [])


def _files(path: Path) -> dict[str, Path]:
    """By name within the directory; a file alone by its own."""
    if path.is_file():
        return {path.name: path}
    names = {file.relative_to(path).as_posix(): file for file in path.rglob("*")}
    return {name: file for name, file in names.items() if file.is_file() and _counts(name)}


def _counts(name: str) -> bool:
    """Whether a file of that name, within a checkpoint's directory, belongs to the checkpoint; hidden ones do not."""
    path = PurePosixPath(name)
    return path.suffix in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def check_safetensors(file: Path) -> None:
    """A file is whole: the header says where the last tensor ends, and the file has to end there.

    `safetensors.safe_open` finds the same faults, and says neither which file nor how many bytes are due.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_HEADER_BYTES), "little")
        if not 0 < length <= min(size - _HEADER_BYTES, _MOST_HEADER_BYTES):
            raise ConfigError(f"{file} is cut short within its header ({size:,} bytes); get it again")
        try:
            header = json.loads(stream.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
            raise ConfigError(f"{file} is no safetensors file: its header is no table of tensors") from None
    due = _HEADER_BYTES + length + max(ends, default=0)
    if due != size:
        raise ConfigError(f"{file} is cut short or damaged: {size:,} bytes, due are {due:,}; get it again")


def _check_shards(index: Path) -> None:
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        missing = sorted(name for name in names if not (index.parent / name).is_file())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError):
        raise ConfigError(f"{index} is no index of weights; get it again") from None
    if missing:
        raise ConfigError(
            f"{index.parent} lacks {len(missing)} of {len(names)} files of weights, such as {missing[0]}; get it again"
        )


def _check_archive(file: Path) -> None:
    """Torch's pickles are zip archives, whose table of contents stands at their end."""
    with file.open("rb") as stream:
        archive = stream.read(2) == b"PK"
    if file.stat().st_size == 0 or (archive and not zipfile.is_zipfile(file)):
        raise ConfigError(f"{file} is cut short ({file.stat().st_size:,} bytes); get it again")


def copies_dir() -> Path:
    """Where a node keeps its copies: `$RANKRAY_WEIGHTS`, or a directory of the user's cache."""
    return cache("RANKRAY_WEIGHTS", "weights")


def copy_here(uri: str) -> Path:
    """This node's copy of a file or directory, made if there is none yet.

    Args:
        uri: pinned or not; of one that is not, what lies there now is taken.

    Raises:
        ConfigError: what lies there is not what the pin says, cannot be read, or has no room here.
    """
    uri, _, due = uri.partition(PIN)
    due = due or weights_revision(uri, "")
    place = copies_dir() / hashlib.sha256(f"{uri}{PIN}{due}".encode()).hexdigest()[:16]
    copy = place / PurePosixPath(uri.partition("://")[2]).name
    if not copy.exists():
        with writing("RANKRAY_WEIGHTS"):
            place.mkdir(parents=True, exist_ok=True)
            with FileLock(place / ".lock"):
                if not copy.exists():  # while this one waited
                    _copy(uri, due, copy)
    return copy


def read_from(uri: str, name: str) -> bytes:
    """One small file of a directory, without the rest of it.

    Raises:
        OSError: there is none.
    """
    fs, place = store.filesystem(uri.partition(PIN)[0])
    with fs.open_input_stream(f"{place}/{name}") as stream:
        return bytes(stream.read())


def _copy(uri: str, due: str, copy: Path) -> None:
    """All or nothing: into a passing directory, checked there, renamed."""
    passing = copy.parent / ".passing"
    shutil.rmtree(passing, ignore_errors=True)  # what a kill left
    files, by_content = _uri_files(uri), due.startswith(HASH)
    there = due if by_content else LISTING + _listing(files)
    try:
        if there == due:
            _fetch(uri, files, passing / copy.name)
            check(str(passing / copy.name), pickles=True)
            there = HASH + sha256(passing / copy.name) if by_content else due
        if there != due:
            raise ConfigError(
                f"the weights at {uri} are {there}, where {due} is due: they were changed since the job began, or the "
                "revision is another's; start the job again, or name the right one"
            )
        (passing / copy.name).rename(copy)
    finally:
        shutil.rmtree(passing, ignore_errors=True)


def _fetch(uri: str, files: Mapping[str, pafs.FileInfo], copy: Path) -> None:
    fs, _ = store.filesystem(uri)

    def fetch(name: str) -> None:
        made = copy / name if name else copy
        made.parent.mkdir(parents=True, exist_ok=True)
        pafs.copy_files(
            files[name].path, str(made), source_filesystem=fs, destination_filesystem=pafs.LocalFileSystem()
        )

    with _uri_errors(uri), ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(fetch, files))


def _uri_files(uri: str) -> dict[str, pafs.FileInfo]:
    """By name within the directory what could change what a model computes; a single file is named ""."""
    with _uri_errors(uri):
        fs, place = store.filesystem(uri)
        whole = fs.get_file_info(place)
        if whole.type == pafs.FileType.File:
            return {"": whole}
        listed = fs.get_file_info(pafs.FileSelector(place, recursive=True, allow_not_found=True))
    names = {info.path[len(place) :].lstrip("/"): info for info in listed if info.type == pafs.FileType.File}
    files = {name: names[name] for name in sorted(names) if _counts(name)}
    if not files:
        raise ConfigError(
            f"there are no weights at {uri}; it must hold what `save_pretrained` writes, or be a file"
        )
    return files


def _listing(files: Mapping[str, pafs.FileInfo]) -> str:
    lines = [f"{name}\0{info.size}\0{info.mtime_ns}" for name, info in files.items()]
    return hashlib.sha256("\0".join(lines).encode()).hexdigest()


@contextmanager
def _uri_errors(uri: str) -> Iterator[None]:
    """What reading a URI raises, as one line that names it."""
    try:
        yield
    except (OSError, ValueError) as error:  # pyarrow's are of these
        reason = first_line(error).rstrip(".")
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise ConfigError(
                f"no room for {uri} in {copies_dir()}; set RANKRAY_WEIGHTS to a larger disk"
            ) from error
        raise ConfigError(
            f"the weights at {uri} cannot be read: {reason}; check the address and who may read it"
        ) from error
