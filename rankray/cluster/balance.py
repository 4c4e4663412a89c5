"""Pools keep to their planned sizes while nodes join and leave.

Left to itself Ray Data gives GPUs to whichever pool has a backlog first, never takes them from a busy one, and stops
growing at half of a cluster. Here each pool gets what `layout.sizes` gives it of the nodes that are alive, for the work
it has left at the speed measured so far; a pool above its size gets no new blocks until enough of its actors are idle
and released. What an actor takes to start is weighed against what a change gains.

Ray Data calls this through its hook for callbacks; there it takes the place of the executor's `_actor_autoscaler` and
joins its `_backpressure_policies`. Bringing nodes stays with Ray, which sees each pool's `max_size`. A pool that is not
ours, as the filter of what a resume finds finished, is kept at its least size.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.data
from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]
from ray.data._internal.actor_autoscaler import ActorPoolScalingRequest
from ray.data._internal.execution.backpressure_policy import BackpressurePolicy
from ray.data._internal.execution.execution_callback import ExecutionCallback

from rankray import words
from rankray.cluster import layout, seats, terminal
from rankray.cluster.actors import GenerateActor, ScoreActor, Stage
from rankray.cluster.item_safe import cause
from rankray.cluster.layout import Work
from rankray.cluster.seats import Node

LOOK_EVERY_S, PLAN_EVERY_S = 2.0, 15.0
"""How often nodes are counted (1 ms), and sizes are worked out anew though they are the same (2 ms for nine pools on 8
nodes, 0.1 s on 100), both in Ray Data's scheduling loop."""

ACTORS = (GenerateActor.__name__, ScoreActor.__name__)
"""Pools of these are ours: on a resume Ray Data's filter of finished rows is a pool too."""

GAIN = 0.1
"""Of the time that is left: what another plan must gain, beside an actor's start."""

BROKEN_STARTS = 3
"""Actors of a pool in a row that may end before their model is loaded, each replaced at once. After one more the pool
goes on with what it has; a model that loads nowhere is told then."""

ANSWER_S = 5.0
"""A dead actor answers at once, with how it ended."""

AGAIN_S = 600.0
"""After so long such a pool tries again on the same nodes: what was broken may have been a hub that did not answer."""


NO_ACTOR_S = 600.0
"""After so long without an actor of a pool that has asked for some, that is said: to Ray, one that waits for room looks
like one that is loading, which may take minutes."""


@dataclass(frozen=True)
class _Deaths:
    """Of a pool's actors in a row that ended before their model was loaded: how many, the last one's error and time."""

    in_a_row: int
    error: Exception
    at_s: float


class Balance(ExecutionCallback, BackpressurePolicy):
    """The pools of one pipeline, `stages` in their order; `meter` knows how fast they are."""

    def __init__(self, stages: Sequence[Stage], work: Work, meter: Any) -> None:
        self._stages, self._work, self._meter = list(stages), work, meter
        self._row_s = {s.target.name: work.row_s.get(s.target.name) for s in stages}
        self._topology: dict[Any, Any] = {}
        self._pools: list[tuple[Any, Any]] = []  # (operator, pool) of each stage
        self._others: list[tuple[Any, Any]] = []
        self._sizes: dict[Any, int] = {}  # by operator
        self._answer: Any = None
        self._starts: list[float] = []
        self._seen: Any = None
        self._due_s = self._planned_s = 0.0
        self._asked: dict[Any, tuple[Stage, Any, float]] = {}  # an actor on its way: whose, and since when
        self._nodes: list[Node] = []
        self._deaths: dict[Any, _Deaths] = {}  # by operator
        self._told: set[tuple[str, str]] = set()

    def before_execution_starts(self, executor: Any) -> None:
        self._topology = executor._topology
        ours = [op for op in self._topology if any(name in op.name for name in ACTORS)]
        self._pools = [(op, pool) for op in ours for pool in op.get_autoscaling_actor_pools()]
        if not self._pools:
            return  # Ray Data reads a checkpoint by a pipeline of its own
        if len(self._pools) != len(self._stages):
            raise RuntimeError(
                f"{len(self._pools)} pools for {len(self._stages)} stages; this Ray is not known here"
            )
        others = [op for op in self._topology if op not in ours]
        self._others = [(op, pool) for op in others for pool in op.get_autoscaling_actor_pools()]
        self._sizes = {op: pool.initial_size() for op, pool in self._pools}
        for stage, (op, pool) in zip(self._stages, self._pools, strict=True):
            op._on_actor_init_death = functools.partial(self._died, stage, op, pool)
        executor._actor_autoscaler = self
        executor._backpressure_policies.append(self)

    def can_add_input(self, op: Any) -> bool:
        """Whether the pool has no more living actors than it should: else some must become idle, to be released."""
        pools = op.get_autoscaling_actor_pools() if op in self._sizes else []
        return all(pool.num_alive_actors() <= self._sizes[op] for pool in pools)

    def try_trigger_scaling(self) -> None:
        """Called by Ray Data in every step of its scheduling loop, some milliseconds apart.

        An actor that restarts elsewhere counts as one that is there: it comes up as soon as there is room.
        """
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + LOOK_EVERY_S
            self._look()
        for op, pool in self._others:
            if not self._finishing(op) and (delta := pool.min_size() - pool.current_size()) > 0:
                pool.scale(ActorPoolScalingRequest.upscale(delta=delta, reason="least"))
        for op, pool in self._pools:
            size = 0 if self._finishing(op) else self._sizes[op]
            if (delta := size - pool.current_size()) > 0:
                if self._may_start(op, pool):
                    pool.scale(ActorPoolScalingRequest.upscale(delta=delta, reason="planned"))
            elif (delta := size - pool.num_alive_actors() - pool.num_pending_actors()) < 0:
                pool.scale(ActorPoolScalingRequest.downscale(delta=delta, force=True, reason="planned"))
        self._time_starts()

    def _look(self) -> None:
        """Who is there, how fast they are, and what that means for sizes."""
        self._measure()
        for stage, (op, pool) in zip(self._stages, self._pools, strict=True):
            for error in _dropped(pool):
                self._died(stage, op, pool, error)
        nodes = seats.alive_nodes()
        if nodes != self._nodes:
            self._nodes = nodes
            self._deaths.clear()
        seen = (nodes, [self._finishing(op) for op, _ in self._pools])
        if seen != self._seen or time.monotonic() > self._planned_s + PLAN_EVERY_S:
            self._seen, self._planned_s = seen, time.monotonic()
            self._plan(nodes)
        self._tell_of_none()

    def _tell_of_none(self) -> None:
        """Once of each pool that has had no actor for long, though one was asked for: what fits when nothing else runs
        may never get its room beside another job, or in the pieces that Ray's own placement leaves.
        """
        for stage, (_, pool) in zip(self._stages, self._pools, strict=True):
            since = [self._asked[ref][2] for ref in pool.get_pending_actor_refs() if ref in self._asked]
            waited_s = time.monotonic() - min(since, default=math.inf)
            name = stage.target.name
            if waited_s < NO_ACTOR_S or pool.num_running_actors() or (name, "") in self._told:
                continue
            self._told.add((name, ""))
            terminal.say(
                f"warning: '{name}' has had no actor for {words.hours(waited_s)}: the first is still loading, or no "
                f"node has {seats.in_words(seats.actor_demand(stage))} free in one piece (`ray status -v` says who "
                "holds it); end other jobs on this Ray, add nodes, or start again with execution.mode = 'phases'"
            )

    def _died(self, stage: Stage, op: Any, pool: Any, error: Exception) -> None:
        """Takes the place of Ray Data's count of actors that end while they start, by which a broken GPU ends the work
        of all others: where those are taken, it is the free one, and gets every replacement.
        """
        before = self._deaths.get(op)
        deaths = _Deaths(1 if before is None else before.in_a_row + 1, error, time.monotonic())
        self._deaths[op] = deaths
        name, why = stage.target.name, cause(error)
        say = terminal.note if (name, why) in self._told else terminal.say
        self._told.add((name, why))
        say(f"warning: an actor of '{name}' did not load its model: {why}")
        if deaths.in_a_row == BROKEN_STARTS + 1 and pool.num_alive_actors():
            terminal.say(
                f"warning: {deaths.in_a_row} actors of '{name}' in a row did not; it goes on with "
                f"{words.count(pool.num_alive_actors(), 'actor')}, and starts others when nodes join or leave, or in "
                f"{words.hours(AGAIN_S)}"
            )

    def _may_start(self, op: Any, pool: Any) -> bool:
        """Whether the pool may start an actor on these nodes, now.

        Raises:
            RayError: its actors end while they start, and none is left.
        """
        deaths = self._deaths.get(op)
        if deaths is None or deaths.in_a_row <= BROKEN_STARTS:
            return True
        if not pool.current_size():
            raise deaths.error
        return time.monotonic() > deaths.at_s + AGAIN_S

    def _finishing(self, op: Any) -> bool:
        """Whether the operator has got its last block."""
        return op.has_completed() or (
            op._inputs_complete and not self._topology[op].total_enqueued_input_blocks()
        )

    def _measure(self) -> None:
        """Takes up the meter's last answer and asks again, without waiting for it."""
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            try:
                busy_s = ray.get(self._answer)
            except ray.exceptions.RayActorError:  # it restarts
                busy_s = {}
            self._answer = None
            for stage, (op, _) in zip(self._stages, self._pools, strict=True):
                rows = op.metrics.rows_task_outputs_generated
                if rows >= 2 * self._work.block and (seconds := busy_s.get((stage.kind, stage.target.name))):
                    self._row_s[stage.target.name] = seconds / rows
        if self._answer is None:
            self._answer = self._meter.busy.remote()

    def _plan(self, nodes: Sequence[Node]) -> None:
        """Sizes for the work that is left, where they gain more than they cost.

        A pool that has its last blocks keeps room for the actors that have them: one whose node was lost waits for a
        GPU with blocks that no other may take, and if a later pool took it, that one would wait for those blocks.
        """
        working = []
        for stage, (op, pool) in zip(self._stages, self._pools, strict=True):
            rows, actors = self._work.rows - op.metrics.rows_task_outputs_generated, stage.actors
            if self._finishing(op):
                busy = pool.num_active_actors()
                actors = replace(actors, min_size=min(busy, actors.min_size), max_size=busy)
            if rows > 0 and actors.max_size:
                working.append((replace(stage, actors=actors), op, rows, self._row_s[stage.target.name]))
        if not working:
            return
        stages = [stage for stage, *_ in working]
        known = [row_s for *_, row_s in working if row_s]
        mean = sum(known) / len(known) if known else 1.0
        loads = [rows * (row_s or mean) for *_, rows, row_s in working]
        wanted = layout.sizes(stages, loads, nodes)
        held = [min(self._sizes[op], stage.actors.max_size) for stage, op, *_ in working]
        holding = [
            replace(stage, actors=replace(stage.actors, min_size=size))
            for stage, size in zip(stages, held, strict=True)
        ]
        now_s, then_s = (
            max(load / size for load, size in zip(loads, sizes, strict=True)) for sizes in (held, wanted)
        )
        # Without a speed these are no seconds: sizes change where nodes have.
        gains = now_s - then_s > max(self._start_s(), GAIN * now_s) if known else sum(wanted) > sum(held)
        if gains or not seats.fits(seats.claims(holding), nodes):
            self._sizes.update({op: size for (_, op, *_), size in zip(working, wanted, strict=True)})

    def _time_starts(self) -> None:
        """Tells the meter how long actors took from being asked for until they were ready, models and all; one that
        ended before says nothing of that.
        """
        now, coming = time.monotonic(), set()
        for stage, (op, pool) in zip(self._stages, self._pools, strict=True):
            for ref in pool.get_pending_actor_refs():
                coming.add(ref)
                self._asked.setdefault(ref, (stage, op, now))
        for ref in self._asked.keys() - coming:
            stage, op, since = self._asked.pop(ref)
            if _came_up(ref):
                self._deaths.pop(op, None)
                self._starts.append(now - since)
                self._meter.started.remote(stage.kind, stage.target.name, now - since)

    def _start_s(self) -> float:
        """Of an actor: the mean of those that were seen, else what was planned with."""
        return sum(self._starts) / len(self._starts) if self._starts else self._work.start_s


def _dropped(pool: Any) -> list[Exception]:
    """Why each actor ended that had nothing to do and that Ray will not start again: one that was lost, and whose model
    did not load in `RELOADS` starts. Ray Data counts it among the living for ever; it is taken out of the pool.
    """
    idle = [actor for actor, state in pool._running_actors.items() if not state.num_tasks_in_flight]
    errors: list[Exception] = []
    for actor in idle:
        if actor._get_local_state() == ActorTableData.DEAD:
            pool._release_running_actor(actor)
            try:
                ray.get(actor.get_location.remote(), timeout=ANSWER_S)
            except ray.exceptions.RayError as error:
                errors.append(error)
    return errors


def _came_up(ready: Any) -> bool:
    """Whether the actor behind what Ray Data waits for was ready; it may have been given up before, or have ended."""
    try:
        return bool(ray.wait([ready], timeout=0)[0]) and ray.get(ready) is not None
    except ray.exceptions.RayError:
        return False


def follow(context: ray.data.DataContext, balanced: Callable[[], Balance] | None) -> None:
    """Has each pipeline that `context` runs follow a `Balance` that `balanced` makes; None is Ray Data alone."""
    made: list[Any] = [] if balanced is None else [balanced]
    context.custom_execution_callback_classes = made
