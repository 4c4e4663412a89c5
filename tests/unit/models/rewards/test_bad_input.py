"""What rewards are given that they cannot use, and what they must take: odd pictures, prompts, precisions, files."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_prompts import PROMPTS
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel

from rankray.cluster.actors import count_truncated
from rankray.config import ConfigError
from rankray.models.rewards import REWARDS, RewardSpec
from rankray.models.rewards.aesthetic import WIDTHS, Aesthetic
from rankray.models.rewards.clipscore import ClipScore
from rankray.models.rewards.mps import Mps, MpsConfig, MpsModel
from rankray.models.rewards.pickscore import PickScore
from recipes.random_weights.rewards import clip_config, save_processor

CLASSES = {"pickscore": PickScore, "clipscore": ClipScore, "mps": Mps, "aesthetic": Aesthetic}
TINY = {"processor": None, "vocabulary": None}


@pytest.fixture(scope="module")
def places(clip_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights by the reward's name."""
    root = tmp_path_factory.mktemp("rewards")
    torch.manual_seed(1)
    MpsModel(clip_config(), MpsConfig(layers=2, heads=2, head_width=8)).save(root / "mps")
    save_processor(root / "mps")
    sizes = (clip_config().projection_dim, *WIDTHS)
    names = ("layers.0", "layers.2", "layers.4", "layers.6", "layers.7")
    head = {
        f"{name}.{key}": tensor
        for name, (one, two) in zip(names, itertools.pairwise(sizes), strict=True)
        for key, tensor in nn.Linear(one, two).state_dict().items()
    }
    torch.save(head, root / "aesthetic-model.pth")
    return {"pickscore": clip_dir, "clipscore": clip_dir, "mps": root / "mps", "aesthetic": root}


def spec(name: str, places: dict[str, Path], dtype: str = "float32") -> RewardSpec:
    changes = {"clip": str(places["pickscore"]), "vocabulary": None} if name == "aesthetic" else TINY
    options = {**REWARDS[name].options, **changes}
    return replace(REWARDS[name], source=str(places[name]), dtype=dtype, batch_size=4, options=options)


@pytest.mark.parametrize("name", CLASSES)
def test_pictures_of_any_size_and_mode_and_any_prompt(name: str, places: dict[str, Path]) -> None:
    reward = CLASSES[name](spec=spec(name, places), device="cpu")
    grey = Image.new("RGB", (40, 40), (99, 99, 99))
    modes = [grey.convert(mode) for mode in ("L", "RGBA", "P", "CMYK", "1")]
    odd = [Image.new("RGB", (1, 1), "red"), Image.new("RGB", (4096, 4096), "red"), grey, *modes]
    prompts = ["a red circle", "", "word " * 2000, *["a red circle"] * 5]
    scores = reward.score(odd, prompts)
    assert scores.shape == (8,)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(reward.score(odd, prompts), scores)
    plain = reward.score([grey, grey], ["a red circle"] * 2)
    np.testing.assert_allclose(scores[3:5], plain, atol=1e-5, err_msg="L and RGBA hold that very grey")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["mps", "aesthetic"])
def test_half_precision_agrees_roughly(
    name: str, dtype: str, places: dict[str, Path], pictures: list[Image.Image]
) -> None:
    whole, half = (
        CLASSES[name](spec=spec(name, places, kind), device="cpu").score(pictures, PROMPTS)
        for kind in ("float32", dtype)
    )
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, whole, atol=0.3)


def test_prompts_that_are_cut_are_counted(places: dict[str, Path]) -> None:
    # The shapes world's CLIP reads 16 tokens, start and end included; each of its words is one.
    prompts = ["", "red " * 14, "red " * 15, "red " * 2000]
    counts = {
        name: count_truncated(CLASSES[name](spec=spec(name, places), device="cpu"), prompts)
        for name in CLASSES
    }
    assert counts == {"pickscore": 2, "clipscore": 2, "mps": 2, "aesthetic": 0}, "aesthetic reads no prompt"


@pytest.mark.parametrize("name", ["pickscore", "mps"])
def test_a_cut_file_is_one_line(name: str, places: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / name
    shutil.copytree(places[name], place)
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(
        ConfigError, match=rf"the weights in '{place}.*' cannot be loaded: .*; get them again"
    ) as found:
        CLASSES[name](spec=spec(name, {**places, name: place}), device="cpu")
    assert "\n" not in str(found.value)


def test_a_tensor_of_another_shape_is_named(places: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "clip"
    shutil.copytree(places["pickscore"], place)
    weights = load_file(place / "model.safetensors")
    weights["text_projection.weight"] = torch.zeros(3, 3)
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 mismatched keys, such as .*text_projection\.weight") as found:
        PickScore(spec=spec("pickscore", {"pickscore": place}), device="cpu")
    assert "\n" not in str(found.value)


def test_a_pickle_is_not_loaded(places: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "clip"
    shutil.copytree(places["pickscore"], place)
    (place / "model.safetensors").unlink()
    torch.save(CLIPModel(clip_config()).state_dict(), place / "pytorch_model.bin")
    with pytest.raises(
        ConfigError, match=r"cannot be loaded: .*model\.safetensors.*; get them again"
    ) as found:
        PickScore(spec=spec("pickscore", {"pickscore": place}), device="cpu")
    assert "\n" not in str(found.value)


def test_a_cut_pickle_of_tensors_is_one_line(places: dict[str, Path], tmp_path: Path) -> None:
    whole = (places["aesthetic"] / "aesthetic-model.pth").read_bytes()
    (tmp_path / "aesthetic-model.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ConfigError, match=r"aesthetic-model\.pth' cannot be loaded: .*; get them again"
    ) as found:
        Aesthetic(spec=spec("aesthetic", {**places, "aesthetic": tmp_path}), device="cpu")
    assert "\n" not in str(found.value)
