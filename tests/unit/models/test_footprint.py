"""Memory and seconds of a model, worked out by hand."""

from dataclasses import replace

import pytest

from rankray.models.footprint import Footprint, Part
from rankray.models.hardware import GPU_TYPES

TEXT = Part("text", 2e9, 0.0, 0.0, "half")
DENOISER = Part("denoiser", 4e9, 100e12, 0.5e9, "half")
VAE = Part("vae", 1e9, 10e12, 1e9, "tf32")
MODEL = Footprint((TEXT, DENOISER, VAE))


def test_memory_is_weights_and_the_largest_activations_of_the_batch() -> None:
    assert MODEL.weights_gb == 7.0
    assert MODEL.memory_gb(4) == pytest.approx(7 + 1.25 * 4 + 0.7)


def test_a_part_that_takes_an_item_at_a_time_does_not_grow_with_the_batch() -> None:
    sliced = Footprint((TEXT, DENOISER, replace(VAE, together=False)))
    assert sliced.memory_gb(4) == pytest.approx(7 + 1.25 * 2 + 0.7), "the denoiser's are the largest now"
    assert sliced.memory_gb(1) == pytest.approx(7 + 1.25 * 1 + 0.7)


def test_the_largest_batch_is_found_by_halving() -> None:
    assert MODEL.largest_batch(17.7 + 1e-9, 8) == 8
    assert MODEL.largest_batch(17.6, 8) == 4
    assert MODEL.largest_batch(9.0, 8) == 1
    assert MODEL.largest_batch(8.9, 8) == 0, "8.95 GB are needed for one"


def test_seconds_add_up_over_the_parts_in_their_precisions() -> None:
    a100 = GPU_TYPES["A100-80"]
    assert MODEL.flops == 110e12
    assert MODEL.seconds(a100) == pytest.approx(100 / (312 * 0.4) + 10 / (156 * 0.4))
