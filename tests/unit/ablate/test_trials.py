"""Which models are measured together, and what trainings share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankray import config
from rankray.ablate import trials
from rankray.ablate.trials import START, Bench
from rankray.config.ablate import AblationConfig
from rankray.config.rankdpo import LabelsConfig, RankDPOConfig
from rankray.data import place
from rankray.evals.scores import Pictures
from rankray.rankdpo import job as rankdpo

FILE = Path(__file__).parents[3] / "jobs" / "ablate-shapes.toml"


@given(st.integers(0, 60), st.integers(2, 16))
def test_groups_hold_every_name_once_in_order_and_no_more_than_fit(count: int, most: int) -> None:
    names = [f"model {n}" for n in range(count)]
    groups = trials.grouped(names, most)
    assert [name for group in groups for name in group] == names
    assert all(len(group) <= most for group in groups)
    # Two candidates make a ranking: a group of one only where there is one name.
    assert count < 2 or most == 2 or all(len(group) >= 2 for group in groups)


def test_trainings_that_share_reference_errors_are_prepared_once() -> None:
    settings = config.build(AblationConfig, config.read_toml(FILE))

    def trial(objective: str, labels: LabelsConfig, seed: int) -> RankDPOConfig:
        tuned = settings.tuned(objective)
        return settings.trial(tuned, labels, tuned.first, seed)

    own = LabelsConfig(samples={"shapes-sdxl": 4})
    random = settings.labels.model_copy(update={"aggregation": "random"})
    made = [
        trial("rank_dpo", settings.labels, 0),
        trial("dpo", settings.labels, 0),  # the same candidates and seed: the same errors
        trial("dpo", random, 0),  # other labels of the same candidates: the same errors
        trial("dpo", settings.labels, 1),
        trial("rank_dpo", own, 0),
        trial("sft", settings.labels, 0),  # asks no reference
        trial("sft", settings.labels, 1),
        settings.trial_of(settings.row("rank-reencoded"), (1e-4, 100.0), 0),  # other latents: other errors
    ]
    due = trials.first_of_kinds(made).values()
    found = {
        (one.objective.name, one.seed, tuple(one.labels.samples.items()), one.encoding.reencode)
        for one in due
    }
    every = tuple(settings.labels.samples.items())
    assert found == {
        ("rank_dpo", 0, every, False),
        ("dpo", 1, every, False),
        ("rank_dpo", 0, (("shapes-sdxl", 4),), False),
        ("sft", 0, every, False),
        ("rank_dpo", 0, every, True),
    }


def test_a_training_that_shares_its_reference_errors_with_none_computes_them_itself() -> None:
    settings = config.build(AblationConfig, config.read_toml(FILE))
    tuned = settings.tuned("rank_dpo")
    made = {
        "a": settings.trial(tuned, settings.labels, tuned.first, 0),
        "b": settings.trial(tuned, settings.labels, (8e-4, 30.0), 0),
        "alone": settings.trial(tuned, settings.labels, tuned.first, 1),
    }
    found = {name: trial.objective.reference for name, trial in trials.with_references(made).items()}
    assert found == {"a": "precomputed", "b": "precomputed", "alone": "copy"}


def test_a_training_that_is_measured_on_its_way_keeps_what_it_is_there() -> None:
    settings = config.build(AblationConfig, config.read_toml(FILE))
    trial = settings.trial(settings.tuned("dpo"), settings.labels, (1e-4, 100.0), 0)
    assert trials.kept(trial, [100]) is trial, "its pipeline is its last step's"
    found = trials.kept(trial, [40, 60]).checkpoints
    assert (found.every, found.keep) == (20, 5)


def test_a_picture_that_was_not_drawn_failed_its_painter_and_any_other_its_judge() -> None:
    """Of four: at the first step one was not drawn and another has no b; at the second two have none of b."""
    nan = float("nan")
    points: list[dict[str, Any]] = [
        {"values": {"a": [[1.0, nan], [1.0, 1.0]], "b": [[2.0, nan], [nan, 2.0]]}, "undrawn": [1]},
        {"values": {"a": [[1.0, 1.0], [1.0, 1.0]], "b": [[nan, 2.0], [nan, 2.0]]}, "undrawn": []},
    ]
    assert trials.failed_items(points, "sdxl") == ({"sdxl": 1, "b": 3}, 0.5)
    assert trials.failed_items(points[:1], "sdxl") == ({"sdxl": 1, "b": 1}, 0.25)
    assert trials.failed_items([{"values": {"a": [[1.0], [1.0]]}, "undrawn": []}], "sdxl") == ({}, 0.0)
    alone = [{"values": {"a": [[nan], [1.0]]}, "undrawn": []}]  # settings are tried by one judge
    assert trials.failed_items(alone, "sdxl") == ({"a": 1}, 0.5)


def test_a_training_that_stops_after_it_is_measured_has_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three are measured after 20 and 40 of 100 steps and diverge: one before, one between, one after them."""
    settings = config.build(AblationConfig, config.read_toml(FILE) | {"output": str(tmp_path), "parallel": 1})
    bench = Bench(settings, place.open_output(str(tmp_path), in_job=False), "/d", lambda line: None, {})
    tuned = settings.tuned("sft")
    names = ("before", "between", "after")
    asked = {name: settings.trial(tuned, settings.labels, tuned.first, 0) for name in names}
    for name, steps in zip(names, ((), (20,), (20, 40)), strict=True):
        for step in steps:
            kept = tmp_path / "trials" / name / "checkpoints" / f"checkpoint_{step}"
            kept.mkdir(parents=True)
            state = {"run": {"step": step}, "optimizer_tensors": [], "optimizer_scalars": {}}
            (kept / "state.json").write_text(json.dumps(state))
    told = {name: {"cpu_minutes": 3.0, "failed": "11 of 60 steps"} for name in names}
    drawn: list[str] = []

    def measured(bench: Bench, part: Any, models: dict[str, str | None]) -> dict[str, Pictures]:
        drawn.extend(models)
        return {
            name: Pictures("/p", ("0",), ("a",), np.zeros((1, 1), np.int64), {"checker": np.ones((1, 1))}, ())
            for name in models
        }

    monkeypatch.setattr(rankdpo, "prepare", lambda *_: None)
    monkeypatch.setattr(trials, "_all_done", lambda *_: told)
    monkeypatch.setattr(trials, "_pipeline", lambda bench, trial, step: f"/pipeline-{step}")
    monkeypatch.setattr(trials, "_measure_all", measured)
    found = trials._by_jobs(bench, asked, settings.held_out, dict.fromkeys(names, (20, 40)))
    assert drawn == [START, "between at step 20", "after at step 20", "after at step 40"]
    assert {name: found[name].failed for name in names} == {
        "before": "11 of 60 steps",
        "between": "11 of 60 steps",
        "after": None,
    }
    assert {name: sorted(found[name].points) for name in names} == {
        "before": [],
        "between": [20],
        "after": [20, 40],
    }


def test_what_a_training_that_diverged_took_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config.build(AblationConfig, config.read_toml(FILE))
    tuned = settings.tuned("sft")
    asked = settings.trial(tuned, settings.labels, tuned.first, 0).model_copy(
        update={"output": str(tmp_path)}
    )
    lines = [{"step": step, "cpu_s": 30.0, "workers": 2} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def diverges(*_: Any, **__: Any) -> None:
        raise rankdpo.TrainingError("2 of 3 steps")

    monkeypatch.setattr(rankdpo, "run", diverges)
    # Three steps of half a minute on each of two workers.
    assert trials._train(asked) == {"cpu_minutes": 3.0, "failed": "2 of 3 steps"}
