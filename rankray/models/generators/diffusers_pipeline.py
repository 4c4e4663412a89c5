"""Draws images with any diffusers text-to-image pipeline, each image from its own prompt and seed alone.

Kernels choose their order of summation by the shape that they see, so an image would depend on how many others
share its batch. Every compute batch is therefore `batch_size` wide, padded by copies that are thrown away, and an
image is then the same to the bit alone, among other prompts and in any place (four families, one CPU thread). The
price is the padding: at the end of a block, up to `batch_size - 1` images are drawn for nothing. Another `batch_size`
changes single pixels by one grey level of 255, in 2 to 7 of 16 images at 64 x 64.

Pictures are rounded to bytes on the device, as diffusers rounds them on the host: a quarter of the bytes are copied.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from rankray.config import ConfigError, nearest
from rankray.models.generators import GeneratorSpec
from rankray.models.loading import longer, one_line, strictly, where
from rankray.models.targets import split_name

LEAST_VOCABULARY = 0.9
"""A tokenizer's part of its encoder's embeddings: encoders are rounded up to 128 rows, T5's by 28 of 32,128."""

_FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
"""diffusers' names of an attention's fused projections, and of what each is made of, in that order."""


class DiffusersGenerator:
    """A pipeline on one device.

    Args:
        spec: its row.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: no such pipeline, scheduler or component, or weights that are missing, damaged, no safetensors, or
            that do not fit key by key.
    """

    def __init__(self, spec: GeneratorSpec, device: str) -> None:
        self.spec = spec
        self.device = device
        self.batch_size = spec.batch_size
        """Images computed at once; it may be made smaller where they do not fit."""
        self.pipe = _load(spec, device)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image | Exception]:
        """One RGB image of `spec.height` x `spec.width` for each prompt, its noise drawn on the CPU from its seed.

        Where the model made numbers that are not finite, a ValueError stands in the image's place: drawing it again
        would make the same.

        Raises:
            ValueError: prompts and seeds differ in number.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds; one seed a prompt is due")
        images: list[Image.Image | Exception] = []
        size = self.batch_size
        for start in range(0, len(prompts), size):
            batch = list(prompts[start : start + size])
            images += self._draw(batch, list(seeds[start : start + size]))
        return images

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts are longer than one of the pipeline's text encoders reads.

        CLIP reads what its tokenizer says, any other encoder the pipeline's `max_sequence_length`. SD3 and FLUX have
        both: the long one reads on where CLIP ends, and the prompt counts all the same.
        """
        default = inspect.signature(type(self.pipe).__call__).parameters.get("max_sequence_length")
        longest = self.spec.call.get("max_sequence_length", default.default if default else None)
        texts = list(prompts)
        if hasattr(self.pipe, "_text_preprocessing"):  # PixArt's and Sana's, as they call it themselves
            texts = self.pipe._text_preprocessing(texts, clean_caption=False)
        cut = [False] * len(texts)
        for _, tokenizer in _tokenizers(self.pipe):
            is_clip = isinstance(tokenizer, CLIPTokenizer) or longest is None
            length = tokenizer.model_max_length if is_clip else longest
            cut = [any(pair) for pair in zip(cut, longer(tokenizer, texts, length), strict=True)]
        return cut

    def _draw(self, prompts: list[str], seeds: list[int]) -> list[Image.Image | Exception]:
        """A compute batch: always `batch_size` wide, so that kernels see one shape; padding is thrown away."""
        spec, real = self.spec, len(prompts)
        prompts = prompts + [prompts[-1]] * (self.batch_size - real)
        seeds = seeds + [seeds[-1]] * (self.batch_size - real)
        arguments: dict[str, Any] = {
            "prompt": prompts,
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            "height": spec.height,
            "width": spec.width,
            spec.steps_argument: spec.steps,
            spec.guidance_argument: spec.guidance,
            "output_type": "pt",
            **spec.call,
        }
        if spec.negative_prompt is not None:
            arguments["negative_prompt"] = [spec.negative_prompt] * len(prompts)
        with _quiet(), torch.inference_mode(), _own_precision(self.pipe):
            pixels, finite = to_bytes(self.pipe(**arguments).images[:real])
        overflow = f"{spec.dtype} overflowed: pixels are not finite; take another dtype"
        return [
            Image.fromarray(picture) if is_finite else ValueError(overflow)
            for picture, is_finite in zip(pixels.cpu().numpy(), finite.tolist(), strict=True)
        ]


def to_bytes(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures [n, 3, h, w] of 0 .. 1 as uint8[n, h, w, 3] on their device, and which are finite, bool[n].

    Halves are rounded to even, in float32, as diffusers and Pillow's users do it on the host.
    """
    values = pixels.float().permute(0, 2, 3, 1)
    finite = values.isfinite().flatten(1).all(1)
    return (values.clamp(0, 1) * 255).round().to(torch.uint8).contiguous(), finite


def _load(spec: GeneratorSpec, device: str) -> Any:
    for place, source in spec.patch.items():
        module, _, name = place.rpartition(".")
        from_module, attribute = split_name(source)
        setattr(
            importlib.import_module(module), name, getattr(importlib.import_module(from_module), attribute)
        )
    pipe = _whole(spec)
    _check_tokenizers(pipe, spec.source)
    for path, settings in spec.after_load.items():
        _component(pipe, path).register_to_config(**settings)
    if spec.scheduler is not None:
        pipe.scheduler = _named(spec.scheduler, "scheduler").from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    quicken(pipe, spec)
    return pipe


def quicken(pipe: Any, spec: GeneratorSpec) -> None:
    """Switches on what the row asks of a pipeline that is on its device: less memory, or more pictures a second.

    Raises:
        ConfigError: a component cannot do it.
    """
    if spec.vae_slicing:
        _component(pipe, "vae").enable_slicing()
    if spec.vae_tiling:
        _component(pipe, "vae").enable_tiling()
    for denoiser in (_component(pipe, path) for path in spec.denoisers):
        if spec.channels_last:
            denoiser.to(memory_format=torch.channels_last)
        if spec.fused:
            if not hasattr(denoiser, "fuse_qkv_projections"):
                raise ConfigError(
                    f"{type(denoiser).__name__} has no projections to fuse; leave out options.fused"
                )
            denoiser.fuse_qkv_projections()
        if spec.compile:
            denoiser.compile()


def fill_fused(denoiser: Any) -> None:
    """Makes fused projections those of the weights that the denoiser has now; without any it does nothing.

    diffusers keeps them beside the projections that they were made of, by whose names weights are exchanged, and
    computes by the fused ones alone. Written in place: what was compiled stays so.
    """
    modules = [module for module in denoiser.modules() if getattr(module, "fused_projections", False)]
    with torch.no_grad():
        for module, (name, parts) in product(modules, _FUSED.items()):
            fused = getattr(module, name, None)
            if fused is None:
                continue
            layers = [getattr(module, part) for part in parts]
            fused.weight.copy_(torch.cat([layer.weight for layer in layers]))
            if fused.bias is not None:
                fused.bias.copy_(torch.cat([layer.bias for layer in layers]))


def _whole(spec: GeneratorSpec) -> Any:
    """The pipeline, put together from the repositories that it is published in where they are several.

    diffusers would load what a model card names as connected by the first repository's revision, which no other has.
    """
    kind = _named(spec.pipeline, "pipeline")
    if not spec.connected:
        return _from(kind, spec, spec.source, spec.revision)
    own = _from(diffusers.DiffusionPipeline, spec, spec.source, spec.revision)
    if isinstance(own, kind):  # saved as a whole
        return own
    parts = dict(own.components)
    for prefix, source in spec.connected.items():
        other = _from(diffusers.DiffusionPipeline, spec, source, spec.connected_revisions.get(prefix, "main"))
        parts |= {f"{prefix}_{name}": part for name, part in other.components.items()}
    with one_line(spec.source, spec.revision):
        return kind(**parts)


def _from(kind: Any, spec: GeneratorSpec, source: str, revision: str) -> Any:
    place, settings = where(source, revision)
    dtype = getattr(torch, spec.dtype)
    with _quiet(), strictly(source, revision):
        return kind.from_pretrained(
            place, dtype=dtype, use_safetensors=True, variant=spec.variant, **settings, **spec.load
        )


def _check_tokenizers(pipe: Any, source: str) -> None:
    """A tokenizer without its vocabulary loads empty, without an error, and would read every prompt as nothing."""
    for name, tokenizer in _tokenizers(pipe):
        encoder = pipe.components.get(name.replace("tokenizer", "text_encoder"))
        if encoder is None:
            continue
        due = encoder.config.get_text_config().vocab_size
        if not LEAST_VOCABULARY * due <= len(tokenizer) <= due:
            raise ConfigError(
                f"the tokenizer '{name}' of '{source}' has {len(tokenizer)} tokens, and its text encoder embeds {due}; "
                "its vocabulary files are missing or another model's: get them again"
            )


def _tokenizers(pipe: Any) -> list[tuple[str, Any]]:
    return [
        (name, part) for name, part in pipe.components.items() if isinstance(part, PreTrainedTokenizerBase)
    ]


def _named(name: str, kind: str) -> Any:
    cls = getattr(diffusers, name, None)
    if cls is None:
        raise ConfigError(
            f"diffusers {diffusers.__version__} has no {kind} '{name}'{nearest(name, dir(diffusers))}"
        )
    return cls


def _component(pipe: Any, path: str) -> Any:
    component = pipe
    for part in path.split("."):
        component = getattr(component, part, None)
        if component is None:
            names = ", ".join(sorted(pipe.components))
            raise ConfigError(f"{type(pipe).__name__} has no component '{path}'; it has: {names}")
    return component


@contextmanager
def _own_precision(pipe: Any) -> Iterator[None]:
    """Leaves the autoencoder in the dtype that it was loaded in, whatever is raised within.

    SDXL's pipeline makes a float16 one float32 to decode and casts it back only once it has decoded: after one decoding
    without memory, every later picture would meet latents and weights of two dtypes.
    """
    vae = getattr(pipe, "vae", None)
    loaded = getattr(vae, "dtype", None)
    try:
        yield
    finally:
        if vae is not None and vae.dtype != loaded:
            vae.to(dtype=loaded)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without notices and loading bars: a log with eight models needs no line for every prompt that is cut."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggings = (diffusers_logging, transformers_logging)
    before = [(logging.get_verbosity(), logging.is_progress_bar_enabled()) for logging in loggings]
    for logging in loggings:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging, (verbosity, bars) in zip(loggings, before, strict=True):
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
