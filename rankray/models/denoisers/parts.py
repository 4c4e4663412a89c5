"""What all trainable families share: loading the parts of a pipeline, encoding pictures, LoRA, export.

Encoders and denoiser load apart, so an encoding actor holds no denoiser and a trainer no encoder: of SDXL's 3.5 billion
parameters a trainer holds 2.6.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from rankray import diffusion
from rankray.models.denoisers import DENOISERS, DenoiserSpec, family
from rankray.models.generators import GeneratorSpec
from rankray.models.loading import strictly
from rankray.models.targets import locate
from rankray.models.weight_files import of_variant

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def row_of(spec: GeneratorSpec) -> DenoiserSpec:
    """The DENOISERS row of a generator's row."""
    return DENOISERS[family(spec)]


def module_of(spec: GeneratorSpec) -> Any:
    """The family's file, with `encode_prompts` and `predict`."""
    return importlib.import_module(row_of(spec).module)


def _hub(spec: GeneratorSpec) -> tuple[str, dict[str, Any]]:
    place = locate(spec.source)
    local = place != spec.source
    where = {} if local else {"revision": spec.revision}
    return place, {**where, "local_files_only": local}


def load_denoiser(spec: GeneratorSpec, device: str, dtype: torch.dtype) -> nn.Module:
    """The part that is trained, with the weights of `spec`."""
    place, where = _hub(spec)
    row = row_of(spec)
    with strictly(spec.source, spec.revision):
        found: nn.Module = _denoiser_class(spec).from_pretrained(
            place,
            subfolder=row.denoiser,
            torch_dtype=dtype,
            use_safetensors=True,
            variant=spec.variant,
            **where,
        )
    return found.to(device)


def cast(module: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """The module, moved and cast; diffusers' own `to` warns whenever it is given a dtype."""
    return nn.Module.to(module, device=device, dtype=dtype)


def _denoiser_class(spec: GeneratorSpec) -> Any:
    place, where = _hub(spec)
    name = diffusers.DiffusionPipeline.load_config(place, **where)[row_of(spec).denoiser][1]
    return getattr(diffusers, name)


def denoiser_skeleton(spec: GeneratorSpec) -> nn.Module:
    """The denoiser on the meta device: every shape, no memory."""
    place, where = _hub(spec)
    cls = _denoiser_class(spec)
    config = cls.load_config(place, subfolder=row_of(spec).denoiser, **where)
    with torch.device("meta"):
        found: nn.Module = cls.from_config(config)
    return found


def load_encoders(spec: GeneratorSpec, device: str, dtype: torch.dtype) -> Any:
    """The pipeline with its text encoders and autoencoder on `device` and its denoiser on the meta device.

    The autoencoder is in float32 whatever `dtype` says: SDXL's overflows in half precision. It is loaded so: cast up
    from bfloat16, its latents would be off by 1 %.
    """
    place, where = _hub(spec)
    parts = {row_of(spec).denoiser: denoiser_skeleton(spec)}
    with strictly(spec.source, spec.revision):
        pipe = getattr(diffusers, spec.pipeline).from_pretrained(
            place,
            dtype={"default": dtype, "vae": torch.float32},
            use_safetensors=True,
            variant=spec.variant,
            **where,
            **spec.load,
            **parts,
        )
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and name != row_of(spec).denoiser:
            part.requires_grad_(False).eval().to(device)
    return pipe


def load_process(spec: GeneratorSpec) -> diffusion.Process:
    """The forward process that the pipeline's scheduler describes."""
    place, where = _hub(spec)
    name = diffusers.DiffusionPipeline.load_config(place, **where)["scheduler"][1]
    config = getattr(diffusers, name).load_config(place, subfolder="scheduler", **where)
    return diffusion.process({"_class_name": name, **config})


def time_sampling(
    spec: GeneratorSpec, distribution: str | None, mean: float, std: float
) -> diffusion.TimeSampling:
    """How times are drawn: as given, or as the family was trained: logit-normal with the scheduler's shift for flow
    (SD3 paper, section 5.3.2), uniform for the others."""
    if not load_process(spec).is_flow:
        return diffusion.TimeSampling(distribution or "uniform", mean, std)
    place, where = _hub(spec)
    config = diffusers.FlowMatchEulerDiscreteScheduler.load_config(place, subfolder="scheduler", **where)
    return diffusion.TimeSampling(distribution or "logit_normal", mean, std, float(config.get("shift", 1.0)))


@torch.no_grad()
def encode_images(pipe: Any, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the autoencoder's posterior, scaled as the denoiser takes them: float32[B, C, H, W]."""
    vae = pipe.vae
    pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    pixels = pixels.permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1.0
    posterior = vae.encode(pixels).latent_dist
    scale, shift = _latent_scale(vae, posterior.mean)
    return (posterior.mean - shift) * scale, posterior.std * scale


def _latent_scale(vae: Any, like: Tensor) -> tuple[Any, Any]:
    """(scale, shift) by which the denoiser's latents are (latents - shift) * scale."""
    config = vae.config
    scale = float(config.scaling_factor)
    if getattr(config, "latents_mean", None) is not None and getattr(config, "latents_std", None) is not None:
        mean = torch.tensor(config.latents_mean, device=like.device, dtype=like.dtype)[None, :, None, None]
        std = torch.tensor(config.latents_std, device=like.device, dtype=like.dtype)[None, :, None, None]
        return scale / std, mean
    return scale, float(getattr(config, "shift_factor", None) or 0.0)


def add_lora(denoiser: nn.Module, spec: GeneratorSpec, rank: int, alpha: int) -> None:
    """Freezes the denoiser and gives its attention layers adapters, which start as no change.

    By peft itself: diffusers' own mixin is missing from some of its transformers (PixArt's in 0.42).
    """
    from peft import LoraConfig, inject_adapter_in_model

    denoiser.requires_grad_(False)
    targets = list(row_of(spec).lora_targets)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), denoiser)


def enable_lora(denoiser: nn.Module, enabled: bool) -> None:
    """Switches all adapters on or off: off, the denoiser is what it was before training."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in denoiser.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.enable_adapters(enabled)


def merge_lora(denoiser: nn.Module) -> None:
    """Adds the adapters' change to the layers that they sit on, and removes them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {name: layer for name, layer in denoiser.named_modules() if isinstance(layer, BaseTunerLayer)}
    for name, layer in adapted.items():
        parent, _, own = name.rpartition(".")
        layer.merge()
        denoiser.get_submodule(parent).register_module(own, layer.get_base_layer())


def export(
    spec: GeneratorSpec, denoiser: nn.Module, directory: Path, dtype: torch.dtype | None = None
) -> None:
    """Saves the whole pipeline around a trained denoiser, as `save_pretrained` does, every part in the dtype of its
    published weights; the denoiser in `dtype` where that is given."""
    place = locate(spec.source)
    if not Path(place).is_dir():
        place = diffusers.DiffusionPipeline.download(
            place, use_safetensors=True, variant=spec.variant, revision=spec.revision
        )
    own, name = _published_dtypes(Path(place), spec.variant), row_of(spec).denoiser
    parts: Mapping[str, Any] = {name: cast(denoiser, "cpu", dtype or own[name])}
    with strictly(spec.source, spec.revision):
        pipe = getattr(diffusers, spec.pipeline).from_pretrained(
            place,
            dtype={"default": torch.float32, **own},
            use_safetensors=True,
            variant=spec.variant,
            local_files_only=True,
            **spec.load,
            **parts,
        )
    pipe.save_pretrained(directory, safe_serialization=True)
    for config in (Path(place) / part / "config.json" for part in own.keys() - parts.keys()):
        # As published: transformers would write the weights' dtype into it, and then load them so unasked.
        shutil.copyfile(config, directory / config.parent.name / "config.json")


def _published_dtypes(place: Path, variant: str | None) -> dict[str, torch.dtype]:
    """Part -> the least dtype that holds all floats of its safetensors files, from their headers."""
    found: dict[str, torch.dtype] = {}
    for file in place.glob("*/*.safetensors"):
        if not of_variant(file, variant):
            continue
        with safe_open(file, "pt") as stream:
            kinds = {stream.get_slice(key).get_dtype() for key in stream.keys()}  # noqa: SIM118
        for dtype in (_FLOATS[kind] for kind in kinds if kind in _FLOATS):
            found[file.parent.name] = torch.promote_types(found.get(file.parent.name, dtype), dtype)
    return found
