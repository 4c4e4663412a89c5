"""Judges' parts that cannot be used are one line that names them, and pickles are never loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankray.config import ConfigError
from rankray.evals.detection import Detector
from rankray.evals.loading import Part
from rankray.evals.vqa import BlipVqa
from rankray.models.rewards.clip import batches


@pytest.fixture
def vqa(judges: Path, tmp_path: Path) -> Path:
    """A copy of small BLIP weights, to be spoilt."""
    shutil.copytree(judges / "dpg" / "vqa", tmp_path / "vqa")
    return tmp_path / "vqa"


def refused(place: Path) -> str:
    with pytest.raises(ConfigError) as found:
        BlipVqa(Part(str(place)), None, 16)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_a_cut_file(vqa: Path) -> None:
    file = vqa / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    said = refused(vqa)
    assert f"the weights in '{vqa}' cannot be loaded: " in said
    assert said.endswith("get them again")


def test_a_missing_and_a_misshapen_tensor(vqa: Path) -> None:
    file = vqa / "model.safetensors"
    whole = load_file(file)
    name = next(key for key in whole if key.endswith("query.weight"))
    save_file({key: value for key, value in whole.items() if key != name}, file, metadata={"format": "pt"})
    assert f"1 missing keys, such as {name}" in refused(vqa)
    save_file({**whole, name: torch.zeros(3, 3)}, file, metadata={"format": "pt"})
    assert f"1 mismatched keys, such as {name}" in refused(vqa)


def test_a_pickle_is_not_loaded(vqa: Path) -> None:
    torch.save(load_file(vqa / "model.safetensors"), vqa / "pytorch_model.bin")
    (vqa / "model.safetensors").unlink()
    assert "model.safetensors" in refused(vqa)


def test_a_missing_processor_of_a_detector(judges: Path, tmp_path: Path) -> None:
    place = tmp_path / "detector"
    shutil.copytree(judges / "geneval" / "detector", place)
    (place / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError) as found:
        Detector(Part(str(place)), None, ())
    assert str(place) in str(found.value)
    assert "\n" not in str(found.value)


def test_batches_are_of_one_size_and_say_how_many_are_things() -> None:
    assert list(batches([1, 2, 3, 4, 5], 2)) == [([1, 2], 2), ([3, 4], 2), ([5, 5], 1)]
    assert list(batches([], 2)) == []
