"""Checkpoints of random weights at the published sizes, for a GPU to be measured by where no hub can be reached.

    python -m recipes.random_weights DIRECTORY sdxl --size full

Modules are built without storage from the configurations in `models/generators/full_size`, and their weights written
a shard at a time, so that SDXL's 3.5 or T5's 4.8 billion parameters take the memory of a shard or two of 1 GB. The
numbers are 16 million normal ones over and over, scaled by each layer's inputs: arithmetic and time are a trained
model's, pictures are noise. Disk: 7 GB for `sdxl`, 16 for `sd3-medium`, 11 for `pixart-sigma`, 13 for `stable-cascade`.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from rankray.models.footprint import BYTES, components
from rankray.models.generators import GENERATORS
from rankray.models.rewards import REWARDS
from recipes.full_size import build
from recipes.random_weights.vocabularies import (
    GEMMA_TOKENS,
    GLM_TOKENS,
    MISTRAL_TOKENS,
    QWEN_TOKENS,
    chat_tokenizer,
    clip_tokenizer,
    t5_tokenizer,
)

SHARD_BYTES = 1_000_000_000
NUMBERS = 2**24
"""Distinct random numbers in a checkpoint."""


def _diffusion(**changes: Any) -> dict[str, Any]:
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **changes}


def _sd3() -> dict[str, Any]:
    return {
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "tokenizer_3": t5_tokenizer(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _flux(**scheduler: Any) -> dict[str, Any]:
    return {
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": t5_tokenizer(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(**scheduler),
    }


def _flow(tokenizer: Any, **scheduler: Any) -> dict[str, Any]:
    return {"tokenizer": tokenizer, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(**scheduler)}


BESIDE: dict[str, Callable[[], dict[str, Any]]] = {
    "sdxl": lambda: {
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "scheduler": diffusers.EulerDiscreteScheduler(
            **_diffusion(steps_offset=1, timestep_spacing="leading")
        ),
    },
    "sd3-medium": _sd3,
    "pixart-sigma": lambda: {
        "tokenizer": t5_tokenizer(),
        "scheduler": diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02),
    },
    "stable-cascade": lambda: {
        "tokenizer": clip_tokenizer(),
        "scheduler": diffusers.DDPMWuerstchenScheduler(),
        "prior_tokenizer": clip_tokenizer(),
        "prior_scheduler": diffusers.DDPMWuerstchenScheduler(),
    },
    "sd15": lambda: {
        "tokenizer": clip_tokenizer(),
        "scheduler": diffusers.PNDMScheduler(**_diffusion(steps_offset=1, skip_prk_steps=True)),
        "feature_extractor": None,
    },
    "sd3.5-medium": _sd3,
    "sd3.5-large": _sd3,
    "flux-schnell": lambda: _flux(shift=1.0),
    "flux-dev": lambda: _flux(shift=3.0, use_dynamic_shifting=True),
    "sana": lambda: {
        "tokenizer": t5_tokenizer(GEMMA_TOKENS),
        "scheduler": diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
    },
    "sana-sprint": lambda: {
        "tokenizer": t5_tokenizer(GEMMA_TOKENS),
        "scheduler": diffusers.SCMScheduler(),
    },
    "chroma": lambda: _flow(t5_tokenizer()),
    "lumina2": lambda: _flow(t5_tokenizer(GEMMA_TOKENS), shift=6.0),
    "cogview4": lambda: _flow(
        t5_tokenizer(GLM_TOKENS),
        base_shift=0.25,
        max_shift=0.75,
        use_dynamic_shifting=True,
        time_shift_type="linear",
    ),
    "z-image-turbo": lambda: _flow(chat_tokenizer(QWEN_TOKENS), shift=3.0),
    "flux2-klein": lambda: _flow(chat_tokenizer(QWEN_TOKENS), use_dynamic_shifting=True),
    "qwen-image": lambda: _flow(t5_tokenizer(QWEN_TOKENS), use_dynamic_shifting=True),
    "ernie-image": lambda: _flow(t5_tokenizer(MISTRAL_TOKENS), shift=4.0),
}
"""What a pipeline has beside its components with weights, by the generator's file of full size."""


def stored(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of each parameter, once where two share it, and of each buffer that a checkpoint holds."""
    # Without storage two names of one parameter are two; a library says which of them the other stands for.
    tied = [re.compile(pattern) for pattern in getattr(module, "_tied_weights_keys", None) or ()]
    if getattr(module.config, "tie_word_embeddings", None) is False:
        tied = [pattern for pattern in tied if not pattern.fullmatch("lm_head.weight")]
    for name, parameter in module.named_parameters():
        if not any(pattern.fullmatch(name) for pattern in tied):
            yield name, parameter
    kept = module.state_dict().keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in kept)


def random_tensors(module: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(name, value) of each parameter, once where two share it, and of each buffer that a checkpoint holds.

    Matrices have a deviation of 1 / sqrt(inputs), so that activations neither vanish nor overflow; vectors are the ones
    and zeros of norms and biases. Buffers have the values that they were made with.
    """
    numbers = torch.randn(NUMBERS, generator=torch.Generator().manual_seed(0))
    at = 0
    for name, parameter in stored(module):
        count = parameter.numel()
        if not isinstance(parameter, nn.Parameter):
            yield name, parameter.to(dtype) if parameter.is_floating_point() else parameter
            continue
        if parameter.dim() < 2:
            yield name, torch.full(parameter.shape, 0.0 if name.endswith("bias") else 1.0, dtype=dtype)
            continue
        some = torch.cat([numbers[at:], numbers[:at]]) if at + count > NUMBERS else numbers[at : at + count]
        some = (some[:count] * parameter[0].numel() ** -0.5).to(dtype)
        at = (at + count + 1) % NUMBERS  # the next one begins elsewhere
        yield name, some.repeat(-(-count // len(some)))[:count].view(parameter.shape)


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Numbers of the kind that `random_tensors` gives, made on the device where a module's weights are.

    By torch's own generator. Buffers stay as they are.
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5)


def write_tensors(tensors: Iterator[tuple[str, Tensor]], place: Path, stem: str) -> None:
    """Safetensors files of at most about `SHARD_BYTES`, and the index that says which holds what."""
    held: dict[str, Tensor] = {}
    shard_of: dict[str, int] = {}
    held_bytes = total = shards = 0

    def write() -> None:
        values = {name: value.contiguous() for name, value in held.items()}
        save_file(values, place / f"{stem}-{shards}.safetensors", {"format": "pt"})

    for name, value in tensors:
        size = value.numel() * value.element_size()
        if held and held_bytes + size > SHARD_BYTES:
            write()
            held, held_bytes, shards = {}, 0, shards + 1
        held[name], shard_of[name] = value, shards
        held_bytes, total = held_bytes + size, total + size
    write()
    count = shards + 1
    final = [f"{stem}-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    if count == 1:
        final = [f"{stem}.safetensors"]
    for n, file in enumerate(final):
        (place / f"{stem}-{n}.safetensors").rename(place / file)
    if count > 1:
        weight_map = {name: final[n] for name, n in shard_of.items()}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (place / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))


Write = Callable[[nn.Module, torch.dtype, Path, str], None]
"""What writes a module's weights in a dtype into a directory, by the stem of its files' names."""


def write_random(module: nn.Module, dtype: torch.dtype, place: Path, stem: str) -> None:
    """Random numbers, a shard at a time."""
    write_tensors(random_tensors(module, dtype), place, stem)


def write_module(module: nn.Module, place: Path, dtype: torch.dtype, write: Write = write_random) -> None:
    """A module of diffusers or transformers, without storage of its own, as `save_pretrained` would write it."""
    place.mkdir(parents=True, exist_ok=True)
    config: Any = module.config
    if isinstance(module, diffusers.ModelMixin):
        module.save_config(place)
        stem = "diffusion_pytorch_model"
    else:
        config.architectures, config.dtype = [type(module).__name__], dtype
        config.save_pretrained(place)
        stem = "model"
    write(module, dtype, place, stem)


def generator(name: str, place: Path, dtype: str | None = None, write: Write = write_random) -> None:
    """Writes a pipeline as `save_pretrained` would, in `dtype` or that of its row.

    Args:
        write: what writes the weights of a part.

    Raises:
        KeyError: `name` is none of `rankray.models.footprint.full_size("generators")`.
    """
    row = GENERATORS[name]
    parts: dict[str, Any] = {}
    for component in components("generators", name):
        with init_empty_weights(include_buffers=False):
            parts[component.name] = build(component, "cpu")
        written = getattr(torch, dtype or row.dtype)
        write_module(parts[component.name], place / component.name, written, write)
    for part, found in BESIDE[name]().items():
        if found is not None:
            found.save_pretrained(place / part)
        parts[part] = found
    getattr(diffusers, row.pipeline)(**parts, **row.load).save_config(place)


def bytes_of(name: str, dtype: str | None = None) -> int:
    """What a checkpoint of `generator` or of `REWARDS_FULL` takes on disk."""
    if name in REWARDS_FULL:
        return REWARDS_FULL[name][1]
    elements = sum(part.parameters + part.buffers for part in components("generators", name))
    return elements * BYTES[dtype or GENERATORS[name].dtype]


def write_processor(place: Path) -> None:
    """CLIP's, with the tokenizer that is made here."""
    clip_tokenizer().save_pretrained(place)
    CLIPImageProcessor().save_pretrained(place)


def clip(
    place: Path, model: str = "clip-h", dtype: torch.dtype = torch.float16, write: Write = write_random
) -> None:
    """One of the rewards' CLIPs with its processor: by default ViT-H/14, 986 million parameters, in float16."""
    (component,) = components("rewards", model)
    with init_empty_weights(include_buffers=False):
        module = build(component, "cpu")
    # As published files have it, and as the tokenizer ends texts.
    module.config.text_config.eos_token_id = clip_tokenizer().eos_token_id
    write_module(module, place, dtype, write)
    write_processor(place)


def hpsv2(place: Path) -> None:
    """HPSv2's ViT-H/14 by its package, in float16: 4 GB of memory while it is made."""
    factory = importlib.import_module("hpsv2.src.open_clip")
    model, *_ = factory.create_model_and_transforms(
        REWARDS["hpsv2.1"].options["architecture"], None, precision="fp32", device="cpu", output_dict=True
    )
    weights = {name: value.half() for name, value in model.state_dict().items()}
    torch.save({"state_dict": weights}, place / REWARDS["hpsv2.1"].options["file"])


REWARDS_FULL: dict[str, tuple[Callable[[Path], None], int]] = {
    "hpsv2.1": (hpsv2, 1_973_000_000),
    "pickscore": (clip, 1_973_000_000),
}
"""By the rewards' names: what makes one at its published size, and its bytes on disk."""
