"""The files of a checkpoint on this machine: their hash, and what can be known to be wrong without loading a model.

A job finds a cut, missing or pickled file before it asks for a GPU. Headers of safetensors are read with the standard
library alone, a millisecond a file; that tensors fit their model is found where the model is loaded. Hashing reads
everything once: 1.2 s a GB on one core.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from rankray.config import ConfigError

SUFFIXES = frozenset(
    {".safetensors", ".json", ".txt", ".model", ".pt", ".pth", ".bin", ".ckpt", ".yaml", ".yml", ".jinja"}
)
"""Files of a checkpoint that can change what a model computes: weights, configurations, vocabularies."""

PICKLES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl"})
_NAMES = ("pytorch_model", "diffusion_pytorch_model", "model")
"""Weights' names; a trainer's own pickles (`optimizer.bin`) lie beside whole weights and are nobody's business."""
_HEADER_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000


def sha256(path: Path) -> str:
    """Over names, sizes and bytes of a file, or of a directory's weight, configuration and vocabulary files.

    Raises:
        ConfigError: there are none.
    """
    files = sorted(_files(path))
    if not files:
        raise ConfigError(f"{path} holds no weights; it must hold what `save_pretrained` writes")
    digest = hashlib.sha256()
    for name, file in files:
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def check(path: Path, pickles: bool) -> None:
    """Refuses a file or directory of weights that no model could be loaded from.

    Args:
        pickles: pickles of plain tensors will do (they are read with `weights_only=True`); else safetensors alone.

    Raises:
        ConfigError: a file is cut short or missing, or a directory holds its weights as pickles alone.
    """
    files = dict(_files(path))
    safe = {file.parent for file in files.values() if file.suffix == ".safetensors"}
    for name, file in files.items():
        if file.suffix == ".safetensors":
            _check_safetensors(file)
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


def of_variant(file: Path, variant: str | None) -> bool:
    """Whether `from_pretrained` would read it: `model.fp16.safetensors` for the variant fp16 and for no other."""
    name = re.sub(r"-\d+-of-\d+", "", file.name)
    return name.split(".")[1:-1] == ([variant] if variant else [])


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield path.name, path
        return
    for file in path.rglob("*"):
        name = file.relative_to(path).as_posix()
        if file.is_file() and counts(name):
            yield name, file


def counts(name: str) -> bool:
    """Whether a file of that name, within a checkpoint's directory, belongs to the checkpoint; hidden ones do not."""
    path = PurePosixPath(name)
    return path.suffix in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _check_safetensors(file: Path) -> None:
    """The header says where the last tensor ends, and the file has to end there."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_HEADER_BYTES), "little")
        if not 0 < length <= min(size - _HEADER_BYTES, _MOST_HEADER_BYTES):
            raise ConfigError(f"{file} is cut short within its header ({size:,} bytes); get it again")
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"{file} is no safetensors file: its header is no table of tensors") from None
    due = _HEADER_BYTES + length + max(ends, default=0)
    if due != size:
        raise ConfigError(f"{file} is cut short or damaged: {size:,} bytes, due are {due:,}; get it again")


def _check_shards(index: Path) -> None:
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{index} is no index of weights; get it again") from None
    missing = sorted(name for name in names if not (index.parent / name).is_file())
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
