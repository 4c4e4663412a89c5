"""Overlays on every node of a cluster before actors ask for one: looked for, or built where the user says so."""

from __future__ import annotations

import time
from collections.abc import Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rankray.config import ConfigError
from rankray.models import environments
from rankray.models.environments import EnvironmentSpec, Status
from rankray.words import Say

GONE_S = 30.0
"""How long Ray is given to take a node for lost, after what ran there has failed: connections tell of it first."""


def prepare(names: Sequence[str], build: bool, say: Say) -> None:
    """Makes sure that each node has the environments `names`; one that is lost meanwhile needs none.

    Args:
        build: build what is missing, on all nodes at once; nodes that join later need it in their image or set-up.

    Raises:
        ConfigError: a node lacks one and it was not to be built, or it could not be.
    """
    if not names:
        return
    specs = {name: environments.spec_of(name) for name in names}
    nodes = _alive()
    if build:
        say(f"environments {', '.join(names)}: built where a node lacks one")
    asked = {
        (node, name): _ready.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(name, spec, build)
        for node in nodes
        for name, spec in specs.items()
    }
    found = {key: _answer(reference, key[0]) for key, reference in asked.items()}
    for node in dict.fromkeys(node for (node, _), answer in found.items() if answer is None):
        say(f"node {nodes[node]} was lost while its environments were looked for; the job begins without it")
    faults = [
        fault
        for (node, name), answer in found.items()
        if answer is not None and (fault := _fault(nodes[node], name, specs[name], answer)) is not None
    ]
    if faults:
        faults.append(
            f"run `rankray envs build {' '.join(names)}` on each such node, or let the job do it: "
            "--execution.build_environments true"
        )
        raise ConfigError("\n".join(faults))


def _alive() -> dict[str, str]:
    """Id -> address of the nodes that Ray has now."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def _answer(reference: ray.ObjectRef[Status | str], node: str) -> Status | str | None:
    """What a task on `node` came to, None where the node is lost. An error of the task's own passes, as does what Ray
    says of a node that is still there after `GONE_S`."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError:
        deadline = time.monotonic() + GONE_S
        while node in _alive():
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.5)
        return None


def _fault(address: str, name: str, spec: EnvironmentSpec, found: Status | str) -> str | None:
    """What is wrong with the environment on the node at `address`, None where it can be used."""
    due = environments.place_of(name, spec)
    if isinstance(found, str):
        return f"node {address}: {found}"
    if found.fault is not None:
        return f"node {address}: environment '{name}' at {found.place}: {found.fault}"
    if found.place != due:
        return (
            f"node {address} has '{name}' at {found.place}, this one at {due}; install rankray at one path and set "
            f"{environments.HOME} alike on all"
        )
    return None


@ray.remote(num_cpus=0)
def _ready(name: str, spec: EnvironmentSpec, build: bool) -> Status | str:
    """The environment's state on this node, or what went wrong with building it."""
    if not build:
        return environments.check(name, spec)
    try:
        return environments.build(name, spec)
    except ConfigError as error:
        return str(error)
