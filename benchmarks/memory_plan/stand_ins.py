"""HPSv2, ImageReward and VQAScore without their packages, which are not installed beside the job's own libraries.

A module of the published sizes, of transformers' classes, takes the place of the package's model, so that what is ours
of them is seen: loading, preparing, batches, dtypes, bytes. With their own packages, small, they run in
`tests/unit/models/rewards/test_package_parity.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import hollow
import torch
from torch import Tensor, nn

from rankray.models.footprint import components
from rankray.models.rewards import RewardSpec
from rankray.models.rewards.clip import Preprocessing
from rankray.models.rewards.vqascore import VqaScore
from recipes.full_size import build
from recipes.random_weights.vocabularies import clip_tokenizer, t5_tokenizer

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def component(model: str, name: str = "model") -> Any:
    """A part on the CPU, in float32, as packages build theirs."""
    return build(next(part for part in components("rewards", model) if part.name == name), "cpu")


class OpenClip(nn.Module):
    """What `hpsv2` makes of CLIP ViT-H/14, by its names."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = component("clip-h")
        self.visual = SimpleNamespace(image_size=(224, 224), image_mean=MEAN, image_std=STD)

    @property
    def token_embedding(self) -> Any:
        return self.clip.text_model.embeddings.token_embedding

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.clip.get_image_features(pixel_values=pixels).pooler_output

    def encode_text(self, ids: Tensor) -> Tensor:
        return self.clip.get_text_features(input_ids=ids).pooler_output


class Blip(nn.Module):
    """What `ImageReward` has beside its head."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tower, self.text_encoder = component("imagereward", "vision"), component("imagereward", "text")
        self.tokenizer = tokenizer

    def visual_encoder(self, pixels: Tensor) -> Tensor:
        return self.tower(pixel_values=pixels).last_hidden_state


class Head(nn.Module):
    """The package's `ImageReward`."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.blip, self.mlp = Blip(tokenizer), nn.Linear(768, 1)
        self.mean, self.std = 0.16717362830052426, 1.0333394966054072
        steps = [lambda image: image.resize((224, 224)), lambda image: image, None]
        self.preprocess = SimpleNamespace(transforms=[*steps, SimpleNamespace(mean=MEAN, std=STD)])


class FlanT5(nn.Module):
    """CLIP-FlanT5 of t2v-metrics: a picture's features and a question's words, and the answer's logits."""

    def __init__(self, model: str) -> None:
        super().__init__()
        for name in ("vision", "projector", "language"):
            self.add_module(name, component(model, name).to("cuda", torch.bfloat16))

    def forward(self, input_ids: Tensor, images: Tensor, labels: Tensor, **_: Any) -> Any:
        seen = self.projector(self.vision(pixel_values=images.to(torch.bfloat16)).last_hidden_state[:, 1:])
        words = torch.cat([seen, self.language.shared(input_ids)], 1)
        return self.language(inputs_embeds=words, decoder_input_ids=labels)


def _tokenize(texts: list[str], context_length: int = 77) -> Tensor:
    return clip_tokenizer()(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids


@contextmanager
def packages() -> Iterator[None]:
    """Within it `hpsv2` and `ImageReward` can be imported, as far as their rewards do."""
    preprocess = Preprocessing((224, 224), (224, 224), MEAN, STD)
    modules = {
        "hpsv2.src.open_clip": {
            "create_model": lambda *_, **__: OpenClip(),
            "create_model_and_transforms": lambda *_, **__: (OpenClip(), None, preprocess),
            "get_tokenizer": lambda _: _tokenize,
        },
        "ImageReward.models.BLIP.blip_pretrain": {},
        "ImageReward.ImageReward": {"ImageReward": lambda **_: Head(clip_tokenizer())},
    }
    before = {}
    for name, contents in modules.items():
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            made = ModuleType(".".join(parts[:depth]))
            before.setdefault(made.__name__, sys.modules.get(made.__name__))
            if depth == len(parts) or made.__name__ not in sys.modules:
                sys.modules[made.__name__] = made
        vars(sys.modules[name]).update(contents)
    try:
        yield
    finally:
        for name, found in before.items():
            del sys.modules[name]
            if found is not None:
                sys.modules[name] = found


def hpsv2(place: Path) -> dict[str, Any]:
    """A checkpoint; its options."""
    with torch.device("meta"):
        hollow.write(hollow.shapes_of(OpenClip()), torch.float16, place / "hps.safetensors")
    return {"file": "hps.safetensors"}


def imagereward(place: Path) -> dict[str, Any]:
    """A checkpoint; its options."""
    with torch.device("meta"):
        hollow.write(hollow.shapes_of(Head(None)), torch.float32, place / "ir.safetensors")
    return {"file": "ir.safetensors"}


def vqascore(spec: RewardSpec) -> VqaScore:
    """Its constructor wants the package's transformers; what it does with a batch is its own."""
    made: Any = VqaScore.__new__(VqaScore)
    made.batch_size, made._dtype = spec.batch_size, torch.bfloat16
    made._module = SimpleNamespace(
        default_question_template='Does this figure show "{}"? Please answer yes or no.',
        default_answer_template="Yes",
        format_question=lambda text, style: text,
        t5_tokenizer_image_token=lambda text, tokenizer: tokenizer(text).input_ids,
    )
    made.model = SimpleNamespace(
        model=FlanT5(str(spec.options["model"])),
        tokenizer=t5_tokenizer(),
        device="cuda",
        image_aspect_ratio="pad",
        conversational_style="t5_chat",
    )
    made.preprocess = Preprocessing((336,), (336, 336), MEAN, STD)
    made._squared = lambda image, border: image.resize((336, 336))
    return made
