"""The EVALS table: what a choice resolves to, readers of own-made files in the published forms, columns by hand."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rankray.config import ConfigError, EvalChoice, build
from rankray.evals import (
    EVALS,
    EvalSpec,
    Item,
    columns_of,
    compbench,
    files_of,
    items_and_repeats,
    resolve,
    spec_of,
    split_query,
)
from rankray.models.targets import Judgement, load
from rankray.models.weights import weights_revision
from rankray.stats import Column
from recipes.random_weights.judges import COCO, JUDGES_MADE, small_spec


def items_of(spec: EvalSpec, path: str) -> list[Item]:
    return items_and_repeats(spec, path)[0]


def choice(**given: object) -> EvalChoice:
    return EvalChoice(model="dpg", **given)


def test_rows_name_what_there_is() -> None:
    for name, spec in EVALS.items():
        for target in (spec.target, spec.read, spec.columns):
            module, attribute = target.split(":")
            assert hasattr(importlib.import_module(module), attribute), name
        # The shapes world is judged exactly, by no model.
        assert set(JUDGES_MADE.get(name, ())) == set(spec.models)
        assert bool(spec.departures) == bool(spec.models)


def test_every_part_s_revision_is_recorded(judges: Path) -> None:
    models = {part: str(judges / "geneval" / part) for part in ("detector", "clip")}
    options = {"vocabulary": None, "size": {}}
    items = [
        Item(
            "a bear", {"tag": "single_object", "include": [{"class": "bear", "count": 1}], "prompt": "a bear"}
        )
    ]
    target = resolve(
        EvalChoice(model="geneval", name="g", models=models, options=options, batch_size=2), items
    )
    expected = {part: weights_revision(place, "main") for part, place in models.items()}
    assert target.revision == f"clip={expected['clip']} detector={expected['detector']}"
    assert (target.name, target.kwargs["items"]) == ("g", {"a bear": items[0].data})
    assert target.kwargs["spec"].batch_size == 2
    judge = load(target, "cpu")
    assert judge.judge([], []) == []


def test_a_part_elsewhere_keeps_no_revision_of_the_row_s() -> None:
    row = replace(EVALS["dpg"], revisions={"vqa": "a" * 40})
    assert row.revisions["vqa"] == "a" * 40
    EVALS["pinned"] = row
    try:
        assert spec_of(EvalChoice(model="pinned")).revisions == {"vqa": "a" * 40}
        assert spec_of(EvalChoice(model="pinned", models={"vqa": "x/y"})).revisions == {}
        moved = EvalChoice(model="pinned", models={"vqa": "x/y"}, revisions={"vqa": "b" * 40})
        assert resolve(moved, []).revision == f"vqa={'b' * 40}"
    finally:
        del EVALS["pinned"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"model": "genevall"},
            r"unknown benchmark 'genevall' \(did you mean 'geneval'\?\); known: compbench, dpg",
        ),
        (
            {"model": "dpg", "options": {"anyorder": 1}},
            r"unknown option 'anyorder' \(did you mean 'any_order'\?\)",
        ),
        ({"model": "dpg", "models": {"clip": "x/y"}}, "unknown part 'clip'; allowed: vqa"),
        ({"model": "dpg", "revisions": {"vqas": "main"}}, r"unknown part 'vqas' \(did you mean 'vqa'\?\)"),
    ],
)
def test_what_a_row_has_not_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(build(EvalChoice, given), [])


def test_a_judge_s_parts_are_named_one_by_one() -> None:
    with pytest.raises(ConfigError, match="give `models` and `revisions` in place of `source`"):
        build(EvalChoice, {"model": "dpg", "source": "x/y"})
    with pytest.raises(ConfigError, match="'p' stands twice and asks two things"):
        resolve(choice(), [Item("p", 1), Item("p", 2)])


def test_means_of_columns() -> None:
    values = {"a": [1.0, 0.0, 0.0, 0.0], "b": [1.0], "c": []}
    assert Column(values).mean == pytest.approx((0.25 + 1.0) / 2)
    assert Column(values, pooled=True).mean == pytest.approx(2 / 5)
    assert Column({"a": []}).mean is None


def test_geneval_columns(tmp_path: Path) -> None:
    lines = [
        {"tag": "counting", "include": [{"class": "bear", "count": 2}], "exclude": [{"class": "bear", "count": 3}],
         "prompt": "a photo of two bears"},
        {"tag": "single_object", "include": [{"class": "tv", "count": 1}], "prompt": "a photo of a tv"},
        {"tag": "single_object", "include": [{"class": "cup", "count": 1}], "prompt": "a photo of a cup"},
    ]  # fmt: skip
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    items = items_of(EVALS["geneval"], str(path))
    assert [item.data for item in items] == lines
    right, wrong = Judgement(1.0, {}), Judgement(0.0, {})
    columns = columns_of(
        EVALS["geneval"], items, {"a photo of two bears": [right, None], "a photo of a tv": [right, wrong]}
    )
    assert list(columns) == ["single_object", "counting"]
    assert columns["single_object"].values == {"a photo of a tv": [1.0, 0.0], "a photo of a cup": []}
    assert columns["counting"].values == {"a photo of two bears": [1.0]}
    with pytest.raises(ValueError, match="cannot be read as text"):
        items_of(EVALS["geneval"], str(tmp_path / "none.jsonl"))
    path.write_text(json.dumps(lines[1] | {"prompt": "a photo of a tv \u2028"}))
    assert [item.prompt for item in items_of(EVALS["geneval"], str(path))] == ["a photo of a tv"]


TABLE = """item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,\
question_natural_language
a,"A red kettle, steaming",,1,0,entity,whole,entity - whole (kettle),Is there a kettle?
a,"A red kettle, steaming",,2,1,attribute,color,"attribute - color (kettle, red)",Is the kettle red?
a,"A red kettle, steaming",,3,0,global,,global - (photo),Is it a photo?
b,Two owls,,1,0,entity,whole,entity - whole (owls),Are there owls?
"""


def test_dpg_columns(tmp_path: Path) -> None:
    (tmp_path / "dpg_bench.csv").write_text(TABLE)
    for place in (str(tmp_path), tmp_path.as_uri()):
        assert [len(item.data["questions"]) for item in items_of(EVALS["dpg"], place)] == [1]
    mended = replace(EVALS["dpg"], options={**EVALS["dpg"].options, "keep_first": True, "all_pictures": True})
    items = items_of(mended, str(tmp_path / "dpg_bench.csv"))
    seen = {
        "A red kettle, steaming": [
            Judgement(1.0, {"answers": {"1": True, "2": True, "3": True}}),
            Judgement(1 / 3, {"answers": {"1": False, "2": True, "3": True}}),
            None,
        ],
        "Two owls": [Judgement(0.0, {"answers": {"1": False}})],
    }
    columns = columns_of(EVALS["dpg"], items, seen)
    assert list(columns) == ["overall", "global", "entity", "attribute"]
    assert columns["overall"].mean == pytest.approx((2 / 3 + 0.0) / 2)
    # Of the last picture alone, whose "yes" for the colour counts although there is no kettle.
    assert columns["entity"].values == {"A red kettle, steaming": [0.0], "Two owls": [0.0]}
    assert columns["attribute"].mean == 1.0
    every = columns_of(mended, items, seen)
    assert every["entity"].values == {"A red kettle, steaming": [1.0, 0.0], "Two owls": [0.0]}
    assert every["entity"].mean == pytest.approx(1 / 3)


def test_dpg_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "dpg.jsonl"
    question = {"id": 1, "text": "Is there a kettle?", "category": "entity - whole", "parents": [0]}
    lines = [
        {"item_id": "7", "prompt": "A kettle.", "questions": [question]},
        {"item_id": "8", "prompt": "Two owls sleep. A third watches them!"},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    own, bare = items_of(EVALS["dpg"], str(path))
    assert own.data == {
        "item_id": "7",
        "questions": {"1": {"text": "Is there a kettle?", "category": "entity - whole", "parents": [0]}},
    }
    assert [one["text"] for one in bare.data["questions"].values()] == [
        'Does this picture show "Two owls sleep."?',
        'Does this picture show "A third watches them!"?',
    ]
    answers = Judgement(0.5, {"answers": {"1": True, "2": False}})
    columns = columns_of(EVALS["dpg"], [bare], {bare.prompt: [answers]})
    assert {name: column.mean for name, column in columns.items()} == {"overall": 0.5, "sentence": 0.5}
    faults = {"line 1 is no DPG prompt .KeyError: 'prompt'.": "{}", "line 1 is no DPG prompt .JSONDecodeError": "{",
              "has nothing to ask": '{"prompt": "a", "questions": []}',
              "prompt None is no text": json.dumps({"prompt": None, "questions": [question]}),
              "None is no text": json.dumps({"prompt": "a", "questions": [question | {"text": None}]}),
              "line 1 is no DPG prompt .ValueError: the prompt is blank":
                  json.dumps({"prompt": " ", "questions": [question]})}  # fmt: skip
    for message, line in faults.items():
        path.write_text(line)
        with pytest.raises(ValueError, match=message):
            items_of(EVALS["dpg"], str(path))
    with pytest.raises(ValueError, match=r"holds 0 \.csv files"):
        items_of(EVALS["dpg"], str(tmp_path))


@pytest.mark.parametrize("form", [str, Path.as_uri])
def test_compbench_files(tmp_path: Path, form: Callable[[Path], str]) -> None:
    """At a path, or in a store, where the clusters that have no shared disk read them."""
    files = {
        "color_val.txt": "a teal drum and a pink kettle\n\n",
        "spatial_val.txt": "a girl on the top of a crate\n",
        "3d_spatial_val.txt": "a crate behind a girl\n",
        "own-non_spatial_val.txt": "A baker kneads dough.\n",
        "complex_val.txt": "The red hat was on top of the brown rack.\nThe cat naps.\nThe dog ran.\n",
        "complex_val_spatial.txt": "The red hat was on top of the brown rack.\n",
        "complex_val_action.txt": "the cat naps\n",
        "notes.txt": "no prompts",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    items = {item.prompt: item.data for item in items_of(EVALS["compbench"], form(tmp_path))}
    assert items["a teal drum and a pink kettle"] == {
        "category": "color", "phrases": ["a teal drum", "a pink kettle"],
    }  # fmt: skip
    assert items["a girl on the top of a crate"] == {
        "category": "spatial", "spatial": ["person", "on the top of", "crate"],
    }  # fmt: skip
    assert items["A baker kneads dough."] == {"category": "non_spatial", "action": "A baker kneads dough."}
    assert items["The red hat was on top of the brown rack."] == {
        "category": "complex", "kind": "spatial", "phrases": ["The red hat", "the brown rack"],
        "spatial": ["hat", "on top of", "rack"],
    }  # fmt: skip
    assert [items[prompt]["kind"] for prompt in ("The cat naps.", "The dog ran.")] == ["action", "both"]
    assert len(items) == 6
    two = f"{form(tmp_path / 'color_val.txt')},{form(tmp_path / 'spatial_val.txt')}"
    assert [item.data["category"] for item in items_of(EVALS["compbench"], two)] == ["color", "spatial"]
    seen = {
        "a teal drum and a pink kettle": [Judgement(0.5, {}), None],
        "a girl on the top of a crate": [None],
    }
    columns = columns_of(EVALS["compbench"], items_of(EVALS["compbench"], two), seen)
    assert {name: column.mean for name, column in columns.items()} == {"color": 0.5, "spatial": None}


def test_compbench_lines_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    lines = [
        {"prompt": "The cup sits by the van.", "category": "complex", "kind": "both", "phrases": ["The cup"],
         "spatial": ["cup", "near", "van"], "action": "cup sits by van"},
        {"prompt": "A tin cup", "category": "texture"},
    ]  # fmt: skip
    path.write_text("\n".join(json.dumps(line) for line in lines))
    first, second = items_of(EVALS["compbench"], str(path))
    assert first.data == {
        "category": "complex", "kind": "both", "phrases": ["The cup"], "spatial": ["cup", "near", "van"],
        "action": "cup sits by van",
    }  # fmt: skip
    assert second.data == {"category": "texture", "phrases": ["A tin cup"]}
    keys = ("kind", "phrases", "spatial", "action")
    for category in ("complex", "non_spatial", "texture"):
        plain = {"prompt": " The cup sits near the van. ", "category": category}
        path.write_text(json.dumps(plain))
        without = items_of(EVALS["compbench"], str(path))
        path.write_text(json.dumps(plain | dict.fromkeys(keys)))
        assert items_of(EVALS["compbench"], str(path)) == without, "null is a key that is left out"
        assert without[0].prompt == "The cup sits near the van."
    faults = {
        "own.jsonl, line 1: the prompt is blank": {"prompt": " ", "category": "texture"},
        "phrases .None. is no list of texts": {"prompt": "a", "category": "texture", "phrases": [None]},
        "action 5 is no text": {"prompt": "a", "category": "non_spatial", "action": 5},
        "own.jsonl, line 1: no 'prompt'": {},
        "category 'size' is none of color": {"prompt": "a", "category": "size"},
        "kind 'all' is none of spatial": {"prompt": "a", "category": "complex", "kind": "all"},
        "is no .object, locality, object.": {
            "prompt": "a",
            "category": "spatial",
            "spatial": ["a", "in", "b"],
        },
    }
    for message, line in faults.items():
        path.write_text(json.dumps(line))
        with pytest.raises(ValueError, match=message):
            items_of(EVALS["compbench"], str(path))
    (tmp_path / "prompts.txt").write_text("a cup\n")
    with pytest.raises(ValueError, match=r"prompts.txt, line 1: the file's name says no category"):
        items_of(EVALS["compbench"], str(tmp_path / "prompts.txt"))
    (tmp_path / "spatial_val.txt").write_text("a cup near a van\na cup inside a van\n")
    with pytest.raises(ValueError, match=r"spatial_val.txt, line 2: 'a cup inside a van' has none of"):
        items_of(EVALS["compbench"], str(tmp_path))
    with pytest.raises(ValueError, match=r"holds none of color_val\.txt"):
        items_of(EVALS["compbench"], str(Path(__file__).parent))


def test_what_a_uri_says_behind_its_place_is_of_no_file_s_name(tmp_path: Path) -> None:
    """A store's region or address stands there, with dots and slashes of its own."""
    query = "?endpoint_override=http://minio.local:9000"
    place = f"s3://b/dataset/complex_val.txt{query}"
    assert split_query(place) == ("s3://b/dataset/complex_val.txt", query)
    assert split_query("/data/what?.txt") == ("/data/what?.txt", "")
    assert compbench._category(place) == "complex"
    (tmp_path / "color_val.txt").write_text("a teal drum\n")
    (tmp_path / "complex_val.txt").write_text("The cat naps.\n")
    (tmp_path / "complex_val_action.txt").write_text("The cat naps.\n")
    (tmp_path / "own.jsonl").write_text('{"prompt": "Two owls.", "category": "texture"}\n')
    folder = f"{tmp_path.as_uri()}?x=http://a.b/c"
    assert files_of(folder, "color*") == [f"{tmp_path.as_uri()}/color_val.txt?x=http://a.b/c"]
    found = items_of(EVALS["compbench"], folder)
    assert [(item.data["category"], item.data.get("kind")) for item in found] == [
        ("color", None),
        ("complex", "action"),
    ]
    own = f"{tmp_path.as_uri()}/own.jsonl?x=http://a.b/c"
    for name in ("compbench", "dpg"):
        assert [item.prompt for item in items_of(EVALS[name], own)] == ["Two owls."]


@pytest.mark.skipif(
    "RANKRAY_PROMPTS" not in os.environ, reason="RANKRAY_PROMPTS names no directory of published prompts"
)
def test_published_files_are_read_whole() -> None:
    place = Path(os.environ["RANKRAY_PROMPTS"])
    geneval = items_of(EVALS["geneval"], str(place / "geneval.jsonl"))
    assert len(geneval) == 553
    from rankray.evals.detection import class_names
    from rankray.evals.geneval_judge import classes_of

    known = set(class_names(dict(enumerate(COCO))).values())
    assert {name for item in geneval for name in classes_of(item.data)} <= known
    categories = [item.data["category"] for item in items_of(EVALS["compbench"], str(place))]
    assert {name: categories.count(name) for name in EVALS["compbench"].overall} == dict.fromkeys(
        EVALS["compbench"].overall, 300
    )
    for name in ("dpg_bench.csv", "dpg-200.jsonl"):
        if (place / name).exists():
            assert all(item.data["questions"] for item in items_of(EVALS["dpg"], str(place / name)))


def test_small_rows_are_the_big_ones_elsewhere(tmp_path: Path) -> None:
    for name in JUDGES_MADE:
        small = small_spec(name, tmp_path)
        assert (small.target, small.read, small.samples) == (
            EVALS[name].target,
            EVALS[name].read,
            EVALS[name].samples,
        )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_repeats_of_a_list_are_counted(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "color_val.txt"
    path.write_text("a red bear\na teal cup\na red bear\n\na red bear\n", encoding)
    items, repeats = items_and_repeats(EVALS["compbench"], str(path))
    assert [item.prompt for item in items] == ["a red bear", "a teal cup"]
    assert repeats == 2


def test_a_list_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "color_val.txt"
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"color_val.txt cannot be read as text: 'utf-8' codec can't encode"):
        items_of(EVALS["compbench"], str(path))
