"""How pools are kept to their sizes where actors do not come up, without a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.core.generated.gcs_pb2 import ActorTableData

from rankray.cluster import balance
from rankray.cluster.actors import Actors, Stage
from rankray.cluster.layout import Work
from rankray.cluster.seats import Node
from rankray.models.targets import Target

LOST = ray.exceptions.ActorDiedError()


@dataclass(eq=False)
class Ref:
    """What is answered, or raised, or is not there yet."""

    answer: Any = None


class Member:
    """An actor of a pool, who answers who is dead only with how it died."""

    def __init__(self) -> None:
        self.state = ActorTableData.ALIVE
        self.get_location = SimpleNamespace(remote=lambda: Ref(LOST))

    def _get_local_state(self) -> int:
        return self.state


class Operator:
    """A pool's operator and, as both are Ray Data's, the pool: `running` actors and those that are on their way."""

    name = "MapBatches(GenerateActor)"
    _inputs_complete = False
    metrics = SimpleNamespace(rows_task_outputs_generated=0)
    _on_actor_init_death: Callable[[Exception], None]

    def __init__(self, running: int) -> None:
        self.running, self.pending = running, list[Ref]()

    @property
    def running(self) -> int:
        return len(self._running_actors)

    @running.setter
    def running(self, count: int) -> None:
        self._running_actors = {Member(): SimpleNamespace(num_tasks_in_flight=0) for _ in range(count)}

    def _release_running_actor(self, actor: Member) -> None:
        del self._running_actors[actor]

    def min_size(self) -> int:
        return 1

    def get_autoscaling_actor_pools(self) -> list[Operator]:
        return [self]

    def has_completed(self) -> bool:
        return False

    def initial_size(self) -> int:
        return 3

    def num_alive_actors(self) -> int:
        return self.running

    def num_running_actors(self) -> int:
        return self.running

    def num_pending_actors(self) -> int:
        return len(self.pending)

    def current_size(self) -> int:
        return self.running + len(self.pending)

    def get_pending_actor_refs(self) -> list[Ref]:
        return list(self.pending)

    def scale(self, asked: Any) -> None:
        self.pending += [Ref() for _ in range(asked.delta)]

    def come_up(self) -> None:
        """All that are on their way are there."""
        for ref in self.pending:
            ref.answer = "a node"
        self.running, self.pending = self.current_size(), []

    def die(self) -> None:
        """All that are on their way end while they start."""
        dying, self.pending = self.pending, []
        for ref in dying:
            ref.answer = LOST
            self._on_actor_init_death(LOST)


@dataclass
class Cluster:
    """A pool of at most three actors in the care of a balance, and what the meter was told of starts."""

    pool: Operator
    balance: balance.Balance
    starts: list[float]
    nodes: list[Node]
    other: Operator

    def step(self) -> int:
        """One of the scheduling loop's; how many actors are on their way after it."""
        self.balance.try_trigger_scaling()
        return self.pool.num_pending_actors()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Cluster]:
    """`cluster(running)`, on three GPUs."""

    def wait(refs: list[Ref], timeout: float) -> tuple[list[Ref], list[Ref]]:
        return [ref for ref in refs if ref.answer is not None], []

    def get(ref: Ref, timeout: float | None = None) -> Any:
        if isinstance(ref.answer, Exception):
            raise ref.answer
        return ref.answer

    def made(running: int) -> Cluster:
        starts, nodes = list[float](), [Node(8.0, 1e9, 3, {})]
        meter = SimpleNamespace(
            busy=SimpleNamespace(remote=lambda: Ref({})),
            started=SimpleNamespace(remote=lambda kind, name, seconds: starts.append(seconds)),
        )
        monkeypatch.setattr(balance, "ray", SimpleNamespace(wait=wait, get=get, exceptions=ray.exceptions))
        monkeypatch.setattr(balance, "LOOK_EVERY_S", 0.0)
        monkeypatch.setattr(balance.seats, "alive_nodes", lambda: list(nodes))
        stage = Stage("generator", Target("draws", "x:draws"), Actors(1, 3, 0.1, 1.0))
        found = balance.Balance([stage], Work(100, {}, {}), meter)
        pool, other = Operator(running), Operator(1)
        other.name = "CheckpointFilter"
        state = SimpleNamespace(total_enqueued_input_blocks=lambda: 5)
        topology = dict.fromkeys((other, pool), state)
        found.before_execution_starts(SimpleNamespace(_topology=topology, _backpressure_policies=[]))
        return Cluster(pool, found, starts, nodes, other)

    return made


def test_a_broken_gpu_does_not_end_the_work_of_others(
    cluster: Callable[[int], Cluster], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of three GPUs are at work, and the free one gets every replacement."""
    one = cluster(2)
    asked = []
    for _ in range(8):
        asked.append(one.step())
        one.pool.die()
    assert asked == [1] * 4 + [0] * 4
    assert one.pool.running == 2
    assert capsys.readouterr().out.splitlines() == [
        f"warning: an actor of 'draws' did not load its model: {LOST}",
        "warning: 4 actors of 'draws' in a row did not; it goes on with 2 actors, and starts others when nodes join or "
        "leave, or in 10.0 min",
    ]
    one.nodes.append(Node(8.0, 1e9, 1, {}))
    assert one.step() == 1
    one.pool.come_up()
    assert one.step() == 0
    assert one.pool.running == 3


def test_the_same_nodes_are_tried_again(
    cluster: Callable[[int], Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cluster(2)
    for _ in range(4):
        one.step()
        one.pool.die()
    assert one.step() == 0
    monkeypatch.setattr(balance, "AGAIN_S", 0.0)
    assert one.step() == 1


def test_a_start_that_succeeds_begins_the_count_anew(cluster: Callable[[int], Cluster]) -> None:
    one = cluster(2)
    for _ in range(6):
        assert one.step() == 1
        one.pool.die()
        assert one.step() == 1
        one.pool.come_up()
        one.step()
        one.pool.running = 2


def test_a_model_that_loads_nowhere_ends_the_job(cluster: Callable[[int], Cluster]) -> None:
    """Once the last that is on its way has ended: it may be the one that loads."""
    one = cluster(0)
    assert one.step() == 3
    one.pool.die()
    assert one.step() == 3
    last = one.pool.pending.pop()
    one.pool.die()
    one.pool.pending = [last]
    assert one.step() == 1
    one.pool.die()
    with pytest.raises(ray.exceptions.ActorDiedError):
        one.step()


def test_an_idle_actor_that_died_for_good_is_replaced(
    cluster: Callable[[int], Cluster], capsys: pytest.CaptureFixture[str]
) -> None:
    """One that has blocks is left to Ray Data, which fails with them."""
    one = cluster(3)
    assert one.step() == 0
    idle, busy, _ = one.pool._running_actors
    one.pool._running_actors[busy].num_tasks_in_flight = 1
    idle.state = busy.state = ActorTableData.DEAD
    assert one.step() == 1
    assert idle not in one.pool._running_actors
    assert busy in one.pool._running_actors
    assert capsys.readouterr().out == f"warning: an actor of 'draws' did not load its model: {LOST}\n"


def test_a_pool_that_has_no_actor_for_long_is_told_once(
    cluster: Callable[[int], Cluster], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = cluster(0)
    assert [one.step() for _ in range(3)] == [3] * 3
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(balance, "NO_ACTOR_S", 0.0)
    one.step()
    one.step()
    assert capsys.readouterr().out == (
        "warning: 'draws' has had no actor for 0.0 min: the first is still loading, or no node has 0.1 CPU and 1 GPU "
        "free in one piece (`ray status -v` says who holds it); end other jobs on this Ray, add nodes, or start again "
        "with execution.mode = 'phases'\n"
    )
    some = cluster(2)
    some.step()
    some.step()
    assert capsys.readouterr().out == ""


def test_a_pool_of_ray_s_own_keeps_its_least_size(cluster: Callable[[int], Cluster]) -> None:
    """On a resume the filter of finished rows is one, and `Balance` stands where it would be replaced."""
    one = cluster(3)
    one.step()
    assert one.other.current_size() == 1
    one.other.running = 0
    one.step()
    assert one.other.current_size() == 1
    one.step()
    assert one.other.current_size() == 1


def test_a_start_that_failed_is_no_measure_of_starting(cluster: Callable[[int], Cluster]) -> None:
    one = cluster(2)
    one.step()
    one.pool.die()
    one.step()
    assert one.starts == []
    one.pool.come_up()
    one.step()
    assert len(one.starts) == 1
