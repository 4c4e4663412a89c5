"""How many prompts a GPU holds at once, found by trying.

A trial pass costs a second or two at the start of a run; a guess from parameter counts is off by a factor of two
between attention kernels. Optimizer state comes on top of a trial's peak, so a size fits if the pass leaves 40 % free.
Sizes double from 1, so a trial that fails is at most twice one that fits. Of all workers the smallest decides: those
that cut a batch differently would wait for each other until NCCL gives up, half an hour later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from rankray.rankdpo.training import TrainJob

SHARE = 0.6


def largest_that_fits(model: Any, job: TrainJob, source: Any, local: int) -> int:
    """The most prompts, up to `local`, whose passes stay under `SHARE` of every GPU; every worker must call it."""
    import torch

    from rankray.rankdpo.batches import errors, make_batch

    row = source.read(source.places[:1])[0]
    total = torch.cuda.get_device_properties(model.device).total_memory

    def passes(size: int) -> bool:
        torch.cuda.reset_peak_memory_stats()
        batch = make_batch([row] * size, [0] * size, model.noising, model.empty, model.device, job.reward)
        error = errors(model.module, model.predict, batch, batch.mask, model.noising, model.size, model.dtype)
        error.sum().backward()
        return bool(torch.cuda.max_memory_allocated() < SHARE * total)

    found = double_while(passes, local)
    model.module.zero_grad(set_to_none=True)
    return least_of_all(found, model.device)


def double_while(passes: Callable[[int], bool], most: int) -> int:
    """The last of 1, 2, 4, ... and `most` that passes; running out of memory counts as not passing; at least 1."""
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    found, size = 1, 1
    while size <= most:
        try:
            if not passes(size):
                break
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            break
        found, size = size, min(2 * size, most) if size < most else most + 1
    clear_device_cache(garbage_collection=True)
    return found


def least_of_all(size: int, device: str) -> int:
    """The least of what all workers found."""
    import torch

    found = torch.tensor(size, device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN)
    return int(found.item())
