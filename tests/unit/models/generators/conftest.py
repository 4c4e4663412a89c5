"""Saved pipelines with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recipes.random_weights.pipelines import PIPELINES, awaken, sd3


class Saved(dict[str, Path]):
    """Family -> directory, made when it is first asked for, so that one test costs one pipeline."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, name: str) -> Path:
        torch.manual_seed(0)
        pipe = sd3(with_t5=False) if name == "shapes-sd3" else PIPELINES[name]()
        awaken(pipe)
        pipe.save_pretrained(self.root / name)
        self[name] = self.root / name
        return self[name]


@pytest.fixture(scope="session")
def tiny_pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> directory of a saved pipeline with random weights."""
    return Saved(tmp_path_factory.mktemp("pipelines"))
