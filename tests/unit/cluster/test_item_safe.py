"""A model and its items, without a cluster: who fails alone, what does not fit, and how many calls that takes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rankray.cluster import actors, item_safe
from rankray.data import pictures

MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"


@given(st.lists(st.booleans(), max_size=40))
def test_each_item_fails_alone(good: list[bool]) -> None:
    calls = []

    def call(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        for item in items:
            if not good[item]:
                raise ValueError(f"item {item}")
        return [10 * item for item in items]

    results = item_safe.each_alone(call, range(len(good)))
    assert len(results) == len(good)
    for item, (fine, result) in enumerate(zip(good, results, strict=True)):
        assert (result == 10 * item) if fine else (str(result) == f"item {item}")
    bad = good.count(False)
    if bad == 1:
        assert len(calls) <= 1 + 2 * math.ceil(math.log2(max(len(good), 2)))


def test_a_wrong_number_of_results_is_every_items_fault() -> None:
    (first, second) = item_safe.each_alone(lambda items: [1] * (len(items) + 1), ["a", "b"])
    assert isinstance(first, ValueError)
    assert str(second) == "2 results for 1 items"


def test_a_broken_device_is_no_items_fault() -> None:
    class AcceleratorError(RuntimeError):
        pass

    def call(items: Sequence[int]) -> list[int]:
        raise AcceleratorError("device-side assert")

    with pytest.raises(AcceleratorError):
        item_safe.each_alone(call, [1, 2])


def test_interrupts_propagate() -> None:
    def call(items: Sequence[int]) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        item_safe.each_alone(call, [1])


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("one\ntwo"), "ValueError: one"),
        (RuntimeError(), "RuntimeError: no message"),
        (KeyError("k"), "KeyError: 'k'"),
        (ValueError("x" * 1000), "ValueError: " + "x" * 288),
    ],
)
def test_an_error_is_described_in_one_short_line(error: Exception, text: str) -> None:
    assert item_safe.describe(error) == text


def test_what_is_no_picture_is_that_items_fault_and_no_other_is_drawn_again() -> None:
    picture, calls = Image.new("RGB", (2, 2)), []

    def draw(items: Sequence[Image.Image | None]) -> list[Image.Image | Exception]:
        calls.append(len(items))
        return item_safe.of_each(pictures.picture_of, items)

    good, bad, passed = item_safe.each_alone(draw, [picture, None, ValueError("overflowed")])  # type: ignore[list-item]
    assert isinstance(good, Image.Image)
    assert (good.mode, good.size) == ("RGB", (2, 2))
    assert str(bad) == "a generator returned NoneType; a PIL picture is due"
    assert str(passed) == "overflowed"
    assert calls == [3]


class Padded:
    """Computes batches of `batch_size`, the last one filled up, as generators and rewards do.

    Fails for items in `bad`; has memory for `fits` at once, as its padded batches need.
    """

    def __init__(
        self, batch_size: int, fits: int = 1000, bad: Sequence[int] = (), error: str = MEMORY
    ) -> None:
        self.batch_size, self.fits, self.bad, self.error = batch_size, fits, set(bad), error
        self.drawn: list[int] = []
        """Width of each batch that was begun."""

    def draw(self, items: Sequence[int]) -> list[int]:
        found: list[int] = []
        for start in range(0, len(items), self.batch_size):
            batch = items[start : start + self.batch_size]
            self.drawn.append(self.batch_size)
            if self.batch_size > self.fits:
                raise RuntimeError(self.error)
            if self.bad & set(batch):
                raise ValueError("bad")
            found += [10 * item for item in batch]
        return found


def test_a_bad_item_in_padded_batches_costs_its_own_batch_alone() -> None:
    model = Padded(4, bad=[5])
    results = item_safe.ItemSafe(model, "m").run(model.draw, range(16))
    assert [str(result) for result in results] == [str(10 * n) if n != 5 else "bad" for n in range(16)]
    # All 16: one good batch and the bad one. Then batch by batch: 1, bad, 1, 1. Of the bad one: its first half (bad),
    # its two items, its second half.
    assert len(model.drawn) == 2 + 4 + (1 + 2 + 1)
    assert model.batch_size == 4


def test_what_does_not_fit_makes_the_batch_smaller_for_good_and_is_told_once() -> None:
    said: list[str] = []
    model = Padded(16, fits=5)
    safe = item_safe.ItemSafe(model, "sdxl", said.append)
    assert safe.run(model.draw, range(32)) == [10 * n for n in range(32)]
    assert model.drawn == [16, 8, *[4] * 8], "two lost calls, not 31"
    assert safe.run(model.draw, range(32, 40)) == [10 * n for n in range(32, 40)]
    assert model.drawn[10:] == [4, 4], "and none in the next block"
    assert said == [
        f"rankray: 'sdxl' had no memory for a batch of 16 (RuntimeError: {MEMORY}) and computes 4 at once from here on"
    ]
    assert safe.fits == 4


def test_a_bad_item_and_too_large_a_batch_at_once() -> None:
    model = Padded(8, fits=2, bad=[0, 7])
    results = item_safe.ItemSafe(model, "m", lambda line: None).run(model.draw, range(8))
    assert [isinstance(result, ValueError) for result in results] == [n in (0, 7) for n in range(8)]
    assert model.batch_size == 2


def test_a_model_that_says_no_batch_size_is_given_fewer_items() -> None:
    calls: list[int] = []

    def score(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        if len(items) > 3:
            raise MemoryError
        return [10 * item for item in items]

    said: list[str] = []
    safe = item_safe.ItemSafe(object(), "own", said.append)
    assert safe.run(score, range(12)) == [10 * n for n in range(12)]
    assert calls == [12, 6, 3, 3, 3, 3]
    assert safe.run(score, range(4)) == [0, 10, 20, 30]
    assert calls[6:] == [3, 1]
    assert said == [
        "rankray: 'own' had no memory for a batch of 12 (MemoryError: no message) and computes 3 at once from here on"
    ]


def test_an_item_that_does_not_fit_alone_fails_alone() -> None:
    def score(items: Sequence[int]) -> list[int]:
        if 1 in items:
            raise torch.OutOfMemoryError(MEMORY)
        return [10 * item for item in items]

    model = Padded(2)
    results = item_safe.ItemSafe(model, "m", lambda line: None).run(score, range(4))
    assert isinstance(results[1], torch.OutOfMemoryError)
    assert [results[n] for n in (0, 2, 3)] == [0, 20, 30]


def test_a_model_of_which_no_item_fits_is_broken() -> None:
    model = Padded(4, fits=0)
    with pytest.raises(
        item_safe.BrokenModelError,
        match=re.escape(
            "'m' does not fit in its device's memory: a batch of one was too large for each of its first 8 items "
            "(RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB."
        ),
    ):
        item_safe.ItemSafe(model, "m", lambda line: None).run(model.draw, range(100))
    assert model.drawn == [4, 2, 1, *[1] * 8]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(MEMORY),
        MemoryError("Unable to allocate 3 GiB for an array"),
        RuntimeError(
            "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous"
        ),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    ],
)
def test_the_disguises_of_a_full_device(error: Exception) -> None:
    assert item_safe.is_out_of_memory(error)
    wrapped = ValueError("scoring failed")
    wrapped.__cause__ = error
    assert item_safe.is_out_of_memory(wrapped)


@pytest.mark.parametrize(
    "error", [ValueError("out of memory"), RuntimeError("a prompt of 3 words"), RuntimeError(), KeyError(3)]
)
def test_other_errors_are_no_full_device(error: Exception) -> None:
    assert not item_safe.is_out_of_memory(error)


def test_a_score_that_is_not_finite_is_its_items_error_without_another_call() -> None:
    calls: list[int] = []

    class Reward:
        def score(self, images: Sequence[int], prompts: Sequence[str]) -> list[float]:
            calls.append(len(images))
            return [float("nan") if image == 2 else float(image) for image in images]

    class Metered:
        model = Reward()

    actor = object.__new__(actors.ScoreActor)
    actor._metered = Metered()  # type: ignore[assignment]
    results = item_safe.each_alone(actor._score, [(n, "a") for n in range(5)])  # type: ignore[arg-type,misc]
    assert [str(result) for result in results if isinstance(result, Exception)] == ["a score is nan"]
    assert [result for result in results if not isinstance(result, Exception)] == [
        (float(n), None) for n in (0, 1, 3, 4)
    ]
    assert calls == [5]
