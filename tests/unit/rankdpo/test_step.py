"""The size of a micro-batch is found by doubling, and agreed on; learning rates by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from rankray.config.rankdpo import OptimizerConfig
from rankray.rankdpo.step import double_while, learning_rate, least_of_all

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
