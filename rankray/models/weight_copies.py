"""Weights at a URI (`s3://bucket/mps`): what identifies them, and the copy that each node keeps.

Libraries load from directories, so a node copies what lies elsewhere, once, whichever of its actors comes first: the
others wait for it. The driver copies nothing: it lists the files, one request, and calls the weights by their names,
sizes and times of change, which a node compares before it copies. That costs no reading, and its price is that the same
weights uploaded twice have two names; who wants one name gives the hash of their content as their revision, which a
node then reads them for, 1.2 s a GB.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs
from filelock import FileLock

from rankray import store
from rankray.config import ConfigError
from rankray.models import weight_files

HASH, LISTING = "sha256:", "listing:"
PIN = "#"
"""Between a URI and what identifies its content."""
AT_ONCE = 8
"""Files of one checkpoint that are copied side by side."""


def is_uri(source: str) -> bool:
    """Whether weights have to be copied to be loaded; a server's URL is no place of weights."""
    return "://" in source and not source.startswith(("http://", "https://"))


def directory() -> Path:
    """Where a node keeps its copies: `$RANKRAY_WEIGHTS`, or a directory of the user's cache."""
    return Path(os.environ.get("RANKRAY_WEIGHTS") or "~/.cache/rankray/weights").expanduser().absolute()


def identity(uri: str, revision: str) -> str:
    """What identifies the weights: "sha256:..." as it was given, or else "listing:..." of what lies there.

    Raises:
        ConfigError: nothing that could be weights lies there, or the place cannot be reached.
    """
    return revision if revision.startswith(HASH) else LISTING + _listing(_files(uri))


def pinned(uri: str, revision: str) -> str:
    """The URI with what identifies its content, as `on_this_node` takes it."""
    return f"{uri.partition(PIN)[0]}{PIN}{revision}"


def on_this_node(uri: str) -> Path:
    """This node's copy of a file or directory, made if there is none yet.

    Args:
        uri: pinned or not; of one that is not, what lies there now is taken.

    Raises:
        ConfigError: what lies there is not what the pin says, cannot be read, or has no room here.
    """
    uri, _, pin = uri.partition(PIN)
    pin = pin or identity(uri, "")
    name = PurePosixPath(uri.partition("://")[2]).name
    place = directory() / hashlib.sha256(f"{uri}{PIN}{pin}".encode()).hexdigest()[:16]
    copy = place / name
    if not copy.exists():
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / ".lock"):
            if not copy.exists():  # while this one waited
                _copy(uri, pin, copy)
    return copy


def read(uri: str, name: str) -> bytes:
    """One small file of a directory, without the rest of it.

    Raises:
        OSError: there is none.
    """
    fs, place = store.filesystem(uri.partition(PIN)[0])
    with fs.open_input_stream(f"{place}/{name}") as stream:
        return bytes(stream.read())


def _copy(uri: str, pin: str, copy: Path) -> None:
    """All or nothing: into a passing directory, checked there, renamed."""
    passing = copy.parent / ".passing"
    shutil.rmtree(passing, ignore_errors=True)  # what a kill left
    files = _files(uri)
    found = pin if pin.startswith(HASH) else LISTING + _listing(files)
    try:
        if found == pin:
            _fetch(uri, files, passing / copy.name)
            weight_files.check(passing / copy.name, pickles=True)
            found = HASH + weight_files.sha256(passing / copy.name) if pin.startswith(HASH) else pin
        if found != pin:
            raise ConfigError(
                f"the weights at {uri} are {found}, where {pin} is due: they were changed since the job began, or the "
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

    with _one_line(uri), ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(fetch, files))


def _files(uri: str) -> dict[str, pafs.FileInfo]:
    """By name within the directory what could change what a model computes; a single file is named ""."""
    with _one_line(uri):
        fs, place = store.filesystem(uri)
        whole = fs.get_file_info(place)
        if whole.type == pafs.FileType.File:
            return {"": whole}
        listed = fs.get_file_info(pafs.FileSelector(place, recursive=True, allow_not_found=True))
    names = {info.path[len(place) :].lstrip("/"): info for info in listed if info.type == pafs.FileType.File}
    found = {name: names[name] for name in sorted(names) if weight_files.counts(name)}
    if not found:
        raise ConfigError(
            f"there are no weights at {uri}; it must hold what `save_pretrained` writes, or be a file"
        )
    return found


def _listing(files: Mapping[str, pafs.FileInfo]) -> str:
    lines = [f"{name}\0{info.size}\0{info.mtime_ns}" for name, info in files.items()]
    return hashlib.sha256("\0".join(lines).encode()).hexdigest()


@contextmanager
def _one_line(uri: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # pyarrow's are of these
        reason = str(error).splitlines()[0].rstrip(".")
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise ConfigError(
                f"no room for {uri} in {directory()}; set RANKRAY_WEIGHTS to a larger disk"
            ) from error
        raise ConfigError(
            f"the weights at {uri} cannot be read: {reason}; check the address and who may read it"
        ) from error
