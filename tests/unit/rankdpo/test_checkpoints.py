"""A checkpoint's tensors, read from the files of all workers or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rankray.rankdpo.zero import Stored


def test_tensors_are_read_from_all_workers_files(tmp_path: Path) -> None:
    shares = [{"a": torch.ones(2)}, {}, {"b": torch.zeros(3), "c": torch.full((1,), 7.0)}]
    for rank, part in enumerate(shares):
        save_file(part, tmp_path / f"optimizer.exp_avg-{rank + 1:05}-of-00003.safetensors")
        save_file({"z": torch.ones(1)}, tmp_path / f"optimizer.exp_avg_sq-{rank + 1:05}-of-00003.safetensors")
    found = Stored(tmp_path, "optimizer.exp_avg")
    assert sorted(found) == ["a", "b", "c"]
    assert found["c"].tolist() == [7.0]
    with pytest.raises(KeyError):
        found["z"]


def test_one_workers_file_is_whole(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    assert dict(Stored(tmp_path, "weights"))["a"].tolist() == [1.0, 1.0]


def test_a_share_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds 0 of 1 files of weights"):
        Stored(tmp_path, "weights")
    save_file({"a": torch.ones(2)}, tmp_path / "weights-00002-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match="holds 1 of 2 files of weights"):
        Stored(tmp_path, "weights")
