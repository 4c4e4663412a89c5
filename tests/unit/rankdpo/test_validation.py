"""Rules over validation's points: the best step, when to stop, what to export, what to say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankray.config.rankdpo import ValidationConfig
from rankray.rankdpo import validation
from rankray.rankdpo.validation import Point

START = Point(0, 0.5, 0.0, 0.0, 0.7, 0.2, 0.2, 0.0, 0.0)
PATIENT = ValidationConfig(stop="patience", patience=2)
PAPER = ValidationConfig()


def at(
    step: int, accuracy: float, rise: float = 0.0, training: float | None = None, sure: float = 0.02
) -> Point:
    return replace(
        START,
        step=step,
        implicit_accuracy=accuracy,
        accuracy_error=sure,
        chosen_rise=rise,
        rejected_rise=rise + 0.01,
        training_accuracy=training,
    )


def points(*accuracies: float) -> list[Point]:
    return [START, *(at(25 * (n + 1), value) for n, value in enumerate(accuracies))]


def test_the_best_is_the_last_that_is_no_worse_than_chance_allows() -> None:
    """The highest is 60 % ± 2: what comes later and is at least 58 % is as good, and has learnt for longer."""
    assert validation.highest(points(0.55, 0.6, 0.6, 0.58), PATIENT).step == 50
    assert validation.best(points(0.55, 0.6, 0.6, 0.58), PATIENT).step == 100
    assert validation.best(points(0.55, 0.6, 0.6, 0.579), PATIENT).step == 75
    assert validation.best(points(0.58, 0.6, 0.55), PATIENT).step == 50


def test_a_later_one_is_no_best_where_the_preferred_error_went_on_rising() -> None:
    """Within a standard error of the highest: what is above it and above the reference lost something for that."""
    assert validation.best([START, at(25, 0.6, rise=0.004), at(50, 0.59, rise=0.005)], PATIENT).step == 25
    assert validation.best([START, at(25, 0.6, rise=0.004), at(50, 0.59, rise=0.003)], PATIENT).step == 50
    assert validation.best([START, at(25, 0.6, rise=-0.02), at(50, 0.59, rise=-0.01)], PATIENT).step == 50


def test_one_whose_preferred_error_rose_is_no_best() -> None:
    found = [START, at(25, 0.56, rise=0.05), at(50, 0.7, rise=0.0501)]
    assert validation.best(found, PATIENT).step == 25


def test_the_start_is_best_where_all_have_risen() -> None:
    assert validation.best([START, at(25, 0.9, rise=0.2)], PATIENT).step == 0


@given(st.lists(st.tuples(st.floats(0.3, 0.9), st.floats(-0.1, 0.2)), max_size=12))
def test_what_is_exported_is_the_start_or_learnt_within_the_bound(made: list[tuple[float, float]]) -> None:
    found = [START, *(at(25 * (n + 1), value, rise) for n, (value, rise) in enumerate(made))]
    chosen = validation.chosen(found, PATIENT)
    assert chosen.step == 0 or (chosen.chosen_rise <= PATIENT.max_rise and validation.learnt(found, PATIENT))
    assert validation.chosen(found, PAPER) == found[-1]


@given(st.lists(st.tuples(st.floats(0.3, 0.9), st.floats(-0.1, 0.2), st.floats(0.0, 0.1)), max_size=12))
def test_the_best_is_never_one_whose_weights_were_not_kept(made: list[tuple[float, float, float]]) -> None:
    """Weights are kept when a point is the best as it is measured, and the last kept stay: no later one goes back."""
    found, kept = [START], 0
    for n, (value, rise, sure) in enumerate(made):
        found.append(at(25 * (n + 1), value, rise, sure=sure))
        if validation.best(found, PATIENT).step == found[-1].step:
            kept = found[-1].step
        assert validation.best(found, PATIENT).step == kept


def test_no_better_than_the_start_is_not_worse_than_it_by_more_than_chance() -> None:
    """The start's 50 % is exact; a later point's has the error of its prompts, and warm-up learns little."""
    found = [START, *(at(25 * n, 0.499, sure=0.01) for n in range(1, 7))]
    assert not validation.stops(found, PATIENT)
    assert validation.chosen(found, PATIENT) == START
    assert validation.stops([START, *(at(25 * n, 0.48, sure=0.01) for n in (1, 2))], PATIENT)


def test_patience_counts_validations_that_are_worse() -> None:
    stops = [validation.stops(points(*([0.55, 0.6, 0.59, 0.57, 0.5, 0.61][:n])), PATIENT) for n in range(7)]
    assert stops == [False, False, False, False, False, True, False]
    risen = [START, at(25, 0.6), at(50, 0.7, rise=0.06), at(75, 0.7, rise=0.07)]
    assert validation.stops(risen, PATIENT)
    assert not validation.stops(points(0.4, 0.4, 0.4), PAPER)
    assert not validation.stops([], PATIENT)


def test_a_step_no_better_than_chance_is_not_exported() -> None:
    found = [START, at(25, 0.51, sure=0.02), at(50, 0.47), at(75, 0.48)]
    assert validation.chosen(found, PATIENT) == START
    assert validation.decision(found, PATIENT, 100) == (
        "the model as it started, since no step is surely better than chance on held-out prompts (at best 51.0 % ± "
        "2.0 % of pairs right, after step 25); stopped after step 75 of 100, as the last 2 validations were worse"
    )


def test_pairs_that_are_right_while_errors_rise_are_a_collapse_and_not_nothing_learnt() -> None:
    found = [START, *(at(25 * n, 0.9, rise=0.2) for n in range(1, 6))]
    assert set(validation.warnings(found, PATIENT, 450)) == {"collapse"}
    assert validation.decision(found, PATIENT, 500) == (
        "the model as it started, since after every step the error on preferred candidates of held-out prompts is "
        "above validation.max_rise (5.0 %); stopped after step 125 of 500, as the last 2 validations were worse"
    )


def test_what_is_right_beyond_the_bound_alone_is_not_called_chance() -> None:
    found = [START, at(25, 0.499), *(at(25 * n, 0.65, rise=0.08) for n in range(2, 6))]
    assert validation.decision(found, PATIENT, 500).startswith(
        "the model as it started, since after every step that is surely better than chance the error on preferred "
        "candidates of held-out prompts is above validation.max_rise (5.0 %)"
    )
    assert validation.decision([START, at(25, 0.5, rise=0.08)], PATIENT, 25).startswith(
        "the model as it started, since after every step the error on preferred candidates"
    )


def test_the_decision_names_the_step_and_why() -> None:
    assert validation.decision(points(0.55, 0.6, 0.57, 0.56), PATIENT, 450) == (
        "of step 50, the best on held-out prompts (60.0 % of held-out pairs right); stopped after step 100 of 450, as "
        "the last 2 validations were worse"
    )
    assert validation.decision(points(0.55, 0.6), PATIENT, 50).endswith(
        "pairs right); all 50 steps were taken"
    )


def test_the_paper_s_fixed_steps_say_which_would_have_been_better() -> None:
    assert validation.decision(points(0.6, 0.55), PAPER, 50) == (
        "of step 50, the last, as validation.stop = 'none' has it; step 25 was better on held-out prompts, 60.0 % of "
        "held-out pairs right, and is kept in checkpoints/ (validation.stop = 'patience' exports it)"
    )
    assert validation.decision(points(0.55, 0.6), PAPER, 50) == (
        "of step 50, the last, as validation.stop = 'none' has it"
    )
    assert validation.decision(points(0.45), PAPER, 25).endswith(
        "'none' has it; no step was better than the start on held-out prompts"
    )
    assert validation.decision([START, at(25, 0.51), at(50, 0.47)], PAPER, 50) == (
        "of step 50, the last, as validation.stop = 'none' has it"
    ), "patience would not export a step that chance alone may have made"
    assert "validation.share = 0" in validation.decision([], PAPER, 50)


def test_a_run_that_learns_is_not_warned_of() -> None:
    found = [START, at(25, 0.56, training=0.58), at(50, 0.6, training=0.66)]
    assert validation.warnings(found, PAPER, 450) == {}


def test_memorising_is_warned_of() -> None:
    found = [START, at(25, 0.56, training=0.6), at(50, 0.54, training=0.88)]
    text = validation.warnings(found, PAPER, 450)["memorising"]
    assert text.startswith(
        "88.0 % of the training pairs are right and 54.0 % of held-out ones, which no longer rise"
    )
    assert text.endswith("or validation.stop = 'patience'")
    assert validation.warnings(found, PATIENT, 450)["memorising"].endswith("fewer steps or more prompts")
    rising = [START, at(25, 0.56, training=0.6), at(50, 0.6, training=0.88)]
    assert "memorising" not in validation.warnings(rising, PAPER, 450)


def test_errors_that_rise_are_warned_of() -> None:
    text = validation.warnings([START, at(25, 0.7, rise=0.175)], PAPER, 450)["collapse"]
    assert text.startswith(
        "errors rise on preferred and rejected candidates alike: 17.5% above the reference on the preferred ones"
    )


@pytest.mark.parametrize(
    ("accuracy", "warned"),
    [(0.521, {"nothing learnt"}), (0.549, {"nothing learnt"}), (0.551, set())],
)
def test_what_chance_may_do_is_warned_of_and_not_exported(accuracy: float, warned: set[str]) -> None:
    """By how many standard errors, of 2 % each, the highest is above one half."""
    found = points(0.5, 0.51, accuracy, 0.5, 0.51)
    assert set(validation.warnings(found, PAPER, 450)) == warned
    assert (validation.chosen(found, PATIENT).step == 0) == bool(warned)


def test_a_run_of_few_validations_is_warned_of_at_its_end() -> None:
    found = points(0.5, 0.5)
    assert validation.warnings(found, PAPER, 450) == {}, "the first steps may learn nothing yet"
    assert set(validation.warnings(found, PAPER, 50)) == {"nothing learnt"}


def test_labels_that_mean_nothing_are_seldom_exported_and_what_was_learnt_seldom_given_back() -> None:
    """Six validations of the same 64 prompts in each of 1,000 runs, by chance and at the 57 % of 200 prompts."""
    rng = np.random.default_rng(0)
    noise = 0.018 * (rng.normal(size=(1000, 1)) * 0.8**0.5 + rng.normal(size=(1000, 6)) * 0.2**0.5)

    def exported(mean: float) -> int:
        runs = (mean + noise).tolist()
        made = [[START, *(at(25, value, sure=0.018) for value in run)] for run in runs]
        return sum(validation.chosen(found, PATIENT).step > 0 for found in made)

    assert exported(0.5) < 40
    assert exported(0.57) > 960


def test_a_point_in_one_line() -> None:
    assert validation.sentence(at(75, 0.612, rise=-0.0123, training=0.7), 450) == (
        "step 75/450  validation: 61.2 % of held-out pairs right (70.0 % in training), error -1.2% on the preferred, "
        "-0.2% on the rejected candidates"
    )
