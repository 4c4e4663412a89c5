"""A job on a cluster that is not there, with seconds and gigabytes that can be followed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankray.cluster.actors import Actors, Stage
from rankray.cluster.seats import Node
from rankray.config import SynPicConfig
from rankray.models.footprint import Footprint, Part
from rankray.models.hardware import GPU_TYPES
from rankray.models.targets import Target
from rankray.plan.forecast import forecast, hypothetical
from rankray.synpic.forecast import Held, Measured, Model, fit, item_seconds, memory_warnings, models_of

A100, H100, T4, L4 = (GPU_TYPES[name] for name in ("A100-80", "H100", "T4", "L4"))


def weighing(
    weights_gb: float, item_gb: float = 0.0, flops: float = 0.0, bfloat16: bool = False
) -> Footprint:
    return Footprint((Part("all", weights_gb * 1e9, flops, item_gb * 1e9, "half"),), bfloat16)


def model(
    name: str,
    kind: str = "generator",
    gpus: float = 1.0,
    most: int = 1,
    items: float = 1,
    seconds: float | None = None,
    footprint: Footprint | None = None,
    batch: int | None = 8,
    stated_gb: float | None = None,
) -> Model:
    actors = Actors(1, most, 1.0, gpus, None, {}, {}, "cuda")
    measured = None if seconds is None else Measured(seconds, A100)
    place = Footprint((), complete=False) if footprint is None else footprint
    return Model(Stage(kind, Target(name, "x:Y"), actors), place, batch, items, stated_gb, 1.0, measured)


def test_what_fits_as_it_is_stays_as_it_is() -> None:
    found = fit(model("m", footprint=weighing(7, 1.0)), L4)
    assert (found.needs_gb, found.batch, found.share, found.change, found.fault) == (17.7, 8, 1.0, "", "")


def test_a_smaller_batch_before_a_larger_share() -> None:
    heavy = model("m", gpus=0.25, footprint=weighing(7, 1.0))  # 17.7 GB at 8, 12.7 at 4, 10.2 at 2, 8.95 at 1
    assert fit(heavy, A100).change == ""
    assert fit(model("m", footprint=weighing(7, 1.0)), T4).change == "batch 4"
    assert fit(model("m", gpus=0.5, footprint=weighing(10, 1.0)), L4).change == "share 1", "not batch 1"
    found = fit(heavy, L4)  # a quarter is 5.7 GB, half is 11.4
    assert (found.change, found.needs_gb, found.share) == ("batch 2 share 0.5", pytest.approx(10.2), 0.5)


def test_what_fits_nowhere_says_how_much_is_missing() -> None:
    found = fit(model("m", footprint=weighing(24, 1.0)), T4)
    assert found.fault == "needs 25.9 GB for one at a time, T4 has 16 (15.2 usable)"


def test_a_t4_has_no_bfloat16() -> None:
    found = fit(model("m", footprint=weighing(1, bfloat16=True)), T4)
    assert found.fault == "computes in bfloat16, T4 does not"
    assert fit(model("m", footprint=weighing(1, bfloat16=True)), L4).fault == ""


def test_what_the_configuration_states_comes_first() -> None:
    stated = model("m", gpus=0.5, footprint=weighing(1), stated_gb=10.0)
    assert fit(stated, L4).change == ""
    found = fit(stated, T4)
    assert (found.change, found.batch) == ("share 1", 8)


def test_what_is_unknown_is_let_through() -> None:
    found = fit(model("theirs", batch=None), T4)
    assert (found.needs_gb, found.fault) == (None, "")


def three() -> list[Model]:
    """Seconds a prompt: 4, 1 and 2 x 0.1 / 0.25 = 0.8 for one actor each."""
    return [
        model("slow", most=8, seconds=4.0),
        model("fast", most=8, seconds=1.0),
        model("reward", "reward", gpus=0.25, most=4, items=2, seconds=0.1),
    ]


def test_pools_grow_where_it_helps_until_the_gpus_are_taken() -> None:
    found = forecast(three(), A100, 8, 4500, "streaming", block=10)
    assert [(a.model.name, a.actors) for a in found.allotments] == [("slow", 5), ("fast", 2), ("reward", 1)]
    # 0.8 s a prompt: five of 4 s, one reward of 0.8 s; a minute to start, ten prompts' way through all three.
    assert found.hours == pytest.approx((4500 * 0.8 + 60 + 10 * 5.8) / 3600)
    assert found.busy_hours("generator", 4500) == pytest.approx(5 * 4500 / 3600)
    assert found.busy_hours("reward", 4500) == pytest.approx(0.2 * 4500 / 3600)


def test_phases_where_they_finish_first() -> None:
    found = forecast(three(), A100, 8, 4500, "auto", block=10)
    # Eight of 4 s: 0.5 s a prompt. Then 0.8 s by the four that there may be, and 1 s by five: 0.2 s.
    pools = [(a.phase, a.model.name, a.actors) for a in found.allotments]
    assert pools == [(0, "slow", 8), (1, "fast", 5), (1, "reward", 4)]
    assert found.hours == pytest.approx((4500 * 0.5 + 60 + 40 + 4500 * 0.2 + 60 + 18) / 3600)
    assert found.explanation == "phases: 2, expected in 55.5 min; streaming is expected in 1.0 h"


def test_one_gpu_serves_them_in_phases() -> None:
    found = forecast(three(), A100, 1, 3600, "auto", block=10)
    pools = [(a.phase, a.model.name, a.actors) for a in found.allotments]
    assert pools == [(0, "slow", 1), (1, "fast", 1), (2, "reward", 4)], "four rewards share the GPU"
    assert found.hours == pytest.approx(4 + 1 + 0.2 + (3 * 60 + 10 * (4 + 1 + 0.8)) / 3600)
    assert "expected in 5.3 h; all pools together need" in found.explanation


def test_nodes_are_filled_one_after_another() -> None:
    assert [node.gpus for node in hypothetical(19, [])] == [8, 8, 3]
    assert [node.gpus for node in hypothetical(8, [])] == [8]


def test_small_rewards_share_a_gpu_and_wait_for_no_phase() -> None:
    rewards = [model(name, "reward", gpus=0.25, footprint=weighing(4)) for name in "abcd"]
    found = forecast(rewards, L4, 1, 100, "auto")
    assert found.phases == 1


def test_reading_a_picture_bounds_a_quick_reward() -> None:
    found = forecast([model("quick", "reward", items=4, seconds=0.001)], A100, 1, 100, "auto")
    assert found.allotments[0].seconds == 0.033


def test_what_was_measured_is_scaled_to_another_gpu_by_what_is_assumed() -> None:
    flops = 312e12 * 0.4  # one assumed second of an A100
    known = model("m", seconds=3.0, footprint=weighing(1, flops=flops))
    assert (known.seconds(A100), known.source(A100)) == (3.0, "measured")
    assert known.seconds(H100) == pytest.approx(3.0 * (312 * 0.4) / (989 * 0.22))
    assert known.source(H100) == "scaled"
    unmeasured = model("m", footprint=weighing(1, flops=flops))
    assert (unmeasured.seconds(A100), unmeasured.source(A100)) == (pytest.approx(1.0), "assumed")
    assert model("theirs").source(A100) == "unknown"


def test_an_unknown_speed_leaves_hours_open() -> None:
    found = forecast([model("slow", seconds=4.0), model("theirs")], A100, 2, 100, "auto")
    assert (found.hours, found.fault) == (None, "")


def test_a_job_that_cannot_run_says_why() -> None:
    found = forecast([model("huge", footprint=weighing(100))], A100, 8, 100, "auto")
    assert found.fault == "huge needs 100.7 GB for one at a time, A100-80 has 80 (76.0 usable)"
    many = model("many", most=4)
    many = replace(many, stage=replace(many.stage, actors=Actors(4, 4, 1, 1, None, {}, {}, "cuda")))
    assert "needs 4 GPU of 2" in forecast([many], A100, 2, 100, "auto").fault


def test_a_real_job_is_warned_where_the_nodes_memory_is_known() -> None:
    crowded = model("m", gpus=0.25, footprint=weighing(20, 1.0))
    named = Node(16.0, 1e12, 8, {"accelerator_type:A100": 1.0})
    (line,) = memory_warnings([crowded], [named])
    assert line == (
        "'m' needs about 30.7 GB at batch_size 8, and 0.25 of A100-80 is 19 GB; pool.num_gpus = 0.5 fits"
    )
    assert memory_warnings([crowded], [Node(16.0, 1e12, 8, {})]) == []
    assert memory_warnings([model("m", footprint=weighing(20))], [named]) == []


def settings(**changes: object) -> SynPicConfig:
    tables = {
        "prompts": {"path": "p.txt"},
        "generators": [{"model": "sdxl", "samples": 2}, {"model": "sd3-medium", "height": 512, "width": 512}],
        "rewards": [{"model": "pickscore", "pool": {"gpu_memory_gb": 5.5}}],
        "output": "/o",
    }
    return SynPicConfig.model_validate({**tables, **changes})


def test_models_of_a_configuration() -> None:
    from rankray.synpic import job as synpic

    config = settings()
    found = models_of(config, synpic.stages_of(config, look_up=False), {})
    assert [(m.name, m.items, m.batch) for m in found] == [
        ("sdxl", 2, 8),
        ("sd3-medium", 1, 8),
        ("pickscore", 3, 32),
    ]
    assert found[2].megapixels == pytest.approx((2 * 1 + 1 * 0.25) / 3)
    assert found[2].needs_gb() == 5.5


@pytest.mark.parametrize(("kind", "seconds"), [("png", 0.078), ("webp", 0.43), ("jpeg", 0.05)])
def test_writing_a_picture_bounds_a_quick_generator(kind: str, seconds: float) -> None:
    """By its format: one core of a WebP is slower than a model of few steps."""
    from rankray.synpic import job as synpic

    config = settings(images={"format": kind})
    stages = synpic.stages_of(config, look_up=False)
    sdxl = models_of(config, stages, {"sdxl": Measured(0.05, A100)})[0]
    assert item_seconds(sdxl, stages[0], A100) == pytest.approx(seconds)


def test_what_an_earlier_dataset_has_is_not_planned_again() -> None:
    from rankray.synpic import job as synpic

    config = settings()
    stages = synpic.stages_of(config, look_up=False)
    held = Held({"sdxl": 2}, frozenset({"pickscore"}), 1.0)
    assert [(m.name, m.items) for m in models_of(config, stages, {}, held)] == [
        ("sd3-medium", 1.0),
        ("pickscore", 1.0),
    ]
    half = Held({"sdxl": 1}, frozenset(), 0.5)
    assert [m.items for m in models_of(config, stages, {}, half)] == [1.5, 1.0, 3.0]
