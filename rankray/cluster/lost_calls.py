"""An item that hangs, or that takes its process with it, costs an item: what an actor was about when it was lost.

What a model raises, `item_safe` takes as data. A crash in C code, a kill for memory or a call that never returns raises
nothing: Ray starts the actor anew and gives it the same block, which would end the same way for ever. So before each
call an actor tells the meter which items the call holds, and takes it back afterwards; the next actor asks what was
not taken back. A lost node is likelier than a deadly item: what was lost once is tried as before, what was lost twice
alone, and what was lost twice while alone has failed. A crash thus costs four starts of an actor, and a call without an
item to blame one answered message, about 1 ms.

A call that takes longer than `item_timeout_s` for each of its items (an actor's first call for one more, as kernels are
chosen and loaded then) ends its process, by C code that needs no lock of Python's: what hangs may hold that. A call
that breaks the device for its process ends it too: the next process has a device, and the same items.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray

from rankray.cluster.item_safe import describe, is_broken_device

Item = TypeVar("Item")
Result = TypeVar("Result")
Run = Callable[[Callable[[Sequence[Any]], Sequence[Any]], Sequence[Any]], list[Any]]

STDERR = 2
"""The descriptor: `sys.stderr` may be something that has none."""

ANSWER_S = 10.0
"""A meter that restarts answers nobody; the call then goes on unannounced."""


class LostItemError(RuntimeError):
    """An item whose actor was lost twice while it computed this item alone."""


@dataclass
class Calls:
    """The meter's part: which items are in which actor, and which were in one that was lost, by block; how often in a
    row an actor that was lost did not load its model."""

    _inside: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    _lost: dict[str, list[list[int]]] = field(default_factory=dict)
    _loads: dict[str, int] = field(default_factory=dict)

    def begin(self, block: str, actor: str, items: list[int]) -> None:
        self._inside.setdefault(block, {})[actor] = items

    def end(self, block: str, actor: str) -> None:
        self._inside.get(block, {}).pop(actor, None)

    def lost(self, block: str, actor: str) -> list[list[int]]:
        """The calls of `block` that other actors began and did not end: one block is in one actor at a time."""
        inside = self._inside.pop(block, {})
        self._lost.setdefault(block, []).extend(items for name, items in inside.items() if name != actor)
        return self._lost[block]

    def settle(self, block: str) -> None:
        """Nothing needs to be known of `block` any more."""
        self._inside.pop(block, None)
        self._lost.pop(block, None)

    def not_loaded(self, actor: str) -> int:
        """How often in a row `actor`, by Ray's name of it, which all its processes share, did not load."""
        self._loads[actor] = self._loads.get(actor, 0) + 1
        return self._loads[actor]

    def loaded(self, actor: str) -> None:
        self._loads.pop(actor, None)


def groups(count: int, lost: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[int]]:
    """How `count` items are tried after the `lost` calls: each call's items, suspects first; and what has failed."""
    times = [sum(item in call for call in lost) for item in range(count)]
    alone = [sum(list(call) == [item] for call in lost) for item in range(count)]
    failed = [item for item in range(count) if alone[item] >= 2]
    single = [[item] for item in range(count) if times[item] >= 2 and item not in failed]
    rest = [item for item in range(count) if times[item] < 2]
    return [*single, *([rest] if rest else [])], failed


class Watched:
    """One actor's part: announces every call of its model, and ends the process where one takes too long.

    Args:
        meter: the job's, whose methods `begin`, `end`, `lost` and `settle` are those of `Calls`.
        actor: this actor's own name.
        item_timeout_s: what each item of a call may take.
    """

    def __init__(self, meter: Any, actor: str, item_timeout_s: float) -> None:
        self._meter, self._actor, self._item_timeout_s = meter, actor, item_timeout_s
        self._is_first = True

    def run(
        self,
        run: Run,
        call: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        items: Sequence[Item],
        block: str,
    ) -> list[Result | Exception]:
        """`run(call, items)` of an `ItemSafe`, in which no item of `block` ends its actor more than four times."""
        due, failed = groups(len(items), answered(self._meter.lost.remote(block, self._actor)) or [])
        why = f"its model's process ended, or took over execution.item_timeout_s = {self._item_timeout_s:g} s, twice"
        found: dict[int, Result | Exception] = {
            item: LostItemError(f"{why} with this item alone in it") for item in failed
        }

        def announced(pairs: Sequence[tuple[int, Item]]) -> Sequence[Result | Exception]:
            with self._inside(block, [number for number, _ in pairs]):
                return call([item for _, item in pairs])

        for numbers in due:
            results = run(announced, [(number, items[number]) for number in numbers])
            found.update(zip(numbers, results, strict=True))
        self._meter.settle.remote(block)
        return [found[number] for number in range(len(items))]

    @contextmanager
    def _inside(self, block: str, numbers: list[int]) -> Iterator[None]:
        answered(self._meter.begin.remote(block, self._actor, numbers))
        allowed_s = self._item_timeout_s * (len(numbers) + self._is_first)
        faulthandler.dump_traceback_later(allowed_s, exit=True, file=STDERR)
        try:
            yield
        except RuntimeError as error:
            if is_broken_device(error):
                told = f"rankray: a call of {self._actor} broke its device ({describe(error)}); its process starts anew"
                print(told, file=sys.stderr, flush=True)
                os._exit(1)  # without an end of the call: it was lost
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._meter.end.remote(block, self._actor)
            self._is_first = False


def answered(asked: Any) -> Any:
    """What the meter answers, None where it is just restarting."""
    try:
        return ray.get(asked, timeout=ANSWER_S)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return None
