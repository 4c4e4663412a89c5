"""What an evaluation's command line and TOML make, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankray import config
from rankray.cli import parse_evaluate
from rankray.config import ConfigError
from rankray.config.evaluate import LABEL, EvaluateConfig

JOBS = Path(__file__).parents[3] / "jobs"
LEAST = (
    "--output",
    "/o",
    "--model",
    "shapes-sdxl",
    "--evals",
    "shapes",
    "--prompts.shapes",
    "shapes:heldout",
)


@pytest.mark.parametrize("path", sorted(JOBS.glob("evaluate*.toml")), ids=lambda path: path.stem)
def test_job_files_are_valid(path: Path) -> None:
    found = config.build(EvaluateConfig, config.read_toml(path))
    assert found.baseline in [model.label for model in found.models]


def test_short_words_make_models_evals_and_lists() -> None:
    found = parse_evaluate(
        [
            *("--output", "/o", "--model", "shapes-sdxl", "--model=tuned=shapes-sdxl@/data/p"),
            *(
                "--baseline",
                "shapes-sdxl",
                "--evals",
                "shapes,shapes-mps",
                "--prompts.shapes",
                "shapes:heldout",
            ),
            *("--prompts.shapes.limit", "7", "--prompts.mine", "/data/1e5.txt", "--seed", "3"),
        ]
    )
    assert [(m.model, m.name, m.source) for m in found.models] == [
        ("shapes-sdxl", None, None),
        ("shapes-sdxl", "tuned", "/data/p"),
    ]
    assert ([e.model for e in found.evals], [m.model for m in found.metrics]) == (["shapes"], ["shapes-mps"])
    assert found.prompts["shapes"].limit == 7
    assert found.prompts["mine"].path == "/data/1e5.txt"
    assert found.seed == 3


def test_evals_choose_among_those_of_the_file_and_keep_their_settings() -> None:
    found = parse_evaluate(
        ["--config", str(JOBS / "evaluate-shapes.toml"), "--evals", "shapes-pickscore,shapes-mps"]
    )
    assert found.evals == ()
    assert [metric.model for metric in found.metrics] == ["shapes-pickscore", "shapes-mps"]
    assert found.prompts["shapes"].samples == 2


def test_a_list_that_an_option_adds_is_every_metrics_and_one_that_is_left_over_goes() -> None:
    tiny = ("--config", str(JOBS / "evaluate-tiny.toml"))
    found = parse_evaluate([*tiny, "--prompts.mine", "/data/mine.txt"])
    assert {metric.on for metric in found.metrics} == {("dpg", "mine")}
    found = parse_evaluate([*tiny, "--evals", "geneval,qalign"])
    assert list(found.prompts) == ["geneval", "dpg"]
    # Nobody's wish is overruled: both lists have a metric.
    metrics = '[{model="shapes-mps", on=["one"]}, {model="shapes-pickscore", on=["two"]}]'
    found = parse_evaluate([*LEAST, "--metrics", metrics, "--prompts.one", "/1", "--prompts.two", "/2"])
    assert [metric.on for metric in found.metrics] == [("one",), ("two",)]


def test_a_list_that_nothing_judges_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "e.toml"
    file.write_text((JOBS / "evaluate-tiny.toml").read_text() + '\n[prompts.mine]\npath = "/data/mine.txt"\n')
    with pytest.raises(ConfigError, match=r"prompts\.mine: nothing judges this list"):
        parse_evaluate(["--config", str(file)])
    with pytest.raises(ConfigError) as error:
        parse_evaluate([*LEAST, "--prompts.shape", "/data/mine.txt"])
    assert "prompts.shape: nothing judges this list (did you mean 'shapes'?); benchmarks: shapes" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--evals", "genval"), "unknown eval 'genval' (did you mean 'geneval'?)"),
        (("--evals", "geneval"), "benchmark 'geneval' has no prompts: give --prompts.geneval PATH"),
        (
            ("--prompts.shapes.limits", "3"),
            "unknown option '--prompts.shapes.limits' (did you mean 'limit'?)",
        ),
        (("--model", ""), "option '--model' needs a value"),
        (("--modle", "x"), "unknown option '--modle' (did you mean 'models'?)"),
        (("--metrics", '[{model="shapes-mps", on=["shape"]}]'), "is on 'shape' (did you mean 'shapes'?)"),
        (("--metrics", f'[{{model="shapes-mps", name="{LABEL}"}}]'), "is what pictures are filed under"),
        (("--models", '[{model="shapes-sdxl", samples=2}]'), "give prompts.NAME.samples"),
        (("--models", '[{model="shapes-sdxl", seed_name="x"}]'), "all models draw from the same seeds"),
        (("--metrics", "foo"), "metrics = 'foo': give tables, such as [{model = \"vqascore\"}]"),
        (("--prompts", "foo"), "prompts = 'foo': give each list a name"),
    ],
)
def test_what_is_wrong_is_one_line(options: tuple[str, ...], told: str) -> None:
    own = [word for word in LEAST if "--models" not in options or word not in ("--model", "shapes-sdxl")]
    with pytest.raises(ConfigError) as error:
        parse_evaluate([*own, *options])
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_no_model_and_nothing_to_measure_by_are_refused() -> None:
    with pytest.raises(ConfigError, match="no model: give --model"):
        parse_evaluate(["--output", "/o", "--evals", "shapes", "--prompts.shapes", "shapes:heldout"])
    with pytest.raises(ConfigError, match="nothing to measure by: give --evals"):
        parse_evaluate(["--output", "/o", "--model", "shapes-sdxl"])


def test_every_models_set_is_drawn_under_one_label_by_one_setting() -> None:
    found = parse_evaluate([*LEAST, "--model", "tuned=shapes-sdxl@/data/p", "--prompts.shapes.samples", "1"])
    sets = [
        found.set_config(f"/o/{model.label}", "shapes", model, 1, found.evals, {"shapes": "digest"})
        for model in found.models
    ]
    assert {one.generators[0].label for one in sets} == {LABEL}
    assert sets[0].k == 1
    assert [scorer.label for scorer in sets[0].scorers] == ["shapes"]
    first, second = (one.identity() for one in sets)
    assert {key for key in first if first[key] != second[key]} == {"generators.0.source"}
    assert not any("pool" in key or "batch_size" in key for key in first)


def test_models_are_no_part_of_what_makes_figures_comparable() -> None:
    one, two = (parse_evaluate([*LEAST, *more]) for more in ((), ("--model", "shapes-sd3")))
    assert one.identity() == two.identity()
    assert one.identity() != parse_evaluate([*LEAST, "--seed", "9"]).identity()
