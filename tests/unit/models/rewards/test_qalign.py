"""Q-Align on a tiny genuine checkpoint: its arithmetic by hand, what moves a score, what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from qalign_by_hand import logits
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankray.config import ConfigError, RewardChoice
from rankray.models.rewards import REWARDS, RewardSpec, resolve
from rankray.models.rewards.qalign import (
    ANSWER,
    LEVELS,
    QUESTION,
    QAlign,
    encoded,
    expected,
    level_ids,
    read_vocabulary,
    square,
)  # fmt: skip
from rankray.models.rewards.qalign_model import Multiway, Owl2, Sizes
from recipes.random_weights.qalign import NORMAL, SPACE, vocabulary, write, write_vocabulary

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
PUBLISHED = {
    "model_type": "mplug_owl2", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
    "visual_config": {
        "visual_model": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": 448, "patch_size": 14, "layer_norm_eps": 1e-06,
        },
        "visual_abstractor": {
            "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6, "num_attention_heads": 16,
            "num_learnable_queries": 64, "grid_size": 32, "layer_norm_eps": 1e-06,
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def qalign_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("qalign")
    torch.manual_seed(2)
    write(place)
    return place


@pytest.fixture
def copy(qalign_dir: Path, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(qalign_dir, tmp_path / "copy"))


def spec(place: Path, row: str = "qalign-quality", **changes: Any) -> RewardSpec:
    changes = {"dtype": "float32", "batch_size": 3, **changes}
    options = {**REWARDS[row].options, "vocabulary": 0, **changes.pop("options", {})}
    return replace(REWARDS[row], source=str(place), options=options, **changes)


def weights_of(place: Path) -> dict[str, Tensor]:
    return {key: tensor for shard in SHARDS for key, tensor in load_file(place / shard).items()}


def rewrite(place: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """The weights, changed, in one file."""
    weights = weights_of(place)
    change(weights)
    for name in (INDEX, *SHARDS):
        (place / name).unlink()
    save_file(weights, place / "model.safetensors")


@pytest.mark.parametrize(
    ("row", "aspect"), [("qalign-quality", "quality"), ("qalign-aesthetic", "aesthetics")]
)
def test_scores_are_the_model_in_loops(
    row: str, aspect: str, qalign_dir: Path, pictures: list[Image.Image]
) -> None:
    reward = QAlign(spec=spec(qalign_dir, row), device="cpu")
    got = reward.score(pictures[:3], ["what is asked is", "not the prompt", ""])
    weights = {key: tensor.double().numpy() for key, tensor in weights_of(qalign_dir).items()}
    config = json.loads((qalign_dir / "config.json").read_text())
    tokenizer = read_vocabulary(qalign_dir / "tokenizer.model")
    before = [1, *encoded(tokenizer, f"USER: How would you rate the {aspect} of this image?\n")]
    after = encoded(tokenizer, f"\nASSISTANT: The {aspect} of the image is")
    ids = {name: number for number, (name, _, _) in enumerate(vocabulary())}
    words = [ids[f"{SPACE}{word}"] for word in ("excellent", "good", "fair", "poor", "bad")]
    for picture, score in zip(pictures, got[:3], strict=False):
        pixels = reward.preprocess(square(picture, reward.preprocess.mean)).double().numpy()
        levels = np.exp(logits(weights, config, pixels, before, after)[words])
        due = (levels[0] + 0.75 * levels[1] + 0.5 * levels[2] + 0.25 * levels[3]) / levels.sum()
        assert score == pytest.approx(due, abs=2e-6)
    assert np.ptp(got) > 1e-3
    assert got.dtype == np.float32


def test_what_surrounds_a_picture_does_not_move_its_score(
    qalign_dir: Path, pictures: list[Image.Image]
) -> None:
    reward = QAlign(spec=spec(qalign_dir), device="cpu")
    prompts = [str(n) for n in range(len(pictures))]
    whole = reward.score(pictures, prompts)
    assert ((whole > 0) & (whole < 1)).all()
    np.testing.assert_array_equal(reward.score(pictures, prompts[::-1]), whole)
    np.testing.assert_array_equal(reward.score(pictures[::-1], prompts)[::-1], whole)
    alone = np.concatenate([reward.score([picture], ["x"]) for picture in pictures])
    np.testing.assert_array_equal(alone, whole)
    again = QAlign(spec=spec(qalign_dir), device="cpu").score(pictures, prompts)
    np.testing.assert_array_equal(again, whole)
    other = QAlign(spec=spec(qalign_dir, "qalign-aesthetic"), device="cpu").score(pictures, prompts)
    assert np.abs(other - whole).min() > 1e-4
    assert reward.score([], []).shape == (0,)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_agrees_roughly(dtype: str, qalign_dir: Path, pictures: list[Image.Image]) -> None:
    whole = QAlign(spec=spec(qalign_dir), device="cpu").score(pictures, [""] * 7)
    half = QAlign(spec=spec(qalign_dir, dtype=dtype), device="cpu")
    assert {parameter.dtype for parameter in half.model.parameters()} == {getattr(torch, dtype)}
    np.testing.assert_allclose(half.score(pictures, [""] * 7), whole, atol=0.02)


def test_a_score_is_the_levels_by_their_probabilities() -> None:
    even = torch.zeros(1, 5)
    halves = torch.tensor([[0.0, -1e9, -1e9, 0.0, -1e9]])  # excellent or poor
    mixed = torch.log(torch.tensor([[4.0, 2.0, 2.0, 1.0, 1.0]]))
    found = expected(torch.cat([even, halves, mixed]).half())
    np.testing.assert_allclose(found, [0.5, (1 + 0.25) / 2, 0.4 + 0.15 + 0.1 + 0.025], atol=1e-4)
    single = expected(1e4 * torch.eye(5))
    np.testing.assert_array_equal(single, [1.0, 0.75, 0.5, 0.25, 0.0])


def test_a_square_is_filled_with_the_mean_colour() -> None:
    picture = Image.new("RGB", (3, 8), (9, 8, 7))
    filled = square(picture, (0.48145466, 0.4578275, 0.40821073))
    assert filled.size == (8, 8)
    colours = np.asarray(filled)
    np.testing.assert_array_equal(colours[:, 2:5], np.broadcast_to((9, 8, 7), (8, 3, 3)))
    np.testing.assert_array_equal(colours[:, :2], np.broadcast_to((122, 116, 104), (8, 2, 3)))
    np.testing.assert_array_equal(colours[:, 5:], np.broadcast_to((122, 116, 104), (8, 3, 3)))
    assert square(picture.resize((8, 3)), (0.0, 0.0, 0.0)).getpixel((0, 1)) == (0, 0, 0)
    assert square(Image.new("L", (5, 5), 3), (0.0, 0.0, 0.0)).getpixel((0, 0)) == (3, 3, 3)


def test_text_and_picture_go_through_layers_of_their_own() -> None:
    layer = Multiway(torch.nn.Linear(2, 1, bias=False), start=1, stop=3)
    for which, value in enumerate((1.0, 10.0)):
        torch.nn.init.constant_(layer.multiway[which].weight, value)
    found = layer(torch.arange(8.0).reshape(1, 4, 2))
    np.testing.assert_array_equal(found.detach().flatten(), [1.0, 50.0, 90.0, 13.0])


def test_at_full_size_it_is_the_published_model() -> None:
    """894 keys in the published index, 32 of them tables of frequencies; 9.99 and 6.42 GB in half precision."""
    with torch.device("meta"):
        model = Owl2(Sizes.from_config(PUBLISHED), before=15)
    weights = model.state_dict()
    assert len(weights) == 862
    assert sum(tensor.numel() for tensor in weights.values()) == 8_204_550_144
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_197_859_328
    assert REWARDS["qalign-quality"].full_size == "qalign"
    name = "model.layers.31.self_attn.v_proj.multiway.1.weight"
    assert weights[name].shape == (4096, 4096)
    name = "model.visual_abstractor.encoder.layers.5.crossattention.attention.k_pos_embed"
    assert weights[name].shape == (1025, 1024)
    assert weights["model.vision_model.encoder.layers.23.self_attn.query_key_value.bias"].shape == (3072,)


def published(place: Path) -> None:
    """The weights as they are published: pickles of plain tensors, and LLaMA's frequencies beside them."""
    weights = weights_of(place)
    weights |= {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.zeros(8) for n in range(2)}
    where = json.loads((place / INDEX).read_text())["weight_map"]
    shards: dict[str, OrderedDict[str, Tensor]] = {}
    for key, tensor in weights.items():
        name = where.get(key, SHARDS[0]).replace("model", "pytorch_model").replace("safetensors", "bin")
        shards.setdefault(name, OrderedDict())[key] = tensor
    for name, shard in shards.items():
        torch.save(shard, place / name)
    for name in (INDEX, *SHARDS):
        (place / name).unlink()
    index = {"weight_map": {key: name for name, shard in shards.items() for key in shard}}
    (place / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_published_shards_score_as_safetensors_do(
    qalign_dir: Path, copy: Path, pictures: list[Image.Image]
) -> None:
    due = QAlign(spec=spec(qalign_dir), device="cpu").score(pictures, [""] * 7)
    published(copy)
    got = QAlign(spec=spec(copy), device="cpu").score(pictures, [""] * 7)
    np.testing.assert_array_equal(got, due)


def test_code_in_a_shard_does_not_run(copy: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (copy / "sprung",)

    published(copy)
    torch.save({"stray": Trap()}, copy / "pytorch_model-00001-of-00002.bin", pickle_module=pickle)
    with pytest.raises(ConfigError, match="holds more than plain tensors, and nothing else is unpickled"):
        QAlign(spec=spec(copy), device="cpu")
    assert not (copy / "sprung").exists()


def test_from_the_hub_come_no_code_and_one_format(
    qalign_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[Image.Image]
) -> None:
    """A hub's cache on this machine is all that there is of a hub here."""
    commit = "0123456789" * 4
    repository = tmp_path / "models--q-future--one-align"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(qalign_dir, repository / "snapshots" / commit)
    (repository / "snapshots" / commit / "modeling_mplug_owl2.py").write_text("raise SystemExit(1)")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    target = resolve(RewardChoice(model="qalign-quality", dtype="float32", options={"vocabulary": 0}))
    assert target.revision == commit
    got = QAlign(device="cpu", **target.kwargs).score(pictures[:2], ["", ""])
    due = QAlign(spec=spec(qalign_dir, batch_size=8), device="cpu").score(pictures[:2], ["", ""])
    np.testing.assert_array_equal(got, due)


def test_the_revision_of_a_directory_is_its_bytes(copy: Path) -> None:
    def revision() -> str:
        return resolve(RewardChoice(model="qalign-aesthetic", source=str(copy))).revision

    before = revision()
    assert before.startswith("sha256:")
    (copy / "tokenizer.model").write_bytes(b"")
    assert revision() != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights.pop("model.visual_abstractor.vit_eos"),
            r"1 missing keys, such as model\.visual_abstractor\.vit_eos",
        ),
        (lambda weights: weights.update(stray=torch.zeros(1)), "1 unexpected keys, such as stray"),
        (
            lambda weights: weights.update({"lm_head.weight": torch.zeros(3, 32)}),
            r"1 mismatched keys, such as lm_head\.weight",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Tensor]], None], message: str, copy: Path
) -> None:
    rewrite(copy, change)
    with pytest.raises(ConfigError, match=message):
        QAlign(spec=spec(copy), device="cpu")


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("config.json", "model_type", "llama", "is of a 'llama', Q-Align is an 'mplug_owl2'"),
        ("config.json", "num_key_value_heads", 1, r"says \{'num_key_value_heads': 1\}, which no published"),
        ("config.json", "rope_scaling", {"type": "linear", "factor": 2.0}, "'rope_scaling'"),
        ("config.json", "vocab_size", 400, r"has \d+ tokens and the model 400"),
        (
            "preprocessor_config.json",
            "crop_size",
            16,
            r"makes pictures of \(16, 16\) pixels, the model takes 32",
        ),
        ("preprocessor_config.json", "do_resize", False, "is not CLIP's: do_resize"),
    ],
)
def test_another_models_settings_are_refused(
    file: str, key: str, value: object, message: str, copy: Path
) -> None:
    settings = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps({**settings, key: value}))
    with pytest.raises(ConfigError, match=message):
        QAlign(spec=spec(copy), device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 32000}, r"has \d+ tokens and the model \d+, where 32000 are due"),
        ({"aspect": "aesthetic"}, r"unknown aspect 'aesthetic' \(did you mean 'aesthetics'\?\)"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str, qalign_dir: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        QAlign(spec=spec(qalign_dir, options=options), device="cpu")


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer.model", SHARDS[1]])
def test_a_missing_file_is_named(file: str, copy: Path) -> None:
    (copy / file).unlink()
    with pytest.raises(ConfigError, match=f"there is no .*/{file}"):
        QAlign(spec=spec(copy), device="cpu")


def test_no_weights_at_all_are_named(copy: Path) -> None:
    (copy / INDEX).unlink()
    with pytest.raises(
        ConfigError, match=r"there are no weights in .*; due are model\.safetensors or pytorch_model\.bin"
    ):
        QAlign(spec=spec(copy), device="cpu")


def test_levels_are_one_token_each(tmp_path: Path) -> None:
    cut = [(name, score, kind) for name, score, kind in vocabulary() if name != f"{SPACE}fair"]
    write_vocabulary(tmp_path / "tokenizer.model", cut)
    with pytest.raises(ConfigError, match="the tokenizer cuts fair into pieces, where one token each is due"):
        level_ids(read_vocabulary(tmp_path / "tokenizer.model"))
    whole = {name for name, _, kind in vocabulary() if kind == NORMAL}
    assert {SPACE + word for word in LEVELS} < whole


def test_the_question_is_the_published_models() -> None:
    """As `score` of the published model asks, a line for the picture between the two."""
    whole = f"{QUESTION}<|image|>{ANSWER}".format(aspect="aesthetics")
    assert whole.splitlines() == [
        "USER: How would you rate the aesthetics of this image?",
        "<|image|>",
        "ASSISTANT: The aesthetics of the image is",
    ]
