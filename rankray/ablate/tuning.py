"""Which settings of an objective are tried next, given those that have been: successive halving on a grid that grows.

Every setting of the grid is trained from one seed, the better half from the next one too, and so on. Then the setting
that leads gets all its seeds, and its neighbours a factor away, within the grid or beyond it, one each; whoever leads
after that gets the same. So the search ends inside what was tried, or where the purse does: every objective has the
same number of trainings, a new setting is paid from it as a second seed is, and what is left of it when the best lies
inside buys further seeds of those that follow. Gains are taken at each setting's best of the steps that were measured.

Ray Tune's ASHA, which comes with what is installed, was not taken: it stops trials in the order in which they report,
so that a run which was killed and goes on takes other settings than one which was not; it resumes from pickles; it
halves steps, which a learning rate's schedule spans and which are equal here; and no scheduler of it extends a grid.
As a function of what is finished, this is resumed by calling it again. The price is some 16 trainings an objective from
a grid of 2 x 2, 24 from one of 3 x 3: so many end inside in 184 and 187 of 200 simulated searches whose best lies up to
1.5 factors outside the grid (`tests/unit/ablate/test_tuning.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Place = tuple[int, int]
"""Of a setting: how many factors its rate and its beta are above the grid's first; below 0 where it was extended."""

Trial = tuple[Place, int]
"""A training: its setting, and the number of its seed."""

Done = Mapping[Trial, Sequence[float]]
"""Gains on validation prompts at each measured step; none of a training that diverged."""


@dataclass(frozen=True)
class Grid:
    """Learning rates and betas, each rising; an axis of one value stays as it is."""

    rates: tuple[float, ...]
    betas: tuple[float, ...]

    @property
    def places(self) -> list[Place]:
        """Of the grid before it is extended."""
        return [(i, j) for i in range(len(self.rates)) for j in range(len(self.betas))]

    def setting(self, place: Place) -> tuple[float, float]:
        """(learning rate, beta)."""
        return _value(self.rates, place[0]), _value(self.betas, place[1])

    def around(self, place: Place) -> list[Place]:
        """Its neighbours on each axis that has more than one value."""
        i, j = place
        along_rates = [(i - 1, j), (i + 1, j)] if len(self.rates) > 1 else []
        along_betas = [(i, j - 1), (i, j + 1)] if len(self.betas) > 1 else []
        return along_rates + along_betas


def _value(axis: tuple[float, ...], n: int) -> float:
    """The axis' n-th value; beyond its ends each is so many times the last as the end's two are apart."""
    if 0 <= n < len(axis):
        return axis[n]
    beyond = (
        axis[0] * (axis[0] / axis[1]) ** -n
        if n < 0
        else axis[-1] * (axis[-1] / axis[-2]) ** (n - len(axis) + 1)
    )
    return float(f"{beyond:.3g}")


@dataclass(frozen=True)
class Choice:
    """The setting that an objective's rows train with.

    Attributes:
        place: the setting.
        point: which of the measured steps is its best.
        inside: whether nothing that was tried is better, and all its neighbours were; None where there was no choice.
    """

    place: Place
    point: int
    inside: bool | None


def next_trials(grid: Grid, done: Done, trainings: int, seeds: int) -> list[Trial]:
    """The trainings that are due together once those of `done` are; none where the purse is spent.

    Args:
        grid: an objective's settings.
        done: all that earlier calls have asked for.
        trainings: the purse: how many there are in all; one setting alone needs none.
        seeds: that a setting must have been trained from before it is taken.
    """
    if len(grid.places) == 1:
        return []
    return _due(grid, done, seeds)[: max(0, trainings - len(done))]


def _due(grid: Grid, done: Done, seeds: int) -> list[Trial]:
    survivors = grid.places
    for seed in range(seeds):
        if due := [(place, seed) for place in survivors if (place, seed) not in done]:
            return due
        so_far = {trial: gains for trial, gains in done.items() if trial[1] <= seed and trial[0] in survivors}
        survivors = ranked(so_far)[: max(1, len(survivors) // 2)]
    order, tried = ranked(done), Counter(place for place, _ in done)
    leader = order[0]
    if tried[leader] < seeds:
        return [(leader, seed) for seed in range(tried[leader], seeds)]
    if missing := [place for place in grid.around(leader) if not tried[place]]:
        return [(place, 0) for place in missing]
    # Of those alone whose neighbours are known: another that came to lead would have to be followed.
    known = [place for place in order if all(tried[one] for one in grid.around(place))]
    following = next((place for place in known if tried[place] < tried[leader]), leader)
    return [(following, tried[following])]


def ranked(done: Done) -> list[Place]:
    """All settings, the best first; equals by their place, those that diverged last."""
    return sorted({place for place, _ in done}, key=lambda place: (-best_point(done, place)[1], place))


def best_point(done: Done, place: Place) -> tuple[int, float]:
    """(which of the measured steps is best, its gain), by the mean over seeds; a training that diverged makes it
    -inf."""
    found = [gains for trial, gains in done.items() if trial[0] == place]
    if not all(found):
        return 0, -math.inf
    means = np.mean(found, axis=0)
    return int(means.argmax()), float(means.max())


def choose(grid: Grid, done: Done, seeds: int) -> Choice:
    """The best of the settings that came through from all their seeds; where none did, the best of all."""
    if not done:
        return Choice(grid.places[0], -1, None)
    tried, order = Counter(place for place, _ in done), ranked(done)
    whole = [place for place in order if tried[place] >= seeds and best_point(done, place)[1] > -math.inf]
    place = whole[0] if whole else order[0]
    inside = bool(whole) and place == order[0] and all(tried[one] for one in grid.around(place))
    return Choice(place, best_point(done, place)[0], inside)
