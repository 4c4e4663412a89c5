"""Files of weights that are wrong are found without a model: cut, missing, pickled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from rankray.config import ConfigError, GeneratorChoice, RewardChoice
from rankray.models import weights
from rankray.models.generators import resolve as resolve_generator
from rankray.models.rewards import resolve as resolve_reward


def refused(path: Path, pickles: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        weights.check(str(path), pickles)
    assert "\n" not in str(caught.value)
    return str(caught.value)


TENSORS = {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 3), np.float16)}


@settings(max_examples=40)
@given(st.integers(0, len(save(TENSORS)) - 1))
def test_a_file_cut_anywhere_is_found(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    file = tmp_path_factory.mktemp("cut") / "model.safetensors"
    file.write_bytes(save(TENSORS)[:length])
    assert refused(file).startswith(f"{file} is cut short")
    file.write_bytes(save(TENSORS))
    weights.check(str(file), pickles=False)


def test_what_is_due_is_said(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(1000, np.float32)}, file)
    whole = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-100])
    assert refused(tmp_path) == (
        f"{file} is cut short or damaged: {whole - 100:,} bytes, due are {whole:,}; get it again"
    )
    file.write_bytes((3).to_bytes(8, "little") + b"[1]")
    assert refused(tmp_path) == f"{file} is no safetensors file: its header is no table of tensors"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "is cut short within its header (63 bytes); get it again" in refused(tmp_path)


def test_a_missing_part_of_many_is_found(tmp_path: Path) -> None:
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    for name in names[:2]:
        save_file({name: np.zeros(3, np.float32)}, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: name for name in names}}))
    assert refused(tmp_path) == f"{tmp_path} lacks 1 of 3 files of weights, such as {names[2]}; get it again"
    index.write_text("[]")
    assert refused(tmp_path) == f"{index} is no index of weights; get it again"


def test_pickles_are_weights_only_where_they_are_published_so(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(3)}, file)
    due = f"{file} is a pickle, which can run code and is not loaded, and there is no safetensors file beside it"
    assert refused(tmp_path).startswith(due)
    weights.check(str(tmp_path), pickles=True)
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    assert refused(tmp_path, pickles=True) == f"{file} is cut short ({len(whole) - 30:,} bytes); get it again"
    file.write_bytes(whole)
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "state").mkdir()
    file.rename(tmp_path / "state" / "optimizer.bin")
    weights.check(str(tmp_path), pickles=False)
    (tmp_path / "state" / "optimizer.bin").rename(tmp_path / "state" / "diffusion_pytorch_model.bin")
    assert "diffusion_pytorch_model.bin is a pickle" in refused(tmp_path)


def test_a_job_asks_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(
        ConfigError, match=r"unet/model\.safetensors is cut short within its header \(5 bytes\)"
    ):
        resolve_generator(GeneratorChoice(model="sdxl", source=str(tmp_path)))
    (tmp_path / "unet" / "model.safetensors").rename(tmp_path / "unet" / "model.ckpt")
    with pytest.raises(ConfigError, match=r"unet/model\.ckpt is a pickle"):
        resolve_generator(GeneratorChoice(model="sdxl", source=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"unet/model\.ckpt is a pickle"):
        resolve_reward(RewardChoice(model="pickscore", source=str(tmp_path)))
    options = {"tokenizer": str(tmp_path)}
    assert resolve_reward(RewardChoice(model="imagereward", source=str(tmp_path), options=options)).revision
