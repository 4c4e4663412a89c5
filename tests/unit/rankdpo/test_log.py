"""What a step's line says."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rankray.rankdpo import log, zero
from rankray.rankdpo.feed import Rows
from rankray.rankdpo.step import Step, begin
from rankray.rankdpo.train_job import RunState, TrainJob
from rankray.rankdpo.validation import Point


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
    line = {"step": 3, **found, "implicit_accuracy": 0.5, "prompts_per_s": 2.0, "step_s": 10.4}
    assert log._sentence(line, 9) == f"[rankray] step 3/9  left 1:02  2.0 prompts/s  {due} accuracy 50.0%"


@pytest.mark.parametrize(
    ("name", "judged"), [("rank_dpo", True), ("mapo", False), ("sft", False), ("kto", True)]
)
def test_without_a_reference_no_pair_is_judged(
    make: Callable[..., TrainJob],
    tmp_path: Path,
    name: str,
    judged: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All pairs are of errors 0.2 and 0.3, which say nothing of how far training has come."""
    job = dataclasses.replace(make(steps=1, objective__name=name), output=str(tmp_path))
    model = SimpleNamespace(parameters={})
    training: Any = SimpleNamespace(job=job, model=model, rank=0, world=1)
    sums = {"loss": 2.0, "right": 3.0, "margin": 0.3, "model_error": 1.0, "ref_error": 0.0}
    counts = {"pairs": 4.0, "candidates": 4.0, "prompts": 2.0, "skipped_prompts": 0.0}
    run = log.RunLog(training, RunState(0), time.monotonic())
    run.step(RunState(step=1), Step(1, {**sums, **counts}, 1e-4, 1.0, 1.0, 0.0, False))
    found = [run._lines[0][key] for key in ("implicit_accuracy", "margin", "loss")]
    assert found == ([0.75, 0.075, 1.0] if judged else [None, None, 1.0])
    assert ("implicit accuracy 75.0%" in capsys.readouterr().out) is judged


def test_all_that_workers_are_held_for_is_paid_for_once(
    make: Callable[..., TrainJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour of a start before, one of loading, one of validating: a start that goes on from here adds nothing."""
    job = make(steps=1, workers__num_gpus=0, prices__cpu_usd_per_hour=2.0)
    job = dataclasses.replace(job, output=str(tmp_path))
    (tmp_path / "_work").mkdir()
    zero.alone()
    rows = Rows(job)
    training = begin(job, rows)
    (step,) = training.steps(rows)
    state = RunState(step=1, elapsed_s=3600.0, cpu_s=3600.0)
    run = log.RunLog(training, state, time.monotonic() - 3600.0)
    told: dict[str, float] = {}
    monkeypatch.setattr(log.metrics, "tell", lambda place, totals, now: told.update(totals))
    run.step(state, step)
    assert told["usd"] == pytest.approx(2.0, abs=0.04), "an hour of loading, in the live metric too"
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 3600.0)
    point = Point(1, 0.5, 0.1, 0.0, 0.7, 0.2, 0.2, 0.0, 0.0)
    run.validated(state.validated(point))
    spent = run.spent(state)
    assert spent.elapsed_s == pytest.approx(3 * 3600.0, abs=60.0)
    assert spent.usd(job.config) == pytest.approx(6.0, abs=0.04)
    run.flush()
    (line,) = log.RunLog(training, spent, time.monotonic())._lines
    assert line["usd"] == pytest.approx(spent.usd(job.config), abs=0.01)
    assert line["validation_loss"] == 0.7
    assert log.RunLog(training, spent, time.monotonic()).spent(spent).elapsed_s - spent.elapsed_s < 1.0
