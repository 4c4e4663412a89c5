"""The size of a micro-batch is found by doubling, and agreed on; learning rates by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from rankray.config.rankdpo import OptimizerConfig
from rankray.rankdpo.feed import Rows
from rankray.rankdpo.labels import Labelling
from rankray.rankdpo.step import (
    TRIAL_ROWS,
    TrainedModel,
    double_while,
    largest,
    learning_rate,
    least_of_all,
    trial,
)
from rankray.rankdpo.train_job import TrainJob

OUT_OF_MEMORY: list[RuntimeError] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ..."),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if ..."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you ..."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:25])
def test_doubles_while_it_fits(error: RuntimeError) -> None:
    asked: list[int] = []

    def passes(size: int) -> bool:
        asked.append(size)
        if size > 20:
            raise error
        return True

    assert double_while(passes, 128) == 16
    assert asked == [1, 2, 4, 8, 16, 32]


def test_what_leaves_too_little_free_does_not_fit() -> None:
    assert double_while(lambda size: size <= 7, 50) == 4
    assert double_while(lambda size: False, 8) == 1
    assert double_while(lambda size: True, 1) == 1


def test_all_of_a_workers_share_is_tried_last() -> None:
    asked: list[int] = []

    def passes(size: int) -> bool:
        asked.append(size)
        return True

    assert double_while(passes, 6) == 6
    assert asked == [1, 2, 4, 6]


def test_another_fault_is_raised() -> None:
    def passes(size: int) -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory"):
        double_while(passes, 8)


@pytest.mark.parametrize("fullest", [0, 12, 24])
def test_a_trial_pass_is_of_the_row_with_the_most_ranked_candidates(fullest: int) -> None:
    """Of 100 rows of four candidates, every fourth of which is read, those of one four have three ranked ones."""
    asked: list[int] = []

    def read(places: list[int]) -> list[Any]:
        asked.extend(places)
        return [SimpleNamespace(rank=np.array([1, 2, 3, 0]) * (n // 4 == fullest)) for n in places]

    rows: Any = SimpleNamespace(places=[list(range(100))], read=read)
    assert largest(rows).rank.tolist() == [1, 2, 3, 0]
    assert asked == list(range(0, 100, 4)), f"25 of at most {TRIAL_ROWS}"


def test_each_dataset_is_looked_at_before_a_trial_pass(mixed: Callable[..., TrainJob]) -> None:
    """People's pairs have two candidates, the rows beside them four."""
    assert len(largest(Rows(mixed())).rank) == 4


@pytest.mark.parametrize("size", [1, 2])
def test_a_trial_pass_of_rows_that_nobody_ranked_has_a_gradient(
    make: Callable[..., TrainJob], size: int
) -> None:
    nobody = Labelling((), (0,), "random", 1.0, 0)
    job = make()
    job = dataclasses.replace(job, sets=(dataclasses.replace(job.sets[0], labelling=nobody),))
    row = largest(Rows(job))
    assert not row.rank.any()
    model = TrainedModel(job)
    trial(model, row, size, None).backward()
    assert any(p.grad is not None and p.grad.any() for p in model.module.parameters())


def worker(rank: int, place: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=2)
    found = least_of_all(double_while(lambda size: size <= (16, 4)[rank], 64), "cpu")
    (Path(place) / f"{rank}-{found}").touch()


@pytest.mark.timeout(120)
def test_the_smallest_gpu_decides_for_all(tmp_path: Path) -> None:
    multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    assert {path.name for path in tmp_path.glob("?-*")} == {"0-4", "1-4"}


@pytest.mark.parametrize(
    ("schedule", "due"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.5, 0.0]),
        ("cosine", [0.5, 1.0, 1.0, 0.5, 0.0]),
    ],
)
def test_warm_up_then_the_schedule(schedule: str, due: list[float]) -> None:
    config = OptimizerConfig(learning_rate=2.0, schedule=schedule, warmup_steps=2)  # type: ignore[arg-type]
    found = [learning_rate(config, step, 10) / 2.0 for step in (0, 1, 2, 6, 10)]
    assert found == pytest.approx(due)
    config = OptimizerConfig(learning_rate=1.0, schedule="cosine")
    assert learning_rate(config, 25, 100) == pytest.approx(0.853553)
