"""Imports one module of a reward's package and leaves the package's own `__init__` files unread.

ImageReward's pull in its trainer and `datasets`, t2v-metrics' every model that it knows, with a dozen packages; what
is needed of each is one file. The price is that names which those files define in the package are not there.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType


def import_alone(name: str) -> ModuleType:
    """The module `name`, imported under bare parents; parents that are imported already stay as they are.

    Raises:
        ModuleNotFoundError: there is no such package, or the module needs one that is not there.
    """
    parts = name.split(".")
    for n in range(1, len(parts)):
        parent = ".".join(parts[:n])
        if parent in sys.modules:
            continue
        sys.modules[parent] = _bare(parent)
    return importlib.import_module(name)


def _bare(name: str) -> ModuleType:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)
    module = ModuleType(name)
    module.__path__ = list(spec.submodule_search_locations)
    module.__spec__ = spec
    return module
