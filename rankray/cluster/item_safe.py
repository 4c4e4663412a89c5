"""Calls a model for many items: a bad item fails alone, and a batch that does not fit in memory is made smaller.

What a model raises is narrowed down to the items that cause it: first by its own compute batches, then by halves, so
that a bad item costs each item once more and about 2 log2(batch) calls. A full device is no item's fault, and fewer
items would not help, as compute batches are padded: what the model computes at once is halved instead, for as long as
this process lives. That costs a failing call a halving, four from 16 to 1, where halving the items cost 31 a block.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from rankray import secret
from rankray.words import Say

Item = TypeVar("Item")
Result = TypeVar("Result")

FEWEST_TO_ABORT = 8
"""A model that failed for each of its first items stops the job, if they are at least so many."""

_FULL = (
    "out of memory",
    "unable to find an engine",  # cuDNN, which found none whose workspace fits
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class BrokenModelError(RuntimeError):
    """A model that failed for every one of its first items: more work would only cost money."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or one that it was raised from, says that a device or the host is full.

    By accelerate's rule, and by what CUDA's libraries say where no memory is left for their workspaces.
    """
    from accelerate.utils.memory import should_reduce_batch_size

    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _FULL):
            return True
        if isinstance(error, Exception) and should_reduce_batch_size(error):
            return True
        error = error.__cause__
    return False


def is_broken_device(error: BaseException) -> bool:
    """Whether an exception says that this process can use its device no more: an assert that failed in a kernel, an
    illegal access, a memory fault. CUDA answers every later call of the process with the same error."""
    known = any(cls.__name__ == "AcceleratorError" for cls in type(error).__mro__)
    return known and not is_out_of_memory(error)


def each_alone(
    call: Callable[[Sequence[Item]], Sequence[Result | Exception]],
    items: Sequence[Item],
    at_once: int | None = None,
) -> list[Result | Exception]:
    """`call(items)`, where an item that makes it raise gets its exception and the others their results.

    An exception that `call` returns in an item's place is that item's, and nothing is called again for it. The one
    place where any exception of a model is taken as data: what a user's model raises for a prompt cannot be known in
    advance. A broken or a full device is not an item's fault and propagates.

    Args:
        call: gives as many results as it is given items.
        at_once: how many items the model computes at once, where that is known; more of them share no fault.
    """
    if not items:
        return []
    try:
        results = call(items)
        if len(results) != len(items):
            raise ValueError(f"{len(results)} results for {len(items)} items")
        return list(results)
    except Exception as error:
        if is_broken_device(error) or is_out_of_memory(error):
            raise
        if len(items) == 1:
            return [error.with_traceback(None)]  # whose frames hold tensors
    size = at_once if at_once is not None and len(items) > at_once else -(-len(items) // 2)
    parts = (items[start : start + size] for start in range(0, len(items), size))
    return [result for part in parts for result in each_alone(call, part, at_once)]


def of_each(make: Callable[[Any], Result], things: Iterable[Any]) -> list[Result | Exception]:
    """`make(thing)` of each, or what it raises of one that is none (TypeError, ValueError) or is a damaged picture
    (OSError, SyntaxError); an exception among the things stays."""
    found: list[Result | Exception] = []
    for thing in things:
        try:
            found.append(thing if isinstance(thing, Exception) else make(thing))
        except (TypeError, ValueError, OSError, SyntaxError) as error:
            found.append(error.with_traceback(None))
    return found


class ItemSafe:
    """A model, and how much of it fits: what was found too large is not tried again.

    A model that has an attribute `batch_size` computes so many items at once, and it is made smaller; one without is
    given fewer items a call.

    Args:
        model: of any class.
        name: for messages.
        say: takes a line when a smaller batch has been found to fit.
    """

    def __init__(
        self, model: Any, name: str, say: Say = lambda line: print(line, file=sys.stderr, flush=True)
    ) -> None:
        self._model, self._name, self._say = model, name, say
        self._most: int | None = None
        self._too_large: tuple[int, str] | None = None
        self._fitted, self._unfit = False, 0
        self.fits = 0
        """How many items are computed at once since more did not fit; 0 where everything fitted."""

    def run(
        self, call: Callable[[Sequence[Item]], Sequence[Result | Exception]], items: Sequence[Item]
    ) -> list[Result | Exception]:
        """The results of all items, each item's exception in its place, by as many calls as they need.

        An item that does not fit alone has failed like any other, if any item before it fitted.

        Raises:
            BrokenModelError: none of the first `FEWEST_TO_ABORT` items fits alone.
        """
        found: list[Result | Exception] = []
        while len(found) < len(items):
            found += self._tried(call, items[len(found) :][: self._most])
        return found

    def _tried(self, call: Callable[..., Any], items: Sequence[Item]) -> list[Any]:
        """Their results; none yet where less is computed at once from now on."""
        try:
            results = each_alone(call, items, _batch_size(self._model))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            full = error.with_traceback(None)
        else:
            self._fitted |= not all(isinstance(result, Exception) for result in results)
            self._tell()
            return results
        # Only here, where no frame of the failed call holds its tensors any more.
        _free()
        if self._shrink(len(items), full):
            return []
        self._unfit += 1
        if not self._fitted and self._unfit >= FEWEST_TO_ABORT:
            raise BrokenModelError(
                f"'{self._name}' does not fit in its device's memory: a batch of one was too large for each of its "
                f"first {self._unfit} items ({describe(full)}). Give its pool more of a GPU (pool.num_gpus), or make "
                "pictures or precision smaller; a generator decodes in less by options.vae_tiling."
            )
        return [full]

    def _shrink(self, given: int, full: Exception) -> bool:
        """Whether less could be made of what is computed at once: the batch, or else the items of a call."""
        size = _batch_size(self._model)
        now = given if size is None else size
        if self._too_large is None and now > 1:
            self._too_large = (now, describe(full))
        if size is not None and size > 1:
            self._model.batch_size = size // 2
        elif given > 1:
            self._most = 1 if size is not None else given // 2
        else:
            return False
        return True

    def _tell(self) -> None:
        if self._too_large is None:
            return
        before, why = self._too_large
        self.fits, self._too_large = _batch_size(self._model) or self._most or 1, None
        self._say(
            f"rankray: '{self._name}' had no memory for a batch of {before} ({why}) and computes {self.fits} at once "
            "from here on"
        )


def describe(error: Exception) -> str:
    """`"ValueError: first line"`, at most 300 characters and no secrets: it stands in every failed row."""
    lines = secret.masked(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


def cause(error: BaseException) -> str:
    """What ended an actor, as `describe` has it: Ray tells it last, behind words of its own and a traceback."""
    lines = [line for line in secret.masked(str(error)).splitlines() if line.strip()]
    frames = [number for number, line in enumerate(lines) if line.startswith("  File ")]
    told = (line for line in lines[frames[-1] + 1 :] if not line.startswith(" ")) if frames else iter(())
    return next(told, lines[-1] if lines else type(error).__name__).strip()[:300]


def _batch_size(model: Any) -> int | None:
    """What a model says that it computes at once, None where it says nothing."""
    size = getattr(model, "batch_size", None)
    return size if isinstance(size, int) and size >= 1 else None


def _free() -> None:
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
