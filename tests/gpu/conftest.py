"""Without a GPU the tests here are left out; `RANKRAY_TEST_DEVICE=cpu` runs their bodies all the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
DEVICE = os.environ.get("RANKRAY_TEST_DEVICE", "cuda")
if DEVICE == "cpu":
    os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed looks at it when it is first imported


@pytest.fixture(scope="session")
def device() -> str:
    return DEVICE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if DEVICE == "cpu" or torch.cuda.is_available():
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs a GPU: torch sees no CUDA device here"))
