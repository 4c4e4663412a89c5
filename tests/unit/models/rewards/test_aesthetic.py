"""LAION's predictor on a tiny genuine CLIP: its layers by hand, and what is refused."""

from __future__ import annotations

import itertools
import pickle
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_prompts import PROMPTS
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPModel

from rankray.config import ConfigError
from rankray.models.rewards import REWARDS, RewardSpec
from rankray.models.rewards.aesthetic import Aesthetic

PUBLISHED = ("layers.0", "layers.2", "layers.4", "layers.6", "layers.7")


@pytest.fixture(scope="module")
def head(clip_dir: Path) -> dict[str, Tensor]:
    """Random layers under the published names."""
    torch.manual_seed(3)
    sizes = (CLIPModel.from_pretrained(clip_dir).config.projection_dim, 1024, 128, 64, 16, 1)
    made = [nn.Linear(one, two) for one, two in itertools.pairwise(sizes)]
    return OrderedDict(
        (f"{name}.{key}", tensor.clone())
        for name, layer in zip(PUBLISHED, made, strict=True)
        for key, tensor in layer.state_dict().items()
    )


def spec(place: Path, clip_dir: Path, batch_size: int = 4) -> RewardSpec:
    options = {**REWARDS["aesthetic"].options, "clip": str(clip_dir), "vocabulary": None}
    return replace(REWARDS["aesthetic"], source=str(place), batch_size=batch_size, options=options)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_scores_are_the_layers_of_the_unit_feature(
    suffix: str, clip_dir: Path, head: dict[str, Tensor], pictures: list[Image.Image], tmp_path: Path
) -> None:
    path = tmp_path / f"aesthetic-model{suffix}"
    if suffix == ".pth":
        torch.save(head, path)
    else:
        save_file(head, path)
    reward = Aesthetic(spec=spec(path, clip_dir), device="cpu")
    got = reward.score(pictures, PROMPTS)
    model = CLIPModel.from_pretrained(clip_dir).eval()
    for picture, score in zip(pictures, got, strict=True):
        with torch.no_grad():
            found = model.get_image_features(pixel_values=reward.clip.preprocess(picture)[None])
            feature = getattr(found, "pooler_output", found)[0].numpy()
        feature = feature / np.sqrt((feature**2).sum())
        for name in PUBLISHED:
            feature = head[f"{name}.weight"].numpy() @ feature + head[f"{name}.bias"].numpy()
        assert score == pytest.approx(float(feature[0]), abs=1e-5)
    assert np.ptp(got) > 1e-3
    np.testing.assert_array_equal(reward.score(pictures, PROMPTS[::-1]), got)
    alone = np.concatenate([reward.score([picture], ["x"]) for picture in pictures])
    np.testing.assert_array_equal(alone, got)


def test_layers_of_another_clip_are_refused(clip_dir: Path, head: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "aesthetic-model.pth"
    torch.save({**head, "layers.0.weight": torch.zeros(1024, 768)}, path)
    with pytest.raises(ConfigError, match=r"1 mismatched keys, such as layers\.0\.weight"):
        Aesthetic(spec=spec(tmp_path, clip_dir), device="cpu")
    torch.save({key: tensor for key, tensor in head.items() if key != "layers.7.bias"}, path)
    with pytest.raises(ConfigError, match=r"1 missing keys, such as layers\.7\.bias"):
        Aesthetic(spec=spec(tmp_path, clip_dir), device="cpu")


def test_code_in_the_file_does_not_run(clip_dir: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "sprung"),)  # type: ignore[return-value]

    torch.save({"layers.0.weight": Trap()}, tmp_path / "aesthetic-model.pth", pickle_module=pickle)
    with pytest.raises(ConfigError, match="holds more than plain tensors, and nothing else is unpickled"):
        Aesthetic(spec=spec(tmp_path, clip_dir), device="cpu")
    assert not (tmp_path / "sprung").exists()


def test_a_missing_file_is_named(clip_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*/aesthetic-model\.pth; put the weights there"):
        Aesthetic(spec=spec(tmp_path, clip_dir), device="cpu")
