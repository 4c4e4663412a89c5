"""What all trainable families share: loading the parts of a pipeline, encoding pictures, LoRA, export.

Encoders and denoiser load apart, so an encoding actor holds no denoiser and a trainer no encoder: of SDXL's 3.5 billion
parameters a trainer holds 2.6.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rankray import diffusion
from rankray.models.denoisers import DENOISERS, DenoiserSpec, family, is_flow
from rankray.models.generators import GeneratorSpec
from rankray.models.loading import strictly, where
from rankray.models.weights import locate, of_variant

_SCHEDULE = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def row_of(spec: GeneratorSpec) -> DenoiserSpec:
    """The DENOISERS row of a generator's row."""
    return DENOISERS[family(spec)]


def module_of(spec: GeneratorSpec) -> Any:
    """The family's file, with `encode_prompts` and `predict`."""
    return importlib.import_module(row_of(spec).module)


def load_denoiser(spec: GeneratorSpec, device: str, dtype: torch.dtype) -> nn.Module:
    """The part that is trained, with the weights of `spec`."""
    place, settings = where(spec.source, spec.revision)
    with strictly(spec.source, spec.revision):
        denoiser: nn.Module = _class_of(spec, row_of(spec).denoiser).from_pretrained(
            place,
            subfolder=row_of(spec).denoiser,
            torch_dtype=dtype,
            use_safetensors=True,
            variant=spec.variant,
            **settings,
        )
    return denoiser.to(device)


def cast(module: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """The module, moved and cast; diffusers' own `to` warns whenever it is given a dtype."""
    return nn.Module.to(module, device=device, dtype=dtype)


def _class_of(spec: GeneratorSpec, part: str) -> Any:
    """diffusers' class of a part of the pipeline."""
    place, settings = where(spec.source, spec.revision)
    return getattr(diffusers, diffusers.DiffusionPipeline.load_config(place, **settings)[part][1])


def _config_of(spec: GeneratorSpec, part: str) -> dict[str, Any]:
    place, settings = where(spec.source, spec.revision)
    config: dict[str, Any] = _class_of(spec, part).load_config(place, subfolder=part, **settings)
    return config


def denoiser_skeleton(spec: GeneratorSpec) -> nn.Module:
    """The denoiser on the meta device: every shape, no memory."""
    part = row_of(spec).denoiser
    config = _config_of(spec, part)
    with torch.device("meta"):
        denoiser: nn.Module = _class_of(spec, part).from_config(config)
    return denoiser


def load_encoders(spec: GeneratorSpec, device: str, dtype: torch.dtype) -> Any:
    """The pipeline with its text encoders and autoencoder on `device` and its denoiser on the meta device.

    The autoencoder is in float32 whatever `dtype` says: SDXL's overflows in half precision. It is loaded so: cast up
    from bfloat16, its latents would be off by 1 %.
    """
    place, settings = where(spec.source, spec.revision)
    parts = {row_of(spec).denoiser: denoiser_skeleton(spec)}
    with strictly(spec.source, spec.revision):
        pipe = getattr(diffusers, spec.pipeline).from_pretrained(
            place,
            dtype={"default": dtype, "vae": torch.float32},
            use_safetensors=True,
            variant=spec.variant,
            **settings,
            **spec.load,
            **parts,
        )
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and name != row_of(spec).denoiser:
            part.requires_grad_(False).eval().to(device)
    return pipe


def load_process(spec: GeneratorSpec) -> diffusion.Process:
    """The forward process that the pipeline's scheduler describes.

    Raises:
        ValueError: a process, noise schedule or prediction type that is not known here.
    """
    return process_of(_class_of(spec, "scheduler").__name__, _config_of(spec, "scheduler"))


def process_of(scheduler: str, config: Mapping[str, Any]) -> diffusion.Process:
    """The forward process of a scheduler's class name and configuration, its squared signal by diffusers' own DDPM.

    Not by the class itself: under a zero terminal SNR those that sample by sigmas put 2^-24 in the place of its last
    value, which a model that is trained to the end must see as zero.

    Raises:
        ValueError: as `load_process`.
    """
    prediction, times = config.get("prediction_type", "epsilon"), int(config.get("num_train_timesteps", 1000))
    if is_flow(scheduler, config):
        return diffusion.Process("flow", torch.empty(0), times)
    if prediction not in diffusion.PREDICTIONS:
        raise ValueError(f"prediction_type {prediction!r}; allowed: {', '.join(diffusion.PREDICTIONS)}")
    schedule = {key: config[key] for key in _SCHEDULE if key in config}
    try:
        forward = diffusers.DDPMScheduler(num_train_timesteps=times, **schedule)
    except NotImplementedError:
        raise ValueError(
            f"beta_schedule {schedule['beta_schedule']!r}; diffusers' DDPMScheduler has none"
        ) from None
    return diffusion.Process(prediction, forward.alphas_cumprod, times)


def time_sampling(
    spec: GeneratorSpec, distribution: str | None, mean: float, std: float
) -> diffusion.TimeSampling:
    """How times are drawn: as given, or as the family was trained: logit-normal with the scheduler's shift for flow
    (SD3 paper, section 5.3.2), uniform for the others."""
    if not load_process(spec).is_flow:
        return diffusion.TimeSampling(distribution or "uniform", mean, std)
    shift = float(_config_of(spec, "scheduler").get("shift", 1.0))
    return diffusion.TimeSampling(distribution or "logit_normal", mean, std, shift)


@torch.no_grad()
def encode_images(pipe: Any, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the autoencoder's posterior, scaled as the denoiser takes them: float32[B, C, H, W]."""
    vae = pipe.vae
    pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    pixels = pixels.permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1.0
    posterior = vae.encode(pixels).latent_dist
    scale, shift = _latent_scale(vae, posterior.mean)
    return (posterior.mean - shift) * scale, posterior.std * scale


@torch.no_grad()
def reconstructed(pipe: Any, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures as the autoencoder gives them back, by the mean of its posterior: whoever drew them, one decoder did."""
    mean, _ = encode_images(pipe, images)
    scale, shift = _latent_scale(pipe.vae, mean)
    found: list[Image.Image] = pipe.image_processor.postprocess(pipe.vae.decode(mean / scale + shift).sample)
    return found


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


def export_lora(
    spec: GeneratorSpec, denoiser: Any, directory: Path, dtype: torch.dtype | None = None
) -> None:
    """Saves adapters by themselves, before they are merged, in `dtype` or that of the published denoiser.

        pytorch_lora_weights.safetensors         what `pipe.load_lora_weights(directory)` reads; rank, alpha and targets
                                                 are in its metadata, which others (ComfyUI) do not read
        pytorch_lora_weights_kohya.safetensors   of a UNet: kohya's names, alpha beside each layer
        adapter_model.safetensors, adapter_config.json   of a pipeline without loader: peft's own

    By diffusers' and peft's own writers.
    """
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
    from peft import get_peft_model_state_dict

    row, config = row_of(spec), denoiser.peft_config["default"]
    dtype = dtype or _published_dtypes(_published(spec), spec.variant)[row.denoiser]
    learnt = get_peft_model_state_dict(denoiser)
    weights = {name: value.detach().to("cpu", dtype).contiguous() for name, value in learnt.items()}
    directory.mkdir(parents=True, exist_ok=True)
    if row.lora_form == "peft":
        named = {f"base_model.model.{name}": value for name, value in weights.items()}
        save_file(named, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(directory)
        return
    about = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": sorted(config.target_modules)}
    layers = {f"{row.denoiser}_lora_layers": weights, f"{row.denoiser}_lora_adapter_metadata": about}
    getattr(diffusers, spec.pipeline).save_lora_weights(directory, **layers)
    if row.lora_form == "kohya":
        named = convert_state_dict_to_kohya(
            {f"{row.denoiser}.{key}": value for key, value in weights.items()}
        )
        # The converter takes alpha for the rank.
        alphas = {name: torch.tensor(float(config.lora_alpha)) for name in named if name.endswith(".alpha")}
        save_file({**named, **alphas}, directory / "pytorch_lora_weights_kohya.safetensors")


def export(
    spec: GeneratorSpec, denoiser: nn.Module, directory: Path, dtype: torch.dtype | None = None
) -> None:
    """Saves the whole pipeline around a trained denoiser, as `save_pretrained` does, every part in the dtype of its
    published weights; the denoiser in `dtype` where that is given."""
    place, name = _published(spec), row_of(spec).denoiser
    own = _published_dtypes(place, spec.variant)
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
    for part in own.keys() - parts.keys():
        # Not all that lies there is saved: the row may leave a component out, and a folder may be of none.
        if pipe.components.get(part) is not None:
            # As published: transformers would write the weights' dtype into it, and then load them so unasked.
            shutil.copyfile(place / part / "config.json", directory / part / "config.json")
    for file in (directory / "model_index.json", *directory.glob("*/config.json")):
        # Where each was loaded from, which nothing reads: a place of this machine, and pipelines go to a hub.
        content = json.loads(file.read_text())
        if content.pop("_name_or_path", None) is not None:
            file.write_text(f"{json.dumps(content, indent=2)}\n")


def _published(spec: GeneratorSpec) -> Path:
    """The directory of the published pipeline, fetched where it is not here: all components that the row keeps."""
    place = locate(spec.source)
    if not Path(place).is_dir():
        left_out = {name: None for name, part in spec.load.items() if part is None}
        place = diffusers.DiffusionPipeline.download(
            place, use_safetensors=True, variant=spec.variant, revision=spec.revision, **left_out
        )
    return Path(place)


def _published_dtypes(place: Path, variant: str | None) -> dict[str, torch.dtype]:
    """Part -> the least dtype that holds all floats of its safetensors files, from their headers."""
    dtypes: dict[str, torch.dtype] = {}
    for file in place.glob("*/*.safetensors"):
        if not of_variant(file, variant):
            continue
        with safe_open(file, "pt") as stream:
            kinds = {stream.get_slice(key).get_dtype() for key in stream.keys()}  # noqa: SIM118
        for dtype in (_FLOATS[kind] for kind in kinds if kind in _FLOATS):
            dtypes[file.parent.name] = torch.promote_types(dtypes.get(file.parent.name, dtype), dtype)
    return dtypes
