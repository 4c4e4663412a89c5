"""Loads weights strictly, and says in one line what is wrong with them.

diffusers and transformers fill missing tensors with random numbers and leave out strange ones, with a warning among
hundreds of lines; scores and pictures are then plausible and wrong. Within `strictly`, whatever either of them loads,
the parts of a pipeline and of the pipelines connected to it included, fits key by key or is refused. It costs nothing:
both count the keys anyway.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rankray.config import ConfigError
from rankray.models import hub
from rankray.models.caches import writing
from rankray.models.weights import locate

# Of pickles that it loads from the hub, transformers asks a service there to open a pull request with safetensors, in a
# thread of every actor: nobody's repository is touched from here.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "true")

_FAULTS = (OSError, EOFError, RuntimeError, ValueError, KeyError, UnpicklingError, SafetensorError)
_ALLOWED = "position_ids"
"""End of the names of buffers that earlier versions of transformers stored: 0, 1, 2, ..., which later ones make."""


def check_strict(source: str, info: dict[str, Any]) -> None:
    """Refuses weights that do not fit a model key by key.

    Args:
        source: for the message.
        info: the loading info that `from_pretrained` returns.

    Raises:
        ConfigError: any key is missing, unexpected or of another shape.
    """
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info.get(kind) or ())
        if keys:
            raise ConfigError(
                f"the weights in '{source}' do not fit the model: {len(keys)} {kind.replace('_', ' ')}, "
                f"such as {keys[0]}; get the checkpoint again, or name the model it belongs to"
            )


def fit(
    model: torch.nn.Module, weights: Mapping[str, torch.Tensor], source: str, assign: bool = False
) -> None:
    """Gives a model its weights; `assign` makes them its parameters, as a model of no memory needs.

    Raises:
        ConfigError: any name or shape is another.
    """
    due = model.state_dict()
    other = [key for key, tensor in weights.items() if key in due and tensor.shape != due[key].shape]
    strange = {"missing_keys": due.keys() - weights.keys(), "unexpected_keys": weights.keys() - due.keys()}
    check_strict(source, {**strange, "mismatched_keys": other})
    model.load_state_dict(weights, assign=assign)


@contextmanager
def strictly(source: str, revision: str = "main") -> Iterator[None]:
    """Within it, every model that diffusers or transformers loads has to fit its weights; faults are one line.

    Args:
        source, revision: what is loaded, for messages.

    Raises:
        ConfigError: weights do not fit, are damaged, or cannot be had.
    """
    from transformers import PreTrainedModel

    bases = [PreTrainedModel]
    if "diffusers" in sys.modules:  # a reward has no need of it, and takes seconds less without
        bases.append(sys.modules["diffusers"].ModelMixin)

    def checked(original: Any, **more: Any) -> Any:
        def from_pretrained(cls: Any, place: Any, *arguments: Any, **options: Any) -> Any:
            if options.pop("output_loading_info", False):
                return original(cls, place, *arguments, output_loading_info=True, **options)
            named = Path(str(place), options.get("subfolder") or "")
            with one_line(str(named), revision):
                options = {**options, **more, "output_loading_info": True}
                model, info = original(cls, place, *arguments, **options)
            strange = [key for key in info["unexpected_keys"] if not str(key).endswith(_ALLOWED)]
            check_strict(str(named), {**info, "unexpected_keys": strange})
            return model

        return classmethod(from_pretrained)

    before = {cls: vars(cls)["from_pretrained"] for cls in bases}
    # transformers raises for another shape without saying which; asked to ignore them it lists them, and we refuse.
    more: dict[Any, dict[str, Any]] = {PreTrainedModel: {"ignore_mismatched_sizes": True}}
    for cls, method in before.items():
        cls.from_pretrained = checked(method.__func__, **more.get(cls, {}))
    try:
        with one_line(source, revision):
            yield
    finally:
        for cls, method in before.items():
            cls.from_pretrained = method


@contextmanager
def one_line(source: str, revision: str = "main") -> Iterator[None]:
    """What reading files or asking the hub raises, as one line that names `source`. A full device is no such fault.

    Raises:
        ConfigError: in place of it.
    """
    try:
        yield
    except ConfigError:
        raise
    except _FAULTS as error:
        if isinstance(error, torch.OutOfMemoryError) or type(error).__name__ == "AcceleratorError":
            raise
        if isinstance(error, OSError) and str(error.filename).startswith(_hub_places()):
            with writing("HF_HOME"):
                raise
        raise ConfigError(_hub_line(error, source, revision) or _file_line(error, source)) from error


def _hub_places() -> tuple[str, ...]:
    """Where the hub's client writes."""
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE, constants.HF_HOME


def _hub_line(error: BaseException | None, source: str, revision: str) -> str | None:
    """What the hub said, where that is at the root of the error."""
    while error is not None:
        if type(error).__name__ in ("LocalEntryNotFoundError", "OfflineModeIsEnabled"):
            return hub.unreachable(source)
        reply = getattr(error, "response", None)
        if reply is not None:
            code, status = reply.headers.get("X-Error-Code", ""), int(reply.status_code)
            if code == "EntryNotFound":
                return f"hub repository '{source}' lacks a file: {_first_line(error)}"
            return hub.refusal(code, status, source, revision)
        error = error.__cause__ or error.__context__
    return None


def _file_line(error: BaseException, source: str) -> str:
    kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
    return f"the weights in '{source}' cannot be loaded: {kind}{_first_line(error)}; get them again"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300].rstrip(".;") if lines else type(error).__name__


def where(source: str, revision: str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes: a directory or hub name, and the settings that keep to that place and revision.

    Raises:
        ConfigError: as `locate`.
    """
    place = locate(source)
    return place, {"local_files_only": True} if Path(place).exists() else {"revision": revision}


def file_of(source: str, name: str, revision: str) -> Path:
    """One file of a directory or hub repository; a source that is a file is the one.

    Raises:
        ConfigError: the hub does not give it. In a directory it is not looked for.
    """
    place = Path(locate(source))
    if place.exists():
        return place / name if place.is_dir() else place
    from huggingface_hub import hf_hub_download

    with one_line(source, revision):
        return Path(hf_hub_download(source, name, revision=revision))


def files_of(source: str, revision: str, patterns: Sequence[str]) -> str:
    """A directory as it is; of a hub repository a directory with its files of those patterns.

    For packages that ask the hub by a name alone, and would load another revision than the recorded one.

    Raises:
        ConfigError: they cannot be had.
    """
    place = locate(source)
    if Path(place).exists():
        return place
    from huggingface_hub import snapshot_download

    with one_line(source, revision):
        return str(snapshot_download(place, revision=revision, allow_patterns=list(patterns)))


def read_plain(path: Path) -> dict[str, Any]:
    """A pickle of plain tensors, read by torch's `weights_only` loader; a safetensors file of the same keys does too.

    Raises:
        ConfigError: it is not there, is damaged, or holds more than plain tensors.
    """
    if not path.is_file():
        raise ConfigError(f"there is no {path}; put the weights there, or name another `options.file`")
    try:
        with one_line(str(path)):
            if path.suffix == ".safetensors":
                return dict(load_file(path))
            # Read where it is looked at, and not all of it before; the format of before torch 1.6 cannot.
            is_zip = zipfile.is_zipfile(path)
            return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip))
    except ConfigError as error:
        if isinstance(error.__cause__, UnpicklingError):
            raise ConfigError(
                f"{path} holds more than plain tensors, and nothing else is unpickled; get the file again"
            ) from None
        raise


def require_vocabulary(tokenizer: Any, source: str, size: int, expected: int, more: int = 0) -> None:
    """Refuses a tokenizer that is another model's, or none.

    Args:
        size: the model's own; it has `more` tokens than its tokenizer.

    Raises:
        ConfigError: so it is.
    """
    if not len(tokenizer) == expected == size - more:
        due = f"{expected} and {expected + more}" if more else expected
        raise ConfigError(
            f"the tokenizer of '{source}' has {len(tokenizer)} tokens and the model {size}, where {due} are due; "
            "without its vocabulary files a tokenizer loads empty, without an error"
        )


def longer(tokenizer: Any, texts: Sequence[str], length: int) -> list[bool]:
    """Which texts have more than `length` tokens, start and end included: what is beyond is cut."""
    tokens = tokenizer(list(texts), truncation=True, max_length=length + 1)
    return [len(ids) > length for ids in tokens["input_ids"]]
