"""GPU types that jobs are planned for, as one table: what they hold, how fast they are, what they cost.

Memory and peak rates are of NVIDIA's data sheets, dense. What share of the peak a model reaches, and what an hour
costs, are assumptions that differ between clusters by a factor of two and more: each stands here with its source, a
plan prints them, and what a finished job measured replaces the first (`--measured`), `prices.gpu_usd_per_hour` the
second.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rankray.config import ConfigError, nearest

USABLE = 0.95
"""Of a GPU's memory as it is sold: CUDA gives from 98 % of it (an L4, a T4) to 106 % (an A100), and plans err."""


@dataclass(frozen=True)
class GpuType:
    """One type of GPU.

    Attributes:
        name: as `--gpu-type` takes it.
        memory_gb: in 1e9 bytes, as it is sold.
        half_tflops: dense float16 and bfloat16, TFLOP/s.
        tf32_tflops: what float32 convolutions run at in PyTorch's defaults.
        float32_tflops: what float32 matrix products run at in PyTorch's defaults.
        bfloat16: whether it computes in bfloat16.
        reached: share of the peak that a diffusion model in eager PyTorch reaches.
        reached_by: where that share is from.
        usd_per_hour: rent of one.
    """

    name: str
    memory_gb: float
    half_tflops: float
    tf32_tflops: float
    float32_tflops: float
    bfloat16: bool
    reached: float
    reached_by: str
    usd_per_hour: float

    @property
    def usable_gb(self) -> float:
        """What a plan may fill."""
        return USABLE * self.memory_gb

    def flops_per_s(self, rate: str) -> float:
        """What is reached of the peak at "half", "tf32" or "float32"."""
        peaks = {"half": self.half_tflops, "tf32": self.tf32_tflops, "float32": self.float32_tflops}
        return peaks[rate] * 1e12 * self.reached


_SDXL_A100 = "SDXL, 30 steps in 3.3 s on an A100 (diffusers, bfloat16, SDPA)"
_SDXL_H100 = "between SDXL, 30 steps in 2.5 s (diffusers) and 1.5 s (TensorRT) on an H100"
_SDXL_A10 = "SDXL, 30 steps in 9.4 s on an A10, the nearest that was measured"

GPU_TYPES: dict[str, GpuType] = {
    gpu.name: gpu
    for gpu in (
        GpuType("A100-40", 40, 312, 156, 19.5, True, 0.40, _SDXL_A100, 2.10),
        GpuType("A100-80", 80, 312, 156, 19.5, True, 0.40, _SDXL_A100, 2.50),
        GpuType("H100", 80, 989, 494, 67, True, 0.22, _SDXL_H100, 3.95),
        GpuType("H200", 141, 989, 494, 67, True, 0.22, _SDXL_H100, 4.54),
        GpuType("L40S", 48, 362, 183, 91.6, True, 0.35, _SDXL_A10, 1.95),
        GpuType("L4", 24, 121, 60, 30.3, True, 0.35, _SDXL_A10, 0.80),
        GpuType("T4", 16, 65, 8.1, 8.1, False, 0.35, _SDXL_A10, 0.59),
    )
}
PRICES_BY = "Modal's list, on demand, May 2026; others rent the same GPU at 40 % to 200 % of it"

CONTEXT_GB = 0.7
"""What CUDA, cuDNN and cuBLAS take of a GPU before the first tensor."""

WORKSPACE = 1.25
"""Activations with workspaces and fragments, over activations alone. With both of these SDXL, one picture in bfloat16,
is planned at 9.65 GB; published are 9.62 GB allocated at the peak, without the context."""

ENCODE_S = {"png": 0.078, "webp": 0.430, "jpeg": 0.003}
DECODE_S = 0.033
"""Seconds of one CPU core to write a picture of 1024 x 1024, and to read a PNG of it, measured on an AMD EPYC; beside
the GPU's work. The other formats are taken to be read as a PNG is."""

PICTURE_BYTES = {"png": 1.9e6, "webp": 1.4e6, "jpeg": 0.46e6}
"""Of a picture of 1024 x 1024 as it is stored, measured on natural-looking ones."""

PAPER_A100_DAYS, PAPER_USD, PAPER_USD_GENERATION = 10.0, 205.60, 185.60
"""Syn-Pic of the paper: 58,000 prompts, four pictures each, with labels (Table 8; labels are "less than $20")."""


def gpu_type(name: str) -> GpuType:
    """The type called so; case does not matter.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    found = {key.lower(): gpu for key, gpu in GPU_TYPES.items()}.get(name.lower())
    if found is None:
        raise ConfigError(
            f"unknown GPU type '{name}'{nearest(name, GPU_TYPES)}; known: {', '.join(GPU_TYPES)}"
        )
    return found


def by_device(name: str, memory_gb: float | None = None, unsure: Callable[..., Any] = max) -> GpuType | None:
    """The type of a device, None where it is none of the table.

    Args:
        name: as CUDA ("NVIDIA A100-SXM4-80GB") or Ray ("A100", "A100-80G") has it.
        memory_gb: of the device. Where a name fits two types and neither it nor this says which, the larger is taken,
            so that what is refused for want of memory truly has none; with `unsure=min` the smaller.
    """
    words = set(re.split(r"[\s\-_]+", name.upper()))
    said = re.search(r"(\d+)\s?GB?\b", name, re.IGNORECASE)
    if memory_gb is None and said:
        memory_gb = float(said[1])
    same = [gpu for gpu in GPU_TYPES.values() if gpu.name.split("-")[0] in words]
    if memory_gb is None:
        found: GpuType | None = unsure(same, key=lambda gpu: gpu.memory_gb, default=None)
        return found
    return min(same, key=lambda gpu: abs(gpu.memory_gb - memory_gb), default=None)


def by_resources(resources: Iterable[str], unsure: Callable[..., Any] = max) -> GpuType | None:
    """The type of a node's GPUs, by the resource with which Ray names them; None where it does not, or names two."""
    names = [name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")]
    return by_device(names[0], unsure=unsure) if len(names) == 1 else None


def require_device(device: str) -> None:
    """Refuses a device that is not there: asked where a model is loaded, before its weights are read.

    Args:
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: a CUDA device is asked for, and torch finds none, or not so many.
    """
    if not device.startswith("cuda"):
        return
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(no_cuda(str(error), os.environ.get("CUDA_VISIBLE_DEVICES"))) from None
    count = torch.cuda.device_count()
    if int(device.partition(":")[2] or 0) >= count:
        raise ConfigError(
            f"'{device}' was asked for, and this process sees {count} GPU(s): they count from cuda:0"
        )


def no_cuda(said: str, visible: str | None) -> str:
    """Why there is no CUDA device, and what to do, in one line.

    Args:
        said: what torch raised.
        visible: the variable CUDA_VISIBLE_DEVICES, None where it is not set.
    """
    import torch

    rehearse = "to rehearse on a machine without a GPU, set rehearse = true"
    old = re.search(r"too old \(found version (\d+)\)", said)
    if old:
        version = int(old[1])
        return (
            f"the NVIDIA driver here is too old for torch {torch.__version__}: it knows CUDA {version // 1000}."
            f"{version % 1000 // 10}, torch was built for {torch.version.cuda}; update the driver, or install a torch "
            "built for it"
        )
    if "not compiled with CUDA" in said:
        return (
            f"a GPU was asked for, and torch {torch.__version__} was built without CUDA; install one with it, or "
            f"{rehearse}"
        )
    if visible is not None and not visible.strip():
        return (
            "a GPU was asked for, and CUDA_VISIBLE_DEVICES is empty here, which hides all of them; unset it, or give "
            f"the pool a GPU (pool.num_gpus), as Ray then sets it; {rehearse}"
        )
    hidden = "" if visible is None else f", CUDA_VISIBLE_DEVICES = '{visible}'"
    first = said.strip().splitlines()[0].split(". ")[0] if said.strip() else "torch finds none"
    return f"a GPU was asked for, and there is none here ({first}{hidden}); {rehearse}"
