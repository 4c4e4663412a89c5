"""Finished work to Hugging Face's hub and back, through the hub's own client.

Files are sent one after another and committed together at the end: others see all of it or nothing, a broken upload
begun again sends what the hub has not got yet, and a dataset in an object store passes through this machine's disk a
file at a time. The token is the client's (HF_TOKEN, `hf auth login`) and never looked at; HF_ENDPOINT is honoured.
"""

from __future__ import annotations

import functools
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rankray import store
from rankray.config import ConfigError
from rankray.words import Say

TAG = "rankray"
"""Stands among the tags of what rankray wrote; what has it not is somebody else's."""
NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
OFTEN = 50
_TOKEN = "set HF_TOKEN to one that may {} there, or run `hf auth login`"

OURS = Path(__file__).parent.parent
_STRANGE = (ValueError, LookupError, TypeError, AttributeError)

Content = bytes | Callable[[Path], Path]
"""A file's content, or who gives its path: of a file that is there, or is made in the directory that it is given."""


def upload(repository: str, kind: str, files: dict[str, Content], private: bool, say: Say) -> str:
    """Makes `repository` hold `files`, and no other data and pictures of a dataset, or weights of a model; the address
    of its page.

    Args:
        repository: OWNER/NAME.
        kind: "dataset" or "model".
        files: by their places in the repository; a README.md with `TAG` is among them.
        private: nobody else may read it; one that is there already is not changed, so it has to be private.

    Raises:
        ConfigError: it is another's, or others may read it and it is to be `private`; the hub refuses or cannot be
            reached, or there is no token.
    """
    import huggingface_hub as client

    if not NAME.fullmatch(repository):
        raise ConfigError(f"output '{repository}' is no repository of the hub; write OWNER/NAME")
    api = client.HfApi()
    if client.get_token() is None:
        raise ConfigError(f"the hub wants a token to write '{repository}': {_TOKEN.format('write')}")
    with _in_one_line(repository, "write"), tempfile.TemporaryDirectory(prefix="rankray-") as scratch:
        there = _ours(api, repository, kind)
        if there is None:
            api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        elif private and not api.repo_info(repository, repo_type=kind).private:
            raise ConfigError(
                f"{kind} '{repository}' is on the hub already, and others may read it; make it private in its "
                "settings there, take another name, or leave --private out"
            )
        operations: list[Any] = [
            client.CommitOperationAdd(name, content)
            for name, content in files.items()
            if isinstance(content, bytes)
        ]
        api.preupload_lfs_files(repository, operations, repo_type=kind)
        for name, content in files.items():
            if isinstance(content, bytes):
                continue
            found = content(Path(scratch))
            operations.append(client.CommitOperationAdd(name, found))
            api.preupload_lfs_files(repository, operations[-1:], repo_type=kind)
            if operations[-1].path_or_fileobj == b"" and found.parent == Path(scratch):
                found.unlink()  # the hub has it
            if len(operations) % OFTEN == 0:
                say(f"{len(operations):,} of {len(files):,} files")
        gone = [name for name in there or () if name not in files and _replaced(name, kind)]
        operations += [client.CommitOperationDelete(name) for name in gone]
        api.create_commit(repository, operations, commit_message="rankray export", repo_type=kind)
    prefix = "datasets/" if kind == "dataset" else ""
    return f"{api.endpoint}/{prefix}{repository}"


def _replaced(name: str, kind: str) -> bool:
    """Whether a file of an earlier export stands for what a new one has in its place.

    Loaders prefer shards and their index to one file: earlier weights that stay would be loaded in place of new ones.
    """
    if kind == "dataset":
        return name.startswith(("data/", "pictures/"))
    return name.endswith((".safetensors", ".index.json"))


def _ours(api: Any, repository: str, kind: str) -> list[str] | None:
    """What is in the repository; None where there is none.

    Raises:
        ConfigError: somebody else wrote it.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        there = list(api.list_repo_files(repository, repo_type=kind))
    except RepositoryNotFoundError:
        return None
    written = {*there} - {".gitattributes"}
    if written and not ("README.md" in written and _tagged(api, repository, kind)):
        raise ConfigError(
            f"{kind} '{repository}' is on the hub already and is not of rankray's making; take another name"
        )
    return there


def _tagged(api: Any, repository: str, kind: str) -> bool:
    return f"- {TAG}\n" in Path(api.hf_hub_download(repository, "README.md", repo_type=kind)).read_text()


def dataset_files(dataset: store.RankedDataset, info: dict[str, Any]) -> dict[str, Content]:
    """The data files and `dataset.json`, as `info`, of a ranked dataset; pictures that lie beside rows go into them."""
    data: dict[str, Content] = {
        f"data/{file.rpartition('/')[2]}": functools.partial(_with_pictures, dataset, file)
        for file in dataset.files
    }
    return {**data, "dataset.json": store.json_text(info).encode()}


def _with_pictures(dataset: store.RankedDataset, file: str, scratch: Path) -> Path:
    """A data file on this machine, its pictures in it."""
    target = scratch / file.rpartition("/")[2]
    if dataset.info["identity"].get("images.store") == "inline":
        return _here(dataset.fs, file, target)
    due = pq.read_schema(file, filesystem=dataset.fs)
    with pq.ParquetWriter(target, due) as writer:
        for rows in dataset.groups(file):
            writer.write_table(pa.Table.from_pylist([store.with_images(row) for row in rows], due))
    return target


def _here(fs: pafs.FileSystem, path: str, target: Path) -> Path:
    """A file on this machine: where it lies, or else its copy at `target`."""
    if isinstance(fs, pafs.LocalFileSystem):
        return Path(path)
    pafs.copy_files(path, str(target), fs, pafs.LocalFileSystem())
    return target


def model_files(uri: str, lora: bool) -> dict[str, Content]:
    """A run's adapters, where `lora` asks for them, else its pipeline.

    Raises:
        ConfigError: they are not there.
    """
    fs, place = store.filesystem(uri)
    root = place if lora else f"{place}/pipeline"
    selector = pafs.FileSelector(root, allow_not_found=True, recursive=not lora)
    ours = ("README.md", "adapter_config.json")
    found = {
        info.path.removeprefix(f"{root}/"): info.path
        for info in fs.get_file_info(selector)
        if info.type == pafs.FileType.File
        and (not lora or info.base_name in ours or info.base_name.endswith(".safetensors"))
    }
    if not any(name.endswith(".safetensors") for name in found):
        raise ConfigError(f"{uri}: no weights are in {root}; run the job again, it exports what is missing")

    def content(name: str, scratch: Path) -> Path:
        return _here(fs, found[name], scratch / name.replace("/", "-"))

    return {name: functools.partial(content, name) for name in sorted(found)}


def fetch(repository: str) -> str:
    """The directory of this machine's cache that holds a ranked dataset of the hub's.

    Raises:
        ConfigError: the hub has none of the name, refuses or cannot be reached; or it holds no ranked dataset.
    """
    import huggingface_hub as client

    if not NAME.fullmatch(repository):
        raise ConfigError(f"input 'hub:{repository}' is no repository of the hub; write hub:OWNER/NAME")
    with _in_one_line(repository, "read"):
        place = client.snapshot_download(
            repository, repo_type="dataset", allow_patterns=["data/*.parquet", "dataset.json"]
        )
    if not store.complete(place):
        raise ConfigError(
            f"hub dataset '{repository}' has no dataset.json: it is none that `rankray export` wrote"
        )
    return str(place)


@contextmanager
def _in_one_line(repository: str, doing: Literal["read", "write"]) -> Iterator[None]:
    """One line for whatever the hub or the way to it says, whichever is done there."""
    import huggingface_hub as client
    from huggingface_hub import errors
    from huggingface_hub.utils.tqdm import disable_progress_bars

    # By its own base, as the client has another HTTP library in each major version.
    http: Any = errors.HfHubHTTPError.__bases__[0]
    disable_progress_bars()
    try:
        yield
    except errors.RepositoryNotFoundError:
        raise ConfigError(
            f"there is no hub repository '{repository}', or your token may not see it"
        ) from None
    # And what the client makes of answers that are not the hub's.
    except (errors.HfHubHTTPError, http, OSError, RuntimeError, *_STRANGE) as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if isinstance(error, ConfigError | store.DatasetError) or (
            isinstance(error, _STRANGE) and Path(last).is_relative_to(OURS)
        ):
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise ConfigError(
                f"the hub does not let you {doing} '{repository}' (HTTP {status}): {_TOKEN.format(doing)}"
            ) from None
        token = client.get_token() or ""
        words = " ".join(str(error).split()) or type(error).__name__
        words = words.replace(token, "***") if token else words
        kept = "nothing was committed, " if doing == "write" else ""
        raise ConfigError(f"hub repository '{repository}': {words[:300]}; {kept}try again") from None


def public(info: Any) -> Any:
    """What `dataset.json` says, with places on this machine cut to their last name."""
    if isinstance(info, dict):
        return {key: public(value) for key, value in info.items()}
    if isinstance(info, list):
        return [public(value) for value in info]
    if isinstance(info, str) and info.startswith(("/", "~/", "file:/")):
        return info.rstrip("/").rpartition("/")[2]
    return info
