"""Overlays on nodes, one of which goes while it is asked: Ray's answers are given here, without a cluster."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rankray.cluster import overlays
from rankray.config import ConfigError
from rankray.models import environments
from rankray.models.environments import EnvironmentSpec, Status

NAMES = ["hpsv2", "vqascore"]


class Nodes:
    """Nodes a, b and c at 10.0.0.a and so on; asking `lost` raises what Ray raises, after which it is `gone` or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lost: str, error: Exception, gone: bool) -> None:
        self._lost, self._error, self._gone = lost, error, gone
        self._alive = ["a", "b", "c"]
        monkeypatch.setattr(overlays, "GONE_S", 0.01)
        monkeypatch.setattr(overlays, "_ready", SimpleNamespace(options=self._options))
        monkeypatch.setattr(overlays.ray, "get", lambda asked: asked())
        monkeypatch.setattr(overlays.ray, "nodes", self._listed)

    def _listed(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": n * 56, "NodeManagerAddress": f"10.0.0.{n}", "Alive": n in self._alive} for n in "abc"
        ]

    def _options(self, scheduling_strategy: NodeAffinitySchedulingStrategy) -> SimpleNamespace:
        node = scheduling_strategy.node_id[0]

        def remote(name: str, spec: EnvironmentSpec, build: bool) -> Callable[[], Status]:
            def answer() -> Status:
                if node == self._lost:
                    if self._gone and node in self._alive:
                        self._alive.remove(node)
                    raise self._error
                fault = "not built" if (node, name) == ("c", "vqascore") and not build else None
                return Status(name, environments.place_of(name, spec), fault)

            return answer

        return SimpleNamespace(remote=remote)


ENDED = (
    ray.exceptions.NodeDiedError("gone"),
    ray.exceptions.TaskUnschedulableError("its node is dead"),
    ray.exceptions.WorkerCrashedError(),
    ray.exceptions.LocalRayletDiedError(),
)


@pytest.mark.parametrize("error", ENDED, ids=lambda error: type(error).__name__)
def test_a_node_that_is_lost_meanwhile_needs_no_environment(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Nodes(monkeypatch, "b", error, gone=True)
    said: list[str] = []
    overlays.prepare(NAMES, True, said.append)
    assert said[1:] == [
        "node 10.0.0.b was lost while its environments were looked for; the job begins without it"
    ]
    with pytest.raises(ConfigError) as caught:
        overlays.prepare(NAMES, False, said.append)
    lines = str(caught.value).splitlines()
    assert [line.partition(" at ")[0] for line in lines[:-1]] == ["node 10.0.0.c: environment 'vqascore'"]


def test_what_fails_on_a_node_that_stays_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Nodes(monkeypatch, "b", ENDED[2], gone=False)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        overlays.prepare(NAMES, True, print)
    Nodes(monkeypatch, "b", ray.exceptions.RayTaskError("_ready", "Traceback", ValueError("ours")), gone=True)
    with pytest.raises(ray.exceptions.RayTaskError):
        overlays.prepare(NAMES, True, print)
