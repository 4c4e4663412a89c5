"""A CUDA device on a machine without one: shapes, dtypes and devices are right, numbers and kernels there are none.

    with fake_cuda() as device:
        model = load(target, "cuda")            # the real class, from files whose numbers need not be there
        scores = model.score(pictures, prompts)
    device.peak                                 # bytes alive at once, of tensors on the device

PyTorch's `FakeTensorMode` carries every tensor's device and dtype through every operation, so that SDXL's UNet runs
forward in two seconds in no memory, and a tensor left on the CPU raises what it raises on a GPU. It is silent on some
of what a GPU refuses, or a project should: mixed dtypes in products and norms, a generator of another device, arrays
of float64, `.numpy()` of a tensor on the device. Those are errors here. What depends on numbers is guessed (`_Faked`):
an `.item()` that is not known is 1, an integer 0, of a comparison `answer`, all of a mask is set. What follows from a
guess proves nothing; a test says where it relies on one.

What it does not see: numbers (NaN, overflow, what a mask picks), kernels that exist for some dtypes or shapes alone,
copies that a GPU makes unasked (cuDNN's workspaces, layouts), streams, other processes on the GPU, and NCCL.

Memory is that of eager PyTorch, operation by operation, as in `meta_run`; attention is one of the fused kernels.

Backward passes of "cuda" tensors are what does not work: PyTorch's engine, built for CUDA, asks the driver for a
stream. They run on "cpu", of fake tensors all the same; forward passes and optimizers run on both.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from recipes.meta_run import Counted

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd

DOUBLES = 4096
"""Elements of float64 that a tensor on the device may have by default: times and sums of a batch, no pictures."""

_ALIKE = frozenset(
    {
        "mm", "addmm", "bmm", "baddbmm", "matmul", "convolution", "native_layer_norm", "native_group_norm", "linear",
        "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    }
)  # fmt: skip
"""Operations whose CUDA kernels take floating tensors of one dtype."""

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@contextmanager
def fake_cuda(answer: bool = False, counted: str = "cuda", doubles: int = DOUBLES) -> Iterator[_Faked]:
    """Within it "cuda" is a device, and files of safetensors have shapes and no numbers.

    Modules load on the CPU and are moved by their own `.to`, as they are where there is a GPU: what `.to` does not move
    stays behind.

    Args:
        answer: what a comparison says that depends on numbers.
        counted: type of the devices whose bytes are counted.
        doubles: elements of float64 that a tensor on the device may have.
    """
    import diffusers.models.model_loading_utils as of_diffusers
    import transformers.modeling_utils as of_transformers

    with ExitStack() as stack:
        for place in (safetensors, safetensors.torch, of_transformers):
            stack.enter_context(mock.patch.object(place, "safe_open", _Header))
        stack.enter_context(
            mock.patch.dict(os.environ, {"HF_DEACTIVATE_ASYNC_LOAD": "1"})
        )  # modes are a thread's
        os.environ.pop(
            "PYTORCH_NVML_BASED_CUDA_CHECK", None
        )  # DeepSpeed's import sets it: the driver would be asked
        stack.enter_context(mock.patch.object(of_diffusers, "set_module_tensor_to_device", _set_tensor))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", _apply))
        # A mode of functions would be off within functions, a backward pass that computes blocks again among them.
        stack.enter_context(mock.patch.object(nn.functional, "scaled_dot_product_attention", _attention))
        stack.enter_context(mock.patch.object(FakeTensor, "numpy", _numpy, create=True))
        for name, found in {"init": None, "device_count": 1, "current_device": 0}.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, return_value=found))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(_Faked(answer, counted, doubles))


class _Faked(Counted):
    """What a GPU would refuse, guesses in place of numbers, and bytes alive on the device (`now`, `peak`)."""

    def __init__(self, answer: bool, counted: str, doubles: int) -> None:
        super().__init__(device=counted)
        self._doubles = doubles
        self._guesses: dict[str, Callable[..., Any]] = {
            "_local_scalar_dense": functools.partial(_scalar, answer),
            "equal": _equal,
            "nonzero": _nonzero,
            "index": _index,
            "split_with_sizes": _split,
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__
        if name in _ALIKE:
            _check_alike(name, args)
        # What inference mode hands over in one piece. Decompositions in Python are not what a GPU does: theirs of
        # nearest-neighbour upsampling goes by way of float32 and two copies.
        if func is not torch.ops.prim.device.default and _COMPOSITE not in func.py_kernels:
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        guess = self._guesses.get(name)
        made = guess(func, *args, **kwargs) if guess else func(*args, **kwargs)
        _check_made(name, made, kwargs, self._doubles)
        self.keep(made)
        return made


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _check_alike(name: str, args: Sequence[Any]) -> None:
    found = {tensor.dtype for tensor in _tensors(args) if tensor.is_floating_point()}
    if len(found) > 1:
        raise RuntimeError(f"{name} of tensors of {' and '.join(sorted(map(str, found)))}; one dtype is due")


def _check_made(name: str, made: Any, kwargs: Mapping[str, Any], doubles: int) -> None:
    tensors = list(_tensors(made if isinstance(made, (list, tuple)) else [made]))
    for tensor in tensors:
        if tensor.device.type == "cuda" and tensor.dtype == torch.float64 and tensor.numel() > doubles:
            raise RuntimeError(f"{name} makes float64{list(tensor.shape)} on the device")
    generator = kwargs.get("generator")
    if generator is not None and any(tensor.device.type != generator.device.type for tensor in tensors):
        raise RuntimeError(f"Expected a '{tensors[0].device.type}' device type for generator")


def _scalar(answer: bool, func: Any, tensor: Tensor) -> Any:
    """A number that a program asks for: what is not known is 1, of integers (places, in the main) 0, or `answer`."""
    try:
        return func(tensor)
    except DataDependentOutputException:
        return answer if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 0


def _equal(func: Any, one: Tensor, other: Tensor) -> bool:
    try:
        return bool(func(one, other))
    except DataDependentOutputException:
        return one.shape == other.shape


def _nonzero(func: Any, tensor: Tensor) -> Tensor:
    """All of them."""
    return tensor.new_empty((tensor.numel(), tensor.dim()), dtype=torch.int64)


def _index(func: Any, tensor: Tensor, places: Sequence[Tensor | None], *more: Any) -> Any:
    """By masks of which all is set."""
    found: list[Tensor | None] = []
    for place in places:
        if place is not None and place.dtype == torch.bool:
            found += _nonzero(None, place).unbind(1)
        else:
            found.append(place)
    return func(tensor, found, *more)


def _split(func: Any, tensor: Tensor, sizes: Sequence[int], dim: int = 0) -> Any:
    """Into equal parts where the sizes are numbers that are not known, and so 0."""
    if not any(sizes):
        part, rest = divmod(tensor.shape[dim], len(sizes))
        sizes = [part + rest] + [part] * (len(sizes) - 1)
    return func(tensor, sizes, dim)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention by the kernel that a GPU would take, which PyTorch asks of the driver: flash, or memory-efficient."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    _check_alike("scaled_dot_product_attention", (query, key, value))
    leading = query.shape[:-2]
    width, aligned = query.shape[-1], 8 if query.dtype != torch.float32 else 4
    query, key, value = (
        nn.functional.pad(x, (0, -x.shape[-1] % aligned)).reshape(-1, *([1] * (4 - x.dim())), *x.shape[-3:])
        for x in (query, key, value)
    )
    ops = torch.ops.aten
    if attn_mask is None and query.dtype != torch.float32 and width <= 256:
        made = ops._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[
            0
        ]
    else:
        bias = _bias(attn_mask, query, key)
        made = ops._scaled_dot_product_efficient_attention(
            query, key, value, bias, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
        )[0]
    found: Tensor = made[..., :width].reshape(*leading, *made.shape[-2:-1], width)
    return found


def _bias(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """A mask as the efficient kernel takes it: added, of the queries' dtype, seen by every head."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(~mask, -torch.inf)
    elif mask.dtype != query.dtype:
        raise RuntimeError(f"Expected attn_mask of bool or of the query's {query.dtype}, got {mask.dtype}")
    return mask.expand(*query.shape[:2], query.shape[-2], key.shape[-2])


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which cannot change a fake tensor's device in its place."""
    for child in self.children() if recurse else ():
        child._apply(fn)
    for parameter in self._parameters.values():
        if parameter is not None:
            with torch.no_grad():
                moved: Any = fn(parameter)
            place: Any = parameter
            place.data = moved
            place.fake_device = moved.fake_device
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


def _set_tensor(
    module: nn.Module, name: str, device: Any, value: Tensor, dtype: torch.dtype | None = None, **more: Any
) -> None:
    """accelerate's `set_module_tensor_to_device`, which asks a parameter's class for another, and gets FakeTensor."""
    parent, _, own = name.rpartition(".")
    owner: Any = module.get_submodule(parent)
    moved = value.to(device, dtype)
    if own in owner._buffers:
        owner._buffers[own] = moved
    else:
        owner._parameters[own] = nn.Parameter(moved, requires_grad=owner._parameters[own].requires_grad)


def _numpy(tensor: Tensor, *, force: bool = False) -> np.ndarray:
    """Zeros in place of the numbers, and torch's own refusals."""
    if force:
        tensor = tensor.detach().cpu()
    if tensor.device.type != "cpu":
        raise TypeError(
            f"can't convert {tensor.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            "memory first."
        )
    if tensor.requires_grad:
        raise RuntimeError(
            "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead."
        )
    if tensor.dtype == torch.bfloat16:
        raise TypeError("Got unsupported ScalarType BFloat16")
    return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


class _Header:
    """`safetensors.safe_open` of a file whose header is all that is read."""

    def __init__(self, path: Any, framework: str = "pt", device: Any = "cpu", **more: Any) -> None:
        self._device = str(device)
        with Path(path).open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            self._tensors: dict[str, Any] = json.loads(stream.read(length))
        self._metadata = self._tensors.pop("__metadata__", {})

    def __enter__(self) -> _Header:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def keys(self) -> list[str]:
        return list(self._tensors)

    def metadata(self) -> dict[str, str]:
        return dict(self._metadata)

    def get_tensor(self, name: str) -> Tensor:
        entry = self._tensors[name]
        return torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device=self._device)

    def get_tensors(self) -> dict[str, Tensor]:
        return {name: self.get_tensor(name) for name in self._tensors}

    def get_slice(self, name: str) -> _Slice:
        return _Slice(self, name, self._tensors[name])


class _Slice:
    """One tensor of it, for who reads parts."""

    def __init__(self, header: _Header, name: str, entry: Mapping[str, Any]) -> None:
        self._header, self._name, self._entry = header, name, entry

    def get_shape(self) -> list[int]:
        return list(self._entry["shape"])

    def get_dtype(self) -> str:
        return str(self._entry["dtype"])

    def __getitem__(self, part: Any) -> Tensor:
        return self._header.get_tensor(self._name)[part]
