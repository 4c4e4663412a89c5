"""Figures of held-out prompts: by hand, and the same whatever the engine, the batch and the average."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from rankray.config.rankdpo import ObjectiveConfig
from rankray.losses import LossInputs
from rankray.rankdpo import validation, zero
from rankray.rankdpo.feed import Rows
from rankray.rankdpo.held_out import HeldOut, figures
from rankray.rankdpo.labels import Labelling
from rankray.rankdpo.step import begin
from rankray.rankdpo.train_job import RunState, TrainJob
from rankray.rankdpo.validation import Point

Make = Callable[..., TrainJob]
HELD_OUT = {
    "validation__share": 0.5,
    "validation__min_prompts": 2,
    "validation__draws": 4,
    "batch_size": 2,
    "steps": 3,
}


def inputs(model: list[list[float]], reference: list[list[float]], rank: list[list[int]]) -> LossInputs:
    ranks = torch.tensor(rank)
    phi = torch.where(ranks > 0, 1.0 - ranks.double() / 10.0, 0.0)
    errors = (torch.tensor(value, dtype=torch.float64) for value in (model, reference))
    return LossInputs(*errors, phi, ranks, ranks > 0)


def test_figures_by_hand() -> None:
    """Two prompts in two draws: of the first both draws are right, of the second one is; s is 0.1 apart each time."""
    model = [[0.9, 1.0], [2.2, 2.1], [0.9, 1.0], [2.0, 2.1]]
    reference = [[1.0, 1.0], [2.1, 2.1], [1.0, 1.0], [2.1, 2.1]]
    rank = [[1, 2]] * 4
    point = figures(50, inputs(model, reference, rank), 2, ObjectiveConfig(name="dpo", beta=10.0))
    assert point.step == 50
    assert point.implicit_accuracy == 0.75
    # Prompts are right 2 of 2 and 1 of 2 times: their shares 1 and 1/2 spread by sqrt(1/8), the mean by half a sqrt(2)
    assert point.accuracy_error == pytest.approx(math.sqrt(1 / 8) / math.sqrt(2), abs=1e-6)
    assert point.margin == pytest.approx(10.0 * (0.1 - 0.1 + 0.1 + 0.1) / 4)
    wrong, right = (math.log1p(math.exp(sign * 1.0)) for sign in (1, -1))
    assert point.loss == pytest.approx((wrong + 3 * right) / 4, abs=1e-6)
    assert point.chosen_rise == pytest.approx((0.9 + 2.2 + 0.9 + 2.0) / 6.2 - 1.0, abs=1e-6)
    assert point.rejected_rise == 0.0
    assert (point.model_error, point.ref_error) == (pytest.approx(12.2 / 8), pytest.approx(12.4 / 8))


def test_prompts_without_a_preference_have_no_part_in_the_accuracy() -> None:
    tied = inputs([[0.9, 1.0, 0.0], [1.5, 1.0, 0.0]], [[1.0, 1.0, 0.0]] * 2, [[1, 2, 0], [0, 1, 0]])
    point = figures(1, tied, 1, ObjectiveConfig(beta=10.0))
    assert (point.implicit_accuracy, point.accuracy_error) == (1.0, 0.5), (
        "one prompt alone says nothing of the next"
    )


@pytest.mark.parametrize(
    ("prompts", "error", "sure"), [(1, 0.5, False), (2, 0.25, False), (4, 0.125, True), (64, 1 / 128, True)]
)
def test_a_few_prompts_that_agree_are_not_sure(prompts: int, error: float, sure: bool) -> None:
    """All are right in both draws, so they spread by nothing: 1 - 2.5 * 0.25 is no more than one half."""
    rank = [[1, 2]] * 2 * prompts
    same = [[1.0, 1.0]] * 2 * prompts
    point = figures(25, inputs([[0.9, 1.0]] * 2 * prompts, same, rank), 2, ObjectiveConfig(beta=10.0))
    assert (point.implicit_accuracy, point.accuracy_error) == (1.0, pytest.approx(error, abs=1e-6))
    assert validation.sure(point) is sure
    start = figures(0, inputs(same, same, rank), 2, ObjectiveConfig(beta=10.0))
    assert (start.implicit_accuracy, start.accuracy_error) == (0.5, 0.0), "which is no estimate"


def test_the_rejected_one_is_the_worst_whatever_may_be_compared() -> None:
    """Two generators of two pictures, best and worst of one each: "within" compares neither prompt's."""
    given = inputs(
        [[1.1, 1.0, 1.0, 1.3], [1.0, 1.0, 1.2, 1.0]], [[1.0] * 4] * 2, [[1, 2, 3, 4], [1, 3, 4, 2]]
    )
    within = torch.tensor([[i // 2 == j // 2 for j in range(4)] for i in range(4)])
    for comparable in (None, within):
        point = figures(1, dataclasses.replace(given, comparable=comparable), 1, ObjectiveConfig())
        assert (point.chosen_rise, point.rejected_rise) == (pytest.approx(0.05), pytest.approx(0.25))


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("name", ["rank_dpo", "dpo", "plackett_luce", "mapo", "kto", "sft"])
@pytest.mark.parametrize("bad", [[NAN, 1.0], [INF, 1.0], [1.0, NAN], [NAN, NAN]])
def test_figures_are_numbers_whatever_overflows(name: str, bad: list[float]) -> None:
    """`run.json` takes no NaN, and would fail after the last step; one that overflows at the start is left out."""
    objective, fine = ObjectiveConfig(name=name, beta=10.0), [[1.0, 1.0], [1.0, 1.0]]
    start = figures(0, inputs([bad, [1.0, 1.1]], [bad, [1.0, 1.1]], [[1, 2]] * 2), 1, objective)
    then = figures(25, inputs([bad, [1.0, 1.1]], fine, [[1, 2]] * 2), 1, objective)
    for point in (start, then):
        assert all(math.isfinite(value) for value in point.line().values()), point
    assert (start.chosen_rise, start.implicit_accuracy) == (0.0, 0.5)
    assert (then.chosen_rise > 100.0) == (not math.isfinite(bad[0]))


def test_without_a_pair_nothing_is_known() -> None:
    point = figures(1, inputs([[0.9, 1.0]], [[1.0, 1.0]], [[1, 0]]), 1, ObjectiveConfig())
    assert (point.implicit_accuracy, point.accuracy_error) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("name", "accuracy"), [("dpo", 1.0), ("rank_dpo", 2 / 3), ("mapo", 2 / 3), ("sft", 2 / 3)]
)
def test_pairs_are_those_that_training_counts(name: str, accuracy: float) -> None:
    """The best against the worst is right, the second against the worst is not: best-worst DPO never looks at it."""
    given = inputs([[0.8, 1.1, 1.0]], [[1.0, 1.0, 1.0]], [[1, 2, 3]])
    options = {"name": name, "beta": 1.0}
    assert figures(1, given, 1, ObjectiveConfig(**options)).implicit_accuracy == pytest.approx(
        accuracy, abs=1e-6
    )


def run(make: Make, **changes: object) -> list[Point]:
    """Points before the first step and after the last, of a run on two prompts that validates on two."""
    job = make(**HELD_OUT, **changes)
    zero.alone()
    rows = Rows(job)
    assert (len(rows.places[0]), len(rows.held_out)) == (2, 2)
    training = begin(job, rows)
    held_out = HeldOut(training, rows)
    points = [held_out.measure(RunState(0))]
    for step in training.steps(rows):
        last = step.number
    points.append(HeldOut(training, rows).measure(RunState(step=last)))  # as a run that goes on would
    return points


def test_before_the_first_step_the_model_is_the_reference(make: Make) -> None:
    start, end = run(make, optimizer__learning_rate=1e-3)
    assert (start.implicit_accuracy, start.chosen_rise, start.margin) == (0.5, 0.0, 0.0)
    assert start.model_error == start.ref_error == end.ref_error
    assert end.chosen_rise != 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {"workers__zero_stage": 2},
        {"workers__zero_stage": 3},
        {"workers__micro_batch": 1},
        {"objective__reference": "copy", "objective__name": "sft"},
    ],
    ids=["ZeRO 2", "ZeRO 3", "one at once", "without a reference"],
)
def test_figures_do_not_depend_on_the_engine(make: Make, changes: dict[str, object]) -> None:
    same = {
        "tuned__dtype": "float32",
        "optimizer__name": "sgd",
        "optimizer__learning_rate": 0.05,
        "tuned__ema": 0.5,
    }
    named = {"objective__name": changes.get("objective__name", "rank_dpo")}
    first = run(make, **{"workers__zero_stage": 0}, **same, **named)
    second = run(make, **{"workers__zero_stage": 0, **same, **changes})
    for ours, theirs in zip(first, second, strict=True):
        assert ours.line() == pytest.approx(theirs.line(), rel=1e-4, abs=1e-5)


def test_with_an_average_it_is_the_average_that_is_validated(make: Make) -> None:
    """An average that hardly follows stays at the reference, whatever the weights do."""
    float32 = {"tuned__dtype": "float32", "workers__zero_stage": 2, "optimizer__learning_rate": 1e-3}
    _, still = run(make, tuned__ema=0.999999, **float32)
    _, moved = run(make, **float32)
    assert abs(still.chosen_rise) < 1e-5 < abs(moved.chosen_rise)


def test_every_pass_asks_the_engine(make: Make) -> None:
    """At ZeRO 3 a worker whose prompts have no ranked candidate would else leave the others waiting."""
    nobody = Labelling((), (0,), "random", 1.0, 0)
    job = make(**HELD_OUT)
    job = dataclasses.replace(job, sets=(dataclasses.replace(job.sets[0], labelling=nobody),))
    zero.alone()
    rows = Rows(job)
    training = begin(job, rows)
    asked: list[int] = []
    training.engine.module.register_forward_hook(lambda *_: asked.append(1))
    point = HeldOut(training, rows).measure(RunState(0))
    assert len(asked) == job.config.validation.draws
    assert (point.implicit_accuracy, point.loss) == (0.5, 0.0)
