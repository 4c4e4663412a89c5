"""What loading takes of the host: the weights in the precision that they are computed in, and no second model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from allocated import Allocated
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from rankray.models.loading import read_plain
from rankray.models.rewards import REWARDS
from rankray.models.rewards.mps import Mps, MpsConfig, MpsModel
from rankray.models.rewards.pickscore import PickScore
from recipes.random_weights.rewards import clip_config, save_processor

TINY = {"processor": None, "processor_revision": "main", "vocabulary": None}


def wide_clip() -> object:
    """Some 13 MB in half precision, so that a tokenizer's and a picture's bytes are nothing beside it."""
    config = clip_config()
    for part in (config.text_config, config.vision_config):
        part.hidden_size, part.intermediate_size, part.num_hidden_layers = 256, 1024, 4
    return config


def half(place: Path) -> int:
    """Rounds a safetensors file to half precision, as weights are published; its bytes."""
    file = place / "model.safetensors"
    save_file({key: value.half() for key, value in load_file(file).items()}, file, metadata={"format": "pt"})
    return file.stat().st_size


@pytest.mark.parametrize("name", ["pickscore", "mps"])
def test_half_precision_is_loaded_as_such(name: str, tmp_path: Path) -> None:
    if name == "mps":
        MpsModel(wide_clip(), MpsConfig(layers=1, heads=2, head_width=8)).save(tmp_path)
    else:
        CLIPModel(wide_clip()).save_pretrained(tmp_path)
    save_processor(tmp_path)
    size = half(tmp_path)
    assert size > 12e6
    spec = replace(
        REWARDS[name], source=str(tmp_path), dtype="float16", options={**REWARDS[name].options, **TINY}
    )
    with Allocated() as allocated:
        reward = {"pickscore": PickScore, "mps": Mps}[name](spec=spec, device="cpu")
    weights = reward.model if name == "mps" else reward.clip.model  # type: ignore[attr-defined]
    assert {parameter.dtype for parameter in weights.parameters() if parameter.ndim} == {torch.float16}
    assert allocated.peak < 1.1 * size, "a float32 model alone is twice as much"


def is_mapped(tensor: torch.Tensor, file: Path) -> bool:
    """Whether a tensor lies in pages of the file, and not in memory of its own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(edge, 16) for edge in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return line.endswith(str(file))
    return False


def test_a_pickle_is_read_where_it_is_looked_at(tmp_path: Path) -> None:
    weights = {"a": torch.arange(1_000_000.0), "b": torch.ones(2_000_000)}
    torch.save(weights, tmp_path / "new.pt")
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("new", "old"):
        found = read_plain(tmp_path / f"{name}.pt")
        assert all(torch.equal(found[key], value) for key, value in weights.items())
        assert is_mapped(found["a"], tmp_path / f"{name}.pt") is (name == "new")
