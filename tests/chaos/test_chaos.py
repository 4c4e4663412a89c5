"""Faults at random moments of real jobs on a cluster of three nodes; `benchmarks/chaos.py` says what a trial is.

Eight trials run by default, on one cluster and against one undisturbed job of each kind; one of every kind by
`make test-all`. A seed that failed is kept in `KEPT`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import chaos
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

QUICK = (
    "a generator's actor killed",
    "a reward's actor killed",
    "the meter killed",
    "a node lost, another joins",
    "the driver killed",
    "six bad items in one job",
    "a file half-written",
    "a finished file cut off",
)
KEPT: tuple[tuple[int, str], ...] = ()


@pytest.fixture(scope="module")
def world() -> Iterator[chaos.World]:
    with chaos.world() as found:
        yield found


def seeds() -> list[Any]:
    named = list(enumerate(chaos.FAULTS))
    return [
        pytest.param(seed, fault, id=f"{fault}-{seed}", marks=() if fault in QUICK else pytest.mark.slow)
        for seed, fault in (*named, *KEPT)
    ]


@pytest.mark.parametrize(("seed", "fault"), seeds())
def test_a_fault_changes_nothing_but_what_it_is_about(world: chaos.World, seed: int, fault: str) -> None:
    if chaos.lacks(fault):
        pytest.skip(f"this machine lacks {chaos.lacks(fault)}")
    row = chaos.run(world, seed, fault)
    assert row["ok"], row["note"]
