"""Which actors fit a cluster: claims on CPUs, GPUs, memory and custom resources, and a seat for each.

What fits is decided node by node and GPU by GPU, as Ray gives them out: two GPUs hold two actors of 0.6, not three.
First-fit-decreasing is quick (4 to 34 ms for 9 pools of 16 on 100 nodes, one EPYC core) and not exact: of 600 random
tight sets of pools that fit one to four nodes it took 48 for too large, which run in phases; of 600 single pools none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import ray
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]

from rankray import words
from rankray.cluster.actors import Stage

IO_CPUS = 0.1
"""Ray CPUs that a reading, ranking or writing task claims: they mostly wait, and models need the cores."""

CHECKPOINT_CPUS, IO_TASKS = 1.0, 4
RESERVED_CPUS = CHECKPOINT_CPUS + IO_TASKS * IO_CPUS
"""What a pipeline needs beside its models: on a resume Ray Data's checkpoint filter is an actor of one whole CPU,
and one task each of reading, ranking and writing must find room while it lives, or the job would hang."""

SLACK = 1e-6
"""Sums of fractions such as 0.1 miss what they stand for by less; Ray counts in steps of 0.0001."""


@dataclass(frozen=True)
class Node:
    """What Ray can give out on one machine; `resources` are all but CPU, memory and GPU, by name.

    A GPU is a device of capacity 1: a fraction sits on one of them, a whole number takes so many entire ones.
    """

    cpus: float
    memory_bytes: float
    gpus: int
    resources: Mapping[str, float]

    @property
    def amounts(self) -> dict[str, float]:
        """All of it by Ray's names."""
        return {**self.resources, "CPU": self.cpus, "memory": self.memory_bytes, "GPU": float(self.gpus)}


@dataclass(frozen=True)
class Claim:
    """`count` actors or tasks alike, and what each of them needs, by Ray's names."""

    owner: str
    count: int
    needs: Mapping[str, float]


@dataclass(frozen=True)
class Placement:
    """Where one actor of a claim may run: the node's index, and the GPUs of that node that it takes or shares."""

    claim: Claim
    node: int
    devices: tuple[int, ...]


def alive_nodes() -> list[Node]:
    """The machines that Ray has now, each with all it could give, whether or not another job holds some of it."""
    return [node_of(entry["Resources"]) for entry in ray.nodes() if entry["Alive"]]


@dataclass(frozen=True)
class Answer:
    """What the cluster's autoscaler says of what it was asked for: it can never bring it; nodes are on their way.

    Ray's autoscaler of version 2 says so within seconds; version 1 and a cluster without any say neither.
    """

    refused: bool
    coming: bool


def ask_for(bundles: Sequence[Mapping[str, float]]) -> None:
    """Asks the autoscaler for room for all of `bundles` at once; none takes back what was asked before.

    Ray keeps one request a cluster, the last. An actor that any Ray Data pipeline leaves behind for the next ones sends
    its own every 20 s, an empty one where none runs: who waits asks again and again.
    """
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(bundle) for bundle in bundles])


def answer(bundles: Sequence[Mapping[str, float]]) -> Answer:
    """What the autoscaler says now of `bundles`, which were asked for."""
    reply = GetClusterStatusReply()
    client = ray._private.worker.global_worker.gcs_client  # type: ignore[attr-defined]
    reply.ParseFromString(client.get_cluster_status())
    state, asked = reply.autoscaling_state, Counter(frozenset(bundle.items()) for bundle in bundles)
    refused = False
    for constraint in state.infeasible_cluster_resource_constraints:
        found: Counter[frozenset[tuple[str, float]]] = Counter()
        for each in constraint.resource_requests:
            found[frozenset(each.request.resources_bundle.items())] += each.count
        refused = refused or found == asked
    return Answer(refused, bool(state.pending_instance_requests or state.pending_instances))


def node_of(resources: Mapping[str, float]) -> Node:
    """A node by the resources that `ray.nodes()` names; a GPU given only in part is none, as Ray counts devices."""
    own = {name: amount for name, amount in resources.items() if name not in {"CPU", "memory", "GPU"}}
    return Node(resources.get("CPU", 0.0), resources.get("memory", 0.0), int(resources.get("GPU", 0.0)), own)


def totals(nodes: Sequence[Node]) -> dict[str, float]:
    """What all nodes have together: more than this fits nowhere, less may still be in too small pieces."""
    total: dict[str, float] = {}
    for node in nodes:
        for name, amount in node.amounts.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def actor_demand(stage: Stage) -> dict[str, float]:
    """Ray resources of one actor of the stage's pool."""
    actors = stage.actors
    needs = {"CPU": actors.num_cpus, "GPU": actors.num_gpus, "memory": float(actors.memory_bytes or 0)}
    return {name: amount for name, amount in {**needs, **actors.resources}.items() if amount}


def claims(stages: Sequence[Stage]) -> list[Claim]:
    """What Ray must be able to give at once: every pool at its least size, and the reading and writing tasks."""
    return [
        *(Claim(f"the pool of '{s.target.name}'", s.actors.min_size, actor_demand(s)) for s in stages),
        Claim("a resume's checkpoint", 1, {"CPU": CHECKPOINT_CPUS}),
        Claim("reading and writing", IO_TASKS, {"CPU": IO_CPUS}),
    ]


def demand(stages: Sequence[Stage]) -> dict[str, float]:
    """The sum of `claims`, by Ray's names."""
    wanted = claims(stages)
    names = {name for claim in wanted for name in claim.needs}
    return {name: sum(claim.count * claim.needs.get(name, 0.0) for claim in wanted) for name in names}


def place(wanted: Sequence[Claim], nodes: Sequence[Node]) -> tuple[list[Placement], Claim | None]:
    """Seats, and the claim that did not find all of its own, None where all did.

    First-fit-decreasing: claims by their largest share of the cluster, on the plainest nodes first. Linear in
    nodes and in actors, as a node that has refused one actor of a claim refuses the rest. A placement that
    exists is not promised to be taken: Ray places actor by actor without it, and may come upon a worse one.
    """
    plainest = sorted(enumerate(nodes), key=lambda item: (item[1].gpus, len(item[1].resources), item[1].cpus))
    rooms = [(index, node.amounts, [1.0] * node.gpus) for index, node in plainest]
    names = {name for claim in wanted for name in claim.needs}
    total = {name: sum(left.get(name, 0.0) for _, left, _ in rooms) or SLACK for name in names}
    seats: list[Placement] = []

    def share(claim: Claim) -> float:
        return max((amount / total[name] for name, amount in claim.needs.items()), default=0.0)

    for claim in sorted(wanted, key=share, reverse=True):
        missing = claim.count
        for index, left, gpus in rooms:
            while missing and (devices := _take(left, gpus, claim.needs)) is not None:
                seats.append(Placement(claim, index, devices))
                missing -= 1
        if missing:
            return seats, claim
    return seats, None


def _take(left: dict[str, float], gpus: list[float], needs: Mapping[str, float]) -> tuple[int, ...] | None:
    """The GPUs for one more actor, whose needs are taken out of its node's rest; None where there is no room."""
    if any(left.get(name, 0.0) < amount - SLACK for name, amount in needs.items()):
        return None
    gpu = needs.get("GPU", 0.0)
    count, share = (1, gpu) if 0 < gpu < 1 else (math.ceil(gpu), 1.0)
    devices = [i for i, room in enumerate(gpus) if room >= share - SLACK][:count]
    if len(devices) < count or (gpu > 1 and gpu % 1):  # Ray refuses one GPU and a half
        return None
    for name, amount in needs.items():
        left[name] = left.get(name, 0.0) - amount
    for device in devices:
        gpus[device] -= share
    return tuple(devices)


def fits(wanted: Sequence[Claim], nodes: Sequence[Node]) -> bool:
    """Whether every claim finds its seats; a no may be wrong, a yes is not."""
    return place(wanted, nodes)[1] is None


def shortage(stages: Sequence[Stage], nodes: Sequence[Node]) -> str:
    """What the stages need that the nodes do not have, to be read after "need"; empty where all have a seat.

    `"2.4 CPU of 2 that the cluster has"` where the sum is too small already, and where only the pieces are:
    `"3 actors of 0.6 GPU, and the nodes hold 2 such"`, naming what is scarce by itself if anything is.
    """
    total, wanted = _in_gb(totals(nodes)), claims(stages)
    short = [
        f"{amount:g} {name} of {total.get(name, 0.0):g}"
        for name, amount in sorted(_in_gb(demand(stages)).items())
        if amount > total.get(name, 0.0) + SLACK
    ]
    if short:
        return f"{', '.join(short)} that the cluster has"
    seats, claim = place(wanted, nodes)
    if claim is None:
        return ""
    found = sum(seat.claim is claim for seat in seats)
    alone = {n: [replace(c, needs={n: c.needs[n]}) for c in wanted if n in c.needs] for n in claim.needs}
    scarce = [name for name, parts in alone.items() if not fits(parts, nodes)]
    what = in_words({name: claim.needs[name] for name in scarce or claim.needs})
    actors = f"{words.count(claim.count, 'actor')} of {what}"
    if len(stages) == 1 and claim is wanted[0]:
        return f"{actors}, and the nodes hold {found} such"
    return f"more than the nodes hold in pieces: {claim.owner} needs {actors}, and beside the rest they hold {found}"


def in_words(needs: Mapping[str, float]) -> str:
    """Such as "1 GPU and 2 CPU"."""
    return " and ".join(f"{amount:g} {name}" for name, amount in _in_gb(needs).items())


def _in_gb(amounts: Mapping[str, float]) -> dict[str, float]:
    """Amounts as a message names them: memory in GB of 1024^3 bytes, as `pool.memory_gb` has it."""
    others = {name: amount for name, amount in amounts.items() if name != "memory"}
    return {**others, "GB memory": amounts["memory"] / 1024**3} if "memory" in amounts else others
