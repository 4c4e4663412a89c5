"""Results by hand: two models, a benchmark with a failed picture, a metric; the tables; what is kept of a judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_dataset

from rankray import schema, store
from rankray.cli import parse_evaluate
from rankray.cluster.actors import GENERATED_TYPE, SCORED_TYPE, JobContext
from rankray.config import EvalChoice, ImagesConfig, PricesConfig
from rankray.data import rerank
from rankray.data.cost import ActorUsage, ledger, merged
from rankray.evals import EVALS, spec_of
from rankray.evals import results as evaluation_results
from rankray.evals import scores as evaluation
from rankray.evals.prompt_lists import PromptList, read_lists, spread
from rankray.evals.results import Measured, markdown
from rankray.evals.scores import Pictures
from rankray.synpic import stages

NAN = float("nan")
OPTIONS = (
    *("--output", "/o", "--model", "shapes-sdxl", "--model", "shapes-sd3", "--baseline", "shapes-sdxl"),
    *("--evals", "shapes,shapes-mps", "--prompts.shapes", "shapes:heldout", "--prompts.shapes.limit", "4"),
    *("--prompts.shapes.samples", "2"),
)


@pytest.fixture(scope="module")
def lists() -> list[PromptList]:
    return read_lists(parse_evaluate(OPTIONS))


def pictures(
    prompts: list[str], judged: list[list[float]], liked: list[list[float]], path: str = "/x"
) -> Pictures:
    return Pictures(
        path=path,
        ids=tuple(schema.prompt_id(prompt) for prompt in prompts),
        prompts=tuple(prompts),
        seeds=np.arange(2 * len(prompts)).reshape(-1, 2),
        scores={"shapes": np.array(judged), "shapes-mps": np.array(liked)},
        details=tuple(({"shapes": {"objects": []}}, {}) for _ in prompts),
    )


def measured(found: Pictures) -> Measured:
    failed = int(np.isnan(found.scores["shapes"]).sum())
    fault = {"prompt_id": found.ids[0], "model": "model", "error": "ValueError: no"}
    info = {"failures": {"by_model": {"model": failed} if failed else {}, "examples": [fault] * failed}}
    return Measured(info, found, failed / 8)


def sets(lists: list[PromptList]) -> dict[tuple[str, str], Measured]:
    prompts = lists[0].prompts.rows
    before = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    after = [[1.0, 1.0], [1.0, 1.0], [1.0, NAN], [0.0, 0.0]]
    liked = [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]
    more = [[1.0, 1.0], [2.5, 2.5], [2.0, NAN], [5.0, 5.0]]
    return {
        ("a", "shapes"): measured(pictures(prompts, before, liked)),
        ("b", "shapes"): measured(pictures(prompts, after, more)),
    }


def results(lists: list[PromptList]) -> dict[str, Any]:
    made = sets(lists)
    tables = evaluation_results.tables(lists, ["a", "b"], "a", made)
    described = {"model": "shapes-sdxl", "source": None, "revision": "sha256:0", "asked": "x", "step": None}
    return {
        "baseline": "a",
        "models": [{"name": name, **described} for name in "ab"],
        **tables,
        "published": {},
        "failures": evaluation_results.failures(["a", "b"], lists, made, 0.01),
    }


def test_a_benchmarks_items_are_spread_over_its_file(lists: list[PromptList]) -> None:
    assert spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert spread([1, 2], 5) == [1, 2]
    assert len(lists) == 1
    assert lists[0].described == "shapes: 4 prompts x 2 pictures, judged by shapes, shapes-mps"
    assert set(lists[0].benchmarks["shapes"].target.kwargs["items"]) == set(lists[0].prompts.rows)


def test_lists_of_the_same_prompts_and_pictures_are_drawn_once(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle\na blue star\n")
    again = tmp_path / "again.txt"
    again.write_text("a blue star\na red circle\n")
    more = ("--prompts.mine", str(path), "--prompts.again", str(again), "--prompts.twice", str(path))
    found = read_lists(parse_evaluate([*OPTIONS, *more, "--prompts.twice.samples", "2"]))
    assert [(one.name, one.samples, len(one.prompts.rows)) for one in found] == [
        ("shapes", 2, 4),
        ("mine", 1, 2),
        ("twice", 2, 2),
    ]
    assert [[scorer.label for scorer in one.scorers] for one in found[1:]] == [["shapes-mps"]] * 2


def test_departures_are_of_the_parts_and_settings_that_ran() -> None:
    row = EVALS["compbench"]
    assert len(evaluation_results._departures(row, row)) == 4
    given = EvalChoice(
        model="dpg",
        models={"vqa": "/m/chat"},
        options={"vqa": "chat", "all_pictures": True, "keep_first": False, "vocabulary": 0},
    )
    assert evaluation_results._departures(spec_of(given), EVALS["dpg"]) == [
        "vqa /m/chat in place of Salesforce/blip-vqa-base",
        'vqa = "chat" in place of "blip"',
        "all_pictures = true in place of false",
    ]
    given = EvalChoice(model="compbench", models={"detector": "/m/owl"}, options={"least_confidence": 0.2})
    assert evaluation_results._departures(spec_of(given), row) == [
        *(text for key, text in row.departures.items() if key != "detector"),
        "detector /m/owl in place of google/owlv2-base-patch16-ensemble",
        "least_confidence = 0.2 in place of 0.1",
    ]


def test_figures_leave_out_what_failed_and_differences_what_either_lacks(lists: list[PromptList]) -> None:
    found = results(lists)
    entry = found["evals"][0]
    categories = [item.data["category"] for item in lists[0].benchmarks["shapes"].items]
    whole = entry["columns"][-1]
    assert whole["name"] == "overall"
    assert entry["departures"] == "4 of the file's 485 prompts; 2 pictures a prompt in place of 4"
    by_prompt = {"a": [0.0, 0.5, 1.0, 0.0], "b": [1.0, 1.0, 1.0, 0.0]}
    for name, means in by_prompt.items():
        columns = [
            np.mean([m for m, c in zip(means, categories, strict=True) if c == one])
            for one in set(categories)
        ]
        assert whole["models"][name]["mean"] == pytest.approx(np.mean(columns))
    assert (whole["models"]["a"]["values"], whole["models"]["b"]["values"]) == (8, 7)
    assert (whole["difference"]["b"]["wins"], whole["difference"]["b"]["losses"]) == (2, 0)
    assert "a" not in whole["difference"]
    liked = found["metrics"][0]["columns"]
    assert [column["name"] for column in liked] == ["shapes-mps"]
    assert liked[0]["models"]["b"]["mean"] == pytest.approx((1 + 2.5 + 2 + 5) / 4)
    assert liked[0]["difference"]["b"]["gain"] == pytest.approx((0 + 0.5 - 1 + 1) / 4)
    wins = found["metrics"][0]["wins"][0]
    assert (wins["first"], wins["second"], wins["wins"], wins["losses"], wins["ties"]) == ("b", "a", 2, 1, 1)
    assert (wins["win_rate"], wins["p_value"]) == (pytest.approx(2.5 / 4), 1.0)
    assert json.dumps(found, allow_nan=False)


def test_a_model_that_lacks_a_category_has_no_overall_figure(lists: list[PromptList]) -> None:
    made = sets(lists)
    categories = [item.data["category"] for item in lists[0].benchmarks["shapes"].items]
    pictures_ = made["b", "shapes"].pictures
    gone = [category == categories[0] for category in categories]
    assert 0 < sum(gone) < len(gone)
    pictures_.scores["shapes"][np.array(gone)] = NAN
    columns = evaluation_results.tables(lists, ["a", "b"], "a", made)["evals"][0]["columns"]
    found = {column["name"]: column for column in columns}
    assert found["overall"]["models"]["a"]["mean"] is not None
    assert found["overall"]["models"]["b"]["mean"] is None
    assert "b" not in found["overall"]["difference"]
    assert all(
        (found[name]["models"]["b"]["mean"] is None) == (name == categories[0]) for name in set(categories)
    )


def test_a_difference_of_fewer_categories_than_the_models_is_no_overall_one(lists: list[PromptList]) -> None:
    """Of one category each model lacks another picture: both have a figure of it, and no picture that both have."""
    made = sets(lists)
    categories = [item.data["category"] for item in lists[0].benchmarks["shapes"].items]
    place = next(n for n, category in enumerate(categories) if categories.count(category) == 1)
    for picture, name in enumerate("ab"):
        made[name, "shapes"].pictures.scores["shapes"][place] = [NAN, 1.0] if picture else [1.0, NAN]
    columns = evaluation_results.tables(lists, ["a", "b"], "a", made)["evals"][0]["columns"]
    found = {column["name"]: column for column in columns}
    assert all(found["overall"]["models"][name]["mean"] is not None for name in "ab")
    assert "b" not in found[categories[place]]["difference"]
    assert "b" not in found["overall"]["difference"]


def test_failures_are_counted_by_model_and_stage(lists: list[PromptList]) -> None:
    found = results(lists)["failures"]
    assert (found["total"], found["by_model"]) == (1, {"a": {}, "b": {"generator": 1}})
    assert found["worst_share"] == 1 / 8
    assert (found["examples"][0]["model"], found["examples"][0]["stage"]) == ("b", "generator")


def test_other_seeds_cannot_be_compared(lists: list[PromptList]) -> None:
    made = sets(lists)
    one = made["b", "shapes"].pictures
    other = Pictures(one.path, one.ids, one.prompts, one.seeds + 1, one.scores, one.details)
    with pytest.raises(ValueError, match="different seeds"):
        evaluation_results.tables(lists, ["a", "b"], "a", {**made, ("b", "shapes"): measured(other)})


def test_what_changed_most_goes_up_and_down_once_a_prompt_first() -> None:
    change = np.array([[0.5, 0.5], [1.0, NAN], [-1.0, 0.0], [0.5, -2.0]])
    assert evaluation.most_changed(change, 3) == [(1, 0), (0, 0), (3, 0), (3, 1), (2, 0)]
    assert evaluation.most_changed(np.zeros((2, 2)), 3) == []


def test_changes_name_both_pictures_and_what_judges_saw(lists: list[PromptList]) -> None:
    found = evaluation_results.changes(lists, ["a", "b"], "a", sets(lists), 1)
    first = found[0].entry
    assert (first["eval"], first["column"], first["model"], first["before"], first["after"]) == (
        *("shapes", "shapes", "b"),
        *(0.0, 1.0),
    )
    assert first["before_detail"] == {"objects": []}
    assert [one.entry["column"] for one in found] == ["shapes", "shapes-mps", "shapes-mps"]


def test_the_tables_are_the_papers_with_its_own_rows_marked(lists: list[PromptList]) -> None:
    info = results(lists)
    info["published"] = {
        "shapes": {
            "source": "a paper",
            "tables": [{"table": 1, "title": "T", "note": "A note."}],
            "columns": {"overall": "Mean", "shapes-mps": "MPS"},
            "rows": [{"model": "Theirs", "table": 1, "values": {"overall": 0.5}}],
            "printed_times": {"overall": 100, "shapes-mps": 1},
        }
    }
    text = markdown(info)
    assert "| model | Mean | MPS | " in text
    assert "| *Theirs, quoted from Table 1* | 50.00 | – |" in text
    mean = info["evals"][0]["columns"][-1]["models"]["a"]["mean"]
    assert f"| a | {100 * mean:.2f} | 2.5000 [" in text, "categories of one prompt: no interval of their mean"
    column = info["evals"][0]["columns"][-1]
    gain = column["difference"]["b"]
    in_percent = [f"{100 * gain[key]:.2f}" for key in ("before", "after")]
    assert f"| overall | {in_percent[0]} | {in_percent[1]} | {100 * gain['gain']:+.2f} |  | 2 : 0 |" in text
    assert "| shapes-mps | 2.5000 | 2.6250 | +0.1250 | [" in text
    assert "Quoted figures: a paper" in text
    assert "| shapes-mps | b over a | 62.5% | 2 : 1 : 1 | 1 |" in text
    assert "- b: generator 1" in text


def test_ledgers_add_up() -> None:
    prices = PricesConfig(cpu_usd_per_hour=1.0)
    usage = [ActorUsage("m", "generator", str(n), 3600.0, 0.0, 3600.0, 10, 1, 0, 0.0, 1.0) for n in (0, 1)]
    both = ledger(usage, prices)
    parts = merged([ledger(usage[:1], prices), ledger(usage[1:], prices)], prices)
    assert parts["totals"] == both["totals"]
    assert parts["models"] == both["models"]


def context(judges: tuple[str, ...]) -> JobContext:
    return JobContext(0, ImagesConfig(), "/o", (("model", 2),), ("judge", "plain"), 8, None, judges)


def in_flight(details: bool) -> pa.Table:
    drawn = [{"seed": 1, "image": b"x", "width": 1, "height": 1}, {"seed": 2, "error": "ValueError: no"}]
    columns: dict[str, Any] = {
        "prompt_id": [schema.prompt_id("p")],
        "prompt": ["p"],
        "generated:model": pa.array([drawn], GENERATED_TYPE),
        "scored:judge": pa.array([[{"score": 1.0}, {"score": NAN}]], SCORED_TYPE),
        "scored:plain": pa.array([[{"score": 2.0}, {"score": NAN}]], SCORED_TYPE),
    }
    if details:
        columns["detailed:judge"] = pa.array([['{"boxes": [1]}', None]], schema.DETAILS_TYPE)
    return pa.table(columns)


def test_a_judges_details_are_a_further_column_and_only_theirs() -> None:
    for judges in ((), ("judge",)):
        due = schema.ranked_schema({"model": "x"}, {"judge": "y", "plain": "z"}, details=bool(judges))
        found = stages.rank_block(in_flight(bool(judges)), context=context(judges), schema_out=due)
        assert found.schema.equals(due, check_metadata=True)
        if judges:
            assert found["details"].to_pylist() == [['{"judge": {"boxes": [1]}}', None]]
        else:
            assert found.column_names == ["prompt_id", "prompt", "candidates"]


def test_a_set_with_details_is_read_validated_and_reranked(tmp_path: Path) -> None:
    place = small_dataset.write(tmp_path / "d")
    for file in sorted((tmp_path / "d" / "data").glob("*.parquet")):
        table = pq.read_table(file)
        names = schema.schema_names(table.schema)
        texts = [[json.dumps({"r": {"n": n}}), None, None] for n in range(table.num_rows)]
        due = schema.ranked_schema(*names, details=True)
        more = table.append_column("details", pa.array(texts, schema.DETAILS_TYPE)).cast(due)
        pq.write_table(more.replace_schema_metadata(due.metadata), file, row_group_size=1)
    assert store.validate(place).rows == 3
    found = evaluation.read(place)
    assert found.scores["r"].shape == (3, 3)
    assert found.judgements("r")[found.prompts[0]][0] is not None
    assert [detail[0]["r"] for detail in found.details if detail[0]]
    rerank.run(place, str(tmp_path / "again"), rerank.Reranking(), lambda line: None)
    assert store.validate(str(tmp_path / "again")).rows == 3
