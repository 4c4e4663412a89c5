"""Overlays on every node of a cluster before actors ask for one: looked for, or built where the user says so."""

from __future__ import annotations

from collections.abc import Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rankray.config import ConfigError
from rankray.models import environments
from rankray.models.environments import EnvironmentSpec, Status
from rankray.words import Say


def prepare(names: Sequence[str], build: bool, say: Say) -> None:
    """Makes sure that each node has the environments `names`.

    Args:
        build: build what is missing, on all nodes at once; nodes that join later need it in their image or set-up.

    Raises:
        ConfigError: a node lacks one and it was not to be built, or it could not be.
    """
    if not names:
        return
    specs = {name: environments.spec_of(name) for name in names}
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if build:
        say(f"environments {', '.join(names)}: built where a node lacks one")
    asked = {
        (node, name): _ready.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(name, spec, build)
        for node in nodes
        for name, spec in specs.items()
    }
    faults = []
    for (node, name), reference in asked.items():
        found: Status | str = ray.get(reference)
        if isinstance(found, str):
            faults.append(f"node {nodes[node]}: {found}")
        elif found.fault is not None:
            faults.append(f"node {nodes[node]}: environment '{name}' at {found.place}: {found.fault}")
        elif found.place != environments.place_of(name, specs[name]):
            faults.append(
                f"node {nodes[node]} has '{name}' at {found.place}, this one at "
                f"{environments.place_of(name, specs[name])}; install rankray at one path and set "
                f"{environments.HOME} alike on all"
            )
    if faults:
        faults.append(
            f"run `rankray envs build {' '.join(names)}` on each such node, or let the job do it: "
            "--execution.build_environments true"
        )
        raise ConfigError("\n".join(faults))


@ray.remote(num_cpus=0)
def _ready(name: str, spec: EnvironmentSpec, build: bool) -> Status | str:
    """The environment's state on this node, or what went wrong with building it."""
    if not build:
        return environments.check(name, spec)
    try:
        return environments.build(name, spec)
    except ConfigError as error:
        return str(error)
