"""MPS (Zhang et al. 2024, "Learning Multi-dimensional Human Preference"): CLIP tokens fused by cross-attention.

Image tokens ask text tokens, through as many layers as the configuration says (published: 4 of width 1024), and
the first image token after them is compared with the text. Text tokens that have nothing to do with the
condition's words are masked out. Our own implementation of the published architecture, as the published
checkpoint is a pickled module of the authors' package; with CLIP-H it has 1.1 billion parameters.

One deliberate difference: the mask divides similarities by their maximum over one text, where the authors
take the maximum over the whole batch, which would make a score depend on its neighbours. For one text
at a time, as the authors' evaluation scores them, both are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from rankray.config import ConfigError
from rankray.models.loading import files_of, one_line
from rankray.models.rewards import RewardSpec
from rankray.models.rewards.clip import Batched, load_processor, normalised

OVERALL = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
"""The published condition of the overall preference."""
FILES = ("config.json", "model.safetensors")
_SCALE = "clip.logit_scale"


@dataclass(frozen=True)
class MpsConfig:
    """Sizes of the fusion, and the condition. CLIP's own sizes are in its configuration.

    Attributes:
        layers: fusion layers.
        heads: attention heads, all sharing one key and value head.
        head_width: channels of a head.
        feed_forward: inner width of the feed-forward parts, in multiples of the model's width.
        condition: the words that a text token must resemble to be seen.
        threshold: least similarity to the condition, as a share of the text's largest (0.3 in the authors'
            evaluation, 0.01 in their training).
    """

    layers: int = 4
    heads: int = 16
    head_width: int = 64
    feed_forward: int = 4
    condition: str = OVERALL
    threshold: float = 0.3


class FeedForward(nn.Module):
    """SwiGLU: `w_out(x_1 * silu(x_2))` with (x_1, x_2) the halves of `w_in(x)`."""

    def __init__(self, width: int, multiple: int) -> None:
        super().__init__()
        self.w_in = nn.Linear(width, 2 * multiple * width, bias=False)
        self.w_out = nn.Linear(multiple * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.w_in(x).chunk(2, dim=-1)
        return self.w_out(F.silu(gate) * value)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Attention of many query heads over one key and value head, and a feed-forward part beside it.

    `x + attention(norm(x), context) + feed_forward(norm(x))`, with context = norm(x) and rotary positions where no
    context is given.
    """

    def __init__(self, width: int, config: MpsConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads, self.head_width = config.heads, config.head_width
        self.norm = nn.LayerNorm(width, bias=False)
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(width, 2 * config.head_width, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.feed_forward = FeedForward(width, config.feed_forward)

    def forward(self, x: Tensor, context: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """x [b, n, width] asking context [b, m, width], of which `keep` bool[b, m] is seen; [b, n, width]."""
        normed = self.norm(x)
        query = self.query(normed).unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)
        key, value = self.key_value(normed if context is None else context).unsqueeze(1).chunk(2, dim=-1)
        if context is None:
            query, key = rotate(query), rotate(key)
        mask = None if keep is None else keep[:, None, None, :]
        # key and value [b, 1, m, head_width] are shared by all heads
        shape = (-1, self.heads, -1, -1)
        mixed = F.scaled_dot_product_attention(query, key.expand(shape), value.expand(shape), attn_mask=mask)
        return x + self.out(mixed.transpose(1, 2).flatten(-2)) + self.feed_forward(normed)  # type: ignore[no-any-return]


def rotate(x: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) over dimension -2: channel i turns with channel i + half, base 10,000."""
    length, width = x.shape[-2:]
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
    angles = torch.arange(length, device=x.device, dtype=torch.float32)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class FusionLayer(nn.Module):
    """Image tokens ask the text, then each other."""

    def __init__(self, width: int, config: MpsConfig) -> None:
        super().__init__()
        self.cross = Attention(width, config)
        self.itself = Attention(width, config)

    def forward(self, image: Tensor, text: Tensor, keep: Tensor) -> Tensor:
        return self.itself(self.cross(image, text, keep))  # type: ignore[no-any-return]


def seen_tokens(text: Tensor, condition: Tensor, threshold: float) -> Tensor:
    """Which text tokens resemble the condition.

    Args:
        text: [b, n, width], tokens of the texts.
        condition: [m, width], tokens of the condition.
        threshold: least share of the text's largest similarity.

    Returns:
        bool[b, n]. A token's similarity is its largest dot product with a condition token.
    """
    similarity = torch.einsum("bnd,md->bnm", text, condition).amax(-1)
    return similarity / similarity.amax(-1, keepdim=True) > threshold


class MpsModel(nn.Module):
    """CLIP and the fusion.

    Args:
        clip_config: a transformers `CLIPConfig`.
        config: the fusion's sizes and the condition.
    """

    def __init__(self, clip_config: Any, config: MpsConfig) -> None:
        from transformers import CLIPModel

        super().__init__()
        self.config = config
        self.clip: Any = CLIPModel(clip_config)
        width = clip_config.projection_dim
        self.fusion = nn.ModuleList([FusionLayer(width, config) for _ in range(config.layers)])

    def text_tokens(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Projected hidden states of ids [b, n]: of all tokens [b, n, width], and of the end token [b, width]."""
        out = self.clip.text_model(input_ids=ids)
        projection = self.clip.text_projection
        return projection(out.last_hidden_state), projection(out.pooler_output)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Projected hidden states of pixels [b, 3, h, w]: [b, 1 + patches, width]."""
        return self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).last_hidden_state)  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, pixels: Tensor, condition: Tensor) -> Tensor:
        """Scores float32[b] of texts `ids` [b, n] and `pixels` [b, 3, h, w].

        `condition` [m, width] is `text_tokens` of the condition's words, encoded once.
        """
        text, end = self.text_tokens(ids)
        keep = seen_tokens(text, condition, self.config.threshold)
        image = self.image_tokens(pixels)
        for layer in self.fusion:
            image = layer(image, text, keep)
        cosine = (normalised(end) * normalised(image[:, 0])).sum(-1)
        return self.clip.logit_scale.float().exp() * cosine  # type: ignore[no-any-return]

    def fill(self, weights: Mapping[str, Tensor], misfit: str) -> None:
        """Makes the tensors its own, without a copy.

        Raises:
            ConfigError: `misfit`, and which tensor is missing, strange or of another shape.
        """
        due = {key: tuple(value.shape) for key, value in self.state_dict().items()}
        got = {key: tuple(value.shape) for key, value in weights.items()}
        wrong = sorted(key for key in {*due, *got} if due.get(key) != got.get(key))
        if wrong:
            raise ConfigError(
                f"{misfit}: {len(wrong)} tensors differ, such as {wrong[0]} "
                f"(due {due.get(wrong[0], 'absent')}, got {got.get(wrong[0], 'absent')})"
            )
        self.load_state_dict(weights, strict=True, assign=True)

    def save(self, directory: str | Path) -> None:
        """Writes config.json and model.safetensors; tokenizer and image processor are saved beside them."""
        from safetensors.torch import save_file

        place = Path(directory)
        place.mkdir(parents=True, exist_ok=True)
        content = {"model_type": "mps", "clip": self.clip.config.to_dict(), "mps": asdict(self.config)}
        (place / "config.json").write_text(json.dumps(content, indent=2, default=str))
        save_file(
            {key: value.contiguous() for key, value in self.state_dict().items()}, place / "model.safetensors"
        )


def load_mps(directory: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> MpsModel:
    """The model in a directory that `MpsModel.save` wrote, in `dtype` or the precision of its file, ready to score; its
    scale in the file's.

    Its tensors go from the file to the device one by one, and there is never a second model of them, on the host or
    there: read whole and then made bfloat16, the published one took 4.5 GB of a GPU while it loaded, now 2.0.

    Raises:
        ConfigError: files are missing, a pickle lies there instead, or the weights do not fit key by key.
    """
    from accelerate import init_empty_weights
    from safetensors import safe_open
    from transformers import CLIPConfig

    place = Path(directory)
    missing = [name for name in FILES if not (place / name).is_file()]
    if missing:
        raise ConfigError(
            f"{place} has no {' and no '.join(missing)}; the published MPS checkpoint is a pickled module, which "
            "is never loaded; convert it once: rankray convert-mps FILE --output DIRECTORY, and name that as `source`"
        )
    content = json.loads((place / "config.json").read_text())
    known = {key.name for key in fields(MpsConfig)}
    if content.get("model_type") != "mps" or not set(content.get("mps", {})) <= known:
        raise ConfigError(
            f"{place}/config.json is not of an MPS model: `mps` may hold {', '.join(sorted(known))}"
        )
    with init_empty_weights():
        model = MpsModel(CLIPConfig.from_dict(content["clip"]), MpsConfig(**content["mps"]))
    weights = {}
    with (
        one_line(str(place / "model.safetensors")),
        safe_open(place / "model.safetensors", "pt", device) as file,
    ):
        for name in file.keys():  # noqa: SIM118
            value = file.get_tensor(name)
            # the scale stays as it is written: in bfloat16 the published 100 would be 98.9
            weights[name] = value.to(dtype) if value.is_floating_point() and name != _SCALE else value
    model.fill(weights, f"{place}/model.safetensors does not fit its config.json")
    return model.eval().requires_grad_(False)


class Mps(Batched):
    """The reward on one device.

    Args:
        spec: its row; options `processor` (None: the weights' own directory), `processor_revision`, `vocabulary`,
            `condition` and `threshold` (None: the weights' own).
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: weights, tokenizer or preprocessing are not what the model needs.
    """

    def __init__(self, spec: RewardSpec, device: str) -> None:
        options = spec.options
        self.batch_size, self.device, self.dtype = spec.batch_size, device, getattr(torch, spec.dtype)
        model = load_mps(files_of(spec.source, spec.revision, FILES), device, self.dtype)
        changes = {key: options[key] for key in ("condition", "threshold") if options.get(key) is not None}
        model.config = MpsConfig(**{**asdict(model.config), **changes})
        self.model = model.to(device)  # positions are in no file
        clip_config = model.clip.config
        self.tokens, self.preprocess = load_processor(
            options["processor"] or spec.source,
            options["processor_revision"] if options["processor"] else spec.revision,
            clip_config.text_config,
            clip_config.vision_config.image_size,
            options["vocabulary"],
        )
        with torch.inference_mode():
            ids, _ = self.tokens([model.config.condition])
            self.condition = self.model.text_tokens(ids.to(device))[0][0]

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts are longer than the text encoder reads."""
        return self.tokens.truncated(prompts)

    def _score_batch(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        ids, _ = self.tokens(prompts)
        pixels = self.preprocess.batch(images, self.device).to(self.dtype)
        scores: Tensor = self.model(ids.to(self.device), pixels, self.condition)
        return scores
