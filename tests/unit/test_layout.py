"""Whether pools stream together or take turns, decided on numbers alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankray import layout
from rankray.actors import Actors, Stage
from rankray.config import ConfigError
from rankray.targets import Target


def stage(name: str, cpus: float = 0.2, gpus: float = 0.0, size: int = 1, kind: str = "generator") -> Stage:
    target = Target(name=name, target=f"x:{name}", kwargs={}, revision="r", num_gpus=gpus, num_cpus=cpus)
    actors = Actors(size, size, cpus, gpus, None, {}, {}, "cpu")
    return Stage(kind, target, actors)


def names(chosen: layout.Layout) -> list[list[str]]:
    return [[item.target.name for item in phase] for phase in chosen.phases]


def test_demand_adds_pools_and_the_reading_and_writing_tasks() -> None:
    needs = layout.demand([stage("a", cpus=0.5, size=3), stage("b", cpus=1, gpus=0.5, size=2)])
    assert needs == pytest.approx({"CPU": 1.4 + 1.5 + 2.0, "GPU": 1.0})


def test_everything_fits() -> None:
    chosen = layout.plan([stage("a"), stage("b")], {"CPU": 1.8}, "auto")
    assert names(chosen) == [["a", "b"]]
    assert chosen.name == "streaming"


def test_nine_models_on_one_gpu_take_turns() -> None:
    models = [stage(f"m{i}", gpus=1.0) for i in range(4)] + [stage(f"r{i}", gpus=0.25) for i in range(5)]
    chosen = layout.plan(models, {"CPU": 16.0, "GPU": 1.0}, "auto")
    assert names(chosen) == [["m0"], ["m1"], ["m2"], ["m3"], ["r0", "r1", "r2", "r3"], ["r4"]]
    assert (
        chosen.explanation == "phases: 6, because all pools together need 5.25 GPU of 1 that the cluster has"
    )


def test_phases_on_request_are_one_model_each() -> None:
    assert names(layout.plan([stage("a"), stage("b")], {"CPU": 8.0}, "phases")) == [["a"], ["b"]]


def test_streaming_on_request_is_refused_where_it_would_hang() -> None:
    with pytest.raises(ConfigError, match=r"pools together need 2\.4 CPU of 2; use auto or phases"):
        layout.plan([stage("a", cpus=0.5), stage("b", cpus=0.5)], {"CPU": 2.0}, "streaming")


def test_a_pool_that_can_never_run_is_named() -> None:
    with pytest.raises(
        ConfigError, match="the pool of 'sdxl' needs 2 GPU of 0 that the cluster has; start such nodes"
    ):
        layout.plan([stage("a"), stage("sdxl", gpus=1, size=2)], {"CPU": 8.0}, "auto")


def test_custom_resources_count() -> None:
    own = Stage("generator", stage("a").target, Actors(1, 1, 0.1, 0, 2 * 1024**3, {"a100": 1.0}, {}, "cpu"))
    assert layout.shortage(layout.demand([own]), {"CPU": 2, "memory": 4e9}) == "1 a100 of 0"


def test_two_cores_run_what_claims_four() -> None:
    chosen = layout.plan([stage("a", cpus=4), stage("b", cpus=4, size=2)], {"CPU": 2.0}, "auto")
    assert names(chosen) == [["a"], ["b"]]
    assert [phase[0].actors.num_cpus for phase in chosen.phases] == [0.6, 0.3]


@given(st.lists(st.tuples(st.floats(0.01, 4), st.integers(1, 3)), min_size=1, max_size=8), st.floats(2, 16))
def test_every_phase_fits_and_no_model_is_lost(pools: list[tuple[float, int]], cpus: float) -> None:
    models = [stage(f"m{i}", cpus=need, size=size) for i, (need, size) in enumerate(pools)]
    chosen = layout.plan(models, {"CPU": cpus}, "auto")
    assert [name for phase in names(chosen) for name in phase] == [f"m{i}" for i in range(len(pools))]
    assert all(not layout.shortage(layout.demand(phase), {"CPU": cpus}) for phase in chosen.phases)
