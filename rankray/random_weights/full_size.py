"""Checkpoints of random weights at the published sizes, for a GPU to be measured by where no hub can be reached.

    python -m rankray.random_weights DIRECTORY sdxl --size full

Modules are built without storage from the configurations in `rankray.generators.full_size`, and their weights written
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
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from rankray.generators import GENERATORS
from rankray.generators.full_size import build, components, weights_gb
from rankray.random_weights.vocabularies import clip_tokenizer, t5_tokenizer
from rankray.rewards import REWARDS

SHARD_BYTES = 1_000_000_000
NUMBERS = 2**24
"""Distinct random numbers in a checkpoint."""


def _diffusion(**changes: Any) -> dict[str, Any]:
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **changes}


BESIDE: dict[str, Callable[[], dict[str, Any]]] = {
    "sdxl": lambda: {
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "scheduler": diffusers.EulerDiscreteScheduler(
            **_diffusion(steps_offset=1, timestep_spacing="leading")
        ),
    },
    "sd3-medium": lambda: {
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "tokenizer_3": t5_tokenizer(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    },
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
}
"""What a pipeline has beside its components with weights, by the generator's name."""


def generator(name: str, place: Path, dtype: str | None = None) -> None:
    """Writes a pipeline as `save_pretrained` would, in `dtype` or that of its row.

    Raises:
        KeyError: `name` is none of `rankray.generators.full_size.MODELS`.
    """
    row = GENERATORS[name]
    parts: dict[str, Any] = {}
    for component in components(name):
        with init_empty_weights(include_buffers=False):
            parts[component.name] = build(component, "cpu")
        write_module(parts[component.name], place / component.name, getattr(torch, dtype or row.dtype))
    for part, found in BESIDE[name]().items():
        found.save_pretrained(place / part)
        parts[part] = found
    extra = {key: value for key, value in row.load.items() if key == "add_watermarker"}
    getattr(diffusers, row.pipeline)(**parts, **extra).save_config(place)


def write_module(module: nn.Module, place: Path, dtype: torch.dtype) -> None:
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
    write_tensors(random_tensors(module, dtype), place, stem)


def random_tensors(module: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(name, value) of each parameter, once where two share it, and of each buffer that a checkpoint holds.

    Matrices have a deviation of 1 / sqrt(inputs), so that activations neither vanish nor overflow; vectors are the ones
    and zeros of norms and biases. Buffers have the values that they were made with.
    """
    numbers = torch.randn(NUMBERS, generator=torch.Generator().manual_seed(0))
    at = 0
    # Without storage two names of one parameter are two; a library says which of them the other stands for.
    tied = [re.compile(pattern) for pattern in getattr(module, "_tied_weights_keys", None) or ()]
    for name, parameter in module.named_parameters():
        if any(pattern.fullmatch(name) for pattern in tied):
            continue
        count = parameter.numel()
        if parameter.dim() < 2:
            yield name, torch.full(parameter.shape, 0.0 if name.endswith("bias") else 1.0, dtype=dtype)
            continue
        some = torch.cat([numbers[at:], numbers[:at]]) if at + count > NUMBERS else numbers[at : at + count]
        some = (some[:count] * parameter[0].numel() ** -0.5).to(dtype)
        at = (at + count + 1) % NUMBERS  # the next one begins elsewhere
        yield name, some.repeat(-(-count // len(some)))[:count].view(parameter.shape)
    kept = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name in kept:
            yield name, buffer.to(dtype) if buffer.is_floating_point() else buffer


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


def bytes_of(name: str, dtype: str | None = None) -> int:
    """What a checkpoint of `generator` or of `REWARDS_FULL` takes on disk."""
    if name in REWARDS_FULL:
        return REWARDS_FULL[name][1]
    return int(weights_gb(name, dtype or GENERATORS[name].dtype) * 1e9)


def _clip_h() -> CLIPConfig:
    """CLIP ViT-H/14: 986 million parameters."""
    text = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    vision = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
    }
    tokenizer = clip_tokenizer()
    words = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "pad_token_id": 1}
    return CLIPConfig(
        text_config={**text, **words, "eos_token_id": tokenizer.eos_token_id, "hidden_act": "gelu"},
        vision_config={**vision, "image_size": 224, "patch_size": 14, "hidden_act": "gelu"},
        projection_dim=1024,
    )


def _processor(place: Path) -> None:
    clip_tokenizer().save_pretrained(place)
    CLIPImageProcessor().save_pretrained(place)


def pickscore(place: Path) -> None:
    """A CLIP ViT-H/14 with its processor, in float16."""
    with init_empty_weights(include_buffers=False):
        model = CLIPModel(_clip_h())
    write_module(model, place, torch.float16)
    _processor(place)


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
    "pickscore": (pickscore, 1_973_000_000),
}
"""By the rewards' names: what makes one at its published size, and its bytes on disk."""
