"""The shipped GPU configurations on logical GPUs: `make rehearse`, and what of it takes a minute or two."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]
OVERLAID = {"hpsv2.1", "vqascore", "imagereward"}
"""Rewards whose packages are downloaded first: `make rehearse` has them."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location(
        "rankray_rehearse", REPOSITORY / "scripts" / "rehearse.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # its dataclasses look themselves up
    specification.loader.exec_module(module)
    return module
