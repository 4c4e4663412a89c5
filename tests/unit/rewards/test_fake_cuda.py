"""Rewards at full size on a fake CUDA device, by their classes and the layout of their files.

HPSv2, ImageReward and VQAScore stand on packages that are not installed here: a stand-in of the published sizes, of
transformers' classes, takes the place of the package's model, so that what is ours of them is seen. With their own
packages they run in `test_package_parity.py`. Guessed (`rankray.fake_cuda`): scores are zeros.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rankray import demand
from rankray.components import build
from rankray.fake_cuda import fake_cuda
from rankray.random_weights import full_size
from rankray.random_weights.vocabularies import clip_tokenizer, t5_tokenizer
from rankray.rewards import REWARDS, RewardSpec
from rankray.rewards import full_size as rewards_full_size
from rankray.rewards.clip import Preprocessing
from rankray.rewards.vqascore import VqaScore
from rankray.targets import Target, load

pytestmark = pytest.mark.slow

PROMPTS = ["a red kite over an old mill", "two blue birds", "a red kite over an old mill"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (1024, 1024 - 128 * n), "red") for n in range(3)]


def hollow(name: str, place: Path) -> RewardSpec:
    row = REWARDS[name]
    options = full_size.HOLLOW_REWARDS[name](place)
    return replace(row, source=str(place), options={**row.options, **options})


def check(spec: RewardSpec, reward: Any, device: Any, weights: int) -> None:
    plan = demand.footprint(Target("", spec.target, {"spec": spec}))
    assert device.peak < plan.memory_gb(spec.batch_size) * 1e9, (
        "a file in float32 is cast on the device, once"
    )
    device.peak = device.now
    scores = reward.score(pictures(), PROMPTS)
    assert (scores.dtype, scores.shape) == (np.float32, (3,))
    assert weights == pytest.approx(plan.weights_gb * 1e9, rel=0.25)
    assert device.peak == pytest.approx(plan.allocated_gb(spec.batch_size) * 1e9, rel=0.25)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("pickscore", None),
        ("pickscore", "float16"),
        ("mps", "bfloat16"),
        ("clipscore", None),
        ("aesthetic", None),
        ("qalign-quality", None),
        pytest.param("mps", None, marks=pytest.mark.slow),
    ],
)
def test_scores(name: str, dtype: str | None, tmp_path: Path) -> None:
    spec = hollow(name, tmp_path)
    spec = replace(spec, dtype=dtype or spec.dtype)
    with fake_cuda() as device:
        reward = load(Target(name, spec.target, {"spec": spec}), "cuda")
        check(spec, reward, device, device.now)


def test_a_planted_fault_raises(tmp_path: Path) -> None:
    spec = hollow("clipscore", tmp_path)
    with fake_cuda():
        reward: Any = load(Target("", spec.target, {"spec": spec}), "cuda")
        reward.clip.model.visual_projection.half()
        with pytest.raises(RuntimeError, match=r"float16 and torch\.float32; one dtype is due"):
            reward.score(pictures(), PROMPTS)
        reward.clip.model.visual_projection.float().cpu()
        with pytest.raises(RuntimeError, match="devices"):
            reward.score(pictures(), PROMPTS)


def component(model: str, name: str = "model") -> Any:
    """A part on the CPU, in float32, as packages build theirs."""
    return build(next(part for part in rewards_full_size.components(model) if part.name == name), "cpu")


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


def module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    for n in range(1, len(name.split("."))):
        parent = ".".join(name.split(".")[:n])
        if parent not in sys.modules:
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    found = ModuleType(name)
    vars(found).update(contents)
    monkeypatch.setitem(sys.modules, name, found)


def test_hpsv2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tokenize(texts: list[str], context_length: int = 77) -> Tensor:
        return clip_tokenizer()(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids

    preprocess = Preprocessing((224, 224), (224, 224), MEAN, STD)
    module(
        monkeypatch,
        "hpsv2.src.open_clip",
        create_model=lambda *_, **__: OpenClip(),
        create_model_and_transforms=lambda *_, **__: (OpenClip(), None, preprocess),
        get_tokenizer=lambda _: tokenize,
    )
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in OpenClip().state_dict().items()}
    full_size.write_hollow(shapes, torch.float16, tmp_path / "hps.safetensors")
    row = REWARDS["hpsv2.1"]
    spec = replace(row, source=str(tmp_path), options={**row.options, "file": "hps.safetensors"})
    with fake_cuda() as device:
        reward = load(Target("", spec.target, {"spec": spec}), "cuda")
        check(spec, reward, device, device.now)


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
        steps = [lambda image: image.resize((224, 224)), lambda image: image, None, None]
        self.preprocess = SimpleNamespace(transforms=[*steps[:3], SimpleNamespace(mean=MEAN, std=STD)])


def test_imagereward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(device: str, med_config: str) -> Head:
        return Head(clip_tokenizer())

    module(monkeypatch, "ImageReward.models.BLIP.blip_pretrain")
    module(monkeypatch, "ImageReward.ImageReward", ImageReward=make)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in make("", "").state_dict().items()}
    full_size.write_hollow(shapes, torch.float32, tmp_path / "ir.safetensors")
    row = REWARDS["imagereward"]
    spec = replace(row, source=str(tmp_path), options={**row.options, "file": "ir.safetensors"})
    with fake_cuda() as device:
        reward = load(Target("", spec.target, {"spec": spec}), "cuda")
        check(spec, reward, device, device.now)


class FlanT5(nn.Module):
    """CLIP-FlanT5 as t2v-metrics calls it: pictures in the middle of a question, P("Yes") as its answer."""

    def __init__(self, model: str) -> None:
        super().__init__()
        for name in ("vision", "projector", "language"):
            self.add_module(name, component(model, name).to("cuda", torch.bfloat16))
        self.device, self.image_aspect_ratio = "cuda", "pad"
        self.tokenizer = t5_tokenizer()

    @torch.no_grad()
    def forward(self, images: list[Image.Image], texts: list[str]) -> Tensor:
        asked = self.tokenizer(texts, padding=True, return_tensors="pt").input_ids.to(self.device)
        pixels = self.load_images(images).to(self.device, torch.bfloat16)
        seen = self.projector(self.vision(pixel_values=pixels).last_hidden_state[:, 1:])
        words = torch.cat([seen, self.language.shared(asked)], 1)
        start = torch.zeros(len(texts), 1, dtype=torch.long, device=self.device)
        return self.language(inputs_embeds=words, decoder_input_ids=start).logits[:, 0].softmax(-1)[:, 1]


@pytest.mark.parametrize("model", ["clip-flant5-xl", pytest.param("clip-flant5-xxl", marks=pytest.mark.slow)])
def test_vqascore(model: str) -> None:
    """Its constructor wants the package's transformers; what it does with a batch is its own."""
    row = REWARDS["vqascore"]
    spec = replace(row, options={**row.options, "model": model})
    with fake_cuda() as device:
        reward: Any = VqaScore.__new__(VqaScore)
        reward.batch_size, reward._dtype, reward.model = spec.batch_size, torch.bfloat16, FlanT5(model)
        reward.preprocess = Preprocessing((336,), (336, 336), MEAN, STD)
        reward._squared = lambda image, border: image.resize((336, 336))
        reward.model.load_images = reward._pixels
        check(spec, reward, device, device.now)


def test_the_modules_that_load_them_are_the_rows() -> None:
    for row in REWARDS.values():
        assert importlib.import_module(row.target.partition(":")[0])
