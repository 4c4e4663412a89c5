"""A job's meter within this process: actors are run without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from rankray.cluster import lost_calls
from rankray.cluster.lost_calls import Calls
from rankray.cluster.progress import Block


class LocalMeter(Calls):
    """What actors tell: every report of usage, in order; methods are called as Ray's, by `remote`."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[dict[str, Any]] = []
        self.begun: list[list[int]] = []
        methods = (self.report, self.begin, self.end, self.lost, self.settle, self.loaded, self.not_loaded)
        for method in methods:
            setattr(self, method.__name__, SimpleNamespace(remote=method))

    def report(self, usage: dict[str, Any], blocks: Sequence[Block]) -> None:
        self.reports.append(usage)

    def begin(self, block: str, actor: str, items: list[int]) -> None:
        super().begin(block, actor, items)
        self.begun.append(items)

    @property
    def usage(self) -> dict[str, dict[str, Any]]:
        """Each model's last totals."""
        return {report["model"]: report for report in self.reports}


@contextmanager
def answering() -> Iterator[None]:
    """Within, a `LocalMeter`'s answers are there at once."""
    answer: Callable[[Any], Any] = lambda asked: asked  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lost_calls, "answered", answer)
        yield
