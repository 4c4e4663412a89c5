"""The phases of a Syn-Pic job: what each reads and writes, which are finished or begun, how the others are laid out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rankray.cluster import layout
from rankray.cluster.actors import Stage
from rankray.cluster.layout import Layout, Work
from rankray.cluster.seats import Node
from rankray.config import SynPicConfig
from rankray.data import place, running
from rankray.data.place import Output
from rankray.synpic import forecast
from rankray.words import Say

WorkOf = Callable[[Sequence[Stage], Sequence[Node]], Work]
"""What is known of any stages' work on any nodes."""


@dataclass(frozen=True)
class Phase:
    """Consecutive stages that run together, their pools' sizes at first, and what is known of their work; the number of
    stages before them, and whether they are the last.

    What a phase writes is named by how many stages it has behind it, so that a later start on another
    cluster, with other phases, takes up whatever the furthest finished one left.
    """

    stages: tuple[Stage, ...]
    sizes: tuple[int, ...]
    work: Work
    before: int
    last: bool
    again: int = 0
    """Where rows that a power cut took of a finished phase are drawn again: the number of stages that it has behind it.
    What lies between stands apart; the rows go to the others."""

    @property
    def end(self) -> int:
        return self.before + len(self.stages)

    @property
    def source(self) -> tuple[str, ...]:
        return (*self._place(self.before), f"upto-{self.before}" if self.before else "prompts")

    @property
    def name(self) -> str:
        return "data" if self.last else f"upto-{self.end}"

    @property
    def sink(self) -> tuple[str, ...]:
        return ("data",) if self.last else (*self._place(self.end), self.name)

    @property
    def checkpoint(self) -> tuple[str, ...]:
        return (*self._place(self.end), f"checkpoint-{self.name}")

    def _place(self, stages_: int) -> tuple[str, ...]:
        return ("_work", "again") if self.again and stages_ != self.again else ("_work",)


def stages_done(output: Output, plan: list[Stage]) -> int:
    """How many stages the furthest finished phase has behind it; 0 where none is finished."""
    return max((n for n in range(1, len(plan)) if output.exists("_work", f"done-upto-{n}")), default=0)


def lost(output: Output, done: int, ids: Sequence[str]) -> list[str]:
    """Those of `ids` that a power cut took of the finished phase that has `done` stages behind it; none of no phase."""
    name = f"upto-{done}"
    return place.lost_ids(output, ids, ("_work", name), ("_work", f"checkpoint-{name}")) if done else []


def laid_out(
    config: SynPicConfig,
    models: Sequence[Stage],
    plan: Sequence[Stage],
    done: int,
    output: Output,
    rows: int,
    say: Say,
) -> tuple[WorkOf, list[Node], Layout]:
    """What is known of any stages' work on any nodes; the nodes, once they have come; the layout of `plan[done:]`."""
    left = plan[done:]
    own, start_s = forecast.of_actors(config.execution.measured, running.all_usage(output)[0])
    nodes = layout.wait_for_nodes(left, config.execution.wait_for_nodes_s, say)
    work_of = functools.partial(forecast.job_work, config, models, rows, own, start_s)
    if end := begun(output, len(plan), done):
        going_on = layout.together(plan[done:end], nodes, work_of(plan[done:end], nodes))
        if going_on is not None:
            return work_of, nodes, going_on
    return work_of, nodes, layout.plan(left, nodes, config.execution.mode, work_of(left, nodes))


def begun(output: Output, stages_: int, done: int) -> int | None:
    """The end of the phase that an earlier run was killed in: cut elsewhere, its finished rows would be lost."""
    names = ((end, "data" if end == stages_ else f"upto-{end}") for end in range(done + 1, stages_ + 1))
    return next((end for end, name in names if output.files("_work", f"checkpoint-{name}")), None)
