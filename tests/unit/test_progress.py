"""The line that a person reads in a log."""

import pytest

from rankray.progress import ModelProgress, clock


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_line_says_how_far_how_fast_how_long() -> None:
    line = ModelProgress("generator", "sdxl", 1000, 3, 58000, 4.0).line()
    assert line == "  sdxl                1,000/58,000 images      4.0 images/s  3 failed  left 3:57:30"


def test_a_line_of_a_model_that_waits_and_of_one_that_is_done() -> None:
    assert ModelProgress("reward", "mps", 0, 0, 10, 0.0).line().endswith("0.0 scores/s  0 failed  left ?")
    assert ModelProgress("reward", "mps", 10, 0, 10, 0.0).line().endswith("done")


def test_prompts_that_are_cut_are_said() -> None:
    line = ModelProgress("reward", "mps", 10, 0, 20, 5.0, 1234).line()
    assert line.endswith("5.0 scores/s  0 failed  1,234 prompts cut  left 0:02")
