"""A CLIP model with its tokenizer and its image preprocessing: the ground of PickScore, CLIPScore and others.

Strict on purpose: missing, unexpected or wrongly shaped weights, a tokenizer that does not belong to the model and
an unknown preprocessing step are errors, because each of them otherwise gives plausible wrong scores in silence.
Images are resized by Pillow as the published scores were; torchvision's bicubic, the default of
transformers 5, differs from it by up to 3 of 255 levels.

Authors prepared CLIP's inputs by one of two programs, which differ in texts (OpenAI's, and open_clip after it, mends
curly quotes, entities and mojibake by ftfy; transformers' fast tokenizer never did) and in where the middle of a
picture is, by a pixel at most. `by_openai` says which.
"""

from __future__ import annotations

import html
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ftfy
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rankray.config import ConfigError
from rankray.models.loading import file_of, longer, one_line, require_vocabulary, strictly, where
from rankray.models.rewards import RewardSpec

Thing = TypeVar("Thing")


def batches(things: Sequence[Thing], size: int) -> Iterator[tuple[list[Thing], int]]:
    """(batch of `size`, how many of it are things) over `things`; the last is filled up with its last thing.

    Kernels so see one shape, and what is computed does not depend on how many neighbours a thing has.
    """
    for start in range(0, len(things), size):
        batch = list(things[start : start + size])
        yield batch + [batch[-1]] * (size - len(batch)), len(batch)


class Batched(ABC):
    """A reward that computes batches of one constant size, `batch_size` (`batches`)."""

    batch_size: int

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """float32[len(images)], higher is better.

        Raises:
            ValueError: images and prompts differ in number.
        """
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts; one prompt an image is due")
        scores = [np.empty(0, np.float32)]
        for pairs, count in batches(list(zip(images, prompts, strict=True)), self.batch_size):
            with torch.inference_mode():
                values = self._score_batch([image for image, _ in pairs], [prompt for _, prompt in pairs])
            scores.append(values.float().cpu().numpy()[:count])
        return np.concatenate(scores)

    @abstractmethod
    def _score_batch(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        """[batch_size] of as many pairs."""


TEXTS_AT_ONCE = 8
"""Distinct prompts encoded in one call: those of a batch of 32 pictures, four of each."""


def of_distinct(encode: Callable[[list[str]], Tensor], prompts: Sequence[str]) -> Tensor:
    """`encode(prompts) -> [n, ...]` of each distinct prompt once: a prompt's k candidates share its features.

    Each call has `TEXTS_AT_ONCE` prompts.
    """
    distinct = list(dict.fromkeys(prompts))
    encoded = [encode(some)[:count] for some, count in batches(distinct, TEXTS_AT_ONCE)]
    place = {prompt: n for n, prompt in enumerate(distinct)}
    return torch.cat(encoded)[[place[prompt] for prompt in prompts]]


def to_pixels(
    images: Sequence[np.ndarray | Image.Image], mean: Sequence[float], std: Sequence[float], device: str
) -> Tensor:
    """Pictures of one size [h, w, 3] of 0 .. 255 as (value / 255 - mean) / std: float32[n, 3, h, w].

    They reach the device as bytes, a quarter of what floats would be, and are made floats there, all at once.
    """
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images])).to(device)
    centre, spread = (
        torch.tensor(tuple(v), dtype=torch.float32, device=device).view(3, 1, 1) for v in (mean, std)
    )
    return ((stacked.permute(0, 3, 1, 2).float() / 255.0 - centre) / spread).contiguous()


@dataclass(frozen=True)
class Preprocessing:
    """CLIP's image preprocessing, as a `preprocessor_config.json` states it.

    Attributes:
        size: (height, width) in pixels to resize to, or (shortest,) to resize the shorter edge to.
        crop: (height, width) of the centre crop.
        mean, std: per channel, of values in 0 .. 1.
        by_openai: where an odd number of pixels is cut off, half of it is rounded as torchvision does, to even, and
            not down as transformers does.
    """

    size: tuple[int, ...]
    crop: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    by_openai: bool = False

    @classmethod
    def from_config(cls, config: dict[str, Any], by_openai: bool = False) -> Preprocessing:
        """From the contents of a `preprocessor_config.json`.

        Raises:
            ConfigError: a step is switched off or resamples otherwise than bicubically.
        """
        steps = ("do_resize", "do_center_crop", "do_normalize")
        off = [step for step in steps if not config.get(step, True)]
        if off or config.get("resample", Image.Resampling.BICUBIC) != Image.Resampling.BICUBIC:
            raise ConfigError(
                f"preprocessor_config.json is not CLIP's: {', '.join(off) or 'resampling is not bicubic'}"
            )
        size, crop = config["size"], config["crop_size"]
        if isinstance(size, dict):
            edges = (size["shortest_edge"],) if "shortest_edge" in size else (size["height"], size["width"])
        else:
            edges = (size,)
        window = (crop["height"], crop["width"]) if isinstance(crop, dict) else (crop, crop)
        mean, std = tuple(config["image_mean"]), tuple(config["image_std"])
        return cls(tuple(edges), window, mean, std, by_openai)

    def __call__(self, image: Image.Image) -> Tensor:
        """An image of any size and mode as float32[3, height, width]."""
        return self.batch([image], "cpu")[0]

    def batch(self, images: Sequence[Image.Image], device: str) -> Tensor:
        """Images of any size and mode as float32[n, 3, height, width]; they reach the device as bytes."""
        return to_pixels([self._cut(image) for image in images], self.mean, self.std, device)

    def _cut(self, image: Image.Image) -> np.ndarray:
        """Resized and cropped: uint8[height, width, 3]."""
        if image.mode != "RGB":
            image = image.convert("RGB")
        if len(self.size) == 1:
            short = self.size[0]
            width, height = image.size
            small = min(width, height)
            target = (int(short * width / small), int(short * height / small))
        else:
            target = (self.size[1], self.size[0])
        resized = np.asarray(image.resize(target, Image.Resampling.BICUBIC))
        return _centre(resized, self.crop, self.by_openai)


def _centre(pixels: np.ndarray, crop: tuple[int, int], to_even: bool) -> np.ndarray:
    """The middle of [h, w, 3], with a black border where the crop is larger."""
    height, width = pixels.shape[:2]
    high, wide = max(crop[0] - height, 0), max(crop[1] - width, 0)
    pixels = np.pad(pixels, ((-(-high // 2), high // 2), (-(-wide // 2), wide // 2), (0, 0)))
    edges = (pixels.shape[0] - crop[0], pixels.shape[1] - crop[1])
    top, left = (round(edge / 2) if to_even else edge // 2 for edge in edges)
    return pixels[top : top + crop[0], left : left + crop[1]]


@dataclass(frozen=True)
class TextTokens:
    """Token ids as CLIP wants them, cut or padded to one length.

    Attributes:
        tokenizer: of the transformers library.
        length: tokens of a text, start and end included; longer prompts are cut.
        by_openai: texts are mended first (`mended`).
    """

    tokenizer: Any
    length: int
    by_openai: bool = False

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(ids, attention mask) of the prompts, int64[n, length] each."""
        tokens = self.tokenizer(
            self._texts(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        )
        return tokens.input_ids, tokens.attention_mask

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts are cut."""
        return longer(self.tokenizer, self._texts(prompts), self.length)

    def _texts(self, prompts: Sequence[str]) -> list[str]:
        return [mended(prompt) for prompt in prompts] if self.by_openai else list(prompts)


def mended(text: str) -> str:
    """A text as OpenAI's and open_clip's tokenizers read it: mojibake mended, quotes straight, entities resolved.

    In lower case, by Python: transformers' tokenizer, which does it letter by letter, ends no word by another sigma.
    """
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip().lower()


class ClipModel:
    """CLIP's two towers on one device, from image and text to normalised features.

    Args:
        source: hub repository, directory or "shapes:NAME" of the weights.
        revision: of a hub repository.
        processor: where tokenizer and preprocessing come from; None is `source`.
        processor_revision: of a hub repository.
        vocabulary: size that the tokenizer must have; None takes the model's.
        dtype: "float32", "float16" or "bfloat16".
        device: "cpu", "cuda", "cuda:1".
        by_openai: texts and pictures are prepared as by OpenAI's package or open_clip, not as by transformers.

    Raises:
        ConfigError: weights, tokenizer or preprocessing cannot be had, or are not what the model needs.
    """

    def __init__(
        self,
        source: str,
        revision: str = "main",
        *,
        processor: str | None = None,
        processor_revision: str = "main",
        vocabulary: int | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        by_openai: bool = False,
    ) -> None:
        from transformers import CLIPModel

        class Scaled(CLIPModel):  # type: ignore[misc]
            """Its scale as it is written: in bfloat16 the published 100 would be 98.9."""

            _keep_in_fp32_modules_strict = ("logit_scale",)

        self.device, self.dtype = device, getattr(torch, dtype)
        place, settings = where(source, revision)
        with strictly(source, revision):
            model = Scaled.from_pretrained(place, dtype=self.dtype, use_safetensors=True, **settings)
        self.model: Any = model.to(device).eval().requires_grad_(False)
        self.tokens, self.preprocess = load_processor(
            processor or source,
            processor_revision if processor else revision,
            self.model.config.text_config,
            self.model.config.vision_config.image_size,
            vocabulary,
            by_openai,
        )

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Projected, of norm 1: float32[n, projection]."""
        pixels = self.preprocess.batch(images, self.device).to(self.dtype)
        return normalised(_pooled(self.model.get_image_features(pixel_values=pixels)))

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Projected, of norm 1: float32[n, projection]; each distinct prompt is encoded once."""
        return of_distinct(self._encoded_texts, prompts)

    def _encoded_texts(self, prompts: list[str]) -> Tensor:
        ids, mask = (tensor.to(self.device) for tensor in self.tokens(prompts))
        return normalised(_pooled(self.model.get_text_features(input_ids=ids, attention_mask=mask)))

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), a float32 scalar."""
        scale: Tensor = self.model.logit_scale.exp()
        return scale


class ClipReward(Batched):
    """A reward of CLIP's two features alone, on one device.

    Args:
        spec: its row; options `processor`, `processor_revision`, `vocabulary` as in `ClipModel`.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: weights, tokenizer or preprocessing are not what the model needs.
    """

    by_openai = False

    def __init__(self, spec: RewardSpec, device: str) -> None:
        self.batch_size = spec.batch_size
        more: dict[str, Any] = {
            "dtype": spec.dtype,
            "device": device,
            "by_openai": self.by_openai,
            **spec.options,
        }
        self.clip = ClipModel(spec.source, spec.revision, **more)

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts are longer than the text encoder reads."""
        return self.clip.tokens.truncated(prompts)

    def _cosines(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        """float32[n], of each pair."""
        return (self.clip.text_features(prompts) * self.clip.image_features(images)).sum(-1)


def normalised(features: Tensor) -> Tensor:
    """Each row divided by its Euclidean norm, in float32."""
    features = features.float()
    unit: Tensor = features / features.norm(dim=-1, keepdim=True)
    return unit


def _pooled(features: Any) -> Tensor:
    """transformers 5 returns an object where 4 returned its `pooler_output`."""
    tensor: Tensor = getattr(features, "pooler_output", features)
    return tensor


def load_processor(
    source: str,
    revision: str,
    text_config: Any,
    image_size: int,
    vocabulary: int | None,
    by_openai: bool = False,
) -> tuple[TextTokens, Preprocessing]:
    """Tokenizer and preprocessing of a directory or hub repository, checked against the model they serve.

    Raises:
        ConfigError: vocabulary, end token or picture size are not the model's.
    """
    # The fast one, as it is the only one of transformers 5; before, the other one's texts depended on ftfy.
    from transformers import CLIPTokenizerFast

    place, settings = where(source, revision)
    with one_line(source, revision):
        tokenizer = CLIPTokenizerFast.from_pretrained(place, **settings)
    expected = vocabulary or text_config.vocab_size
    require_vocabulary(tokenizer, source, text_config.vocab_size, expected)
    # Early CLIP configurations say 2 and mean the largest id: transformers then pools at the largest.
    end = expected - 1 if text_config.eos_token_id == 2 else text_config.eos_token_id
    if tokenizer.eos_token_id != end:
        raise ConfigError(
            f"the tokenizer of '{source}' ends texts by token {tokenizer.eos_token_id}, the model by {end}"
        )
    file = file_of(source, "preprocessor_config.json", revision)
    if not file.is_file():
        raise ConfigError(f"{file.parent} has no {file.name}; save the model's CLIPImageProcessor there")
    preprocess = Preprocessing.from_config(json.loads(file.read_text()), by_openai)
    if preprocess.crop != (image_size, image_size):
        raise ConfigError(
            f"'{source}' makes pictures of {preprocess.crop} pixels, the model takes {image_size} squared"
        )
    return TextTokens(tokenizer, text_config.max_position_embeddings, by_openai), preprocess
