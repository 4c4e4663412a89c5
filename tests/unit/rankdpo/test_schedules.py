"""Learning rates by hand."""

import pytest

from rankray.config.rankdpo import OptimizerConfig
from rankray.rankdpo.step import learning_rate


@pytest.mark.parametrize(
    ("schedule", "due"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.5, 0.0]),
        ("cosine", [0.5, 1.0, 1.0, 0.5, 0.0]),
    ],
)
def test_warm_up_then_the_schedule(schedule: str, due: list[float]) -> None:
    config = OptimizerConfig(learning_rate=2.0, schedule=schedule, warmup_steps=2)  # type: ignore[arg-type]
    found = [learning_rate(config, step, 10) / 2.0 for step in (0, 1, 2, 6, 10)]
    assert found == pytest.approx(due)
    config = OptimizerConfig(learning_rate=1.0, schedule="cosine")
    assert learning_rate(config, 25, 100) == pytest.approx(0.853553)
