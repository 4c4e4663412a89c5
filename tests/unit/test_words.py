"""Numbers in words."""

from __future__ import annotations

import math

import pytest

from rankray import words

NAN = math.nan


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "–"), (1234, "1,234"), (0.12345, "0.123"), (1234.5, "1,234.500")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "$0.00"), (0.0123, "$0.012"), (185.6, "$185.60"), (0.0000321, "$3.2e-05")],
)
def test_money(value: float | None, text: str) -> None:
    assert words.money(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(3.21, "3.2 s"), (119, "119.0 s"), (240, "4.0 min"), (7200, "2.0 h")]
)
def test_seconds(value: float, text: str) -> None:
    assert words.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (NAN, "–"),
        (math.inf, "–"),
        (0.0, "0"),
        (-0.0, "0"),
        (0.693147, "0.6931"),
        (-0.0123456, "-0.01235"),
        (0.00001, "1e-5"),
        (-9.8767e-5, "-9.877e-5"),
        (999.96, "1,000"),
        (123_456.0, "123,500"),
        (12_345_678.0, "1.235e7"),
    ],
)
def test_compact(value: float | None, text: str) -> None:
    assert words.compact(value) == text


def test_signs_sizes_and_counts() -> None:
    assert [words.signed(0.0, "0.1"), words.signed(-2, "2"), words.signed(None, "")] == ["+0.1", "−2", "–"]
    assert [words.size(size) for size in (1e6, 1.5e8, 2.34e12)] == ["1.0 MB", "0.1 GB", "2,340 GB"]
    assert [words.count(n, "actor") for n in (0, 1, 2048)] == ["0 actors", "1 actor", "2048 actors"]
    assert [words.hours(seconds) for seconds in (90, 3600, 4e6)] == ["1.5 min", "1.0 h", "1,111.1 h"]


def test_a_table_on_a_terminal() -> None:
    assert words.table(["a", "n"], [["xx", "1"], ["y", "22"]]) == ["  a    n", "  xx   1", "  y   22"]
