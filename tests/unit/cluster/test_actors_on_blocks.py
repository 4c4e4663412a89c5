"""Generators and rewards on blocks of prompts, as a pipeline calls them: bad items, formats, reuse, broken models."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from local_meter import LocalMeter, answering
from PIL import Image

from rankray import schema
from rankray.cluster.actors import Actors, BrokenModelError, GenerateActor, JobContext, ScoreActor, Stage
from rankray.config import GeneratorChoice, ImagesConfig, RewardChoice
from rankray.models import generators, rewards
from rankray.synpic.stages import rank_block

SEED = 5
GENERATORS = (("noise", 2), ("coarse", 1))
REWARDS = ("red", "green")
ONE = Actors(
    min_size=1,
    max_size=1,
    num_cpus=1.0,
    num_gpus=0.5,
    memory_bytes=None,
    resources={},
    runtime_env={},
    device="cpu",
)


@pytest.fixture(autouse=True)
def _meter_answers() -> Iterator[None]:
    with answering():
        yield


def context(
    meter: LocalMeter, images: ImagesConfig | None = None, place: str = "", abort_after: int = 32
) -> JobContext:
    return JobContext(SEED, images or ImagesConfig(), place, GENERATORS, REWARDS, abort_after, meter)


def stages(**models: str) -> list[Stage]:
    """The four toy models, in the order of a job; `noise="Broken"` puts another class in one's place."""
    kinds = {"noise": "Noise", "coarse": "Noise", "red": "Brightness", "green": "Brightness"} | models
    given: dict[str, dict[str, Any]] = {"green": {"channel": 1}}
    if kinds["coarse"] == "Noise":
        given["coarse"] = {"size": 4}
    found = []
    for name, samples in GENERATORS:
        choice = GeneratorChoice(
            model=f"toy_models:{kinds[name]}", name=name, samples=samples, options=given.get(name, {})
        )
        found.append(Stage("generator", generators.resolve(choice), ONE, samples))
    for name in REWARDS:
        choice_ = RewardChoice(model=f"toy_models:{kinds[name]}", name=name, options=given.get(name, {}))
        found.append(Stage("reward", rewards.resolve(choice_), ONE))
    return found


def block(*prompts: str) -> pa.Table:
    return pa.table({"prompt_id": [schema.prompt_id(prompt) for prompt in prompts], "prompt": list(prompts)})


def through(table: pa.Table, plan: list[Stage], told: JobContext) -> pa.Table:
    for stage in plan:
        table = (GenerateActor if stage.kind == "generator" else ScoreActor)(stage, told)(table)
    return table


def ranked(table: pa.Table, told: JobContext) -> dict[str, list[dict[str, Any]]]:
    """prompt -> candidates of the finished rows."""
    due = schema.ranked_schema({name: "r" for name, _ in GENERATORS}, dict.fromkeys(REWARDS, "r"))
    rows = rank_block(table, context=told, schema_out=due).to_pylist()
    return {row["prompt"]: row["candidates"] for row in rows}


def test_bad_items_cost_themselves() -> None:
    meter = LocalMeter()
    told = context(meter)
    odd = ("<b>&amp;</b>", "🦊 émoji", "nul \0 inside", "long " * 2000, "plain")
    bad = ("unpaintable thing", "unjudgeable thing", "miscounted thing")
    found = ranked(through(block(*odd, *bad), stages(), told), told)
    for candidate in found["unpaintable thing"]:
        assert candidate["error"] == "ValueError: cannot paint that"
        assert (candidate["image"], candidate["rank"]) == (None, 0)
        assert np.isnan(candidate["win_probability"])
    for candidate in found["unjudgeable thing"]:
        assert candidate["image"]["bytes"]
        assert np.isnan(candidate["scores"]).all()
        assert candidate["error"].startswith("red: ValueError: a score is nan; green: ")
    assert "one number an image is due" in found["miscounted thing"][0]["error"]
    for prompt in odd:
        assert [candidate["error"] for candidate in found[prompt]] == [None] * 3
        assert {candidate["rank"] for candidate in found[prompt]} <= {1, 2, 3}
    counts = {
        name: (usage["items"], usage["failures"], usage["skipped"]) for name, usage in meter.usage.items()
    }
    # 8 prompts, 2 and 1 pictures of each; the 3 that were never drawn are not judged.
    assert counts == {"noise": (16, 2, 0), "coarse": (8, 1, 0), "red": (21, 6, 3), "green": (21, 6, 3)}
    assert {usage["num_gpus"] for usage in meter.usage.values()} == {0.5}


def test_rows_do_not_depend_on_their_block() -> None:
    told = context(LocalMeter())
    prompts = [f"prompt {i}" for i in range(7)] + ["unpaintable", "unjudgeable"]
    whole = ranked(through(block(*prompts), stages(), told), told)
    parts: dict[str, Any] = {}
    for start in range(0, len(prompts), 2):
        parts |= ranked(through(block(*prompts[start : start + 2]), stages(), told), told)
    assert str(whole) == str(parts)  # NaN is written alike


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
@pytest.mark.parametrize("store", ["inline", "files"])
def test_image_formats_and_places(tmp_path: Path, kind: str, store: str) -> None:
    if store == "files":
        (tmp_path / "images").mkdir()
    told = context(LocalMeter(), ImagesConfig(format=kind, store=store), str(tmp_path))
    candidates = ranked(through(block("one", "two"), stages(), told), told)["one"]
    for candidate in candidates:
        image = candidate["image"]
        if store == "files":
            assert image["bytes"] is None
            assert Path(image["path"]).parent == Path("images")
            assert Path(image["path"]).suffix == f".{kind}"
            data = (tmp_path / image["path"]).read_bytes()
        else:
            assert image["path"] is None
            data = image["bytes"]
        picture = Image.open(io.BytesIO(data))
        assert (picture.format or "").lower() == kind
        assert picture.size == (candidate["width"], candidate["height"])
        assert candidate["scores"][0] == pytest.approx(np.asarray(picture.convert("RGB"))[..., 0].mean())
    assert len(list(tmp_path.rglob("*.*"))) == (6 if store == "files" else 0)


def test_what_an_earlier_dataset_holds_is_not_made_again() -> None:
    """The columns that `reuse` attaches: one of two samples, and the scores of the candidates that it had."""
    told, meter = context(LocalMeter()), LocalMeter()
    plan = stages()
    whole = through(block("one", "two"), plan, told)
    column = plan[0].column
    kept = pa.array([row[:1] for row in whole[column].to_pylist()], whole[column].type)
    scores = pa.array(
        [[row[0], None, None] for row in whole[plan[2].column].to_pylist()], whole[plan[2].column].type
    )
    held = block("one", "two").append_column(column, kept).append_column(plan[2].column, scores)
    again = through(held, plan, context(meter))
    assert str(ranked(again, told)) == str(ranked(whole, told))
    assert {name: usage["items"] for name, usage in meter.usage.items()} == {
        "noise": 2,
        "coarse": 2,
        "red": 4,
        "green": 6,
    }


def test_a_model_that_always_fails_is_broken_before_its_block_is_kept() -> None:
    prompts = [f"prompt {i}" for i in range(8)]
    actor = GenerateActor(stages(coarse="Broken")[1], context(LocalMeter()))
    with pytest.raises(
        BrokenModelError, match="generator 'coarse' failed for each of its first 8 items"
    ) as caught:
        actor(block(*prompts))
    assert "RuntimeError: no prompt is good enough" in str(caught.value)


def test_a_few_bad_items_are_not_a_broken_model() -> None:
    actor = GenerateActor(stages(coarse="Broken")[1], context(LocalMeter()))
    table = actor(block("one", "two"))
    errors = [row[0]["error"] for row in table["generated:coarse"].to_pylist()]
    assert errors == ["RuntimeError: no prompt is good enough"] * 2
