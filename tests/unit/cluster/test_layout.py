"""Whether pools stream together or take turns, decided on numbers alone."""

import collections
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankray.cluster import layout, seats
from rankray.cluster.actors import Actors, Stage
from rankray.cluster.seats import Node
from rankray.config import ConfigError
from rankray.models.targets import Target

GB = 1024**3


def stage(name, cpus=0.2, gpus=0.0, size=1, memory_gb=0, **resources) -> Stage:
    target = Target(name=name, target=f"x:{name}", kwargs={}, revision="r", num_gpus=gpus, num_cpus=cpus)
    return Stage(
        "generator", target, Actors(size, size, cpus, gpus, memory_gb * GB or None, resources, {}, "cpu")
    )


def node(cpus=16.0, gpus=0, memory_gb=64, **resources) -> Node:
    return Node(cpus, float(memory_gb * GB), gpus, resources)


def names(chosen: layout.Layout) -> list[list[str]]:
    return [[item.target.name for item in phase] for phase in chosen.phases]


def seated(stages, nodes) -> dict[str, list[tuple[int, tuple[int, ...]]]]:
    found = collections.defaultdict(list)
    for seat in seats.place(seats.claims(stages), nodes)[0]:
        found[seat.claim.owner].append((seat.node, seat.devices))
    return found


def test_demand_adds_pools_and_the_reading_and_writing_tasks() -> None:
    needs = seats.demand([stage("a", cpus=0.5, size=3), stage("b", cpus=1, gpus=0.5, size=2)])
    assert needs == pytest.approx({"CPU": 1.4 + 1.5 + 2.0, "GPU": 1.0})


def test_a_node_is_what_ray_says_of_it() -> None:
    said = {"CPU": 4.0, "GPU": 2.0, "memory": 1e9, "node:10.0.0.1": 1.0, "a100": 2.0}
    assert seats.node_of(said) == Node(4.0, 1e9, 2, {"node:10.0.0.1": 1.0, "a100": 2.0})
    assert seats.node_of({"object_store_memory": 5.0}) == Node(0.0, 0.0, 0, {"object_store_memory": 5.0})
    assert seats.totals([seats.node_of(said), node(1.0, memory_gb=0)]) == {
        "CPU": 5.0,
        "GPU": 2.0,
        "memory": 1e9,
        "node:10.0.0.1": 1.0,
        "a100": 2.0,
    }


def test_everything_fits() -> None:
    chosen = layout.plan([stage("a"), stage("b")], [node(1.8)], "auto")
    assert names(chosen) == [["a", "b"]]
    assert chosen.explanation == "streaming: all 2 pools fit the cluster together"


def test_nine_models_on_one_gpu_take_turns() -> None:
    models = [stage(f"m{i}", gpus=1.0) for i in range(4)] + [stage(f"r{i}", gpus=0.25) for i in range(5)]
    chosen = layout.plan(models, [node(gpus=1)], "auto")
    assert names(chosen) == [["m0"], ["m1"], ["m2"], ["m3"], ["r0", "r1", "r2", "r3"], ["r4"]]
    assert (
        chosen.explanation == "phases: 6, because all pools together need 5.25 GPU of 1 that the cluster has"
    )


def test_what_a_job_waits_for() -> None:
    """All pools together as long as that may come; GPUs that are there do not wait for what does not."""
    pools, one, two = [stage("a", gpus=1.0), stage("b", gpus=1.0)], [node(gpus=1)], [node(gpus=2)]
    long_s = layout.SETTLED_S
    assert layout.enough(pools, two, True, 0.0)
    assert not layout.enough(pools, one, True, long_s - 1), "more may be on its way"
    assert layout.enough(pools, one, True, long_s), "and nothing came"
    assert not layout.enough(pools, [node()], True, long_s), "a pool would have nothing"
    assert layout.enough(pools, one, False, 0.0), "the autoscaler has said that no more can come"
    assert not layout.enough(pools, [node()], False, long_s)


def test_nodes_are_asked_for_in_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray keeps the last request, whoever made it; where both pools can never come, one of them is asked for."""
    seen = iter([[node()], [node()], [node()], [node()], [node(gpus=2)]])
    refused = iter([False, True, False, False])
    asked: list[int] = []
    monkeypatch.setattr(layout, "alive_nodes", lambda: next(seen))
    monkeypatch.setattr(seats, "ask_for", lambda bundles: asked.append(len(bundles)))
    monkeypatch.setattr(seats, "answer", lambda bundles: seats.Answer(next(refused), coming=False))
    monkeypatch.setattr(layout, "ASK_EVERY_S", 0.01)
    two = [stage("a", gpus=1.0, size=2), stage("b", gpus=1.0)]
    assert layout.wait_for_nodes(two, 60.0, lambda line: None) == [node(gpus=2)]
    assert asked == [3, 3, 2, 2]


def test_phases_on_request_are_one_model_each() -> None:
    chosen = layout.plan([stage("a"), stage("b")], [node()], "phases")
    assert names(chosen) == [["a"], ["b"]]
    assert chosen.explanation == "phases: 2, as execution.mode asks"


def test_streaming_on_request_is_refused_where_it_would_hang() -> None:
    with pytest.raises(
        ConfigError, match=r"pools together need 2\.4 CPU of 2 that the cluster has; use auto or phases"
    ):
        layout.plan([stage("a", cpus=0.5), stage("b", cpus=0.5)], [node(2)], "streaming")


def test_a_pool_that_can_never_run_is_named() -> None:
    with pytest.raises(
        ConfigError, match="the pool of 'sdxl' needs 2 GPU of 0 that the cluster has; start such nodes"
    ):
        layout.plan([stage("a"), stage("sdxl", gpus=1, size=2)], [node()], "auto")


def test_a_cluster_without_nodes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the pool of 'a' needs 1\.6 CPU of 0 that the cluster has"):
        layout.plan([stage("a")], [], "auto")


@pytest.mark.parametrize("nodes", [[node(gpus=2)], [node(gpus=1), node(gpus=1)]])
def test_two_gpus_hold_two_actors_of_0_6(nodes: list[Node]) -> None:
    chosen = layout.plan([stage(name, gpus=0.6) for name in "abc"], nodes, "auto")
    assert names(chosen) == [["a", "b"], ["c"]]
    assert chosen.explanation == (
        "phases: 2, because all pools together need more than the nodes hold in pieces: "
        "the pool of 'c' needs 1 actor of 0.6 GPU, and beside the rest they hold 0"
    )
    with pytest.raises(
        ConfigError,
        match=r"the pool of 'x' needs 3 actors of 0\.6 GPU, and the nodes hold 2 such; start such nodes, lower",
    ):
        layout.plan([stage("x", gpus=0.6, size=3)], nodes, "auto")


def test_fractions_that_fill_one_gpu_share_it() -> None:
    models = [stage(f"r{i}", gpus=0.25) for i in range(4)]
    assert names(layout.plan(models, [node(gpus=1)], "auto")) == [["r0", "r1", "r2", "r3"]]
    # On two GPUs they leave the second to a model that needs a whole one.
    found = seated([*models, stage("whole", gpus=1)], [node(gpus=2)])
    assert found["the pool of 'whole'"] == [(0, (0,))]
    assert [found[f"the pool of 'r{i}'"] for i in range(4)] == [[(0, (1,))]] * 4


def test_whole_gpus_are_of_one_node() -> None:
    two = stage("flux", gpus=2)
    for mode in ("auto", "streaming", "phases"):
        with pytest.raises(
            ConfigError, match="the pool of 'flux' needs 1 actor of 2 GPU, and the nodes hold 0 such; start"
        ):
            layout.plan([stage("a"), two], [node(gpus=1), node(gpus=1)], mode)
    assert seated([two], [node(gpus=1), node(gpus=3)])["the pool of 'flux'"] == [(1, (0, 1))]


def test_the_plainest_node_is_filled_first() -> None:
    found = seated([stage("cpu", cpus=3), stage("gpu", cpus=1.5, gpus=0.1)], [node(4, gpus=1), node(4.5)])
    assert found == {
        "the pool of 'cpu'": [(1, ())],
        "the pool of 'gpu'": [(0, (0,))],
        "a resume's checkpoint": [(1, ())],
        "reading and writing": [(1, ())] * 4,
    }


def test_one_gpu_and_a_half_is_what_ray_refuses() -> None:
    with pytest.raises(ConfigError, match=r"1 actor of 1\.5 GPU, and the nodes hold 0 such"):
        layout.plan([stage("a", gpus=1.5)], [node(gpus=4)], "auto")


def test_eight_cpus_are_not_two_nodes_of_four() -> None:
    eight = stage("a", cpus=8)
    with pytest.raises(ConfigError, match="the pool of 'a' needs 1 actor of 8 CPU, and the nodes hold 0"):
        layout.plan([eight], [node(4), node(4), node(4)], "streaming")
    # Lowered to one node's CPUs, as the other has room for the checkpoint's; to 2.6 where there is no other.
    for nodes, cpus in (([node(4), node(4)], 4.0), ([node(4)], 2.6)):
        (phase,) = layout.plan([eight], nodes, "auto").phases
        assert phase[0].actors.num_cpus == cpus


def test_a_claim_is_lowered_to_the_node_that_has_the_gpu() -> None:
    chosen = layout.plan([stage("a", cpus=8, gpus=1)], [node(64), node(4, gpus=1)], "auto")
    assert chosen.phases[0][0].actors.num_cpus == 4.0


def test_lowering_hides_cpus_where_something_else_is_missing() -> None:
    with pytest.raises(ConfigError, match="the pool of 'a' needs 1 GPU of 0 that the cluster has"):
        layout.plan([stage("a", cpus=8, gpus=1)], [node(4)], "auto")


def test_cpus_beside_the_gpu_count() -> None:
    with pytest.raises(
        ConfigError, match=r"'a' needs 2 actors of 3 CPU and 1 GPU, and the nodes hold 1 such"
    ):
        layout.plan([stage("a", cpus=3, gpus=1, size=2)], [node(64), node(4, gpus=2)], "streaming")


def test_memory_is_of_one_node() -> None:
    with pytest.raises(
        ConfigError, match="the pool of 'a' needs 2 actors of 3 GB memory, and the nodes hold 1"
    ):
        layout.plan([stage("a", memory_gb=3, size=2)], [node(memory_gb=5), node(memory_gb=2)], "auto")
    assert seats.shortage([stage("a", memory_gb=3)], [node(memory_gb=2)]) == (
        "3 GB memory of 2 that the cluster has"
    )


def test_custom_resources_count() -> None:
    own = stage("a", cpus=0.1, a100=2.0)
    assert seats.shortage([own], [node()]) == "2 a100 of 0 that the cluster has"
    assert seats.shortage([own], [node(a100=1.0), node(a100=1.0)]) == (
        "1 actor of 2 a100, and the nodes hold 0 such"
    )
    assert seated([own], [node(), node(a100=3.0), node(a100=1.0)])["the pool of 'a'"] == [(1, ())]


def test_the_checkpoint_needs_one_cpu_in_one_piece() -> None:
    assert seats.shortage([stage("a")], [node(0.9)] * 3) == (
        "more than the nodes hold in pieces: a resume's checkpoint needs 1 actor of 1 CPU, "
        "and beside the rest they hold 0"
    )
    # 0.2 of the model and four tasks of 0.1 go beside it, wherever there is room.
    assert seats.shortage([stage("a")], [node(0.3), node(1.0), node(0.3)]) == ""


def test_two_cores_run_what_claims_four() -> None:
    chosen = layout.plan([stage("a", cpus=4), stage("b", cpus=4, size=2)], [node(2)], "auto")
    assert names(chosen) == [["a"], ["b"]]
    assert [phase[0].actors.num_cpus for phase in chosen.phases] == [0.6, 0.3]


@pytest.mark.parametrize("cpus", [1.0, 4.0, 40.0])
def test_planning_for_a_hundred_nodes_takes_no_time(cpus: float) -> None:
    nodes = [node(32, gpus=8, **{f"node:{i}": 1.0}) for i in range(100)]
    models = [stage(f"m{i}", cpus=cpus, gpus=0.5, size=16, memory_gb=1) for i in range(9)]
    times = []
    for _ in range(5):
        begin = time.process_time()
        layout.plan(models, nodes, "auto")
        times.append(time.process_time() - begin)
    assert min(times) < 0.15  # 6 to 29 ms


@given(st.lists(st.tuples(st.floats(0.01, 4), st.integers(1, 3)), min_size=1, max_size=8), st.floats(2, 16))
def test_every_phase_fits_and_no_model_is_lost(pools: list[tuple[float, int]], cpus: float) -> None:
    models = [stage(f"m{i}", cpus=need, size=size) for i, (need, size) in enumerate(pools)]
    chosen = layout.plan(models, [node(cpus)], "auto")
    assert [name for phase in names(chosen) for name in phase] == [f"m{i}" for i in range(len(pools))]
    assert all(not seats.shortage(phase, [node(cpus)]) for phase in chosen.phases)


NODES = st.lists(
    st.builds(
        node,
        st.sampled_from([0, 1, 2, 3.5, 8]),
        st.integers(0, 3),
        st.integers(1, 8),
        big=st.sampled_from([0, 1, 2]),
    ),
    min_size=1,
    max_size=4,
)
STAGES = st.lists(
    st.builds(
        stage,
        st.uuids().map(str),
        st.sampled_from([0, 0.1, 0.3, 1, 1.7]),
        st.sampled_from([0, 0, 0.1, 0.25, 1 / 3, 0.5, 0.6, 1, 2]),
        st.integers(1, 4),
        st.integers(0, 2),
        big=st.sampled_from([0, 0, 0.5, 1]),
    ),
    min_size=1,
    max_size=4,
)


def check(stages: list[Stage], nodes: list[Node]) -> None:
    """Every actor and task has a seat, and nobody is given what another has, or what a node has not."""
    placed, unseated = seats.place(seats.claims(stages), nodes)
    assert unseated is None
    wanted = {f"the pool of '{s.target.name}'": s.actors for s in stages}
    given_out = collections.Counter(seat.claim.owner for seat in placed)
    reserved = {"a resume's checkpoint": 1, "reading and writing": 4}
    assert given_out == {owner: actors.min_size for owner, actors in wanted.items()} | reserved
    for index, machine in enumerate(nodes):
        here = [seat for seat in placed if seat.node == index]
        pools = [wanted[seat.claim.owner] for seat in here if seat.claim.owner in wanted]
        tasks = sum(
            {"a resume's checkpoint": 1.0, "reading and writing": 0.1}.get(s.claim.owner, 0) for s in here
        )
        assert sum(actors.num_cpus for actors in pools) + tasks <= machine.cpus + 1e-6
        assert sum(actors.memory_bytes or 0 for actors in pools) <= machine.memory_bytes
        assert sum(actors.resources["big"] for actors in pools) <= machine.resources["big"] + 1e-6
        load = [0.0] * machine.gpus
        for seat in here:
            gpus = wanted[seat.claim.owner].num_gpus if seat.claim.owner in wanted else 0
            assert len(set(seat.devices)) == len(seat.devices) == (1 if 0 < gpus < 1 else gpus)
            for device in seat.devices:
                load[device] += min(gpus, 1)
        assert all(used <= 1 + 1e-6 for used in load)


@settings(max_examples=400)  # about one in seven fits
@given(STAGES, NODES)
def test_what_is_called_fitting_has_a_placement(stages: list[Stage], nodes: list[Node]) -> None:
    if not seats.shortage(stages, nodes):
        check(stages, nodes)


@given(STAGES, NODES)
def test_every_phase_has_a_placement(stages: list[Stage], nodes: list[Node]) -> None:
    try:
        chosen = layout.plan(stages, nodes, "auto")
    except ConfigError:
        assert any(seats.shortage([item], nodes) for item in stages)
        return
    assert [n for phase in names(chosen) for n in phase] == [s.target.name for s in stages]
    for phase in chosen.phases:
        check(list(phase), nodes)


@given(
    st.sampled_from([(0.1, 10), (0.25, 4), (0.3, 3), (1 / 3, 3), (0.5, 2), (0.6, 1), (1, 1)]),
    st.lists(st.integers(0, 4), min_size=1, max_size=5),
    st.integers(1, 60),
)
def test_one_pool_fits_just_when_its_gpus_hold_it(
    share: tuple[float, int], gpus: list[int], size: int
) -> None:
    holds = share[1] * sum(gpus)
    nodes = [node(100, count) for count in gpus]
    fitting = not seats.shortage([stage("a", cpus=0.5, gpus=share[0], size=size)], nodes)
    assert fitting == (size <= holds)


def pool(name, gpus=1.0, most=16, least=1) -> Stage:
    actors = Actors(least, most, 0.01, gpus, None, {}, {}, "cpu")
    return Stage("generator", Target(name=name, target=f"x:{name}", kwargs={}, revision="r"), actors)


def test_sizes_follow_the_work() -> None:
    three = [pool("a"), pool("b"), pool("c")]
    assert layout.sizes(three, [4.0, 2.0, 1.0], [node(gpus=7)]) == [4, 2, 1]
    assert layout.sizes(three, [4.0, 2.0, 1.0], [node(gpus=7), node(gpus=7)]) == [8, 4, 2]
    # What is left over when no pool can grow that holds the others back is left free.
    assert layout.sizes(three, [4.0, 2.0, 1.0], [node(gpus=9)]) == [4, 2, 1]
    assert layout.sizes(three, [1.0, 1.0, 1.0], [node(gpus=2)]) == [1, 1, 1], (
        "the least, where they do not fit"
    )
    assert layout.sizes(three, [None, 2.0, None], [node(gpus=6)]) == [2, 2, 2], "unknown: as the others"
    assert layout.sizes(three, [None] * 3, [node(gpus=8)]) == [2, 2, 2]
    assert layout.sizes([pool("a")], [None], [node(gpus=8)]) == [8]


def test_a_pool_at_its_greatest_size_holds_the_others_back() -> None:
    assert layout.sizes([pool("a", most=2), pool("b")], [2.0, 1.0], [node(gpus=16)]) == [2, 1]
    assert layout.sizes([pool("a", least=3), pool("b")], [1.0, 4.0], [node(gpus=8)]) == [3, 5]


def test_fractions_and_whole_gpus_share() -> None:
    mixed = [pool("a"), pool("r", gpus=0.25)]
    assert layout.sizes(mixed, [8.0, 4.0], [node(gpus=4)]) == [3, 2]
    assert layout.sizes(mixed, [3.0, 4.0], [node(gpus=4)]) == [3, 4]


def work(rows: int, start_s: float = 0.0, row_bytes: float = 0.0, **row_s: float) -> layout.Work:
    return layout.Work(rows, row_s, dict.fromkeys(row_s, row_bytes), 1, start_s)


def test_the_layout_that_finishes_first() -> None:
    two = [pool("a"), pool("b")]
    # Streaming: three of 3 s and one of 1.5 s, 1.5 s a row. In phases: four of each, 0.75 and 0.375 s a row.
    long = layout.plan(two, [node(gpus=4)], "auto", work(1000, 60, a=3.0, b=1.5))
    assert names(long) == [["a"], ["b"]]
    assert long.sizes == ((4,), (4,))
    assert long.seconds == pytest.approx(60 + 3 + 750 + 60 + 1.5 + 375)
    assert long.explanation == "phases: 2, expected in 20.8 min; streaming is expected in 26.1 min"
    # The start of a second phase is not worth it for few rows, and nothing is gained where the division is even.
    assert names(layout.plan(two, [node(gpus=4)], "auto", work(100, 60, a=3.0, b=1.5))) == [["a", "b"]]
    even = layout.plan(two, [node(gpus=3)], "auto", work(1000, 60, a=3.0, b=1.5))
    assert even.sizes == ((2, 1),)
    assert even.explanation == "streaming: all 2 pools together, expected in 26.1 min"


def test_copying_pictures_between_phases_counts() -> None:
    two, heavy = [pool("a"), pool("b")], work(1000, 60, 1e9, a=3.0, b=1.5)  # 1 TB at 200 MB/s: 5,000 s
    assert names(layout.plan(two, [node(gpus=4)], "auto", heavy)) == [["a", "b"]]


def test_without_all_speeds_pools_stream_if_they_fit() -> None:
    chosen = layout.plan([pool("a"), pool("b")], [node(gpus=4)], "auto", work(1000, a=3.0))
    assert names(chosen) == [["a", "b"]]
    assert (chosen.sizes, chosen.seconds) == (((2, 2),), None)


def test_nine_unequal_pools_keep_eight_gpus_busy() -> None:
    costs = {"a": 0.9, "b": 0.6, "c": 0.35, "d": 0.25, "r": 0.32, "s": 0.24, "t": 0.2, "u": 0.16, "v": 0.08}
    nine = [pool(name, most=64) for name in costs]
    for gpus in (8, 16, 64):
        nodes = [node(gpus=8)] * (gpus // 8)
        chosen = layout.plan(nine, nodes, "auto", work(50_000, 60, **costs))
        assert chosen.seconds is not None
        assert chosen.seconds < 1.15 * 50_000 * sum(costs.values()) / gpus
        for phase, numbers in zip(chosen.phases, chosen.sizes, strict=True):
            assert sum(numbers) <= gpus
            assert all(numbers)
            assert len(phase) == len(numbers)


def test_of_pools_on_cpus_whose_speed_nobody_knows_no_time_is_expected() -> None:
    chosen = layout.plan([stage("a", cpus=0.5), stage("b", cpus=0.5)], [node(2)], "auto", work(1000, 60))
    assert chosen.explanation == (
        "phases: 2, because all pools together need 2.4 CPU of 2 that the cluster has"
    )
    assert chosen.seconds is None
