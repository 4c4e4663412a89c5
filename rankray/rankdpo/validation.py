"""When a run has learnt what it can, which of its steps is exported, what to warn of: rules over what was validated.

A preference loss falls and the training's own implicit accuracy rises whether or not the model gets better: on 500
prompts of the shapes world 450 steps of Eq. 7 end at 88 % of the training pairs, and the pictures are 4 points worse.
What is held out tells (`held_out` measures it). The price is the prompts, 5 % of them and 64 at least.

Nothing here needs torch: workers decide by it, and the driver says afterwards what was decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rankray.config.rankdpo import ValidationConfig
from rankray.words import percent

SURE = 2.5
"""Standard errors by which held-out pairs must be right more often than by chance before a step counts as learnt. Of
runs on random labels the highest of six validations is beyond one in a third, beyond 2.5 in one of fifty; one that was
exported at 54.3 ± 3 % was 7.5 points worse. Runs that gained 13 points and more stood at 2.6 to 5.6 by 64 held-out
prompts in 4 draws each, and at half of that in one (at 4.2 in 16 where it was 2.6): so 64 are the least, and 16 draws
the default."""
MEMORISED = 0.2
"""By how much training pairs are right more often than held-out ones where a run remembers instead of learns."""


@dataclass(frozen=True)
class Point:
    """What held-out prompts say after `step` steps.

    Attributes:
        implicit_accuracy: share of pairs whose preferred picture the model, against the reference, denoises better.
        accuracy_error: its standard error, over prompts.
        margin, loss: a pair's and a prompt's, under the run's objective without what it adds (`nll`).
        model_error, ref_error: mean of the candidates that the objective looks at.
        chosen_rise, rejected_rise: the error on the best-ranked and the worst-ranked candidates over the reference's,
            less one: 0.05 is five per cent above it.
        training_accuracy: of the training pairs since the point before; None where there was none.
    """

    step: int
    implicit_accuracy: float
    accuracy_error: float
    margin: float
    loss: float
    model_error: float
    ref_error: float
    chosen_rise: float
    rejected_rise: float
    training_accuracy: float | None = None

    def line(self) -> dict[str, float]:
        """Its figures by the names that `metrics.jsonl` and trackers have for them."""
        left_out = ("step", "training_accuracy")
        return {f"validation_{key}": value for key, value in asdict(self).items() if key not in left_out}


def highest(points: Sequence[Point], config: ValidationConfig) -> Point:
    """The point with the highest implicit accuracy of those whose `chosen_rise` is within `max_rise`, the first of
    equals. The start, which has risen by nothing, is always one of these."""
    allowed = [point for point in points if point.chosen_rise <= config.max_rise]
    return max(allowed, key=lambda point: (point.implicit_accuracy, -point.step))


def best(points: Sequence[Point], config: ValidationConfig) -> Point:
    """The last point within `max_rise` that is no worse than the `highest`: its accuracy within a standard error below
    (the larger of the two points': the start has none), and its error on preferred candidates not above that of the
    reference, or above it by no more than the highest's.

    Accuracy on some dozens of prompts levels off before the pictures do: `shapes-sd3` stood at 56, 54 and 54 % (± 2)
    of held-out pairs after 50, 100 and 150 steps, with that error below the reference's, and at +2.1, +5.3 and +6.1
    points. So a later step is taken unless it is worse beyond chance. At 2.5 times the rate it stood at 57, 55 and 55 %
    after 50, 100 and 125 with that error 0.4, 2.9 and 4.3 % above, and at -1.3, -7.4 and -8.3.
    """
    top = highest(points, config)
    most = min(max(0.0, top.chosen_rise), config.max_rise)

    def as_good(point: Point) -> bool:
        least = top.implicit_accuracy - max(top.accuracy_error, point.accuracy_error)
        return point.implicit_accuracy >= least and point.chosen_rise <= most

    return [point for point in points if as_good(point)][-1]


def sure(point: Point) -> bool:
    """Whether pairs are right more often than one half, by `SURE` standard errors."""
    return point.implicit_accuracy - SURE * point.accuracy_error > 0.5


def learnt(points: Sequence[Point], config: ValidationConfig) -> bool:
    """Whether the `highest` point is `sure` to be better than chance."""
    return sure(highest(points, config))


def chosen(points: Sequence[Point], config: ValidationConfig) -> Point:
    """The point whose weights are exported: the last, or with `stop = "patience"` the best if the run has `learnt`, and
    the start if it has not."""
    if config.stop == "none":
        return points[-1]
    return best(points, config) if learnt(points, config) else points[0]


def stops(points: Sequence[Point], config: ValidationConfig) -> bool:
    """Whether the last `patience` points are all worse than the best, by more than chance or beyond the bound."""
    if config.stop == "none" or not points:
        return False
    last_good = best(points, config).step
    return sum(point.step > last_good for point in points) >= config.patience


def decision(points: Sequence[Point], config: ValidationConfig, steps: int) -> str:
    """Which step is exported and why, in one line."""
    if not points:
        return "of the last step; validation.share = 0 holds no prompts out, so nothing says whether it is the best"
    last, first, found = points[-1], best(points, config), chosen(points, config)
    top = highest(points, config)
    what = f"{percent(first.implicit_accuracy)} of held-out pairs right"
    if config.stop == "none":
        beside = ""
        if first.step == 0:
            beside = "; no step was better than the start on held-out prompts"
        elif first.step < last.step and learnt(points, config):
            beside = (
                f"; step {first.step} was better on held-out prompts, {what}, and is kept in checkpoints/ "
                "(validation.stop = 'patience' exports it)"
            )
        return f"of step {last.step}, the last, as validation.stop = 'none' has it{beside}"
    ended = (
        f"stopped after step {last.step} of {steps}, as the last {config.patience} validations were worse"
        if last.step < steps
        else f"all {steps} steps were taken"
    )
    if found.step == 0:
        risen = [point for point in points if point.chosen_rise > config.max_rise]
        if any(map(sure, risen)) or len(risen) == len(points) - 1 > 0:
            which = "" if len(risen) == len(points) - 1 else " that is surely better than chance"
            return (
                f"the model as it started, since after every step{which} the error on preferred candidates of held-out "
                f"prompts is above validation.max_rise ({percent(config.max_rise)}); {ended}"
            )
        return (
            "the model as it started, since no step is surely better than chance on held-out prompts (at "
            f"best {percent(top.implicit_accuracy)} ± {percent(top.accuracy_error)} of pairs right, after step "
            f"{top.step}); {ended}"
        )
    return f"of step {found.step}, the best on held-out prompts ({what}); {ended}"


def sentence(point: Point, steps: int) -> str:
    """A point in one line of the log."""
    training = "" if point.training_accuracy is None else f" ({percent(point.training_accuracy)} in training)"
    return (
        f"step {point.step}/{steps}  validation: {percent(point.implicit_accuracy)} of held-out pairs right{training}, "
        f"error {point.chosen_rise:+.1%} on the preferred, {point.rejected_rise:+.1%} on the rejected candidates"
    )


def warnings(points: Sequence[Point], config: ValidationConfig, steps: int) -> dict[str, str]:
    """What is wrong with a run of `steps` steps, by the kind of fault, in words that a user can act on."""
    last, found = points[-1], {}
    if last.chosen_rise > config.max_rise:
        both = (
            "errors rise on preferred and rejected candidates alike"
            if last.rejected_rise > 0
            else "the error rises"
        )
        found["collapse"] = (
            f"{both}: {last.chosen_rise:.1%} above the reference on the preferred ones of held-out prompts "
            f"(validation.max_rise is {config.max_rise:.1%}). Pairs part while both get worse: lower "
            "optimizer.learning_rate, raise objective.beta, or hold the preferred ones down by objective.options "
            "(nll, dpop)"
        )
    gap = 0.0 if last.training_accuracy is None else last.training_accuracy - last.implicit_accuracy
    if gap > MEMORISED and last.step > highest(points, config).step:
        found["memorising"] = (
            f"{percent(last.training_accuracy)} of the training pairs are right and {percent(last.implicit_accuracy)} "
            "of held-out ones, which no longer rise: the run remembers its prompts. Take fewer steps or more prompts"
            + ("" if config.stop == "patience" else ", or validation.stop = 'patience'")
        )
    top = max(points, key=lambda point: point.implicit_accuracy)
    # One that is right beyond the bound has learnt something: its fault is the collapse.
    if (len(points) > config.patience or last.step == steps) and not sure(top):
        found["nothing learnt"] = (
            f"after {last.step} steps held-out pairs are right {percent(last.implicit_accuracy)} of the time (at best "
            f"{percent(top.implicit_accuracy)} ± {percent(top.accuracy_error)}), which chance alone may do. Look "
            "whether the labels mean anything, raise optimizer.learning_rate, give more prompts, or hold more of them "
            "out (validation.min_prompts)"
        )
    return found
