"""Saved pipelines with random weights."""

from pathlib import Path

import pytest
import torch

from rankray.random_weights.pipelines import PIPELINES, awaken, sd3


@pytest.fixture(scope="session")
def tiny_pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> directory of a saved pipeline with random weights."""
    root = tmp_path_factory.mktemp("pipelines")
    torch.manual_seed(0)
    builders = {**PIPELINES, "shapes-sd3": lambda: sd3(with_t5=False)}
    for name, build in builders.items():
        pipe = build()
        awaken(pipe)
        pipe.save_pretrained(root / name)
    return {name: root / name for name in builders}
