"""What an ablation refuses before anything is drawn or trained, and what it makes of its finished trainings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankray import cli, config, store
from rankray.ablate import job as ablation
from rankray.ablate.trials import START, Bench, Outcome, start_name
from rankray.ablate.tuning import Grid, choose
from rankray.config import ConfigError
from rankray.config.ablate import AblationConfig, TuningConfig
from rankray.data import place
from rankray.report import summary

FILE = Path(__file__).parents[3] / "jobs" / "ablate-shapes.toml"


def changed(**options: Any) -> AblationConfig:
    return config.build(AblationConfig, config.with_options(config.read_toml(FILE), options))


def test_the_shapes_file_passes_and_its_parts_share_no_prompt() -> None:
    ablation.check(changed(), "/o")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"validation.prompts.path": "shapes:heldout"}, "prompts are both held_out and validation"),
        ({"validation.prompts.path": "shapes:train"}, "prompts are both validation and prompts"),
        ({"held_out.prompts.path": "shapes:train"}, "prompts are both held_out and prompts"),
        ({"labels.rewards": ["nosuch"]}, "the dataset has no reward 'nosuch'"),
        ({"labels.samples": {"nosuch": 1}}, "the dataset has no generator 'nosuch'"),
        ({"metric": "chekcer"}, "metric 'chekcer' (did you mean 'checker'?)"),
    ],
)
def test_what_cannot_be_compared_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        ablation.check(changed(**options), "/o")
    assert told in str(error.value)


def test_the_checker_judges_prompts_of_its_world_alone(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a dog\na cat\n")
    options = {"held_out.prompts.path": str(file)}
    with pytest.raises(ConfigError, match="those of held_out are others; give a reward as metric"):
        ablation.check(changed(**options), "/o")
    ablation.check(changed(**options, metric="shapes-pickscore"), "/o")


def test_what_is_to_come_is_counted_before_it_begins() -> None:
    tables = config.read_toml(FILE)
    tables["rows"] = [row for row in tables["rows"] if row["name"] in {"rank", "sft", "prompts-half"}]
    tables["objectives"] = [one for one in tables["objectives"] if one["name"] in {"rank_dpo", "sft"}]
    tables |= {"curves": [], "tuning": {"trainings": 20}}
    told = ablation.plan_line(config.build(AblationConfig, tables))
    # Two purses of 20; five seeds of two rows and three of the third; the long one.
    assert told == (
        "54 trainings of at most 100 steps: 40 to tune 2 objectives, 13 of 3 rows, and one of 400 steps"
    )
    more = tables | {"tuning": {"trainings": 20, "most": 26}}
    assert "40 to tune 2 objectives (up to 52 where" in ablation.plan_line(config.build(AblationConfig, more))
    given = [one | {"learning_rates": [1e-4], "betas": []} for one in tables["objectives"]]
    told = ablation.plan_line(config.build(AblationConfig, tables | {"objectives": given, "along": None}))
    assert told == "13 trainings of at most 100 steps: 0 to tune 2 objectives, 13 of 3 rows"


@pytest.mark.parametrize(("most", "each"), [(None, 10), (11, 11), (40, 16)])
def test_purses_grow_together_until_every_best_lies_inside(most: int | None, each: int) -> None:
    """The one's best is within the grid, the other's two factors beyond it on both axes: nine lead to (2, 2), the tenth
    is (3, 2), and about that, and then about (3, 3), three each are missing."""
    grid, tops = Grid((1e-4, 4e-4), (10.0, 100.0)), {"near": (0, 1), "far": (3, 3)}
    searches = {name: ablation.Search(grid) for name in tops}
    for due in ablation._rounds(searches, TuningConfig(trainings=10, most=most, seeds=1)):
        for name, trial in due:
            off = [place - top for place, top in zip(trial[0], tops[name], strict=True)]
            searches[name].done[trial] = [-float(sum(value**2 for value in off))]
    assert {name: len(one.done) for name, one in searches.items()} == {"near": each, "far": each}
    chosen = choose(grid, searches["far"].done, 1)
    assert (chosen.place, chosen.inside) == (((3, 3), True) if most == 40 else (chosen.place, False))


NAN = float("nan")


def trial(bench: Bench, name: str, cpu_minutes: float, *values: list[list[float]]) -> None:
    """A finished training that was measured after each step, or every second of the long one."""
    every = 2 if name.startswith("along") else 1
    points = [
        {
            "step": every * n,
            "values": {"checker": each, "shapes-mps": each},
            "undrawn": np.flatnonzero(np.isnan(each)).tolist(),
        }
        for n, each in enumerate(values, 1)
    ]
    folder = Path(bench.output.path, "trials", name)
    folder.mkdir(parents=True)
    told = {"failed": None, "cpu_minutes": cpu_minutes, "points": points}
    (folder / "trial.json").write_text(json.dumps(told))


@pytest.fixture
def trained(tmp_path: Path) -> Bench:
    """An ablation of one row of two seeds, whose trainings are all finished: two that tune, and a long one.

    It measures two validation prompts and two held-out ones, a picture each. One picture failed of the first that
    tunes, one of the long one at its last measurement; of the dataset's one generator, one in ten.
    """
    tables = config.read_toml(FILE) | {"output": str(tmp_path / "o"), "seeds": 2, "parallel": 1, "curves": []}
    tables["tuning"] = {"trainings": 2, "seeds": 1}
    tables["objectives"] = [{"name": "sft", "objective": {"name": "sft"}, "learning_rates": [1e-4, 4e-4]}]
    tables["rows"] = [{"name": "sft", "label": "SFT", "objective": "sft", "tables": ["5"]}]
    tables["along"] = {"row": "sft", "steps": 4, "every": 2}
    tables["training"]["steps"] = 1
    for part in ("validation", "held_out"):
        tables[part] |= {"samples": 1}
        tables[part]["prompts"]["limit"] = 2
    settings = config.build(AblationConfig, tables)
    output = place.open_output(settings.output, in_job=False)
    output.make()
    bench = Bench(
        settings, output, "/d", lambda line: None, ablation._prompts_of(settings), {"synpic": ({"x": 3}, 0.1)}
    )
    beta = settings.tuned("sft").first[1]
    trial(bench, f"sweep-sft-lr0.0001-beta{beta:g}-seed0", 10.0, [[1.0], [NAN]])
    trial(bench, f"sweep-sft-lr0.0004-beta{beta:g}-seed0", 10.0, [[1.0], [0.0]])
    for part, drawn in (("validation", settings.validation), ("held_out", settings.held_out)):
        trial(bench, start_name(settings, drawn, tuple(bench.prompts[part])), 1.0, [[0.0], [0.0]])
    trial(bench, "sft-seed0", 20.0, [[1.0], [0.0]])
    trial(bench, "sft-seed1", 20.0, [[1.0], [1.0]])
    trial(bench, "along-sft", 40.0, [[1.0], [1.0]], [[NAN], [1.0]])
    return bench


DATASET = {"rows": 10, "candidates": 40, "generators": [], "rewards": []}


def test_what_failed_in_its_parts_is_its_own(trained: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    info = ablation._made(trained, DATASET)
    assert info["failures"] == {
        "total": 5,
        "by_part": {
            "synpic": {"x": 3},
            f"trials/sweep-sft-lr0.0001-beta{info['sweep'][0]['trials'][0]['beta']:g}-seed0": {
                "shapes-sdxl": 1
            },
            "trials/along-sft": {"shapes-sdxl": 1},
        },
        "worst_share": 0.5,
        "tolerance": 0.01,
    }
    settings = trained.config
    revision, prompts = ablation.check(settings, settings.output)
    contents = {f"{name}.contents": place.prompts_digest(rows) for name, rows in prompts.items()}
    told = {**info, "identity": place.identity_of(settings, {"model": revision}, contents)}
    store.write_json(trained.output.at("ablation.json"), told, trained.output.fs)
    assert cli._ablate(settings).code == 3
    said = "ablate: 50.0% of a model's items failed, more than execution.tolerance = 0.01 allows; ablation.json counts"
    assert said in capsys.readouterr().err


def test_the_time_is_of_all_trainings(trained: Bench) -> None:
    """Two of 10 minutes that tune, two of 20 of the row, one of 40 along it; the start, in one each, on two parts."""
    info = ablation._made(trained, DATASET)
    assert info["rows"][0]["cpu_minutes"] == 40.0
    assert info["cpu_minutes"] == 2 * 10.0 + 2 * 20.0 + 40.0 + 2 * 1.0
    assert "102.0 CPU minutes of all trainings" in "\n".join(summary.ablated(info, "/a", 60.0))


def test_categories_are_those_of_the_prompts_whose_values_they_stand_beside(
    trained: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs give values in the order of the prompts' ids, which is not the file's."""
    came = Outcome(("one red circle", "two blue squares"), {1: {"checker": np.array([[1.0], [0.0]])}}, 1.0)
    turned = Outcome(came.prompts[::-1], {1: {"checker": np.array([[0.0], [1.0]])}}, 1.0)
    found = []
    for outcome in (came, turned):
        monkeypatch.setattr(
            ablation,
            "outcomes",
            lambda bench, trials, part, one=outcome: dict.fromkeys((START, *trials), one),
        )
        figures = ablation._figures(trained, DATASET, {"sft": ablation.Setting(1e-4, 1.0, 1)}, None)
        assert figures["settings"]["held_out"]["prompts"] == 2
        found.append((figures["start"]["categories"], figures["rows"][0]["categories"]))
    assert found[0] == found[1]
    assert sorted(found[0][0].values()) == [0.0, 1.0]
