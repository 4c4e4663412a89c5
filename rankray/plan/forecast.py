"""How a job would run on a cluster that is not there: in what layout, for how long, on which GPU not at all.

The layout is the job's own planner's on hypothetical nodes, from what `rankray.synpic.forecast` knows of its models.
What is left out: interference on a shared GPU, whose actors are assumed to get their share of its speed and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rankray.cluster import layout, seats
from rankray.cluster.actors import Stage
from rankray.cluster.seats import Node
from rankray.config import ConfigError
from rankray.models.hardware import GpuType
from rankray.synpic.forecast import Fit, Model, fit, item_seconds, work_of

NODE_GPUS = 8
NODE_CPUS_PER_GPU = 12.0
"""Of a hypothetical node: what rented machines of eight GPUs have."""

AMPLE = 1e18
"""Host memory and custom resources of a hypothetical node: what a job asks of them is there."""


@dataclass(frozen=True)
class Allotment:
    """One pool as it would run: `actors` of them, `seconds` of one actor for an item (None: unknown)."""

    model: Model
    fit: Fit
    actors: int
    seconds: float | None
    phase: int
    gpu_seconds: float


@dataclass(frozen=True)
class Forecast:
    """A job on `count` GPUs of one type. `fault` says why it cannot run; times are None where a model is unknown."""

    gpu: GpuType
    count: int
    explanation: str = ""
    phases: int = 0
    allotments: tuple[Allotment, ...] = ()
    hours: float | None = None
    fault: str = ""

    def busy_hours(self, kind: str, prompts: int) -> float:
        """GPU-hours of work of all models of a kind, without what waits."""
        return sum(a.gpu_seconds for a in self.allotments if a.model.stage.kind == kind) * prompts / 3600


def forecast(
    models: Sequence[Model], gpu: GpuType, count: int, prompts: int, mode: str, block: int = 16
) -> Forecast:
    """The job of `models` over `prompts` prompts on `count` GPUs of one type, changed where `fit` has to."""
    by_name = {model.name: (model, fit(model, gpu)) for model in models}
    faults = [f"{name} {found.fault}" for name, (_, found) in by_name.items() if found.fault]
    if faults:
        return Forecast(gpu, count, fault="; ".join(faults))
    stages = [
        replace(model.stage, actors=replace(model.stage.actors, num_gpus=found.share))
        if found.share != model.share
        else model.stage
        for model, found in by_name.values()
    ]
    try:
        plan = layout.plan(
            stages, hypothetical(count, stages), mode, work_of(models, stages, gpu, prompts, block)
        )
    except ConfigError as error:
        return Forecast(gpu, count, fault=str(error))
    allotments = []
    for phase, members in enumerate(zip(plan.phases, plan.sizes, strict=True)):
        for stage, actors in zip(*members, strict=True):
            model, found = by_name[stage.target.name]
            busy_s = (model.seconds(gpu) or 0.0) * model.items if model.share else 0.0
            seconds = item_seconds(model, stage, gpu)
            allotments.append(Allotment(model, found, actors, seconds, phase, busy_s))
    hours = None if plan.seconds is None else plan.seconds / 3600
    return Forecast(gpu, count, plan.explanation, len(plan.phases), tuple(allotments), hours)


def hypothetical(count: int, stages: Sequence[Stage]) -> list[Node]:
    """`count` GPUs on nodes of eight, full ones first, with CPUs for them and whatever else the pools ask for."""
    full, rest = divmod(count, NODE_GPUS)
    return [
        ample_node(max(NODE_CPUS_PER_GPU * gpus, seats.RESERVED_CPUS + 1), gpus, stages)
        for gpus in [NODE_GPUS] * full + [rest] * (rest > 0)
    ]


def ample_node(cpus: float, gpus: int, stages: Sequence[Stage]) -> Node:
    """A node with enough of everything else that the pools ask for."""
    return Node(cpus, AMPLE, gpus, {name: AMPLE for stage in stages for name in stage.actors.resources})
