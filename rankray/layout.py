"""How a job's pools share a cluster: all at once where they fit, in phases where they do not.

Streaming keeps every model busy from the first block to the last. Phases run as many consecutive models as
fit, write what they made, and go on from there; that costs one Parquet copy of the images a phase, and lets
one GPU, or two CPU cores, serve nine models. Which one it is, and why, is one printed line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import ray

from rankray.actors import Stage
from rankray.config import ConfigError
from rankray.stages import IO_CPUS

RESERVED_CPUS = 1.0 + 4 * IO_CPUS
"""What a pipeline needs beside its models: on a resume Ray Data's checkpoint filter is an actor of one whole CPU,
and one task each of reading, ranking and writing must find room while it lives, or the job would hang."""


@dataclass(frozen=True)
class Layout:
    """Consecutive stages that run together, phase by phase, and the line that explains why."""

    phases: tuple[tuple[Stage, ...], ...]
    explanation: str

    @property
    def name(self) -> str:
        return "streaming" if len(self.phases) == 1 else "phases"


def demand(stages: Sequence[Stage]) -> dict[str, float]:
    """What Ray must be able to give at once: every pool at its least size, and the reading and writing tasks."""
    total: dict[str, float] = {"CPU": RESERVED_CPUS}
    for stage in stages:
        for name, amount in actor_demand(stage).items():
            total[name] = total.get(name, 0.0) + stage.actors.min_size * amount
    return total


def actor_demand(stage: Stage) -> dict[str, float]:
    """Ray resources of one actor of the stage's pool."""
    actors = stage.actors
    needs = {"CPU": actors.num_cpus, "GPU": actors.num_gpus, "memory": float(actors.memory_bytes or 0)}
    return {name: amount for name, amount in {**needs, **actors.resources}.items() if amount}


def shortage(needs: Mapping[str, float], cluster: Mapping[str, float]) -> str:
    """`"2.4 CPU of 2"` for each resource that the cluster has too little of; empty where all is there."""
    short = [
        f"{amount:g} {name} of {cluster.get(name, 0.0):g}"
        for name, amount in sorted(needs.items())
        if amount > cluster.get(name, 0.0) + 1e-6
    ]
    return ", ".join(short)


def plan(stages: Sequence[Stage], cluster: Mapping[str, float], mode: str) -> Layout:
    """The layout of `stages` on `cluster` (resource name -> amount), `mode` being auto, streaming or phases.

    In phases each model has the cluster to itself if `mode` asks for phases; automatically chosen ones take
    as many consecutive models as fit. CPUs are claims and not cores: a pool that claims more of them than a
    small machine has is lowered to what there is, as it would otherwise wait for ever.

    Raises:
        ConfigError: a pool cannot run at all, or `mode` is streaming and the pools do not fit together.
    """
    if mode != "streaming":
        stages = [_lowered(stage, cluster.get("CPU", 0.0)) for stage in stages]
    for stage in stages:
        missing = shortage(demand([stage]), cluster)
        if missing:
            raise ConfigError(
                f"the pool of '{stage.target.name}' needs {missing} that the cluster has; start such nodes, "
                "lower its pool's min_size, num_cpus or num_gpus, or set execution.wait_for_nodes_s"
            )
    missing = shortage(demand(stages), cluster)
    if mode == "phases":
        return Layout(tuple((stage,) for stage in stages), f"phases: {len(stages)}, as execution.mode asks")
    if not missing:
        return Layout((tuple(stages),), f"streaming: all {len(stages)} pools fit the cluster together")
    if mode == "streaming":
        raise ConfigError(
            f"execution.mode is streaming, but the pools together need {missing}; use auto or phases"
        )
    phases = _pack(stages, cluster)
    return Layout(
        phases, f"phases: {len(phases)}, because all pools together need {missing} that the cluster has"
    )


def _lowered(stage: Stage, cluster_cpus: float) -> Stage:
    """The stage with its CPU claims cut to what its pool can get when it has the cluster to itself."""
    room = math.floor(100 * (cluster_cpus - RESERVED_CPUS) / stage.actors.min_size) / 100
    if room <= 0 or stage.actors.num_cpus <= room:
        return stage
    return replace(stage, actors=replace(stage.actors, num_cpus=room))


def _pack(stages: Sequence[Stage], cluster: Mapping[str, float]) -> tuple[tuple[Stage, ...], ...]:
    phases: list[list[Stage]] = [[]]
    for stage in stages:
        if shortage(demand([*phases[-1], stage]), cluster):
            phases.append([])
        phases[-1].append(stage)
    return tuple(tuple(phase) for phase in phases)


def wait_for_nodes(stages: Sequence[Stage], wait_s: float, say: Callable[[str], None]) -> dict[str, float]:
    """The cluster's resources, once all of `stages` fit together or `wait_s` has passed.

    Tells the autoscaler what the pools need, so that a cluster which starts with a head alone grows to it.
    """
    needs = demand(stages)
    cluster = dict(ray.cluster_resources())
    if wait_s <= 0 or not shortage(needs, cluster):
        return cluster
    from ray.autoscaler.sdk import request_resources

    bundles = [
        {name: amount for name, amount in actor_demand(stage).items() if name != "memory"}
        for stage in stages
        for _ in range(stage.actors.min_size)
    ]
    request_resources(bundles=bundles)
    deadline = time.monotonic() + wait_s
    say(f"waiting up to {wait_s:g} s for nodes: {shortage(needs, cluster)}")
    while shortage(needs, cluster) and time.monotonic() < deadline:
        time.sleep(2.0)
        cluster = dict(ray.cluster_resources())
    return cluster


def release_nodes(wait_s: float) -> None:
    """Withdraws what `wait_for_nodes` asked of the autoscaler; a request would else keep nodes for good."""
    if wait_s > 0:
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[])
