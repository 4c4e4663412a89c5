"""How a job's pools share a cluster: all at once, or in phases, whichever is expected to finish first.

Streaming needs no copy of the pictures, but its slowest pool sets the pace and whole GPUs divide badly: nine pools keep
66 % of eight GPUs busy. Phases run consecutive models, write what they made, and go on from there: each costs a start
and one Parquet copy, and gives its models the whole cluster. Where speeds are unknown the pools stream if they fit.
Which one it is, and why, is one printed line.
"""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rankray import words
from rankray.cluster import seats
from rankray.cluster.actors import Stage
from rankray.cluster.seats import SLACK, Node, actor_demand, alive_nodes, claims, fits, shortage
from rankray.config import ConfigError
from rankray.words import Say

START_S = 60.0
"""A phase's processes, imports and loading, where nothing was measured: a few GB of weights from a local disk."""

COPY_BYTES_PER_S = 2e8
"""Of one node that writes a phase's rows while it computes, or reads them; assumed, an NFS share or an object store."""

ASK_EVERY_S, SETTLED_S = 2.0, 120.0
"""How often nodes are counted, and asked for, while a job waits for them; after how long without a change those that
hold each pool by itself are taken for all that come."""

BISECTIONS = 25
"""Halvings of the interval in which the pools' common pace is sought: 1 part in 3e7."""


@dataclass(frozen=True)
class Work:
    """What a plan knows of a job's work.

    Attributes:
        rows: prompts.
        row_s: seconds that one actor of a stage takes for a row, by the stage's name; of some it may be unknown.
        row_bytes: what a stage adds to a row.
        block: rows that travel together.
        start_s: from asking for an actor until its model is loaded.
    """

    rows: int
    row_s: Mapping[str, float]
    row_bytes: Mapping[str, float]
    block: int = 1
    start_s: float = START_S


@dataclass(frozen=True)
class Layout:
    """Consecutive stages that run together, phase by phase, the line that explains why, and each pool's size.

    `seconds` are those expected of the whole, None where a speed is unknown.
    """

    phases: tuple[tuple[Stage, ...], ...]
    explanation: str
    sizes: tuple[tuple[int, ...], ...]
    seconds: float | None = None


def plan(stages: Sequence[Stage], nodes: Sequence[Node], mode: str, work: Work | None = None) -> Layout:
    """The layout of `stages` on `nodes`, `mode` being auto, streaming or phases.

    In phases each model has the cluster to itself if `mode` asks for phases; automatically chosen ones are those
    that are expected to finish first, or as many consecutive models as fit where `work` leaves a speed open. CPUs are
    claims and not cores: a pool that claims more of them than small machines have is lowered to what there is, as it
    would otherwise wait for ever.

    Raises:
        ConfigError: a pool cannot run at all, or `mode` is streaming and the pools do not fit together.
    """
    if mode != "streaming":
        stages = [_lowered(stage, nodes) for stage in stages]
    for stage in stages:
        missing = shortage([stage], nodes)
        if missing:
            raise ConfigError(
                f"the pool of '{stage.target.name}' needs {missing}; start such nodes, "
                "lower its pool's min_size, num_cpus or num_gpus, or raise execution.wait_for_nodes_s"
            )
    if mode == "phases":
        return _laid([[s] for s in stages], nodes, work, f"phases: {len(stages)}, as execution.mode asks")
    missing = shortage(stages, nodes)
    if mode == "streaming" and missing:
        raise ConfigError(
            f"execution.mode is streaming, but the pools together need {missing}; use auto or phases"
        )
    together = f"streaming: all {len(stages)} pools fit the cluster together"
    streaming = None if missing else _laid([stages], nodes, work, together)
    if mode == "streaming" or work is None or not _known(stages, work):
        if streaming is not None:
            return streaming
        phases = _phases(stages, nodes)
        return _laid(phases, nodes, work, f"phases: {len(phases)}, because all pools together need {missing}")
    return _soonest(stages, nodes, work, streaming, missing)


def together(stages: Sequence[Stage], nodes: Sequence[Node], work: Work) -> Layout | None:
    """One phase of all `stages`, which were begun so; None where they do not fit `nodes`."""
    stages = [_lowered(stage, nodes) for stage in stages]
    if shortage(stages, nodes):
        return None
    return _laid([stages], nodes, work, f"going on with {len(stages)} models that were begun together")


def again(stages: Sequence[Stage], nodes: Sequence[Node], mode: str, work: Work, before: Layout) -> Layout:
    """The layout of the `stages` that are left after the first phase of `before`, on the `nodes` that there are now.

    Where they hold too little, what was planned before: Ray waits for others.
    """
    try:
        return plan(stages, nodes, mode, work)
    except ConfigError:
        if not before.phases[1:]:
            raise
        return replace(before, phases=before.phases[1:], sizes=before.sizes[1:])


def _soonest(
    stages: Sequence[Stage], nodes: Sequence[Node], work: Work, streaming: Layout | None, missing: str
) -> Layout:
    """Of all ways to cut `stages` into consecutive phases, the one that is expected to finish first."""
    best: list[tuple[float, list[list[Stage]]]] = [(0.0, [])]
    held = [0.0]  # bytes a row before each stage
    for stage in stages:
        held.append(held[-1] + work.row_bytes.get(stage.target.name, 0.0))
    for end in range(1, len(stages) + 1):
        found: list[tuple[float, list[list[Stage]]]] = []
        for begin in range(end - 1, -1, -1):
            phase = list(stages[begin:end])
            if not fits(claims(phase), nodes):
                break
            copied = (held[begin] * (begin > 0) + held[end] * (end < len(stages))) * work.rows
            copy_s = copied / COPY_BYTES_PER_S / len(nodes)
            computing_s = _phase_s(phase, sizes(phase, _weights(phase, work), nodes), work)
            found.append((best[begin][0] + max(computing_s, copy_s), [*best[begin][1], phase]))
        best.append(min(found, key=lambda item: (round(item[0], 3), len(item[1]))))
    seconds, phases = best[-1]
    said = f"expected in {words.hours(seconds)}"
    if len(phases) == 1:
        return _laid(phases, nodes, work, f"streaming: all {len(stages)} pools together, {said}")
    rest = (
        f"all pools together need {missing}"
        if streaming is None
        else f"streaming is expected in {words.hours(streaming.seconds or 0.0)}"
    )
    return replace(_laid(phases, nodes, work, f"phases: {len(phases)}, {said}; {rest}"), seconds=seconds)


def _laid(
    phases: Sequence[Sequence[Stage]], nodes: Sequence[Node], work: Work | None, explanation: str
) -> Layout:
    numbers = [sizes(phase, _weights(phase, work), nodes) for phase in phases]
    known = work is not None and all(_known(phase, work) for phase in phases)
    seconds = (
        sum(_phase_s(phase, size, work) for phase, size in zip(phases, numbers, strict=True))
        if work is not None and known
        else None
    )
    return Layout(tuple(map(tuple, phases)), explanation, tuple(map(tuple, numbers)), seconds)


def _known(stages: Sequence[Stage], work: Work) -> bool:
    """Whether the speed of every pool that takes a GPU is known, and of any pool; others are taken to keep up."""
    return bool(work.row_s) and all(
        stage.target.name in work.row_s or not stage.actors.num_gpus for stage in stages
    )


def _weights(stages: Sequence[Stage], work: Work | None) -> list[float | None]:
    return [None if work is None else work.row_s.get(stage.target.name) for stage in stages]


def _phase_s(stages: Sequence[Stage], numbers: Sequence[int], work: Work) -> float:
    """Seconds of a phase: its start, a block's way through it, and all rows at the pace of its slowest pool."""
    costs = [work.row_s.get(stage.target.name, 0.0) for stage in stages]
    pace_s = max(cost / size for cost, size in zip(costs, numbers, strict=True))
    return work.start_s + work.block * sum(costs) + work.rows * pace_s


def sizes(stages: Sequence[Stage], weights: Sequence[float | None], nodes: Sequence[Node]) -> list[int]:
    """Actors of each pool on `nodes`, in proportion to its weight, so that the last to finish finishes soonest.

    Args:
        weights: the work of each stage, in seconds of one actor; what is unknown is taken for the mean of the rest.

    Returns:
        Between `min_size` and `max_size` each; `min_size` where the nodes hold no more.
    """
    known = [weight for weight in weights if weight]
    mean = sum(known) / len(known) if known else 1.0
    loads = [mean if weight is None else weight for weight in weights]
    pools = [stage.actors for stage in stages]

    def at(rate: float) -> list[int]:
        wanted = [math.ceil(load * rate * (1 - SLACK)) for load in loads]
        return [min(max(n, p.min_size), p.max_size) for n, p in zip(wanted, pools, strict=True)]

    def fit(rate: float) -> bool:
        found = zip(stages, at(rate), strict=True)
        return fits(claims([replace(s, actors=replace(s.actors, min_size=n)) for s, n in found]), nodes)

    # Beyond what its largest size allows to the pool that it holds back most, no other pool helps by growing.
    most = min((p.max_size / load for p, load in zip(pools, loads, strict=True) if load), default=0.0)
    if fit(most):
        return at(most)
    low, high = 0.0, most
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fit(middle) else (low, middle)
    return at(low)


def _lowered(stage: Stage, nodes: Sequence[Node]) -> Stage:
    """The stage with its CPU claims cut, in hundredths, to what its pool can get when it has the nodes to itself.

    Where there is no room for another reason, such as a GPU, they are cut as if for CPUs alone: the error then
    names that reason only.
    """
    pool, *rest = claims([stage])
    sizes = [size / 100 for size in range(1, math.ceil(100 * stage.actors.num_cpus))]
    for needs in (pool.needs, {}):

        def refused(cpus: float, needs: Mapping[str, float] = needs) -> bool:
            return not fits([replace(pool, needs={**needs, "CPU": cpus}), *rest], nodes)

        if not refused(stage.actors.num_cpus):
            return stage
        room = bisect.bisect_left(sizes, True, key=refused)
        if room:
            return replace(stage, actors=replace(stage.actors, num_cpus=sizes[room - 1]))
    return stage


def _phases(stages: Sequence[Stage], nodes: Sequence[Node]) -> tuple[tuple[Stage, ...], ...]:
    """As many consecutive stages a phase as fit; not the fewest phases, as order is kept."""
    phases: list[list[Stage]] = [[]]
    for stage in stages:
        if phases[-1] and not fits(claims([*phases[-1], stage]), nodes):
            phases.append([])
        phases[-1].append(stage)
    return tuple(tuple(phase) for phase in phases)


def wait_for_nodes(stages: Sequence[Stage], wait_s: float, say: Say) -> list[Node]:
    """The alive nodes, once they are `enough` for `stages` or `wait_s` has passed.

    Tells the autoscaler what the pools need, so that a cluster which starts with a head alone grows to it. Where it
    says that it can never hold them together, they are asked for one by one.

    Raises:
        ConfigError: it can never bring what a pool needs.
    """
    nodes = alive_nodes()
    if wait_s <= 0 or fits(claims(stages), nodes):
        return nodes
    say(f"waiting up to {wait_s:g} s for nodes: the pools together need {shortage(stages, nodes)}")
    asked, together = list(stages), True
    changed = time.monotonic()
    deadline = changed + wait_s
    while time.monotonic() < deadline and not enough(stages, nodes, together, time.monotonic() - changed):
        seats.ask_for(_bundles(asked))
        time.sleep(min(ASK_EVERY_S, wait_s))
        before, nodes, answer = nodes, alive_nodes(), seats.answer(_bundles(asked))
        changed = time.monotonic() if nodes != before or answer.coming else changed
        lacking = [stage for stage in stages if not fits(claims([stage]), nodes)]
        if answer.refused and lacking and asked == lacking[:1]:
            raise ConfigError(
                f"the pool of '{lacking[0].target.name}' needs {shortage(lacking[:1], nodes)}, and the autoscaler can "
                "never bring it; raise its greatest size, or lower the pool's min_size, num_cpus or num_gpus"
            )
        together = together and not answer.refused
        if not together and lacking:
            asked = lacking[:1]
    return nodes


def _bundles(stages: Sequence[Stage]) -> list[dict[str, float]]:
    """What actors of the least sizes need; memory is no part of it, as nodes' types seldom state theirs."""
    needs = [
        {name: amount for name, amount in actor_demand(stage).items() if name != "memory"} for stage in stages
    ]
    return [need for need, stage in zip(needs, stages, strict=True) for _ in range(stage.actors.min_size)]


def enough(stages: Sequence[Stage], nodes: Sequence[Node], together: bool, still_s: float) -> bool:
    """Whether to begin on `nodes`: all pools have room together, or each by itself and no more is to be expected.

    That is where the autoscaler can never hold them `together`, or where nothing has come, or was on its way, for
    `still_s` of at least `SETTLED_S`: GPUs that wait are paid.
    """
    if fits(claims(stages), nodes):
        return True
    settled = not together or still_s >= SETTLED_S
    return settled and all(fits(claims([stage]), nodes) for stage in stages)


def release_nodes(wait_s: float) -> None:
    """Withdraws what `wait_for_nodes` asked of the autoscaler; a request would else keep nodes for good."""
    if wait_s > 0:
        seats.ask_for([])
