"""What a word names: rows, pipelines, runs, checkpoints; and what is none of them."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from rankray.cli import parse_evaluate
from rankray.config import ConfigError, GeneratorChoice
from rankray.config.evaluate import EvaluatedModel
from rankray.config.rankdpo import RankDPOConfig
from rankray.data import place as output
from rankray.evals import job as evaluate
from rankray.evals import models as evaluated_models
from rankray.evals import results
from rankray.evals.models import Model, parse, resolve
from rankray.rankdpo.train_job import SNAPSHOT, CheckpointState, RunState


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run's directory, with one checkpoint; its pipeline's weights are left out."""
    place = tmp_path / "my run"
    checkpoint = place / "checkpoints" / "checkpoint_1"
    checkpoint.mkdir(parents=True)
    (place / "pipeline").mkdir()
    settings = RankDPOConfig(dataset="/d", output="/o", model=GeneratorChoice(model="shapes-sdxl", steps=7))
    (place / "config.toml").write_text(tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)))
    (place / "run.json").write_text(json.dumps({"steps": 60}))
    (place / "pipeline" / "model_index.json").write_text("{}")
    (checkpoint / "state.json").write_text(json.dumps(asdict(CheckpointState(RunState(50), (), {}))))
    snapshot: dict[str, Any] = {"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1"}]}
    (place / "checkpoints" / SNAPSHOT).write_text(json.dumps(snapshot))
    return place


def found(text: str) -> Model:
    return resolve(parse(text), {})


def test_a_row_and_a_row_on_weights_of_its_own(run: Path) -> None:
    assert (found("shapes-sd3").name, found("shapes-sd3").choice.source) == ("shapes-sd3", None)
    tuned = found(f"shapes-sdxl@{run}/pipeline")
    assert (tuned.name, tuned.choice.model, tuned.choice.source) == (
        "my-run",
        "shapes-sdxl",
        f"{run}/pipeline",
    )
    assert found(f"tuned=shapes-sdxl@{run}/pipeline").name == "tuned"
    assert found("toy_models:Noise").choice.model == "toy_models:Noise"


def test_a_run_says_its_row_and_settings_by_itself(run: Path) -> None:
    for text in (str(run), f"{run}/", f"{run}/pipeline"):
        model = found(text)
        assert (model.name, model.step, model.checkpoint) == ("my-run", 60, None)
        assert (model.choice.model, model.choice.steps) == ("shapes-sdxl", 7)
        assert model.choice.source == f"{run}/pipeline"


def test_a_checkpoint_is_to_be_written_out(run: Path) -> None:
    place = f"{run}/checkpoints/checkpoint_1"
    model = found(place)
    assert (model.name, model.step, model.checkpoint) == ("my-run-step-000050", 50, place)
    assert model.choice.source is None
    assert [asked.model for asked in evaluated_models.checkpoints(str(run))] == [place]


def test_what_was_written_out_outlives_its_checkpoint(run: Path, tmp_path: Path) -> None:
    place = output.open_output(str(tmp_path / "o"), in_job=False)
    place.make("pipelines")
    kept = {"name": "step-50", "asked": f"{run}/checkpoints/gone", "step": 50}
    kept["choice"] = {"model": "shapes-sdxl", "source": str(run / "pipeline")}
    (tmp_path / "o" / "pipelines" / "step-50.json").write_text(json.dumps(kept))
    written = evaluated_models.written(place)
    model = resolve(parse(f"{run}/checkpoints/gone"), written)
    assert (model.name, model.step, model.checkpoint) == ("step-50", 50, None)
    assert model.choice.source == str(run / "pipeline")


def test_a_place_is_one_however_it_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slash at its end, from here, from home: the same checkpoint, and the same baseline."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    within = f"{run.name}/checkpoints/checkpoint_1"
    ways = [f"{tmp_path}/{within}", f"{tmp_path}/{within}/", f"~/{within}", f"../{within}", f".././{within}/"]
    (tmp_path / "o" / "pipelines").mkdir(parents=True)
    for kept_as in ways:
        first = found(kept_as)
        assert first.run is not None
        kept = json.dumps(evaluated_models._kept(first, first.run, "/o/pipelines/x"))
        (tmp_path / "o" / "pipelines" / f"{first.name}.json").write_text(kept)
        written = evaluated_models.written(output.open_output(str(tmp_path / "o"), in_job=False))
        for way in ways:
            asked, again = parse(way), resolve(parse(way), written)
            assert (again.checkpoint, again.choice.source) == (None, "/o/pipelines/x")
            evaluated_models.check_kept([found(way)], written)
            assert evaluated_models.named(kept_as, [asked], [again]) == again.name
            assert evaluated_models.steps("../my run/", [again]) == {50}
    monkeypatch.chdir(tmp_path)
    assert resolve(parse(ways[0]), written).choice.source == "/o/pipelines/x"
    assert {evaluated_models.run_of(found(way)) for way in (*ways[:3], f"{run.name}/")} == {str(run)}
    weights = [parse(f"shapes-sdxl@../{run.name}/pipeline/"), parse("./shapes-sdxl")]
    monkeypatch.chdir(tmp_path / "here")
    models = [resolve(weights[0], {}), found("shapes-sd3")]
    assert evaluated_models.named(f"shapes-sdxl@{run}/pipeline", weights, models) == "my-run"
    assert evaluated_models.named("shapes-sdxl", weights, models) is None, "a row is no directory of its name"


def test_settings_asked_for_a_checkpoint_are_asked_for_once_it_is_a_pipeline_too(
    run: Path, tmp_path: Path
) -> None:
    """The run draws by 7 steps at its row's guidance, and what it was first asked for is not its own."""
    place, output_ = f"{run}/checkpoints/checkpoint_1", tmp_path / "o" / "pipelines"
    first = resolve(EvaluatedModel(model=place, guidance=9.0), {})
    assert (first.choice.steps, first.choice.guidance) == (7, 9.0)
    assert first.run is not None
    output_.mkdir(parents=True)
    kept = evaluated_models._kept(first, first.run, "/o/pipelines/x")
    (output_ / f"{first.name}.json").write_text(json.dumps(kept))
    found = evaluated_models.written(output.open_output(str(tmp_path / "o"), in_job=False))
    again = resolve(EvaluatedModel(model=place, guidance=9.0), found)
    assert again.settings == first.settings
    assert (again.choice.source, again.checkpoint) == ("/o/pipelines/x", None)
    other = resolve(EvaluatedModel(model=place, steps=20, batch_size=3), found)
    assert (other.choice.steps, other.choice.guidance, other.choice.batch_size) == (20, None, 3)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("shapes-sdlx", "unknown model 'shapes-sdlx' (did you mean 'shapes-sdxl'?)"),
        ("/nowhere/at/all", "no model at /nowhere/at/all"),
        ("{run}/checkpoints", "holds no pipeline"),
        ("shapes-sdxl@{run}/checkpoints", "holds no pipeline: it has no model_index.json"),
        ("shapes-sdxl@file://{run}/p", "/p holds no pipeline: it has no model_index.json"),
    ],
)
def test_what_is_no_model_is_named(run: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        found(text.format(run=run))
    assert told in str(error.value)


def test_an_unfinished_run_a_bare_pipeline_and_a_run_without_one_are_refused(run: Path) -> None:
    (run / "pipeline" / "model_index.json").rename(run / "model_index.json")
    with pytest.raises(ConfigError, match="has no pipeline; put its directory"):
        found(str(run))
    (run / "run.json").unlink()
    with pytest.raises(ConfigError, match=r"does not say which row .* write ROW@"):
        found(str(run))
    (run / "model_index.json").unlink()
    with pytest.raises(
        ConfigError, match="is not finished: name one of its checkpoints, or take it by --follow"
    ):
        found(str(run))
    with pytest.raises(ConfigError, match="is no run of rankray rankdpo"):
        evaluated_models.check_run(str(run / "checkpoints"), [])


def test_what_is_followed_has_its_names_for_itself(run: Path) -> None:
    for name in ("my-run", "my-run-step-000050"):
        other = resolve(parse(f"{name}=shapes-sd3"), {})
        with pytest.raises(ConfigError, match=f"'{name}' .shapes-sd3. has the name of what is followed"):
            evaluated_models.check_run(str(run), [other])
    evaluated_models.check_run(str(run), [found(str(run)), found("shapes-sd3")])


def test_a_kept_pipeline_is_not_written_over_by_another_checkpoint(run: Path, tmp_path: Path) -> None:
    place, other = f"{run}/checkpoints/checkpoint_1", tmp_path / "again" / run.name
    shutil.copytree(run, other)
    kept = {place: found(place)}
    evaluated_models.check_kept([found(place), found("shapes-sd3")], kept)
    with pytest.raises(ConfigError, match=r"'my-run-step-000050' is .* in this output, and .* is another"):
        evaluated_models.check_kept([found(f"{other}/checkpoints/checkpoint_1")], kept)


def test_steps_are_those_of_one_run(run: Path) -> None:
    models = [found(str(run)), found(f"{run}/checkpoints/checkpoint_1"), found("shapes-sd3")]
    assert evaluated_models.steps(str(run), models) == {50, 60}
    assert evaluated_models.steps(f"{run}-2", models) == set()
    assert [evaluated_models.run_of(model) for model in models] == [str(run), str(run), None]
    assert evaluated_models.run_of(found(f"{run}/pipeline")) == str(run)


def checked(run: Path, *words: str) -> evaluate.Plan:
    prompts = ("--evals", "shapes", "--prompts.shapes", "shapes:heldout", "--prompts.shapes.limit", "2")
    return evaluate.check(parse_evaluate(["--output", str(run.parent / "o"), *prompts, *words]))


def test_a_baseline_in_a_folder_of_the_same_name_pushes_no_model_out(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "before" / run.name
    shutil.copytree(run, other)
    with pytest.raises(ConfigError, match="models: 'my-run' stands twice; give one another name"):
        checked(run, "--model", str(run), "--baseline", str(other))
    plan = checked(run, "--model", str(run), "--baseline", f"before={other}")
    assert [(model.name, model.asked) for model in plan.models] == [
        ("before", str(other)),
        ("my-run", str(run)),
    ]
    assert plan.baseline == "before"


def test_a_baseline_is_one_of_the_models_by_name_or_by_what_was_asked(run: Path) -> None:
    steps = f'[{{model="{run}", steps=20}}, {{model="shapes-sd3", name="a b"}}]'
    plan = checked(run, "--models", steps, "--baseline", str(run))
    assert (plan.baseline, len(plan.models), plan.models[0].choice.steps) == ("my-run", 2, 20)
    assert checked(run, "--models", steps, "--baseline", "a b").baseline == "a-b"


def test_another_file_under_the_same_name_is_another_evaluation(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    words = ("--model", "shapes-sdxl", "--metrics", '[{model="shapes-mps"}]', "--prompts.mine", str(file))
    file.write_text("a red circle\na blue star\n")
    first = checked(run, *words).contents
    assert checked(run, *words).contents == first
    file.write_text("a red circle\na green star\n")
    other = checked(run, *words).contents
    assert {key for key in first if first[key] != other[key]} == {"prompts.mine.contents"}


def test_weights_that_nobody_can_find_are_refused_before_anything_is_drawn(run: Path) -> None:
    with pytest.raises(ConfigError, match="stabilityai/stable-diffusion-xl-base"):
        checked(run, "--model", "shapes-sdxl", "--model", "sdxl")


@pytest.mark.parametrize("marker", ["dataset.json", "_work/identity.json"])
def test_a_name_that_was_another_models_is_refused(run: Path, marker: str) -> None:
    place = run.parent / "o" / "sets" / "shapes-sdxl" / "shapes" / marker
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"identity": {"revision.model": "sha256:another"}}))
    with pytest.raises(
        ConfigError, match=r"'shapes-sdxl' was measured here with other weights .sha256:another"
    ):
        checked(run, "--model", "shapes-sdxl")
    assert [model.name for model in checked(run, "--model", "now=shapes-sdxl").models] == ["now"]


@pytest.mark.parametrize("marker", ["dataset.json", "_work/identity.json"])
def test_a_model_that_was_measured_by_other_settings_is_refused(run: Path, marker: str) -> None:
    """One line says which; pictures a prompt are the list's to tell, and pools change nothing."""

    def asked(settings: str) -> tuple[str, ...]:
        return ("--models", f'[{{model="shapes-sdxl", options={{vae_tiling=true}}, {settings}}}]')

    plan = checked(run, *asked("guidance=5.0"))
    settings = evaluate._settings(plan, plan.models[0], plan.lists[0])
    place = run.parent / "o" / "sets" / "shapes-sdxl" / "shapes" / marker
    place.parent.mkdir(parents=True)
    revision = plan.models[0].target.revision
    place.write_text(json.dumps({"identity": {**settings.identity(), "revision.model": revision}}))
    assert (
        checked(run, *asked("guidance=5, batch_size=3"), "--prompts.shapes.samples", "3")
        .models[0]
        .choice.batch_size
        == 3
    )
    begun = json.loads(place.read_text())["identity"]
    for steps, fault in ((12, None), (20, r"other settings .run_with.steps: 20 there, 12 here.;")):
        place.write_text(json.dumps({"identity": {**begun, "generators.0.run_with.steps": steps}}))
        with pytest.raises(ConfigError, match=fault) if fault else contextlib.nullcontext():
            checked(run, *asked("guidance=5.0"))
    place.write_text(json.dumps({"identity": begun}))
    with pytest.raises(ConfigError) as error:
        checked(run, *asked('guidance=9, dtype="float16"'))
    assert str(error.value) == (
        "'shapes-sdxl' was measured here with other settings (dtype: None there, 'float16' here; guidance: 5.0 there, "
        "9.0 here); give it a name of its own, as in NAME=shapes-sdxl, or take another output"
    )


def test_an_evaluation_is_complete_only_for_the_settings_that_it_measured(run: Path) -> None:
    """Its pictures may be gone; what results.json had not told before counts as it did."""
    plan = checked(run, "--models", '[{model="shapes-sdxl", steps=4}]')
    (run.parent / "o").mkdir()
    marker = run.parent / "o" / "results.json"
    entry = results.described(
        plan.models[0], {"revision": plan.models[0].target.revision, "run_with": {"guidance": 2.5}}
    )
    assert entry["settings"]["steps"] == 4
    assert entry["run_with"] == {"guidance": 2.5}
    info = {"baseline": None, "models": [entry]}
    marker.write_text(json.dumps(info))
    assert evaluate._measured_already(plan) == info
    other = checked(run, "--models", '[{model="shapes-sdxl", steps=5}]')
    assert evaluate._measured_already(other) is None
    del entry["settings"]
    marker.write_text(json.dumps(info))
    assert evaluate._measured_already(other) == info
