"""A model and its items, without a cluster: who fails alone, and how it is told."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rankray import actors, pictures
from rankray.config import ImagesConfig


@given(st.lists(st.booleans(), max_size=40))
def test_each_item_fails_alone(good: list[bool]) -> None:
    calls = []

    def call(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        for item in items:
            if not good[item]:
                raise ValueError(f"item {item}")
        return [10 * item for item in items]

    results = actors.each_alone(call, range(len(good)))
    assert len(results) == len(good)
    for item, (fine, result) in enumerate(zip(good, results, strict=True)):
        assert (result == 10 * item) if fine else (str(result) == f"item {item}")
    bad = good.count(False)
    if bad == 1:
        assert len(calls) <= 1 + 2 * math.ceil(math.log2(max(len(good), 2)))


def test_a_wrong_number_of_results_is_every_items_fault() -> None:
    (first, second) = actors.each_alone(lambda items: [1] * (len(items) + 1), ["a", "b"])
    assert isinstance(first, ValueError)
    assert str(second) == "2 results for 1 items"


def test_a_broken_device_is_no_items_fault() -> None:
    class AcceleratorError(RuntimeError):
        pass

    def call(items: Sequence[int]) -> list[int]:
        raise AcceleratorError("device-side assert")

    with pytest.raises(AcceleratorError):
        actors.each_alone(call, [1, 2])


def test_interrupts_propagate() -> None:
    def call(items: Sequence[int]) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        actors.each_alone(call, [1])


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
    assert actors.describe(error) == text


@pytest.mark.parametrize(("name", "exact"), [("png", True), ("webp", True), ("jpeg", False)])
def test_encoded_images_come_back(name: str, exact: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    data = pictures.encode_image(Image.fromarray(pixels), ImagesConfig(format=name))
    image = Image.open(io.BytesIO(data))
    assert (image.format or "").lower() == name
    assert image.size == (24, 16)
    assert np.array_equal(np.asarray(image.convert("RGB")), pixels) is exact


def test_what_is_no_picture_is_that_items_fault() -> None:
    picture = Image.new("RGB", (2, 2))
    drawn = {"a": picture, "b": None}
    good, bad = actors.each_alone(
        lambda items: [pictures.picture_of(drawn[item]) for item in items], ["a", "b"]
    )
    assert good is picture
    assert str(bad) == "a generator returned NoneType; a PIL picture is due"


@pytest.mark.parametrize(
    ("mode", "size", "message"),
    [
        (
            "I;16",
            (4, 3),
            "a generator returned a picture of mode I;16, 4x3; due are 8-bit modes (RGB, RGBA, L,",
        ),
        ("F", (4, 3), "of mode F, 4x3; due are 8-bit modes"),
        (
            "RGB",
            (0, 3),
            "of mode RGB, 0x3; due are 8-bit modes (RGB, RGBA, L, LA, P, 1, CMYK, YCbCr) of at least 1x1",
        ),
    ],
)
def test_a_picture_that_would_be_spoilt_is_refused(mode: str, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        pictures.picture_of(Image.new(mode, size))


@pytest.mark.parametrize("mode", pictures.PICTURE_MODES)
@pytest.mark.parametrize("size", [(1, 1), (4096, 4096)])
def test_other_modes_and_sizes_are_kept_as_rgb(mode: str, size: tuple[int, int]) -> None:
    if size[0] > 1 and mode not in ("RGB", "L"):
        return  # a second each, for nothing new
    drawn = Image.new("RGB", size, (255, 255, 255)).convert(mode)
    image = Image.open(io.BytesIO(pictures.encode_image(pictures.picture_of(drawn), ImagesConfig())))
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", size, (255, 255, 255))


def test_prompts_that_a_model_cuts_are_counted() -> None:
    class Short:
        def truncated(self, prompts: Sequence[str]) -> list[bool]:
            if "odd" in prompts:
                raise ValueError("odd")
            return [len(prompt) > 3 for prompt in prompts]

    assert actors.count_truncated(Short(), ["a", "abcd", "odd", "efghi", ""]) == 2
    assert actors.count_truncated(Short(), []) == 0
    assert actors.count_truncated(object(), ["abcd"]) == 0


@given(st.lists(st.text(alphabet="a_/=23DF", max_size=6), min_size=2, max_size=2, unique=True))
def test_no_two_labels_share_a_file_name(labels: list[str]) -> None:
    first, second = map(pictures.file_name, labels)
    assert first != second
    assert "/" not in first + second
