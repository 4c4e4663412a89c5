"""The DENOISERS table: families of models that can be trained, by the diffusers pipeline that they belong to.

A family is one file with two functions and one row here:

    encode_prompts(pipe, prompts, call) -> {name: Tensor[B, ...]}    what the denoiser is conditioned on, once a prompt
    predict(denoiser, noisy, time, text, size) -> Tensor[B, C, H, W] its prediction, from that and the noisy latents

`pipe` is the pipeline with its denoiser left on the meta device, so prompts are encoded by the pipeline's own code, as
they will be when it draws (but SDXL's empty one: see `sdxl`). `parts` does what all families share: load, encode
pictures, LoRA, export.

Importing this module loads neither torch nor diffusers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rankray.config import ConfigError
from rankray.models import hub, weights
from rankray.models.generators import GeneratorSpec
from rankray.words import first_line

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")

Configs = Mapping[str, Mapping[str, Any]]
"""`config.json` of each component that is loaded, by its name in the pipeline."""

Shapes = dict[str, tuple[int, ...]]


def _clip_tokens(configs: Configs) -> int:
    """Tokens that prompts are padded to; what the published configurations leave out is CLIP's own 77."""
    return int(configs["text_encoder"].get("max_position_embeddings", 77))


def _sd15_text(configs: Configs, call: Mapping[str, Any]) -> Shapes:
    return {"text": (_clip_tokens(configs), configs["unet"]["cross_attention_dim"])}


def _sdxl_text(configs: Configs, call: Mapping[str, Any]) -> Shapes:
    return {**_sd15_text(configs, call), "pooled": (configs["text_encoder_2"]["projection_dim"],)}


def _sd3_text(configs: Configs, call: Mapping[str, Any]) -> Shapes:
    tokens, model = _clip_tokens(configs) + call.get("max_sequence_length", 256), configs["transformer"]
    return {"text": (tokens, model["joint_attention_dim"]), "pooled": (model["pooled_projection_dim"],)}


def _pixart_text(configs: Configs, call: Mapping[str, Any]) -> Shapes:
    tokens = call.get("max_sequence_length", 300)
    return {"text": (tokens, configs["transformer"]["caption_channels"]), "text_mask": (tokens,)}


@dataclass(frozen=True)
class DenoiserSpec:
    """One trainable family.

    Attributes:
        pipeline: class name in diffusers.
        denoiser: the pipeline's component that is trained.
        module: where `encode_prompts` and `predict` stand.
        text: what `encode_prompts` gives for a prompt, by the components' configurations and the row's `call`.
        lora_targets: names of the layers that get an adapter.
        lora_form: whose names a run's adapters leave it under: "diffusers"; "kohya", which is both; "peft", where the
            pipeline has no `load_lora_weights`.
    """

    pipeline: str
    denoiser: str
    module: str
    text: Callable[[Configs, Mapping[str, Any]], Shapes]
    lora_targets: tuple[str, ...] = _ATTENTION
    lora_form: Literal["diffusers", "kohya", "peft"] = "diffusers"


DENOISERS: dict[str, DenoiserSpec] = {
    "sd15": DenoiserSpec(
        "StableDiffusionPipeline", "unet", "rankray.models.denoisers.sd15", _sd15_text, lora_form="kohya"
    ),
    "sdxl": DenoiserSpec(
        "StableDiffusionXLPipeline", "unet", "rankray.models.denoisers.sdxl", _sdxl_text, lora_form="kohya"
    ),
    "sd3": DenoiserSpec(
        "StableDiffusion3Pipeline",
        "transformer",
        "rankray.models.denoisers.sd3",
        _sd3_text,
        (*_ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    ),
    "pixart_sigma": DenoiserSpec(
        "PixArtSigmaPipeline",
        "transformer",
        "rankray.models.denoisers.pixart_sigma",
        _pixart_text,
        lora_form="peft",
    ),
}


def family(spec: GeneratorSpec) -> str:
    """The family of a generator's row.

    Raises:
        ConfigError: no family trains that pipeline.
    """
    for name, row in DENOISERS.items():
        if row.pipeline == spec.pipeline:
            return name
    raise ConfigError(f"'{spec.source}' is a {spec.pipeline}, which no family trains; families: {_known()}")


def check_family(spec: GeneratorSpec) -> None:
    """Reads the pipeline's `model_index.json` and its scheduler's configuration, and no weights.

    Raises:
        ConfigError: it holds another pipeline than the row says, or none that trains; or as `is_flow`.
    """
    row = DENOISERS[family(spec)]
    pipeline = _read_json(spec, "model_index.json").get("_class_name")
    if pipeline != row.pipeline:
        raise ConfigError(
            f"'{spec.source}' holds a {pipeline} and the model's row says {row.pipeline}; name the row that fits: "
            f"{_known()}"
        )
    scheduler = _read_json(spec, "scheduler/scheduler_config.json")
    is_flow(str(scheduler.get("_class_name")), scheduler)


def is_flow(scheduler: str, config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's class name and configuration describe a rectified flow; else they have betas.

    Raises:
        ConfigError: they describe neither, as an EDM's (Playground v2.5, an SDXL): with the betas that others have by
            default its model would be trained on another process, without a word.
    """
    if "FlowMatch" in scheduler or config.get("prediction_type") == "flow_prediction":
        return True
    if "beta_schedule" in config or config.get("trained_betas") is not None:
        return False
    raise ConfigError(
        f"the model's scheduler is '{scheduler}', without betas and of no flow, and no other process is trained; name "
        "a model whose scheduler has a `beta_schedule`, such as DDPMScheduler or EulerDiscreteScheduler, or is of "
        "flow matching, such as FlowMatchEulerDiscreteScheduler"
    )


def _known() -> str:
    return ", ".join(f"{name} ({row.pipeline})" for name, row in DENOISERS.items())


def _read_json(spec: GeneratorSpec, name: str) -> dict[str, Any]:
    """One of the pipeline's small files.

    Raises:
        ConfigError: there is none, or it is no table.
    """
    try:
        found = json.loads(_read(spec, name))
    except ConfigError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"'{spec.source}' is no diffusers pipeline, it has no {name}; give a directory or a hub "
            "repository that has one, such as the `pipeline` of a run"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{spec.source}' is no diffusers pipeline: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"'{spec.source}' is no diffusers pipeline: its {name} is no table")
    return found


def _read(spec: GeneratorSpec, name: str) -> bytes:
    """A kilobyte; without the rest, where it lies elsewhere."""
    if weights.is_uri(spec.source):
        return weights.read_from(spec.source, name)
    place = Path(weights.locate(spec.source))
    if place.exists():
        return (place / name).read_bytes()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(spec.source, name, revision=spec.revision)).read_bytes()
    except LocalEntryNotFoundError:  # a FileNotFoundError by its class, of a file that the hub may well have
        raise ConfigError(hub.unreachable(spec.source)) from None
