"""An evaluation's report: the paper's table with one's own rows, what is called better, pictures, strangers' text."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from page_reader import Reader
from PIL import Image

from rankray.evals import published
from rankray.report import evaluation as evaluation_report
from rankray.report.evaluation import compared, detail, figure, headlines


def side(mean: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"mean": mean, "low": low, "high": high, "prompts": 5, "values": 20}


def gain(before: float, by: float, low: float | None, high: float | None) -> dict[str, Any]:
    named = {"before": before, "after": before + by, "gain": by, "low": low, "high": high}
    return {**named, "wins": 8, "losses": 1, "p_value": 0.0391}


def column(name: str, before: float, by: float, low: float | None, high: float | None) -> dict[str, Any]:
    models = {"base": side(before, before - 0.1, before + 0.1), "tuned": side(before + by)}
    return {
        **{"name": name, "prompts": 5, "pooled": False, "models": models},
        "difference": {"tuned": gain(before, by, low, high)},
    }


USAGE = dict.fromkeys(("actors", "items", "failures"), 1) | dict.fromkeys(
    ("busy_s", "load_s", "idle_s", "gpu_hours", "cpu_hours", "usd", "usd_per_1000"), 1.0
)
RESULTS: dict[str, Any] = {
    **{"rankray_version": "0.1.0", "created": "2026-01-02", "complete": True, "seed": 0, "baseline": "base"},
    "identity": {"seed": 0, "prompts.geneval.path": "<p>.jsonl"},
    "models": [
        {"name": "base", "model": "sdxl", "source": "hub/sdxl", "revision": "abc", "step": None},
        {"name": "tuned", "model": "sdxl", "source": "/run/<b>x</b>", "revision": "sha256:d", "step": 400},
    ],
    "evals": [
        {
            **{"name": "geneval", "benchmark": "geneval", "set": "geneval", "prompts": 20, "samples": 4},
            "overall": ["single_object", "two_object"],
            "departures": "another detector",
            "columns": [
                column("single_object", 0.9, -0.05, -0.08, -0.02),
                column("two_object", 0.4, 0.2, 0.05, 0.35),
                column("lonely", 1.0, 0.0, None, None),
                column("overall", 0.65, 0.075, 0.01, 0.14),
            ],
        }
    ],
    "metrics": [
        {
            **{"name": "dpg", "set": "dpg", "prompts": 20, "samples": 4},
            "columns": [
                column("vqascore", 0.81, 0.03, -0.01, 0.07),
                column("imagereward", -0.5, 1.5, 1.0, 2.0),
            ],
            "wins": [
                {"metric": "vqascore", "first": "tuned", "second": "base", "wins": 14, "losses": 5, "ties": 1}
                | {"win_rate": 0.725, "p_value": 0.0636}
            ],
        }
    ],
    "changed": [
        {
            **{"eval": "geneval", "column": "two_object", "model": "tuned", "prompt_id": "0f", "seed": 42},
            **{"prompt": "<script>alert(1)</script> two lamps", "sample": 0, "before": 0.0, "after": 1.0},
            **{"before_detail": {"reason": "expected lamp>=2, found 1"}, "after_detail": {"reason": ""}},
            **{"before_image": "changed/a.png", "after_image": "changed/b.png"},
        },
        {
            **{"eval": "dpg", "column": "vqascore", "model": "tuned", "prompt_id": "1e", "seed": 43},
            **{"prompt": "a teal drum", "sample": 0, "before": 0.9, "after": 0.4},
            **{"before_detail": None, "after_detail": {"answers": {"1": True}}},
            **{"before_image": "changed/a.png", "after_image": "changed/gone.png"},
        },
    ],
    "failures": {
        **{"total": 1, "by_model": {"tuned": {"generator": 1, "geneval": 0}}, "worst_share": 0.0125},
        "tolerance": 0.01,
        "examples": [
            {
                "model": "tuned",
                "set": "geneval",
                "stage": "generator",
                "prompt_id": "2d",
                "error": "<i>memory</i>",
            }
        ],
    },
    "sets": [],
    "cost": {
        "models": [{"kind": "generator", "model": "base", **USAGE}],
        "totals": {"gpu_hours": 1.0, "cpu_hours": 1.0, "usd": 2.5, "images": 160},
    },
    "published": {"geneval": published.beside("geneval"), "dpg": published.beside("dpg")},
}


def written(path: Path, results: dict[str, Any] = RESULTS) -> tuple[str, Reader]:
    (path / "changed").mkdir(exist_ok=True)
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (8, 8), colour).save(path / "changed" / f"{name}.png")
    evaluation_report.write_evaluation_report(str(path), results)
    html = (path / "report.html").read_text()
    reader = Reader()
    reader.feed(html)
    return html, reader


def test_the_papers_rows_stand_above_ones_own_in_one_table(tmp_path: Path) -> None:
    _, reader = written(tmp_path)
    rows = {row[0].strip(): row for row in reader.rows if row}
    heads = next(row for row in reader.rows if row and row[0] == "model")
    assert heads[:4] == ["model", "overallMean", "single_objectSingle", "two_objectTwo"]
    assert rows["SDXL (Ours) quoted, Table 1"][1:4] == ["0.61", "1.00", "0.86"]
    order = [row[0].strip() for row in reader.rows if row]
    assert order.index("SD v2.1 quoted, Table 1") < order.index("SDXL quoted, Table 1") < order.index("base")
    own = next(row for row in reader.rows if row and row[0].strip() == "base")
    assert own[1:3] == ["0.6500.550 to 0.750", "0.9000.800 to 1.000"]


def test_metrics_of_dpgs_prompts_stand_in_the_papers_per_cent(tmp_path: Path) -> None:
    _, reader = written(tmp_path)
    starts = [
        n for n, row in enumerate(reader.rows) if row and row[0] == "model" and "vqascoreVQA Score" in row
    ]
    table = reader.rows[starts[0] :]
    assert table[1] == [
        "SDXL quoted, Table 3",
        "84.33",
        "",
    ]  # SD1.5 has no VQA score, and imagereward none at all
    assert next(row for row in table if row[0].strip() == "base")[1:] == [
        "81.0071.00 to 91.00",
        "−0.500−0.600 to −0.400",
    ]


def test_only_what_leaves_out_zero_is_called_better_or_worse(tmp_path: Path) -> None:
    _, reader = written(tmp_path)
    verdicts = {row[0]: row for row in reader.rows if len(row) == 9}
    assert verdicts["single_object"][1:] == [
        *("−0.050−0.080 to −0.020", "", "0.900", "0.850", "8 : 1", "0.039", "worse", "5")
    ]
    assert verdicts["two_object"][7] == "better"
    assert verdicts["vqascore"][7] == "not measurably different"
    assert verdicts["lonely"][7] == "no interval"
    assert "geneval: 0.650 → 0.725, better (+0.075, 95 % +0.010 to +0.140)" in reader.text


def test_wins_failures_and_cost(tmp_path: Path) -> None:
    _, reader = written(tmp_path)
    assert ["vqascore", "tuned", "base", "72.5 %", "14 : 1 : 5", "0.064"] in reader.rows
    assert ["tuned", "generator", "1"] in reader.rows
    assert "<i>memory</i>" in reader.text
    assert "$2.50" in reader.text
    assert "1 in all; the worst stage failed for 1.2 % of its items" in reader.text


def test_pictures_by_direction_and_a_missing_one_says_so(tmp_path: Path) -> None:
    html, reader = written(tmp_path)
    assert html.index("What gained most") < html.index("two lamps") < html.index("What lost most")
    assert html.index("What lost most") < html.index("a teal drum")
    assert html.count("data:image/png;base64,") == 3
    assert "FileNotFoundError" in reader.text
    assert "before: expected lamp>=2, found 1" in reader.text
    assert 'after: {"answers": {"1": true}}' in reader.text
    assert "seed 42" in reader.text


def test_nothing_is_loaded_and_no_script_but_the_sorting_one_may_run(tmp_path: Path) -> None:
    html, reader = written(tmp_path)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(attributes["content"] for tag, attributes in reader.tags if "http-equiv" in attributes)
    assert policy is not None
    assert policy.endswith(f"script-src 'sha256-{digest}'")
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    assert not re.findall(r"(?:src|href)=\"(?!data:)", html)
    assert sum(tag == "b" and attributes == {} for tag, attributes in reader.tags) > 0
    assert "/run/<b>x</b>" in reader.text
    assert "<script>alert(1)</script>" in reader.text


def test_every_sortable_row_has_its_heads_columns(tmp_path: Path) -> None:
    html, _ = written(tmp_path)
    tables = re.findall(r'<table class="sortable.*?</table>', html, re.S)
    assert len(tables) == 5
    for table in tables:
        reader = Reader()
        reader.feed(table)
        assert len({len(row) for row in reader.rows}) == 1
        assert table.count("<thead>") == table.count("<tbody>") == 1


def test_a_headline_without_an_interval_claims_nothing() -> None:
    """Of categories with a single prompt, as a small limit has them."""
    results = copy.deepcopy(RESULTS)
    results["evals"][0]["columns"][-1] = column("overall", 0.65, 0.075, None, None)
    assert [line["text"] for line in headlines(results)] == ["0.650 → 0.725, no interval (+0.075)"]


def test_without_a_baseline_nothing_is_compared(tmp_path: Path) -> None:
    results = copy.deepcopy(RESULTS) | {"baseline": None, "changed": []}
    for entry in results["evals"] + results["metrics"]:
        for found in entry["columns"]:
            found["difference"] = {}
    html, reader = written(tmp_path, results)
    assert "There is no baseline" in reader.text
    assert "Against" not in reader.text
    assert "What gained most" not in html
    assert [line["text"] for line in headlines(results)] == ["0.650", "0.725"]


def test_checkpoints_are_drawn_along_their_steps(tmp_path: Path) -> None:
    results = copy.deepcopy(RESULTS)
    results["models"][1]["run"] = "/run"
    results["models"].append({**results["models"][1], "name": "early", "step": 200})
    results["models"][0] |= {"run": "/other", "step": 300}  # of another run: no point on this line
    for entry in results["evals"] + results["metrics"]:
        for found in entry["columns"]:
            found["models"]["early"] = found["models"]["base"]
            found["difference"]["early"] = gain(0.5, 0.0, -0.1, 0.1)
    html, reader = written(tmp_path, results)
    assert html.count('<div class="chart">') == 3  # the headline, and each metric
    assert "early, step 200: 0.650" in reader.text
    assert reader.text.count("Along training") == 2


def test_an_unfinished_evaluation_says_so(tmp_path: Path) -> None:
    _, reader = written(tmp_path, RESULTS | {"complete": False})
    assert "This evaluation is not complete" in reader.text


def test_a_benchmark_that_the_paper_has_not(tmp_path: Path) -> None:
    results = copy.deepcopy(RESULTS) | {"published": {}}
    results["evals"][0] |= {"name": "mine", "benchmark": "mine", "set": "mine"}
    results["metrics"] = []
    html, _ = written(tmp_path, results)
    assert 'class="quoted"' not in html


def test_bars_share_an_axis_only_where_units_are_alike() -> None:
    """0.2 of 0.2 + 0.1 and of 2: on one axis the small one is a tenth of the large one; on its own it is not."""
    columns = [column("share", 0.5, 0.2, None, None), column("score", 0.0, 2.0, None, None)]
    times = {"share": 1, "score": 1}
    together = [row["bar"] for row in compared(columns, times, ["tuned"], one_axis=True)]
    apart = [row["bar"] for row in compared(columns, times, ["tuned"], one_axis=False)]
    assert together[0].mean - together[0].zero == pytest.approx((together[1].mean - together[1].zero) / 10)
    assert apart[0].mean == apart[1].mean


@pytest.mark.parametrize(
    ("value", "times", "text"),
    [(None, 1, "–"), (0.6, 1, "0.600"), (0.7465, 100, "74.65"), (21.456, 1, "21.46"), (-0.5, 1, "−0.500")],
)
def test_figures(value: float | None, times: int, text: str) -> None:
    assert figure(value, times) == text


def test_details_are_short() -> None:
    assert detail(None) == detail({}) == ""
    assert len(detail({"boxes": list(range(1000))})) == evaluation_report.DETAIL_CHARACTERS + 1


def test_any_file_system(tmp_path: Path) -> None:
    written(tmp_path)
    page = (tmp_path / "report.html").read_bytes()
    evaluation_report.write_evaluation_report(tmp_path.as_uri(), RESULTS)
    assert (tmp_path / "report.html").read_bytes() == page
    assert io.BytesIO(page).read(9) == b"<!doctype"
