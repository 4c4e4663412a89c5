"""Checkpoints that do not fit their pipeline: each is one line that names the file, and none loads in silence."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankray.config import ConfigError
from rankray.models.generators import GENERATORS
from rankray.models.generators.diffusers_pipeline import DiffusersGenerator

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
KEYS = {UNET: "conv_in.bias", TEXT: "final_layer_norm.bias"}


def load(place: Path) -> DiffusersGenerator:
    small = {"height": 64, "width": 64, "dtype": "float32", "variant": None, "steps": 1, "batch_size": 1}
    return DiffusersGenerator(replace(GENERATORS["sdxl"], source=str(place), **small), "cpu")  # type: ignore[arg-type]


@pytest.fixture
def copy(tiny_pipelines: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(tiny_pipelines["sdxl"], tmp_path / "sdxl")
    return tmp_path / "sdxl"


def changed(file: Path, change: Callable[[dict[str, Tensor], str], None], end: str) -> str:
    """Changes the tensor whose name ends so; its name."""
    weights = load_file(file)
    (key,) = [name for name in weights if name.endswith(end)]
    change(weights, key)
    save_file(weights, file, metadata={"format": "pt"})
    return key


def drop(weights: dict[str, Tensor], key: str) -> None:
    del weights[key]


def add(weights: dict[str, Tensor], key: str) -> None:
    weights["stray"] = torch.zeros(2)


def reshape(weights: dict[str, Tensor], key: str) -> None:
    weights[key] = torch.zeros(3, 3)


@pytest.mark.parametrize("file", [UNET, TEXT])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "do not fit the model: 1 missing keys, such as {key}; get the checkpoint again"),
        (add, "do not fit the model: 1 unexpected keys, such as stray; get the checkpoint again"),
        (reshape, "{key}"),
    ],
)
def test_tensors_that_do_not_fit(
    copy: Path, file: str, change: Callable[[dict[str, Tensor], str], None], message: str
) -> None:
    key = changed(copy / file, change, KEYS[file])
    with pytest.raises(ConfigError, match=re.escape(f"the weights in '{(copy / file).parent}'")) as caught:
        load(copy)
    assert message.format(key=key) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", [UNET, TEXT])
def test_a_cut_file(copy: Path, file: str) -> None:
    (copy / file).write_bytes((copy / file).read_bytes()[:-1000])
    with pytest.raises(
        ConfigError, match=rf"the weights in '{(copy / file).parent}' cannot be loaded: "
    ) as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def test_an_index_that_is_not_there(copy: Path) -> None:
    (copy / "model_index.json").unlink()
    with pytest.raises(
        ConfigError, match=rf"'{copy}' cannot be loaded: Error no file named model_index\.json"
    ):
        load(copy)


def test_a_tokenizer_without_its_vocabulary(copy: Path) -> None:
    for file in (copy / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises(
        ConfigError, match=r"the tokenizer 'tokenizer' of '.*' has \d tokens, and its text encoder"
    ):
        load(copy)


def test_what_older_versions_stored_is_let_pass(copy: Path) -> None:
    def positions(weights: dict[str, Tensor], key: str) -> None:
        weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]

    changed(copy / TEXT, positions, KEYS[TEXT])
    assert load(copy).truncated(["a red circle"]) == [False]
