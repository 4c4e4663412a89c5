"""The published MPS checkpoint, a pickled module, as safetensors: what `rankray convert-mps` does, once.

The pickle is never loaded. It is read by an unpickler that knows no code: tensors, dictionaries and sets are what they
are, a class or function of any other package becomes an inert stand-in that only keeps what it was given, and a name of
the standard library (`os.system`) ends the reading. What cannot be separated from its package's code is lost, which is
all but the tensors and a few numbers of the configuration; those are held against our own architecture key by key.
The whole file is held in memory: 2.2 GB of the published one in half precision.
"""

from __future__ import annotations

import collections
import errno
import hashlib
import json
import pickle
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankray.config import ConfigError
from rankray.models.rewards.mps import MpsConfig, MpsModel
from rankray.models.weights import update_by
from rankray.words import first_line

_PLAIN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    **{(module, "set"): set for module in ("builtins", "__builtin__")},
    **{(module, "frozenset"): frozenset for module in ("builtins", "__builtin__")},
}
"""Names of the standard library that a module's pickle needs; none of them can run anything."""

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}

_BROKEN = (
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    MemoryError,
    OverflowError,
)
"""What reading a damaged pickle raises."""

_CLIP_SIZES = {
    "text_config": (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "hidden_act", "layer_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id",
    ),
    "vision_config": (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size",
        "patch_size", "hidden_act", "layer_norm_eps",
    ),
}  # fmt: skip

_CROSS = {
    "norm.weight": "norm.weight",
    "to_q.weight": "query.weight",
    "to_kv.weight": "key_value.weight",
    "to_out.weight": "out.weight",
    "ff.0.weight": "feed_forward.w_in.weight",
    "ff.2.weight": "feed_forward.w_out.weight",
}
_ITSELF = {
    "norm.weight": "norm.weight",
    "attn_out.weight": "out.weight",
    "ff_out.1.weight": "feed_forward.w_out.weight",
}
_FUSED = "fused_attn_ff_proj.weight"
"""Rows of query, key, value and feed-forward, in this order."""


class Inert:
    """Stands where the pickle has an object of a class that is not there: keeps what it is given, does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Items of a dictionary's subclass: nothing that is looked for is among them."""

    def append(self, value: Any) -> None:
        """Items of a list's subclass, likewise."""


class _Reader(pickle.Unpickler):
    """Reads `data.pkl` of a torch archive without any code but its own."""

    def __init__(self, archive: zipfile.ZipFile, root: str, path: Path) -> None:
        super().__init__(archive.open(f"{root}data.pkl"))
        self._archive, self._root, self._path = archive, root, path
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")):
            return _strided if name == "_rebuild_tensor_v2" else _parameter
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        package = module.partition(".")[0]
        if package in sys.stdlib_module_names or package == "__builtin__":
            raise ConfigError(
                f"{self._path} asks for {module}.{name}, which no model needs: it may be made to run code; nothing "
                "in it was run. Get the file from its authors again"
            )
        return type(name.rpartition(".")[2], (Inert,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ConfigError(f"{self._path} holds a {kind!r} of {dtype}, and tensors alone are read")
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if self._storages[key].numel() != count:
            raise ConfigError(
                f"{self._path} is cut short: {count} numbers are due in data/{key}; get it again"
            )
        return self._storages[key]


def _strided(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def read_pickled_module(path: Path) -> Any:
    """The object in a file that `torch.save(module)` wrote, classes as `Inert`, tensors as they are.

    Raises:
        ConfigError: it is no torch archive, is cut short, or names something that could run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            roots = [
                name for name in archive.namelist() if name.endswith("data.pkl") and name.count("/") <= 1
            ]
            if not roots:
                raise ConfigError(f"{path} is no checkpoint of torch: it holds no data.pkl")
            root = roots[0].removesuffix("data.pkl")
            if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
                raise ConfigError(f"{path} was written on a big-endian machine; write it on another")
            return _Reader(archive, root, path).load()
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}; name the published MPS_overall_checkpoint.pth") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory; name the published MPS_overall_checkpoint.pth") from None
    except ConfigError:
        raise
    except (*_BROKEN, pickle.UnpicklingError, zipfile.BadZipFile, OSError) as error:
        if (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        ):  # it names a part before the file's begin
            raise
        raise ConfigError(
            f"{path} is no whole checkpoint of torch ({first_line(error)}); get it again"
        ) from None


def tensors(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every parameter and kept buffer of a module that was read as `Inert`, as in its state dict."""
    state = module.state if isinstance(module, Inert) and isinstance(module.state, dict) else {}
    dropped = state.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        for name, value in state.get(kind, {}).items():
            if isinstance(value, Tensor) and name not in dropped:
                yield f"{prefix}{name}", value
    for name, child in state.get("_modules", {}).items():
        yield from tensors(child, f"{prefix}{name}.")


def renamed(weights: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], MpsConfig]:
    """The published names as `MpsModel`'s, and the sizes of the fusion that they show.

    Raises:
        ConfigError: a tensor is of no part of MPS, or one is missing.
    """
    found: dict[str, Tensor] = {}
    fused: dict[str, Tensor] = {}
    for key, value in weights.items():
        part, _, rest = key.partition(".")
        if part == "model" and rest.endswith("position_ids"):
            continue  # 0, 1, 2, ...: later versions of transformers do not keep them
        if part == "model":
            found[f"clip.{rest}"] = value
            continue
        words = key.split(".")  # cross_model.layers.N.(0 cross | 1 itself).fn.NAME
        place, name = words[:5], ".".join(words[5:])
        if place[:2] != ["cross_model", "layers"] or place[3:] not in (["0", "fn"], ["1", "fn"]):
            raise ConfigError(f"{source} holds '{key}', which is no part of MPS")
        own = f"fusion.{place[2]}.{'cross' if place[3] == '0' else 'itself'}"
        if _constant(key, name, value, source):
            continue
        names = _CROSS if place[3] == "0" else _ITSELF
        if place[3] == "1" and name == _FUSED:
            fused[own] = value
        elif name in names:
            found[f"{own}.{names[name]}"] = value
        else:
            raise ConfigError(f"{source} holds '{key}', which is no part of MPS")
    config = _sizes(found, source)
    for own, value in fused.items():
        inner = config.heads * config.head_width
        found[f"{own}.query.weight"] = value[:inner]
        found[f"{own}.key_value.weight"] = value[inner : inner + 2 * config.head_width]
        found[f"{own}.feed_forward.w_in.weight"] = value[inner + 2 * config.head_width :]
    return found, config


def _constant(key: str, name: str, value: Tensor, source: str) -> bool:
    """Whether it is a buffer that every MPS has alike.

    Raises:
        ConfigError: it is one, and not what our implementation takes it to be.
    """
    if name == "norm.bias":
        due = torch.zeros_like(value)
    elif name == "rotary_emb.inv_freq":
        width = 2 * value.numel()
        due = (10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)).to(value.dtype)
    else:
        return False
    if not torch.allclose(value.float(), due.float(), rtol=2e-3):
        raise ConfigError(f"{source}: '{key}' is not what MPS has there, so scores would differ")
    return True


def _sizes(found: Mapping[str, Tensor], source: str) -> MpsConfig:
    layers = {int(key.split(".")[1]) for key in found if key.startswith("fusion.")}
    try:
        query, pair = (found[f"fusion.0.cross.{name}.weight"] for name in ("query", "key_value"))
        inner = found["fusion.0.cross.feed_forward.w_out.weight"]
    except KeyError as error:
        raise ConfigError(f"{source} is no MPS checkpoint: it has no {error}") from None
    width = pair.shape[0] // 2
    return MpsConfig(
        layers=len(layers),
        heads=query.shape[0] // width,
        head_width=width,
        feed_forward=inner.shape[1] // inner.shape[0],
    )


def clip_config(module: Any, source: str) -> Any:
    """The `CLIPConfig` that the pickled CLIP was built by.

    Raises:
        ConfigError: it is not there.
    """
    from transformers import CLIPConfig

    config = _fields(_fields(_fields(module).get("_modules", {}).get("model")).get("config"))
    parts = {name: _fields(config.get(name)) for name in _CLIP_SIZES}
    if not all(parts.values()) or "projection_dim" not in config:
        raise ConfigError(f"{source} is no MPS checkpoint: it has no CLIP with its configuration")
    sizes = {
        name: {key: parts[name][key] for key in keys if key in parts[name]}
        for name, keys in _CLIP_SIZES.items()
    }
    return CLIPConfig(**sizes, projection_dim=config["projection_dim"])


def _fields(value: Any) -> dict[str, Any]:
    state = value.state if isinstance(value, Inert) else value
    return state if isinstance(state, dict) else {}


def convert(path: str | Path, output: str | Path) -> str:
    """Writes `config.json` and `model.safetensors` of the pickled module at `path`; the SHA-256 of that file.

    Raises:
        ConfigError: the file is no MPS checkpoint, a tensor is missing, strange or of another shape, or the output is
            there already.
    """
    source, place = Path(path).expanduser(), Path(output).expanduser()
    if place.exists() and any(place.iterdir()):
        raise ConfigError(f"{place} is not empty; name another directory, or remove it")
    module = read_pickled_module(source)
    weights, sizes = renamed(dict(tensors(module)), str(source))
    with torch.device("meta"):
        model = MpsModel(clip_config(module, str(source)), sizes)
    model.fill(weights, f"{source} does not fit the published MPS")
    digest = update_by(hashlib.sha256(), source).hexdigest()
    passing = place.with_name(f"{place.name}.converting")
    shutil.rmtree(passing, ignore_errors=True)
    model.save(passing)
    content = json.loads((passing / "config.json").read_text())
    content["converted_from"] = {"file": source.name, "sha256": digest}
    (passing / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    if place.exists():
        place.rmdir()
    passing.rename(place)
    return digest
