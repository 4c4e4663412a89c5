"""The published MPS as its authors pickle it: converted without its code, the same scores, and traps that stay shut."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_prompts import PROMPTS
from PIL import Image
from published_mps import pickled
from safetensors.torch import load_file

from rankray import commands
from rankray.config import ConfigError
from rankray.models.rewards import REWARDS
from rankray.models.rewards.clip import load_processor
from rankray.models.rewards.mps import OVERALL, Mps
from rankray.models.rewards.mps_convert import convert
from recipes.random_weights.rewards import clip_config, save_processor


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("processor")
    save_processor(place)
    return place


def test_converted_weights_score_as_the_pickled_module(
    processor: Path,
    pictures: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = clip_config()
    tokens, preprocess = load_processor(str(processor), "main", config.text_config, 32, None)
    condition = tokens([OVERALL])[0]
    inputs = [
        (tokens([prompt])[0], preprocess(picture)[None], condition)
        for picture, prompt in zip(pictures, PROMPTS, strict=True)
    ]
    file, due = pickled(tmp_path, config, inputs, monkeypatch)
    assert importlib.util.find_spec("trainer") is None
    output = tmp_path / "mps"
    assert commands.main(["convert-mps", str(file), "--output", str(output)]) == 0
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert capsys.readouterr().out == f"{output}: converted from {file}, sha256 {digest}\n"
    assert json.loads((output / "config.json").read_text())["converted_from"]["sha256"] == digest
    assert not any(name.endswith("pos_emb") for name in load_file(output / "model.safetensors"))
    options = {**REWARDS["mps"].options, "processor": str(processor), "vocabulary": None}
    spec = replace(REWARDS["mps"], source=str(output), batch_size=3, options=options)
    got = Mps(spec=spec, device="cpu").score(pictures, PROMPTS)
    np.testing.assert_allclose(got, due, atol=1e-5)
    assert np.ptp(got) > 1e-3
    with pytest.raises(ConfigError, match="is not empty; name another directory"):
        convert(file, output)


def test_code_in_the_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'sprung'}",)

    trap = tmp_path / "trap.pth"
    torch.save({"model": Trap()}, trap)
    with pytest.raises(ConfigError, match=r"trap\.pth asks for \w+\.system, which no model needs") as caught:
        convert(trap, tmp_path / "o")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "o").exists()


def archive(place: Path, content: bytes) -> Path:
    with zipfile.ZipFile(place, "w") as made:
        made.writestr("archive/data.pkl", content)
    return place


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no .*; name the published MPS_overall_checkpoint.pth"),
        ("directory", "x.pth is a directory; name the published MPS_overall_checkpoint.pth"),
        (b"not a zip", r"is no whole checkpoint of torch \(File is not a zip file\); get it again"),
        ("cut", "is no whole checkpoint of torch"),
        ("huge", r"is no whole checkpoint of torch \(byte string is too large"),
        ("shifted", r"is no whole checkpoint of torch \(.*Invalid argument"),
        ({"a": 1}, "is no MPS checkpoint: it has no 'fusion.0.cross.query.weight'"),
        (torch.nn.Linear(2, 2), "holds 'weight', which is no part of MPS"),
    ],
)
def test_what_is_no_mps_is_one_line(tmp_path: Path, content: object, message: str) -> None:
    file = tmp_path / "x.pth"
    if content == "directory":
        file.mkdir()
    elif content == "cut":
        archive(file, pickle.dumps({"a": [1, 2, 3]})[:-4])
    elif content == "huge":  # a text that claims to be of 2^63 bytes
        archive(file, b"\x80\x02\x8e" + b"\xff" * 7 + b"\x7f.")
    elif content == "shifted":
        data = archive(file, pickle.dumps({"a": [1] * 40})).read_bytes()
        file.write_bytes(data[:40] + data[70:])
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(ConfigError, match=message) as caught:
        convert(file, tmp_path / "o")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    file, buffer = tmp_path / "x.pth", io.BytesIO()
    torch.save(torch.nn.Linear(3, 5), buffer)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(file, "w") as cut:
        for name in whole.namelist():
            data = whole.read(name)
            cut.writestr(name, data[:8] if "/data/" in name else data)
    with pytest.raises(ConfigError, match="is cut short: 15 numbers are due in data/0; get it again"):
        convert(file, tmp_path / "o")
