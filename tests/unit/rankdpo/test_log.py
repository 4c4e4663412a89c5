"""What a step's line says."""

from __future__ import annotations

from typing import Any

import pytest

from rankray.rankdpo import log


@pytest.mark.parametrize(
    ("found", "due"),
    [
        ({"loss": 0.6931}, "loss 0.6931  implicit"),
        (
            {"loss": 36.0, "loss_preference": 0.6931, "loss_nll": 35.3069},
            "loss 36.0000 = preference 0.6931 + nll 35.3069  implicit",
        ),
        ({"loss": None, "loss_preference": 0.6931, "loss_nll": None}, "skipped  implicit"),
    ],
)
def test_a_loss_of_several_parts_is_said_part_by_part(found: dict[str, Any], due: str) -> None:
    line = {"step": 3, **found, "implicit_accuracy": 0.5, "prompts_per_s": 2.0}
    assert log._sentence(line, 9) == f"[rankray] step 3/9  {due} accuracy 50.0%  2.0 prompts/s"
