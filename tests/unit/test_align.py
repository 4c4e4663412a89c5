"""What an alignment says before it begins, and what it makes of its finished parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_dataset

from rankray import align, cli, config, store
from rankray.config import ConfigError, SynPicConfig
from rankray.config.rankdpo import AlignConfig
from rankray.data import place
from rankray.data.prompts import read_prompts
from rankray.models import generators, rewards
from rankray.verbs.status import status

GOLDEN = Path(__file__).parents[1] / "golden"
DEMO = Path(__file__).parents[2] / "jobs" / "align-demo.toml"


def test_it_says_what_it_is_about_to_do() -> None:
    settings = config.build(AlignConfig, config.read_toml(str(DEMO)))
    assert align.opening(settings, "/o").splitlines() == [
        "shapes-sdxl in 1 round, into /o",
        "  prompts   up to 200 of shapes:train, held out up to 300 of shapes:heldout",
        "  draws     shapes-sdxl, shapes-sd3, shapes-pixart, shapes-cascade",
        "  ranks     shapes-pickscore, shapes-clipscore, shapes-mps",
        "  trains    120 steps of 64 prompts, rank_dpo, 2 workers",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generators": [{"model": "shapes-sdxl"}]}, "1 candidate a prompt; a ranking takes 2 to"),
        (
            {"rewards": [{"model": "shapes-mps", "name": "model"}]},
            "held out: 'model' stands among the generators and",
        ),
        ({"rewards": [{"model": "shapes-mps"}] * 2}, "rewards: 'shapes-mps' stands twice"),
    ],
)
def test_what_a_part_refuses_is_refused_with_the_whole(changes: dict[str, object], said: str) -> None:
    """Before anything is drawn, and as the file's fault."""
    with pytest.raises(ConfigError, match=said):
        config.build(AlignConfig, {**config.read_toml(str(DEMO)), **changes})


def test_what_is_learnt_from_does_not_measure(tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("a red circle\na blue square\na green ring\n")
    tables = config.read_toml(str(DEMO))
    tables["held_out"]["prompts"] = {"path": str(prompts)}
    tables["training"]["validation"] = {"share": 0.0}
    tables["prompts"] = {"path": str(prompts), "limit": 2}
    said = "^2 prompts of held_out.prompts also in prompts, first 'a blue square'; what a model learns from"
    with pytest.raises(ConfigError, match=said):
        align.check(config.build(AlignConfig, tables), str(tmp_path))
    other = tmp_path / "q.txt"
    other.write_text("a green ring\n")
    tables["held_out"]["prompts"] = {"path": str(other)}
    with pytest.raises(ConfigError, match=r"held_out\.prompts: one prompt says nothing of others"):
        align.check(config.build(AlignConfig, tables), str(tmp_path))
    other.write_text("a green ring\na green circle\n")
    tables["held_out"]["prompts"] = {"path": str(other)}
    align.check(config.build(AlignConfig, tables), str(tmp_path))


def test_too_few_prompts_to_validate_on_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    tables = config.read_toml(str(DEMO))
    tables["prompts"]["limit"] = 127
    said = r"^\[training\] validation would hold 64 of 127 prompts out and leave 63 to learn from; give more prompts"
    with pytest.raises(ConfigError, match=said):
        align.check(config.build(AlignConfig, tables), str(tmp_path))
    tables["prompts"]["limit"] = 128
    align.check(config.build(AlignConfig, tables), str(tmp_path))


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"labels": {"rewards": ["shapes-pikscore"]}}, r"no reward 'shapes-pikscore'.*'shapes-pickscore'"),
        ({"labels": {"samples": {"shapes-sdxl": 3}}}, r"labels\.samples\.shapes-sdxl = 3; the dataset has 1"),
        ({"labels": {"pairs": "within"}}, "compares two samples of one generator, and none take part"),
        ({"labels": {"prompt_share": 0.5}}, r"validation would hold 64 of \d+ prompts out"),
        ({"encoding": {"place": "s3:/typo"}}, "s3:/typo"),
        ({"checkpoints": {"mlflow_uri": "http://127.0.0.1:1"}}, "names a place, and no experiment"),
    ],
)
def test_what_a_training_refuses_is_refused_before_anything_is_drawn(
    tmp_path: Path, training: dict[str, Any], said: str
) -> None:
    tables = config.read_toml(str(DEMO))
    tables["training"] |= training
    with pytest.raises(ConfigError, match=rf"^\[training\] .*{said}"):
        align.check(config.build(AlignConfig, tables), str(tmp_path))


def test_rounds_go_into_a_store_too() -> None:
    """Nodes copy a URI's pipeline, whether it is a base model or a round's."""
    tables = config.read_toml(str(DEMO)) | {"rounds": 2}
    align.check(config.build(AlignConfig, tables), "s3://bucket/aligned")


@pytest.mark.parametrize("rounds", [1, 2])
def test_later_models_leave_behind_what_was_of_the_first_ones_files(rounds: int) -> None:
    """Its content's digest and its files' variant: an export has neither."""
    tables = config.read_toml(str(DEMO)) | {"rounds": rounds}
    first = {"source": "s3://b/base", "revision": f"sha256:{'0' * 64}"}
    tables["model"] |= {**first, "options": {"variant": "fp16", "fused": False}}
    tables["generators"][0] |= {**first, "options": {"variant": "fp16"}}
    settings = config.build(AlignConfig, tables)
    (drawn,) = settings.evaluation("-", "/p").generators
    later = settings.rankdpo("-", "-", "/p").model, drawn, settings.synpic("-", 2, "/p").generators[0]
    assert [(one.source, one.revision, one.options.get("variant")) for one in later] == [
        ("/p", None, None)
    ] * 3
    assert drawn.options == {"fused": False}
    assert settings.rankdpo("-", "-", None).model.revision == first["revision"]


def finished(settings: SynPicConfig, **changed: Any) -> store.RankedDataset:
    """The small dataset's rows where the job of `settings` would leave them; `changed` are keys of its summary."""
    folder, rows = Path(settings.output), read_prompts(settings.prompts).rows
    small_dataset.write(folder, {"0": rows}, dict(zip(rows, small_dataset.SCORES.values(), strict=True)))
    file = folder / "data" / "0.parquet"
    table = pq.read_table(file)
    names = [one.label for one in settings.generators for _ in range(one.samples)]
    found = table.to_pylist()
    for row in found:
        for candidate, name in zip(row["candidates"], names, strict=True):
            candidate["generator"] = name
    pq.write_table(pa.Table.from_pylist(found, table.schema), file)
    targets = [*map(generators.resolve, settings.generators), *map(rewards.resolve, settings.rewards)]
    info = json.loads((folder / "dataset.json").read_text()) | {
        "identity": place.identity_of(settings, {target.name: target.revision for target in targets}),
        "prompts": {"sha256": place.prompts_digest(rows)},
        "generators": [{"name": one.label, "samples": one.samples} for one in settings.generators],
        **changed,
    }
    (folder / "dataset.json").write_text(json.dumps(store.sealed(info)))
    return store.read(str(folder))


@pytest.fixture
def whole(tmp_path: Path) -> AlignConfig:
    """An alignment of a round whose parts are finished, for $1 and $0.50, and held-out pictures for $0.125 and $0.25.

    No picture came of one of two's three, and no score of t for one of nine; of held-out ones for one, and two.
    """
    tables = config.read_toml(str(DEMO)) | {"output": str(tmp_path / "o"), "rounds": 1}
    for name, rows in (("learnt", "a\nb\nc\n"), ("held", "d\ne\nf\n")):
        (tmp_path / name).with_suffix(".txt").write_text(rows)
    tables["prompts"] = {"path": str(tmp_path / "learnt.txt")}
    tables["held_out"] = {"prompts": {"path": str(tmp_path / "held.txt")}, "samples": 3}
    tables["generators"] = [
        {"model": "shapes-sdxl", "name": "one", "samples": 2},
        {"model": "shapes-sd3", "name": "two"},
    ]
    tables["rewards"] = [{"model": "shapes-pickscore", "name": name} for name in small_dataset.REWARDS]
    tables["training"]["validation"] = {"share": 0.0, "stop": "none"}
    settings = config.build(AlignConfig, tables)
    first, run = tmp_path / "o" / "round-1", tmp_path / "o" / "round-1" / "rankdpo"
    made = finished(settings.synpic(f"{first}/synpic", 1, None), cost={"totals": {"usd": 1.0}})
    (run / "pipeline").mkdir(parents=True)
    (run / "pipeline" / "model_index.json").write_text("{}")
    training = settings.rankdpo(made.path, str(run), None)
    of = {"model": generators.resolve(training.model).revision, "dataset": made.info["prompts"]["sha256"]}
    told = json.loads((GOLDEN / "rankdpo.json").read_text())["run.json"]
    told |= {"identity": place.identity_of(training, of), "steps": 120, "cost": {"usd": 0.5}}
    (run / "run.json").write_text(json.dumps(store.sealed(told)))
    for name, source, count in (("before", None, 1), ("round-1", f"{run}/pipeline", 2)):
        failed, cost = {"total": count, "by_model": {"t": count}}, {"totals": {"usd": 0.125 * count}}
        place_ = f"{tmp_path}/o/evaluation/{name}"
        finished(settings.evaluation(place_, source), failures=failed, cost=cost)
    return settings


def test_what_failed_in_its_parts_is_its_own(whole: AlignConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """The worst is one of the three pictures that "two" was to draw."""
    answer = cli._align(whole)
    assert answer.code == 3
    said = "align: 33.3% of a model's items failed, more than execution.tolerance = 0.01 allows; align.json counts them"
    assert said in capsys.readouterr().err
    assert json.loads(Path(whole.output, "align.json").read_text())["failures"] == {
        "total": 5,
        "by_part": {
            "evaluation/before": {"t": 1},
            "round-1/synpic": {"t": 1, "two": 1},
            "evaluation/round-1": {"t": 2},
        },
        "worst_share": pytest.approx(1 / 3),
        "tolerance": 0.01,
    }


def test_the_bill_is_of_all_that_was_drawn_and_trained(
    whole: AlignConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """In align.json, on the terminal, on the page, and by `rankray status`, which adds up the parts."""
    cli._align(whole)
    assert "took     " in (said := capsys.readouterr().out)
    assert said.partition("took     ")[2].splitlines()[0].endswith(", $1.88")
    info = json.loads(Path(whole.output, "align.json").read_text())
    assert info["cost"] == {"usd": 1.875, "before_usd": 0.125}
    assert info["rounds"][0]["evaluation_usd"] == 0.25
    page = Path(whole.output, "report.html").read_text()
    assert "All of it cost <b>$1.88</b>, of which $0.12 went into held-out pictures" in page
    assert "$1.00 for the dataset, $0.50 for the training, $0.25 for held-out pictures." in page
    assert status(whole.output)["usd"] == 1.875
