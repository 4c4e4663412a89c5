"""How many prompts a GPU holds at once, found by trying.

A trial pass costs a second or two at the start of a run; a guess from parameter counts is off by a factor of two
between attention kernels. Optimizer state comes on top of a trial's peak, so a size fits if the pass leaves 40 % free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from rankray.training import TrainJob

SHARE = 0.6


def largest_that_fits(model: Any, job: TrainJob, source: Any, local: int) -> int:
    """The most prompts, by halving from `local`, whose forward and backward pass stays under `SHARE` of the GPU."""
    import torch

    from rankray.batches import errors, make_batch

    row = source.read(source.places[:1])[0]
    total = torch.cuda.get_device_properties(model.device).total_memory

    def passes(size: int) -> bool:
        torch.cuda.reset_peak_memory_stats()
        batch = make_batch([row] * size, [0] * size, model.noising, model.empty, model.device, job.reward)
        error = errors(model.module, model.predict, batch, batch.mask, model.noising, model.size, model.dtype)
        error.sum().backward()
        model.module.zero_grad(set_to_none=True)
        return bool(torch.cuda.max_memory_allocated() < SHARE * total)

    return halve_until(passes, local, torch.OutOfMemoryError)


def halve_until(passes: Callable[[int], bool], size: int, out_of_memory: type[BaseException]) -> int:
    """The first of size, size/2, ... that passes; an out-of-memory error counts as not passing; at least 1."""
    while size > 1:
        try:
            if passes(size):
                return size
        except out_of_memory:
            pass
        size = -(-size // 2)
    return 1
