"""What a run refuses, and what it says: found from files alone, before a model loads or Ray starts."""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rankray import config, losses, schema, store
from rankray.cli import run_rankdpo
from rankray.config import ConfigError
from rankray.config.rankdpo import OPTIONS, AlignConfig, ObjectiveOptions, RankDPOConfig
from rankray.data.place import open_output
from rankray.rankdpo import job as rankdpo
from rankray.rankdpo.train_job import RunState
from rankray.report.run import write_run_report


def dataset(
    place: Path,
    ranks: tuple[int, int] = (1, 2),
    image: dict[str, Any] | None = None,
    scores: tuple[float, float] = (2.0, 1.0),
    **changes: Any,
) -> Path:
    """A finished dataset of one prompt and two candidates, which are tied if their scores are."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    picture = image or {"bytes": buffer.getvalue(), "path": None}
    prompt = "a red circle"
    candidates = [
        {
            "generator": "g",
            "seed": n,
            "image": picture,
            "width": 64,
            "height": 64,
            "scores": [scores[n]],
            "win_probability": 0.5 if scores[0] == scores[1] else float(rank == 1),
            "rank": rank,
            "error": None,
        }
        for n, rank in enumerate(ranks)
    ]
    (place / "data").mkdir(parents=True)
    row = {"prompt_id": schema.prompt_id(prompt), "prompt": prompt, "candidates": candidates}
    table = pa.Table.from_pylist([row], schema=schema.ranked_schema({"g": "x"}, {"r": "y"}))
    pq.write_table(table, place / "data" / "0.parquet")
    info = {
        "schema_version": schema.SCHEMA_VERSION,
        "rows": 1,
        "rewards": [{"name": "r", "revision": "y"}],
        "generators": [{"name": "g", "revision": "x", "samples": 2}],
        "prompts": {"sha256": "0"},
        "identity": {"images.store": "inline" if image is None else "files"},
    }
    (place / "dataset.json").write_text(json.dumps({**info, **changes}))
    return place


def settings(place: Path, **changes: Any) -> RankDPOConfig:
    tables: dict[str, Any] = {"dataset": str(place), "output": "/o", "model": {"model": "shapes-sdxl"}}
    tables |= {"batch_size": 4, "validation": {"share": 0.0}}
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return config.build(RankDPOConfig, config.with_options(tables, dotted))


def test_a_good_dataset_passes(tmp_path: Path) -> None:
    plan = rankdpo.check(settings(dataset(tmp_path / "d")))
    assert plan.spec.pipeline == "StableDiffusionXLPipeline"
    assert plan.revision.startswith("sha256:")
    assert (plan.reward, plan.device) == (None, "cpu")


def test_validation_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    place = dataset(tmp_path / "d")
    with pytest.raises(
        ConfigError, match="validation would hold 64 of 1 prompts out and leave 0 to learn from"
    ):
        rankdpo.check(settings(place, validation__share=0.05))
    with pytest.raises(ConfigError, match=r"validation\.share.*less than 1"):
        settings(place, validation__share=1.0)
    with pytest.raises(ConfigError, match=r"validation\.share = 0 holds none out: give a share"):
        settings(place, validation__stop="patience")
    with pytest.raises(ConfigError, match=r"min_prompts 600 is above validation\.max_prompts 512"):
        settings(place, validation__share=0.05, validation__min_prompts=600)


def test_datasets_that_cannot_be_trained_on(tmp_path: Path) -> None:
    (tmp_path / "unfinished" / "data").mkdir(parents=True)
    (tmp_path / "unfinished" / "data" / "0.parquet").write_bytes(b"")
    gone = {"bytes": None, "path": str(tmp_path / "gone.png")}
    cases = [
        (tmp_path / "none", "none: no dataset there"),
        (tmp_path / "unfinished", "1 data files, but no dataset.json: the job is not finished; run it again"),
        (
            dataset(tmp_path / "old", schema_version=0),
            "has schema version 0, and this rankray reads 1; make it again",
        ),
        (dataset(tmp_path / "nan", ranks=(0, 0)), "none of 1 prompts has two ranked candidates"),
        (dataset(tmp_path / "one", ranks=(1, 0)), "none of 1 prompts has two ranked candidates"),
        (
            dataset(tmp_path / "files", image=gone),
            "2 images are missing, the first is .*gone.png; put its images",
        ),
    ]
    for place, message in cases:
        with pytest.raises(ConfigError, match=message) as caught:
            rankdpo.check(settings(place))
        assert "\n" not in str(caught.value)


def test_a_place_for_encoded_sets_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    place = dataset(tmp_path / "d")
    with pytest.raises(
        ConfigError, match=r"^output 'file:///a b' cannot be opened \(.* write file:///a%20b\)"
    ) as caught:
        rankdpo.check(settings(place, encoding__place="file:///a b"))
    assert "\n" not in str(caught.value)
    assert rankdpo.check(settings(place, encoding__place=f"file://{tmp_path}/a%20b")).rows == 1


def test_a_dataset_of_ties_is_refused_by_what_learns_from_preferences(tmp_path: Path) -> None:
    place = dataset(tmp_path / "d", scores=(2.0, 2.0))
    tied = (
        r"dataset .*: the candidates of each of 1 prompts are tied, .* and rank_dpo learns from preferences"
    )
    with pytest.raises(ConfigError, match=tied) as caught:
        rankdpo.check(settings(place))
    assert "\n" not in str(caught.value)
    assert rankdpo.check(settings(place, objective__name="sft")).rows == 1
    assert rankdpo.check(settings(place, objective__name="weighted_sft", objective__reward="r")).rows == 1
    with pytest.raises(ConfigError, match="and kto learns from preferences"):
        rankdpo.check(settings(place, objective__name="kto"))


def test_ties_are_those_of_the_labels_that_are_learnt(tmp_path: Path) -> None:
    tied, ranked = dataset(tmp_path / "t", scores=(2.0, 2.0)), dataset(tmp_path / "r")
    with pytest.raises(ConfigError, match="are tied"):
        rankdpo.check(settings(tied, labels__rewards=["r"]))
    assert rankdpo.check(settings(tied, labels__aggregation="random")).rows == 1
    assert rankdpo.check(settings(ranked, labels__rewards=["r"])).rows == 1


def test_patience_asks_for_a_pair_among_the_held_out_prompts(tmp_path: Path) -> None:
    """It would take all steps, find none better than chance, and export the model as it started."""
    for name, scores in (("tied", (2.0, 2.0)), ("ranked", (2.0, 1.0))):
        place = dataset(tmp_path / name, scores=scores, rows=4)
        file = place / "data" / "0.parquet"
        table = pq.read_table(file)
        (row,) = table.to_pylist()
        texts = [f"prompt {n}" for n in range(4)]
        rows = [{**row, "prompt_id": schema.prompt_id(text), "prompt": text} for text in texts]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    asked = {"objective__name": "sft", "validation__share": 0.5, "validation__min_prompts": 2}
    with pytest.raises(ConfigError, match="candidates of each of 2 held-out prompts are tied") as caught:
        rankdpo.check(settings(tmp_path / "tied", validation__stop="patience", **asked))
    assert "\n" not in str(caught.value)
    assert rankdpo.check(settings(tmp_path / "tied", **asked)).held_out == 2
    assert rankdpo.check(settings(tmp_path / "ranked", validation__stop="patience", **asked)).rows == 2


def several(place: Path, prompts: list[str], reward: str) -> Path:
    """A finished dataset of a row a prompt; ids of a prompt's further rows are not its own."""
    dataset(place, rewards=[{"name": reward, "revision": "y"}], rows=len(prompts))
    file = place / "data" / "0.parquet"
    table = pq.read_table(file)
    (row,) = table.to_pylist()
    ids = [schema.prompt_id(p if p not in prompts[:n] else f"{p} again {n}") for n, p in enumerate(prompts)]
    rows = [{**row, "prompt_id": name, "prompt": p} for name, p in zip(ids, prompts, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    return place


def texts_of(dataset: store.RankedDataset, ids: frozenset[str]) -> set[str]:
    return {row["prompt"] for row in dataset.rows() if row["prompt_id"] in ids}


def test_a_mixed_run_is_parted_and_said(tmp_path: Path) -> None:
    people = several(tmp_path / "people", ["a", "a", "a", *"bcdefgh"], "human")
    drawn = several(tmp_path / "drawn", [chr(ord("a") + n) for n in range(20)], "r")
    asked = {"mix": [{"dataset": str(drawn), "weight": 3}], "steps": 5, "validation__share": 0.4}
    plan = rankdpo.check(settings(people, **asked, validation__min_prompts=2))
    assert plan.held_out == 8, "two fifths of twenty prompts, one row of each"
    assert plan.rows == 30 - sum(len(source.held_out) for source in plan.sources)
    assert plan.drawn == [5, 15]
    judged = [texts_of(source.dataset, source.validated) for source in plan.sources]
    assert len(judged[0] | judged[1]) == len(judged[0]) + len(judged[1]) == 8, "of one set each"
    texts = {schema.prompt_id(p): p for p in "abcdefghijklmnopqrst"}
    away = {texts[one] for one in plan.sources[1].held_out}
    again = {schema.prompt_id(f"a again {n}") for n in (1, 2)}
    assert (again <= plan.sources[0].held_out) == ("a" in away)
    assert not {texts[one] for one in plan.sources[0].learnt if one in texts} & away
    assert rankdpo._told(plan) == f"1 × {people} + 3 × {drawn}"
    assert [item["name"] for item in rankdpo._named(plan, "rewards")] == ["human", "r"]
    identity = plan.config.identity()
    assert (identity["mix.0.dataset"], identity["mix.0.weight"]) == (str(drawn), 3.0)
    assert not any(key.startswith("mix") for key in settings(people).identity()), "older runs go on"


@pytest.mark.parametrize(
    ("mix", "changes", "message"),
    [
        ([{"dataset": "/d", "weight": 0}], {}, r"mix\.0\.weight = 0: input should be greater than 0"),
        ([{"dataset": "/d", "weight": -1.5}], {}, r"mix\.0\.weight = -1\.5: input should be greater than 0"),
        (
            [{"dataset": "/d", "weight": "much"}],
            {},
            r"mix\.0\.weight = 'much': input should be a valid number",
        ),
        ([{"dataset": "/d"}], {}, r"'mix\.0\.weight' is missing"),
        (
            [{"dataset": "/d", "path": "/d", "weight": 1}],
            {},
            r"unknown key 'mix\.0\.path'.*allowed there: dataset, weight, labels",
        ),
        (
            "/d",
            {},
            r"mix = '/d': give a list of tables, such as \[\{dataset = '...'\}\], each with keys of: dataset, wei",
        ),
        ([{"dataset": "{gone}", "weight": 1}], {}, "dataset .*gone: no dataset there"),
        ([{"dataset": "{own}", "weight": 1}], {}, "mix: dataset '.*own' stands twice; give it once"),
        ([{"dataset": "{old}", "weight": 1}], {}, "has schema version 0, and this rankray reads 1"),
        (
            [{"dataset": "{other}", "weight": 1e-3}],
            {},
            "other: weight 0.001 beside the others' comes to none of the 8 rows",
        ),
        (
            [{"dataset": "{other}", "weight": 1, "labels": {"rewards": ["s"]}}],
            {},
            "labels.rewards: the dataset has no reward 's'; it has r",
        ),
        (
            [{"dataset": "{other}", "weight": 1}],
            {"labels__pairs": "within"},
            "which differs between datasets: with mix take 'all'",
        ),
        (
            [{"dataset": "{other}", "weight": 1}],
            {"objective__name": "weighted_sft", "objective__reward": "r"},
            "leave mix out, or make one dataset of them with `rankray import`",
        ),
    ],
)
def test_mixes_that_do_not_fit_are_one_line(
    tmp_path: Path, mix: Any, changes: dict[str, Any], message: str
) -> None:
    own = dataset(tmp_path / "own")
    dataset(tmp_path / "old", schema_version=0)
    several(tmp_path / "other", ["x"], "r")
    if isinstance(mix, list):
        mix = [{key: v.replace("{", f"{tmp_path}/").replace("}", "") if key == "dataset" else v
                for key, v in one.items()} for one in mix]  # fmt: skip
    with pytest.raises(ConfigError, match=message) as caught:
        rankdpo.check(settings(own, mix=mix, steps=2, **changes))
    assert "\n" not in str(caught.value)


def test_faults_of_all_datasets_are_told_at_once(tmp_path: Path) -> None:
    mix = [{"dataset": str(tmp_path / name), "weight": 1} for name in ("one", "two")]
    with pytest.raises(ConfigError) as caught:
        rankdpo.check(settings(tmp_path / "own", mix=mix))
    assert [line.rpartition("/")[2] for line in str(caught.value).split("\n")] == [
        f"{name}: no dataset there, nor anything else; look at how it is written"
        for name in ("own", "one", "two")
    ]


def test_models_that_cannot_be_trained(tmp_path: Path) -> None:
    place = dataset(tmp_path / "d")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    cases = [
        ({"model": {"model": "shapes-cascade"}}, "a StableCascadeCombinedPipeline, which no family trains"),
        (
            {"model": {"model": "toy_models:Noise"}},
            "is a class of your own; name a row of the generators' table",
        ),
        (
            {"model": {"model": "shapes-sdxl", "source": "shapes:shapes-sd3"}},
            "holds a StableDiffusion3Pipeline",
        ),
        ({"model": {"model": "shapes-sdxl", "source": str(empty)}}, "is no diffusers pipeline"),
        (
            {"model": {"model": "shapes-sdlx"}},
            r"unknown generator 'shapes-sdlx' \(did you mean 'shapes-sdxl'\?\)",
        ),
        ({"model": {"model": "shapes-sdxl", "source": "/nowhere"}}, "no directory '/nowhere' here"),
    ]
    for changes, message in cases:
        with pytest.raises(ConfigError, match=message):
            rankdpo.check(settings(place, **changes))


def test_a_run_says_in_which_form_its_adapters_leave(tmp_path: Path) -> None:
    place = dataset(tmp_path / "d")
    for model, train, due in (
        ("shapes-pixart", "lora", 1),
        ("shapes-pixart", "full", 0),
        ("shapes-sdxl", "lora", 0),
    ):
        said: list[str] = []
        plan = rankdpo.check(settings(place, model={"model": model}, tuned__train=train))
        rankdpo._settled(plan, said.append)
        told = [line for line in said if line.startswith("PixArtSigmaPipeline has no load_lora_weights: ")]
        assert len(told) == due, (model, train)


def test_what_a_run_says_of_itself_makes_its_cards(tmp_path: Path) -> None:
    """`run.json` of a run that was not trained here; its cards need no more than that."""
    reward = {"name": "r", "model": "pickscore", "revision": "y", "licence": "apache-2.0"}
    place = dataset(tmp_path / "d", rewards=[reward])
    plan = rankdpo.check(settings(place, tuned__train="lora", tuned__lora_alpha=8, validation__share=0))
    output = open_output(str(tmp_path / "run"), in_job=False)
    (tmp_path / "run" / "_work").mkdir(parents=True)
    (tmp_path / "run" / "pipeline").mkdir()
    line = {"step": 2, "step_s": 1.0, "data_wait_s": 0.0, "cpu_s": 1.0, "workers": 1, "usd": 0.0}
    output.write_text("metrics.jsonl", json.dumps(line) + "\n")
    output.write_text("_work/identity.json", json.dumps({"identity": plan.config.identity()}))
    output.write_text("_work/parameters.json", json.dumps({"trained": 1, "total": 2, "held": 3}))
    info = json.loads(json.dumps(rankdpo._summary(plan, output, RunState(step=2))))
    assert info["model"]["run_with"]["dtype"] == "float32"
    assert info["versions"].keys() >= {"torch", "diffusers", "peft"}
    write_run_report(output.uri, info)
    adapters = (tmp_path / "run" / "README.md").read_text()
    assert "| r | y | apache-2.0 |" in adapters
    assert "| trained | LoRA, rank 64, alpha 8; 1 parameters |" in adapters
    assert "pipe.load_lora_weights(place)" in adapters
    assert "tuned.lora_alpha = 8" in adapters
    assert "num_inference_steps=12, guidance_scale=2.5, height=64, width=64" in adapters
    assert "from_pretrained(place" in (tmp_path / "run" / "pipeline" / "README.md").read_text()


def test_a_run_knows_what_the_pipeline_that_it_goes_on_from_was_tuned_from(tmp_path: Path) -> None:
    """However many rounds there were between."""
    first = {"source": "owner/base", "revision": "c0", "licence": "mit"}
    found: dict[str, Any] = first
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"model": found}))
        told = rankdpo._origin(f"{tmp_path / name}/pipeline/")
        assert told == {"base": first}
        found = {"source": f"{tmp_path / name}/pipeline", "revision": "sha256:1", "licence": None, **told}
    for source in (
        None,
        str(tmp_path / "pipeline"),
        str(tmp_path / "one"),
        "owner/pipeline",
        "shapes:shapes-sdxl",
    ):
        assert rankdpo._origin(source) == {}


def test_a_loss_that_needs_scores_which_the_dataset_lacks(tmp_path: Path) -> None:
    place = dataset(tmp_path / "d")
    with pytest.raises(
        ConfigError,
        match=r"needs the scores of 's' .*which the dataset lacks; it has: r|needs the scores of 's'",
    ):
        rankdpo.check(settings(place, objective__name="weighted_sft", objective__reward="s"))
    assert rankdpo.check(settings(place, objective__name="weighted_sft", objective__reward="r")).reward == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 6, "workers__count": 4},
            "batch_size 6 cannot be divided among 4 workers x micro_batch 1",
        ),
        (
            {"batch_size": 12, "workers__count": 2, "workers__micro_batch": 4},
            "batch_size 12 cannot be divided among 2 workers x micro_batch 4; take a multiple of 8",
        ),
        (
            {"workers__count": 2, "workers__max_count": 8},
            "batch_size 4 leaves some of 8 workers without a prompt",
        ),
        ({"workers__count": 3, "workers__max_count": 2}, "workers.max_count 2 is below workers.count 3"),
        ({"objective__reference": "adapter_off"}, "adapter_off needs LoRA"),
        (
            {"objective__name": "weighted_sft"},
            "weighted_sft weighs by one reward's scores: give objective.reward",
        ),
        ({"objective__name": "rank_dop"}, "objective.name = 'rank_dop'"),
        (
            {"objective__options": {"nl": 100.0}},
            r"objective.options: rank_dpo has no option 'nl' \(did you mean 'nll'\?\); it has: gain, discount, nll",
        ),
        (
            {"objective__options": {"nll": "a"}},
            "objective.options: nll = 'a': input should be a valid number",
        ),
        (
            {"objective__options": {"nll": "3"}},
            "objective.options: nll = '3': input should be a valid number",
        ),
        ({"objective__options": {"nll": -1}}, "nll = -1: input should be greater than or equal to 0"),
        ({"objective__options": {"dpop": float("nan")}}, "dpop = nan: input should be a finite number"),
        (
            {"objective__options": {"clamp": -0.1, "nll": True}},
            r"nll = True: .*; clamp = -0.1: input should be",
        ),
        (
            {"objective__options": {"gain": "exp"}},
            r"gain = 'exp' \(did you mean 'exp2'\?\): input should be 'exp2' or 'linear'",
        ),
        (
            {"objective__name": "mapo", "objective__options": {"snr": 0}},
            "snr = 0: input should be greater than",
        ),
        (
            {"objective__name": "kto", "objective__options": {"pairs": "all"}},
            "kto has no option 'pairs'; it has: none",
        ),
        ({"objective__name": "dop", "objective__options": {"pairs": "all"}}, "objective.name = 'dop'"),
        ({"optimizer__name": "adafactor"}, "optimizer.name: adafactor looks at whole tensors or blocks"),
        ({"optimizer__name": "adamw_8bit"}, "steps would depend on workers.count; take adamw"),
        ({"optimizer__learning_rate": -1e-5}, "optimizer.learning_rate = -1e-05"),
        ({"workers__num_gpus": 2}, "workers.num_gpus is 0 or 1"),
        ({"workers__zero_stage": 0, "tuned__dtype": "bfloat16"}, "zero_stage 0 keeps no float32 masters"),
        ({"workers__zero_stages": 2}, r"unknown key 'workers.zero_stages' \(did you mean 'zero_stage'\?\)"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        settings(Path("/d"), **changes)
    assert "\n" not in str(caught.value)


def test_each_objectives_options_are_those_of_its_loss() -> None:
    def keywords(function: Callable[..., Any]) -> dict[str, Any]:
        found = inspect.signature(function).parameters.values()
        pairwise = any(one.kind == one.VAR_KEYWORD for one in found)
        remedies = keywords(losses._pairwise) | {"nll": 0.0} if pairwise else {}  # nll: losses.loss_parts
        return {one.name: one.default for one in found if one.kind == one.KEYWORD_ONLY} | remedies

    for name, loss in losses.LOSSES.items():
        own = {key: value for key, value in keywords(loss).items() if key != "beta"}
        assert own == {key: getattr(ObjectiveOptions(), key) for key in OPTIONS.get(name, ())}
    fields = ObjectiveOptions.model_fields
    assert get_args(fields["gain"].annotation) == tuple(losses.GAINS)
    assert get_args(fields["discount"].annotation) == (*losses.DISCOUNTS, "none")


def test_options_are_kept_as_they_were_given() -> None:
    given = {"nll": 100, "clamp": 0.5}  # a run's identity has them as they were written
    assert settings(Path("/d"), objective__options=given).objective.options == given
    assert settings(Path("/d"), objective__options=given).identity()["objective.options.nll"] == 100


def test_the_command_says_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = run_rankdpo(["--dataset", str(tmp_path), "--output", "/o", "--model.model", "shapes-sdxl"])
    printed = capsys.readouterr().err
    assert (code, printed.count("\n")) == (2, 1)
    assert printed.startswith("rankdpo: dataset ")
    assert run_rankdpo(["--steps", "many"]) == 2


@pytest.mark.parametrize("name", ["rankdpo-shapes", "rankdpo-sdxl", "rankdpo-sd3"])
def test_shipped_configurations_are_valid(name: str) -> None:
    path = Path(__file__).parents[3] / "jobs" / f"{name}.toml"
    found = config.build(RankDPOConfig, config.read_toml(path))
    assert found.objective.name == "rank_dpo"
    if name != "rankdpo-shapes":
        assert (found.batch_size, found.steps, found.workers.count) == (1024, 400, 8)


@pytest.mark.parametrize("name", ["align-shapes", "align-demo"])
def test_rounds_pass_the_model_on(name: str) -> None:
    path = Path(__file__).parents[3] / "jobs" / f"{name}.toml"
    found = config.build(AlignConfig, config.read_toml(path))
    first, second = found.synpic("/a", 1, None), found.synpic("/b", 2, "/a/pipeline")
    assert second.seed == first.seed + 1
    ours = [choice for choice in second.generators if choice.source == "/a/pipeline"]
    assert [choice.label for choice in ours] == [found.model.label]
    assert all(choice.source is None for choice in first.generators)
    assert found.rankdpo("/d", "/o", "/a/pipeline").model.source == "/a/pipeline"
    before, after = found.evaluation("/x", None), found.evaluation("/y", "/a/pipeline")
    assert [c.label for c in before.generators] == [c.label for c in after.generators] == ["model"]
    assert before.seed == after.seed
    assert before.prompts != found.prompts
