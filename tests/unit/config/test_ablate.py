"""An ablation's file: what it means, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankray import config
from rankray.config import ConfigError
from rankray.config.ablate import AblationConfig

JOBS = Path(__file__).parents[3] / "jobs"
FILE = JOBS / "ablate-shapes.toml"


def changed(**changes: Any) -> AblationConfig:
    return config.build(AblationConfig, {**config.read_toml(FILE), **changes})


@pytest.mark.parametrize("name", ["ablate-shapes.toml", "ablate-shapes-own.toml"])
def test_the_shapes_files_hold_the_papers_rows(name: str) -> None:
    found = config.build(AblationConfig, config.read_toml(JOBS / name))
    four_models = name == "ablate-shapes.toml"
    table_4 = {row.name for row in found.rows if "4" in row.tables}
    table_5 = {row.name for row in found.rows if "5" in row.tables}
    assert {"dpo-random", "dpo-pickscore", "dpo", "rank", *(["rank-own"] if four_models else [])} <= table_4
    assert {"sft", "weighted-sft", "dpo", "dpo-gain", "rank", "plackett-luce", "kto", "mapo"} <= table_5
    assert {"rank-nll", "rank-dpop", "rank-clamp", "rank-safeguard"} <= table_5
    assert found.seeds >= 5
    assert sum(found.labels.samples.values()) == 4
    # Rows of the tables are trained from all seeds.
    assert all(row.seeds is None for row in found.rows if row.tables)


def test_a_rows_labels_replace_the_ablations_key_by_key() -> None:
    found = changed()
    every = {"shapes-sdxl": 1, "shapes-sd3": 1, "shapes-pixart": 1, "shapes-cascade": 1}
    random = found.labels_of(found.row("dpo-random"))
    assert (random.aggregation, random.samples) == ("random", every)
    assert found.labels_of(found.row("rank-own")).samples == {"shapes-sdxl": 4}
    assert found.labels_of(found.row("rank")) == found.labels
    assert found.labels_of(found.row("within")).pairs == "within"


def test_a_default_that_a_row_gives_is_told_apart_from_none() -> None:
    """It takes the place of the ablation's own: all pictures of each model in place of one."""
    plain = changed()
    tables = config.read_toml(FILE)
    row = next(row for row in tables["rows"] if row["name"] == "dpo-random")
    row["labels"]["samples"] = {}
    found = config.build(AblationConfig, tables)
    assert found.labels_of(found.row("dpo-random")).samples == {}
    assert plain.labels_of(plain.row("dpo-random")).samples != {}
    (line,) = config.differing_keys(plain.identity(), found.identity())
    assert line.startswith("rows.0.labels.samples: absent there, {} here")


def test_what_nobody_names_has_the_identity_that_it_had() -> None:
    """Ablations go on that were begun when every one of them had an aggregation by name."""
    identity = changed().identity()
    named = {key: value for key, value in identity.items() if key.endswith("labels.aggregation")}
    own = {key: value for key, value in named.items() if not key.startswith("rows.")}
    assert own == {f"{part}labels.aggregation": "win_probability" for part in ("", "training.")}
    assert None not in named.values()


def test_a_reward_that_stands_twice_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="rewards: 'shapes-mps' stands twice"):
        changed(rewards=[{"model": "shapes-mps"}] * 2)


def test_where_all_diverged_the_start_is_measured_alone() -> None:
    found = changed()
    assert found.evaluation("/o", found.validation, {"start": None}).k == found.validation.samples == 1


def test_a_rows_pictures_may_be_reencoded() -> None:
    found = changed()
    row = found.row("rank-reencoded")
    plain, again = (found.trial_of(found.row(name), (1e-4, 100.0), 0) for name in ("rank", "rank-reencoded"))
    assert row.labels is None
    assert (plain.encoding.reencode, again.encoding.reencode) == (False, True)
    assert "encoding.reencode" in again.identity()
    assert "encoding.reencode" not in plain.identity(), "a run that was begun before there was any goes on"


def test_a_trial_has_the_setting_and_the_seed_and_all_else_alike() -> None:
    found = changed()
    trial = found.trial(found.tuned("dpo"), found.labels, (3e-4, 70.0), 2)
    assert (trial.seed, trial.optimizer.learning_rate, trial.objective.beta) == (2, 3e-4, 70.0)
    assert trial.objective.name == "dpo"
    assert trial.objective.reference == "precomputed"
    assert (trial.steps, trial.batch_size) == (found.training.steps, found.training.batch_size)
    assert trial.optimizer.schedule == found.training.optimizer.schedule


def test_models_that_are_measured_together_share_their_seeds() -> None:
    found = changed()
    job = found.evaluation("/o", found.held_out, {"start": None, "rank-seed0": "/p"})
    assert [(g.label, g.seed_name, g.source) for g in job.generators] == [
        ("start", "model", None),
        ("rank-seed0", "model", "/p"),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objectives": [
                {"name": "a", "objective": {"name": "dpo"}, "learning_rates": [1e-4], "betas": [1]},
                {"name": "b", "objective": {"name": "sft"}, "learning_rates": [1e-4, 2e-4]},
            ], "rows": [{"name": "r", "label": "R", "objective": "a"}], "curves": [], "along": None},
            "tuned alike, and a would be given one setting while others are tuned",
        ),
        ({"tuning": {"trainings": 3}}, "tuning.trainings = 3 are fewer than the largest grid has settings, 4"),
        ({"tuning": {"trainings": 16, "most": 12}}, "tuning.most = 12 is less than tuning.trainings = 16"),
        ({"tuning": {"every": 30}}, "tuning.every = 30 does not divide training.steps = 100"),
        (
            {"rows": [{"name": "r", "label": "R", "objective": "dpo", "labels": {"pairs": "within"}}],
             "curves": [], "along": None},
            "row 'r': labels.pairs = 'within' leaves out pairs, and dpo does not take a ranking's pairs one by one",
        ),
        (
            {"rows": [{"name": "r", "label": "R", "objective": "rank"}], "curves": [], "along": None},
            "row 'r': no objective 'rank'",
        ),
        (
            {"along": {"row": "rnak", "steps": 4, "every": 2}},
            "curves name rows that are not there: rnak",
        ),
        (
            {"objectives": [{"name": "a", "objective": {"name": "dpo"}, "learning_rates": [2e-4, 1e-4]}]},
            "'a': learning_rates are [0.0002, 0.0001]; every one is tried with every beta",
        ),
        (
            {"objectives": [{"name": "a", "objective": {"name": "dpo"}, "learning_rates": [1e-4], "betas": [0, 1]}]},
            "'a': betas are [0.0, 1.0]",
        ),
        ({"along": {"row": "rank", "steps": 600, "every": 10}}, "along.every = 10 makes 60 checkpoints"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"seed": 1}, "'seed' would not be used; rows are trained from seeds 0, 1, 2"),
        ({"labels": {"rewards": ["shapes-mps"]}}, "'labels' would not be used; give"),
        ({"encoding": {"mode": "stream"}}, "'stream' encodes anew in each run, and trials share what"),
        ({"encoding": {"reencode": True}}, "'reencode' would not be used; give a row's own"),
        ({"objective": {"beta": 3.0}}, "'beta' would not be used; give an objective's betas"),
        ({"optimizer": {"learning_rate": 0.1}}, "'learning_rate' would not be used"),
        ({"validation": {"share": 0.1}}, "'validation' would not be used; trials learn from all prompts"),
    ],
)
def test_what_rows_and_objectives_say_is_not_said_of_training(table: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        changed(training=table)
    assert told in str(error.value)


def test_the_sweeps_seed_is_no_rows_and_the_last_step_is_measured() -> None:
    with pytest.raises(ConfigError, match="sweep_seed = 2 is the seed of a row's own training"):
        changed(sweep_seed=2)
    with pytest.raises(ConfigError, match=r"along.every = 3 does not divide along.steps = 10"):
        changed(along={"row": "rank", "steps": 10, "every": 3})
