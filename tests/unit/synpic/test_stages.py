"""The ranking of a block, without a cluster."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from rankray import schema
from rankray.cluster.actors import GENERATED_TYPE, SCORED_TYPE, Actors, JobContext, Stage
from rankray.config import (
    ConfigError,
    GeneratorChoice,
    ImagesConfig,
    RewardChoice,
    SynPicConfig,
    build,
)
from rankray.data import place
from rankray.models import generators
from rankray.synpic import job, stages


def context() -> JobContext:
    return JobContext(
        seed=0,
        images=ImagesConfig(),
        output="",
        generators=(("one", 2), ("two", 1)),
        rewards=("r", "s"),
        abort_after=1,
        meter=None,
    )


def entry(seed: int, error: str | None = None) -> dict:
    image = None if error else b"png"
    size = None if error else 8
    return {"seed": seed, "image": image, "path": None, "width": size, "height": size, "error": error}


def test_rank_block_by_hand() -> None:
    table = pa.table(
        {
            "prompt_id": ["a", "b"],
            "prompt": ["A", "B"],
            "generated:one": pa.array(
                [[entry(1), entry(2)], [entry(4), entry(5, "ValueError: no")]], GENERATED_TYPE
            ),
            "generated:two": pa.array([[entry(3)], [entry(6)]], GENERATED_TYPE),
            "scored:r": pa.array(
                [
                    [{"score": 1.0}, {"score": 3.0}, {"score": 2.0}],
                    [{"score": 1.0}, {"score": math.nan}, {"score": math.nan, "error": "ValueError: nan"}],
                ],
                SCORED_TYPE,
            ),
            "scored:s": pa.array(
                [
                    [{"score": 5.0}, {"score": 5.0}, {"score": 4.0}],
                    [{"score": 0.5}, {"score": math.nan}, {"score": 0.25}],
                ],
                SCORED_TYPE,
            ),
        }
    )
    out = stages.rank_block(
        table,
        context=context(),
        schema_out=schema.ranked_schema({"one": "x", "two": "y"}, {"r": "", "s": ""}),
    )
    first, second = (row["candidates"] for row in out.to_pylist())
    assert [c["generator"] for c in first] == ["one", "one", "two"]
    # Wins of 4 comparisons: one/0 beats two in s; one/1 beats both in r and two in s; two beats one/0 in r.
    assert [c["win_probability"] for c in first] == [0.25, 0.75, 0.25]
    assert [c["rank"] for c in first] == [2, 1, 3]
    assert [c["error"] for c in first] == [None] * 3
    # In b only reward s compares one/0 with two; one/1 has no image.
    assert [c["rank"] for c in second] == [1, 0, 2]
    assert [c["win_probability"] for c in second][::2] == [1.0, 0.0]
    assert math.isnan(second[1]["win_probability"])
    assert second[1]["image"] is None
    assert [c["error"] for c in second] == [None, "ValueError: no", "r: ValueError: nan"]
    assert schema.schema_names(out.schema) == ({"one": "x", "two": "y"}, {"r": "", "s": ""})


def test_a_threshold_leaves_candidates_out_and_keeps_their_scores() -> None:
    """s asks for 0.5: of A's three the last is out; of B's, one is low and one could not be scored."""
    scores = {"r": [[1.0, 3.0, 9.0], [1.0, 2.0, 3.0]], "s": [[0.5, 0.9, 0.4], [0.75, math.nan, 0.1]]}
    scored = {
        f"scored:{name}": pa.array(
            [
                [{"score": s, "error": "ValueError: no" if math.isnan(s) else None} for s in row]
                for row in rows
            ],
            SCORED_TYPE,
        )
        for name, rows in scores.items()
    }
    drawn = {
        "generated:one": pa.array([[entry(1), entry(2)], [entry(4), entry(5)]], GENERATED_TYPE),
        "generated:two": pa.array([[entry(3)], [entry(6)]], GENERATED_TYPE),
    }
    table = pa.table({"prompt_id": ["a", "b"], "prompt": ["A", "B"], **drawn, **scored})
    out = stages.rank_block(
        table,
        context=replace(context(), least={"s": 0.5}),
        schema_out=schema.ranked_schema({"one": "x", "two": "y"}, {"r": "", "s": ""}),
    )
    first, second = (row["candidates"] for row in out.to_pylist())
    assert [c["rank"] for c in first] == [2, 1, 0]
    assert [c["win_probability"] for c in first][:2] == [0.0, 1.0]
    assert math.isnan(first[2]["win_probability"])
    assert first[2]["scores"] == [9.0, pytest.approx(0.4)]
    assert [c["error"] for c in first] == [None, None, "s: 0.4 is below least = 0.5: left out of the ranking"]
    assert [c["score_errors"] for c in first] == [[None, None]] * 3
    assert [c["rank"] for c in second] == [0, 0, 0], "one that is alone has nothing to be compared with"
    assert second[1]["error"] == "s: ValueError: no"


@pytest.mark.parametrize(
    ("model", "source", "licence"),
    [
        ("sdxl", None, "openrail++"),
        ("sdxl", "someone/xl", None),
        ("shapes-sd3", None, "apache-2.0"),
        ("imagereward", None, "apache-2.0"),
        ("imagereward", "someone/own", None),
    ],
)
def test_a_dataset_says_the_licence_of_the_weights_that_ran(
    model: str, source: str | None, licence: str | None
) -> None:
    """A row's licence is of its own weights, and another source has none that anybody read."""
    kind = "reward" if model == "imagereward" else "generator"
    choice = {"reward": RewardChoice, "generator": GeneratorChoice}[kind](model=model, source=source)
    made = Stage(kind, stages._resolve(choice, look_up=False), Actors(1, 1, 1.0, 0.0))
    assert job._described(choice, made)["licence"] == licence


def models(of_row: int, **sdxl: object) -> tuple[SynPicConfig, list[Stage]]:
    """A job and its models, by a table whose SDXL takes so many steps."""
    tables = {
        "prompts": {"path": "p.txt"},
        "generators": [{"model": "sdxl", **sdxl}, {"model": "a.b:C", "options": {"size": 4}}],
        "rewards": [{"model": "hpsv2.1"}, {"model": "vqascore"}],
        "output": "/o",
    }
    settings = build(SynPicConfig, tables)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(generators.GENERATORS, "sdxl", replace(generators.GENERATORS["sdxl"], steps=of_row))
        patch.setattr("importlib.util.find_spec", lambda name: object())
        return settings, stages.stages_of(settings, look_up=False)


def test_what_a_row_decides_is_part_of_the_identity(tmp_path: Path) -> None:
    """The configuration says of it None, whatever a release has in its row: old and new pictures were taken together.
    What the configuration says stands there once; weights are told by their revisions."""
    settings, plan = models(50, guidance=6.0, options={"call": {"guidance_rescale": 0.7}})
    identity = stages.identity_of(settings, plan)
    own = {key: value for key, value in identity.items() if "run_with" in key}
    assert own["generators.0.run_with.steps"] == 50
    assert own["generators.0.run_with.scheduler"] is None
    assert own["generators.0.run_with.load"] == {"add_watermarker": False}
    assert own["generators.0.run_with.call"] == {"guidance_rescale": 0.7}
    assert (own["rewards.0.run_with.dtype"], own["rewards.0.run_with.antialias"]) == ("float32", False)
    assert own["rewards.1.run_with.model"] == "clip-flant5-xxl"
    names = {key.partition("run_with.")[2] for key in own}
    assert names.isdisjoint(
        {"guidance", "source", "revision", "batch_size", "tokenizer", "tokenizer_revision"}
    )
    assert not any(key.startswith("generators.1.") for key in own)

    output = place.open_output(str(tmp_path / "o"), in_job=False)
    place.claim(output, "dataset.json", identity, settings)
    later, changed = models(28, guidance=6.0, options={"call": {"guidance_rescale": 0.7}})
    with pytest.raises(ConfigError) as caught:
        place.claim(output, "dataset.json", stages.identity_of(later, changed), later)
    assert str(caught.value).splitlines()[1:] == ["  generators.0.run_with.steps: 50 there, 28 here"]


def test_what_earlier_versions_began_goes_on(tmp_path: Path) -> None:
    settings, plan = models(28)
    output = place.open_output(str(tmp_path / "o"), in_job=False)
    revisions = {stage.target.name: stage.target.revision for stage in plan}
    place.claim(output, "dataset.json", place.identity_of(settings, revisions), settings)
    place.claim(output, "dataset.json", stages.identity_of(settings, plan), settings)


def test_a_dataset_says_what_its_models_were_run_with() -> None:
    settings, plan = models(28, steps=30)
    drawn, own, *_ = [
        job._described(choice, stage) for choice, stage in zip(settings.generators, plan[:2], strict=True)
    ]
    told = {key: drawn["run_with"][key] for key in ("steps", "guidance", "height", "dtype", "scheduler")}
    assert told == {"steps": 30, "guidance": 5.0, "height": 1024, "dtype": "float16", "scheduler": None}
    assert "run_with" not in own, "a class of the user's has its options in the identity"
