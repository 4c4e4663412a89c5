"""What one forward pass of a part costs, measured without doing it: on the meta device, which computes shapes alone.

    python -m recipes.meta_run [MODEL...]     # measures full-size files again, and writes what it found into them

Counted are the multiplications and additions of matrix products, convolutions and attention, and the most bytes alive
at once, as eager PyTorch allocates them operation by operation. Attention is taken for a fused kernel that never holds
the scores. What is not seen: workspaces of cuDNN and cuBLAS and fragments of the allocator, for which the plan adds a
share. Against a published measurement: SDXL, one picture of 1024 pixels in bfloat16 on an A100, 8.96 GiB allocated at
the peak; 6.94 GB of weights and the 1.61 GB found here for its VAE make 7.96 GiB.
"""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rankray.models.footprint import MEGAPIXEL, Component, Family, components, facts_file, full_size
from recipes.full_size import build

SIDES = (512, 1024, 1536)
"""Pixels of a side; three sizes determine the polynomial of an exact quadratic."""


class Counted(TorchDispatchMode):
    """FLOPs of all operations under it, and the most bytes of what they made that were alive at once.

    `there` are tensors that were there before, such as weights, of which operations give views. With `device`, bytes
    are counted of tensors on devices of that type alone.
    """

    def __init__(self, there: Iterable[Any] = (), device: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in there}
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        counts = flop_registry.get(func._overloadpacket)
        if counts is not None:
            self.flops += counts(*args, **(kwargs or {}), out_val=made)
        self.keep(made)
        return made

    def keep(self, made: Any) -> None:
        """Counts what an operation made, as long as it lives."""
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, (tuple, list)):
                self.keep(tensor)
            elif isinstance(tensor, torch.Tensor) and self._device in (None, tensor.device.type):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known.add(key)
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _FusedAttention(TorchFunctionMode):
    """Scaled dot-product attention as one kernel: its result and its arithmetic, without the matrix of scores."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            named = [kwargs.get(name) for name in ("query", "key", "value")[len(args) :]]
            query, key, value = (*args[:3], *named)[:3]
            self.flops += 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **kwargs)


def _empty(*shape: int) -> Any:
    return torch.empty(shape, device="meta")


def _ids(*shape: int) -> Any:
    return torch.zeros(shape, dtype=torch.long, device="meta")


def _unet(module: Any, part: Component, side: int) -> Any:
    config = part.config
    more = (
        {"added_cond_kwargs": {"text_embeds": _empty(1, 1280), "time_ids": _empty(1, 6)}}
        if config.get("addition_embed_type") == "text_time"
        else {}
    )
    text = _empty(1, part.tokens, config["cross_attention_dim"])
    return module(_empty(1, 4, side // 8, side // 8), _empty(), text, **more)


def _sd3(module: Any, part: Component, side: int) -> Any:
    text, pooled = _empty(1, part.tokens, 4096), _empty(1, 2048)
    return module(_empty(1, 16, side // 8, side // 8), text, pooled, _empty(1))


def _pixart(module: Any, part: Component, side: int) -> Any:
    added = {"resolution": None, "aspect_ratio": None}
    mask = _empty(1, part.tokens)
    return module(
        _empty(1, 4, side // 8, side // 8),
        _empty(1, part.tokens, 4096),
        _empty(1),
        added,
        encoder_attention_mask=mask,
    )


def _flux(module: Any, part: Component, side: int) -> Any:
    tokens = (side // 16) ** 2
    guidance = _empty(1) if part.config["guidance_embeds"] else None
    places = _empty(part.tokens, 3), _empty(tokens, 3)
    text, pooled = _empty(1, part.tokens, 4096), _empty(1, 768)
    return module(_empty(1, tokens, 64), text, pooled, _empty(1), places[1], places[0], guidance)


def _chroma(module: Any, part: Component, side: int) -> Any:
    tokens = (side // 16) ** 2
    places, mask = (_empty(part.tokens, 3), _empty(tokens, 3)), _empty(1, part.tokens + tokens)
    return module(_empty(1, tokens, 64), _empty(1, part.tokens, 4096), _empty(1), places[1], places[0], mask)


def _flux2(module: Any, part: Component, side: int) -> Any:
    tokens = (side // 16) ** 2
    text, places = _empty(1, part.tokens, 7680), (_empty(1, part.tokens, 4), _empty(1, tokens, 4))
    return module(_empty(1, tokens, 128), text, _empty(1), places[1], places[0])


def _lumina2(module: Any, part: Component, side: int) -> Any:
    text, mask = _empty(1, part.tokens, 2304), torch.ones(1, part.tokens, dtype=torch.long)
    return module(_empty(1, 16, side // 8, side // 8), _empty(1), text, mask)


def _cogview4(module: Any, part: Component, side: int) -> Any:
    size, text = torch.full((1, 2), float(side), device="meta"), _empty(1, part.tokens, 4096)
    return module(
        _empty(1, 16, side // 8, side // 8), text, _empty(1), size, size, torch.zeros(1, 2, device="meta")
    )


def _z_image(module: Any, part: Component, side: int) -> Any:
    text = _empty(part.tokens, 2560)
    return module([_empty(16, 1, side // 8, side // 8)], _empty(1), [text])


def _qwen_image(module: Any, part: Component, side: int) -> Any:
    tokens, text = (side // 16) ** 2, _empty(1, part.tokens, 3584)
    shape = [[(1, side // 16, side // 16)]]
    return module(_empty(1, tokens, 64), text, timestep=_empty(1), img_shapes=shape)


def _ernie_image(module: Any, part: Component, side: int) -> Any:
    text, lengths = _empty(1, part.tokens, 3072), _ids(1)
    with mock.patch("torch.autocast", return_value=nullcontext()):  # it knows no meta device
        return module(_empty(1, 128, side // 16, side // 16), _empty(1), text, lengths)


def _sana(module: Any, part: Component, side: int) -> Any:
    text, mask = _empty(1, part.tokens, 2304), _empty(1, part.tokens)
    guidance = _empty(1) if part.config.get("guidance_embeds") else None
    return module(
        _empty(1, 32, side // 32, side // 32), text, _empty(1), guidance, encoder_attention_mask=mask
    )


def _cascade(module: Any, part: Component, side: int) -> Any:
    """Stage C on 24 x 24 embeddings of 1024 pixels; stage B on latents of a quarter of the side, from them."""
    small, pooled = side * 24 // 1024, _empty(1, 1, 1280)
    if part.name == "decoder":
        return module(
            _empty(1, 4, side // 4, side // 4), _empty(1), pooled, effnet=_empty(1, 16, small, small)
        )
    text, image = _empty(1, part.tokens, 1280), _empty(1, 1, 768)
    return module(_empty(1, 16, small, small), _empty(1), pooled, clip_text=text, clip_img=image)


def _decode(module: Any, part: Component, side: int) -> Any:
    shrunk = {"AutoencoderDC": 32, "PaellaVQModel": 4}.get(part.kind.rpartition(".")[2], 8)
    return module.decode(_empty(1, part.config["latent_channels"], side // shrunk, side // shrunk))


def _decode_film(module: Any, part: Component, side: int) -> Any:
    """Of one picture."""
    return module.decode(_empty(1, part.config["z_dim"], 1, side // 8, side // 8))


def _text(module: Any, part: Component, side: int) -> Any:
    return module(input_ids=_ids(1, part.tokens))


def _clip(module: Any, part: Component, side: int) -> Any:
    return module(input_ids=_ids(1, part.tokens), pixel_values=_empty(1, 3, 224, 224))


def _mps(module: Any, part: Component, side: int) -> Any:
    return module(_ids(1, part.tokens), _empty(1, 3, 224, 224), _empty(part.tokens, 1024))


def _vision(module: Any, part: Component, side: int) -> Any:
    size = part.config["image_size"]
    return module(pixel_values=_empty(1, 3, size, size))


def _blip_text(module: Any, part: Component, side: int) -> Any:
    return module(input_ids=_ids(1, part.tokens), encoder_hidden_states=_empty(1, 197, 1024))


def _question(module: Any, part: Component, side: int) -> Any:
    """Image and question in, the first two tokens of an answer out."""
    tokens = _empty(1, part.tokens, part.config["d_model"])
    return module(inputs_embeds=tokens, decoder_input_ids=_ids(1, 2))


def _rate(module: Any, part: Component, side: int) -> Any:
    """Q-Align's sentence with a picture in it; with a mask given, as transformers would look into numbers for one."""
    size = part.config["visual_config"]["visual_model"]["image_size"]
    seen = module.model.visual_abstractor(module.model.vision_model(_empty(1, 3, size, size)))
    tokens = part.tokens + seen.shape[1]
    sentence, mask = _empty(1, tokens, part.config["hidden_size"]), _empty(1, 1, tokens, tokens)
    return module.model(inputs_embeds=sentence, attention_mask=mask, use_cache=False)


def _project(module: Any, part: Component, side: int) -> Any:
    return module(_empty(1, part.tokens, part.config["width"]))


CALLS: dict[str, Callable[[Any, Component, int], Any]] = {
    "UNet2DConditionModel": _unet,
    "SD3Transformer2DModel": _sd3,
    "PixArtTransformer2DModel": _pixart,
    "FluxTransformer2DModel": _flux,
    "SanaTransformer2DModel": _sana,
    "StableCascadeUNet": _cascade,
    "ChromaTransformer2DModel": _chroma,
    "Flux2Transformer2DModel": _flux2,
    "Lumina2Transformer2DModel": _lumina2,
    "CogView4Transformer2DModel": _cogview4,
    "ZImageTransformer2DModel": _z_image,
    "QwenImageTransformer2DModel": _qwen_image,
    "ErnieImageTransformer2DModel": _ernie_image,
    "AutoencoderKL": _decode,
    "AutoencoderKLFlux2": _decode,
    "AutoencoderKLQwenImage": _decode_film,
    "AutoencoderDC": _decode,
    "PaellaVQModel": _decode,
    "CLIPTextModel": _text,
    "CLIPTextModelWithProjection": _text,
    "T5EncoderModel": _text,
    "Gemma2Model": _text,
    "GlmModel": _text,
    "Mistral3Model": _text,
    "Qwen2_5_VLForConditionalGeneration": _text,
    "Qwen3ForCausalLM": _text,
    "Qwen3Model": _text,
    "CLIPModel": _clip,
    "CLIPVisionModel": _vision,
    "BlipVisionModel": _vision,
    "BlipTextModel": _blip_text,
    "flan_t5": _question,
    "mps": _mps,
    "projector": _project,
    "owl2": _rate,
}
"""How each class is called for one item, a picture of `side` pixels square."""

SIZED = frozenset(CALLS.values()) - {_text, _clip, _vision, _blip_text, _question, _mps, _project, _rate}
"""Those whose cost depends on the picture's size; the others see text, or a picture made small."""


def measure(part: Component, module: Any, side: int) -> tuple[int, float]:
    """(FLOPs, elements alive at once) of one call for one item; bytes of 16-bit tensors, halved."""
    call = CALLS[part.kind.rpartition(".")[2]]
    fused, counted = _FusedAttention(), Counted([*module.parameters(), *module.buffers()])
    with torch.no_grad(), fused, counted:  # inference mode would hand composite operations over in one piece
        call(module, part, side)
    return counted.flops + fused.flops, counted.peak / 2


def polynomials(part: Component) -> tuple[list[float], list[float]]:
    """`Component.flops` and `Component.activations` of a part, measured."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        module = build(part)
        if CALLS[part.kind.rpartition(".")[2]] not in SIZED:
            flops, elements = measure(part, module, SIDES[0])
            return [flops], [round(elements)]
        found = [measure(part, module, side) for side in SIDES]
    finally:
        torch.set_default_dtype(before)
    sizes = torch.tensor([side * side / MEGAPIXEL for side in SIDES], dtype=torch.float64)
    counted = torch.tensor([flops for flops, _ in found], dtype=torch.float64)
    fitted = torch.linalg.solve(torch.stack([sizes**0, sizes, sizes**2], 1), counted)
    slope = (found[1][1] - found[0][1]) / float(sizes[1] - sizes[0])
    return [round(float(value)) for value in fitted], [round(found[1][1] - slope), round(slope)]


def main(names: Sequence[str]) -> None:
    """Measures every part of the models of `names`, all by default, prints it, and writes it into their files."""
    known: dict[str, tuple[list[float], list[float]]] = {}
    families: tuple[Family, ...] = ("generators", "rewards")
    for family in families:
        for model in full_size(family):
            if names and model not in names:
                continue
            path = facts_file(family, model)
            facts = json.loads(path.read_text("utf-8"))
            for part in components(family, model):
                key = json.dumps([part.kind, part.config, part.tokens])
                flops, activations = known[key] = known.get(key) or polynomials(part)
                facts[part.name].update(flops=flops, activations=activations)
                costs = f"{sum(flops) / 1e12:.3f} TFLOP, {sum(activations) / 1e6:,.0f} M elements"
                print(f"{model} {part.name}: {costs}", flush=True)
            path.write_text(_written(facts), "utf-8")


def _written(value: Any, depth: int = 0) -> str:
    """JSON with a list, and a table of plain values below the second level, on one line."""
    if isinstance(value, dict) and not (depth == 2 and ("times" in value or "lora" in value)):
        indent = " " * (depth + 1)
        lines = [f'{indent}"{key}": {_written(item, depth + 1)}' for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + "\n" + " " * depth + "}" + ("" if depth else "\n")
    return json.dumps(value)


if __name__ == "__main__":
    main(sys.argv[1:])
