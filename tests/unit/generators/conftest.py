"""Saved pipelines with random weights."""

from pathlib import Path

import pytest
import torch
from tiny_pipelines import BUILDERS, awaken


@pytest.fixture(scope="session")
def tiny_pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> directory of a saved pipeline with random weights."""
    root = tmp_path_factory.mktemp("pipelines")
    torch.manual_seed(0)
    for name, build in BUILDERS.items():
        pipe = build()
        awaken(pipe)
        pipe.save_pretrained(root / name)
    return {name: root / name for name in BUILDERS}
