"""A run's report says what its files say, whatever of them is missing, and escapes what other people wrote."""

from __future__ import annotations

import base64
import functools
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reader import Reader
from PIL import Image

from rankray.report import run as run_report

NAN = math.nan
INFO: dict[str, Any] = {
    "rankray_version": "0.2.0",
    "created": "2026-01-02T03:04:05+00:00",
    "dataset": "/data/<i>set</i>",
    "model": {"source": "shapes:shapes-sdxl", "revision": "sha256:ab", "family": "unet"},
    "loss": "rank_dpo",
    "beta": 100.0,
    "steps": 40,
    "batch_size": 16,
    "workers": 2,
    "zero_stage": 2,
    "lora_rank": 0,
    "reference": "copy",
    "encode": "store",
    "parameters": {"trained": 1_234_567, "total": 2_345_678},
    "held_parameters": 4_691_356,
    "throughput": {"wall_s": 300.0, "prompts_per_s": 2.133, "data_wait_share": 0.0125},
    "skipped_steps": 1,
    "validation": {
        "exported": {"step": 30, "implicit_accuracy": 0.625},
        "decision": "of step 30, the best on held-out prompts",
        "warnings": {"memorising": "88.0 % of the training pairs are right"},
    },
    "cost": {"usd": 0.25, "gpu_hours": 0.0833, "cpu_hours": 0.5, "runs": 3},
}


def line(step: int, **changes: Any) -> dict[str, Any]:
    """A line of `metrics.jsonl`; accuracy rises from 0.5 by 0.01 every four steps."""
    return {
        "step": step,
        "epoch": step / 10,
        "loss": 0.7 - step / 400,
        "implicit_accuracy": 0.5 + 0.01 * ((step - 1) // 4),
        "margin": step / 100,
        "model_error": 0.3,
        "ref_error": 0.25,
        "pairs": 88,
        "prompts": 16,
        "skipped_prompts": 0,
        **({} if step % 10 else {"validation_implicit_accuracy": 0.55, "validation_chosen_rise": 0.01}),
        "grad_norm": 0.9,
        "learning_rate": 1e-4,
        "step_s": 0.5,
        "data_wait_s": 0.01,
        "prompts_per_s": 32.0,
        "memory_gb": 1.25,
        "usd": 0.001 * step,
        "skipped_steps": 0,
        **changes,
    }


def text_of(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(item) + "\n" for item in lines)


@functools.cache
def png(width: int, height: int, colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def grids(path: Path, steps: list[int], prompts: list[str] | None = None, cell: int = 8) -> None:
    (path / "samples").mkdir()
    for step in steps:
        (path / f"samples/step-{step:06}.png").write_bytes(png(4 * cell, 2 * cell))
    if prompts is not None:
        (path / "samples/prompts.json").write_text(json.dumps({"prompts": prompts, "columns": 4}))


def written(path: Path, info: dict[str, Any] = INFO) -> tuple[str, Reader]:
    run_report.write_run_report(str(path), info)
    html = (path / "report.html").read_text()
    reader = Reader()
    reader.feed(html)
    reader.text = re.sub(r"\s+", " ", reader.text[reader.text.index("Training run", 20) :])
    return html, reader


def whole(path: Path) -> tuple[str, Reader]:
    (path / "metrics.jsonl").write_text(text_of([line(step) for step in range(1, 41)]))
    grids(path, [0, 20, 40], ["a <b>bold</b> fox", "two foxes"])
    (path / "config.toml").write_text('dataset = "</pre><script>alert(1)</script>"\nsteps = 40\n')
    return written(path)


def test_the_verdict_is_of_tenths(tmp_path: Path) -> None:
    _, reader = whole(tmp_path)
    # Means of steps 1 to 4 and 37 to 40: loss 0.7 - 2.5 / 400 and 0.7 - 38.5 / 400; accuracy 0.50 and 0.59.
    assert (
        "40 steps, implicit accuracy 50.0 % → 59.0 %, loss 0.6937 → 0.6038, error 20.0 % above the reference's."
    ) in reader.text


def test_everything_known_is_on_the_page(tmp_path: Path) -> None:
    html, reader = whole(tmp_path)
    stated = [
        "59.0 %",
        "step 30",
        "exported: 62.5 % of held-out pairs right",
        "The pipeline is of step 30, the best on",
        "Memorising: 88.0 % of the training pairs",
        "2.133",
        "5.0 min",
        "1.2 %",
        "640",
    ]
    stated += [
        "prompts, 16 a step",
        "1.25 GB",
        "$0.25",
        "shapes:shapes-sdxl on /data/<i>set</i> with rank_dpo.",
    ]
    stated += ["weights themselves, no LoRA", "1,234,567", "2,345,678", "4,691,356", "sha256:ab", "0.0833"]
    assert [text for text in stated if text not in reader.text] == []
    labels = [attributes["aria-label"] for tag, attributes in reader.tags if "aria-label" in attributes]
    curves = [curve for curve in run_report.CURVES if curve.title != "Preference"]  # all of the loss is that
    assert labels == [f"{curve.title} ({curve.unit}) by step" for curve in curves]
    assert html.count('<div class="chart">') == len(curves) == 9
    assert "lowest 0.6 (step 40), highest 0.6975 (step 1), last 0.6" in reader.text
    # Every step of each chart has its strip; the loss of step 1 is 0.6975.
    assert html.count("<title>step 1\n") == 9
    assert "<title>step 1\nloss: 0.6975\nloss, averaged: 0.6975</title>" in html
    assert "wait: 2\n" in html


def test_other_peoples_text_is_text(tmp_path: Path) -> None:
    _, reader = whole(tmp_path)
    assert {tag for tag, _ in reader.tags} & {"script", "i", "iframe", "link"} == set()
    assert "a <b>bold</b> fox" in reader.text
    assert 'dataset = "</pre><script>alert(1)</script>" steps = 40' in reader.text


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=3))
def test_any_prompt_adds_no_tag(tmp_path_factory: pytest.TempPathFactory, prompts: list[str]) -> None:
    path = tmp_path_factory.mktemp("run")
    grids(path, [0], prompts)
    _, reader = written(path, {})
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("li") == tags.count("bdi") == len(prompts)
    assert set(tags) & {"script", "b", "table"} == {"b", "table"}  # the verdict, the step; the settings


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    html, reader = whole(tmp_path)
    sources = [attributes.get("src") or "" for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", html)
    assert not re.findall(r"https?://|@import|url\(", html)


def test_phones_are_told_the_width(tmp_path: Path) -> None:
    _, reader = written(tmp_path, {})
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in reader.tags
    assert any(tag == "svg" for tag, _ in reader.tags) is False  # and nothing is drawn of nothing


def test_an_empty_directory_gives_a_page(tmp_path: Path) -> None:
    _, reader = written(tmp_path, {})
    assert "No steps on record." in reader.text
    assert "There is no metrics.jsonl, so there are no curves." in reader.text
    assert "None were drawn" in reader.text
    assert "config.toml" not in reader.text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("key", sorted(INFO))
def test_any_key_may_be_missing_or_null(tmp_path: Path, key: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text_of([line(1), line(2)]))
    without = {name: value for name, value in INFO.items() if name != key}
    html, _ = written(tmp_path, without)
    assert "Curves" in html
    assert written(tmp_path, INFO | {key: None})[0] == html
    assert written(tmp_path)[0] != html


def test_a_half_written_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(text_of([line(1), line(2)]) + '{"step": 3, "lo')
    _, reader = written(tmp_path)
    assert "2 of 40 steps" in reader.text
    assert "The last line of metrics.jsonl is only half written and is left out." in reader.text


@pytest.mark.parametrize(
    ("text", "steps", "notes"),
    [
        ("", [], ["metrics.jsonl holds no steps, so there are no curves."]),
        ('{"step": 2}\n\n{"step": 1}\n', [1, 2], []),
        (
            '{"step": 1}\nnull\n{"step": 2.5}\n{"step": 3}',
            [1, 3],
            ["2 lines of metrics.jsonl are not readable"],
        ),
        ('{"step": "1"}\n{"step": true}\n{"step": 3}', [3], ["2 lines of metrics.jsonl are not readable"]),
        ('[1]\n{"step": 1}\n{"ste', [1], ["The last line of", "1 line of metrics.jsonl is not readable"]),
        ('{"step": 1, "x": "\ufffd"}\r\n{"step": 2}\r\n', [1, 2], []),
    ],
)
def test_lines_that_are_none(text: str, steps: list[int], notes: list[str]) -> None:
    found = run_report.parse_metrics(text)
    assert found.steps.tolist() == steps
    assert len(found.notes) == len(notes)
    assert all(said.startswith(note) for said, note in zip(found.notes, notes, strict=True))


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 1)), max_size=40), st.integers(0, 200))
def test_the_later_line_of_a_step_wins_and_any_cut_is_survived(
    pairs: list[tuple[int, float]], cut: int
) -> None:
    text = text_of([{"step": step, "loss": loss} for step, loss in pairs])
    found = run_report.parse_metrics(text)
    assert [(item["step"], item["loss"]) for item in found.lines] == sorted(dict(pairs).items())
    short = run_report.parse_metrics(text[:cut])
    assert set(short.steps) <= set(found.steps)
    assert (np.diff(short.steps) > 0).all()


def test_a_resumed_run_is_drawn_once(tmp_path: Path) -> None:
    twice = [line(step) for step in (1, 2, 3)] + [line(2, loss=0.5), line(3, loss=0.25)]
    (tmp_path / "metrics.jsonl").write_text(text_of(twice))
    html, reader = written(tmp_path, {})
    assert "3 steps, implicit accuracy 50.0 %, loss 0.6975 → 0.25," in reader.text
    assert html.count("<title>step 3\nloss: 0.25\n") == 1


def test_a_loss_of_several_parts_is_drawn_part_by_part(tmp_path: Path) -> None:
    parts = [{"loss": 36.0 - step, "loss_preference": 0.5, "loss_nll": 35.5 - step} for step in range(1, 5)]
    lines = [line(step + 1, **part) for step, part in enumerate(parts)]
    lines.append(line(5, loss=None, loss_preference=7000.0, loss_nll=8000.0))
    (tmp_path / "metrics.jsonl").write_text(text_of(lines))
    html, reader = written(tmp_path)
    assert html.count('<div class="chart">') == 9
    assert "loss: lowest 32 (step 4), highest 35 (step 1), last 32" in reader.text
    assert "nll × its weight: lowest 31.5 (step 4), highest 34.5 (step 1), last 31.5" in reader.text
    assert "Preference" in reader.text
    assert "its preference part 0.5" in reader.text
    assert "7,000" not in html  # a skipped step


def test_skipped_steps_are_null_or_counted() -> None:
    counts = {
        1: 0,
        2: 1,
        3: 1,
        4: 2,
        5: 2,
        8: 5,
        9: 5,
    }  # 6 and 7 are lost: which of 6 to 8 were skipped is unknown
    lines = [line(step, skipped_steps=count) for step, count in counts.items()]
    lines[4]["loss"] = None
    metrics = run_report.Metrics(lines=json.loads(json.dumps(lines), parse_int=float), notes=[])
    assert run_report.skipped_steps(metrics) == [2, 4, 5]
    bare = run_report.parse_metrics('{"step": 1}\n{"step": 2}')
    assert run_report.skipped_steps(bare) == []


def test_skipped_steps_are_marked_and_no_part_of_the_curves(tmp_path: Path) -> None:
    lines = [line(step, skipped_steps=int(step >= 3)) for step in range(1, 6)]
    lines[2] |= {"loss": 5000.0, "implicit_accuracy": 0.0}
    (tmp_path / "metrics.jsonl").write_text(text_of(lines))
    html, reader = written(tmp_path)
    assert html.count("<title>step 3 skipped</title>") == 8
    assert "1 skipped step is marked" in reader.text
    assert "5,000" not in reader.text
    assert "<title>step 3\nloss: –\n" in html
    assert "<title>step 3\nprompts/s: 32\n" in html  # it took its time all the same


def test_what_held_out_prompts_say_is_drawn_as_it_was_measured(tmp_path: Path) -> None:
    html, _ = whole(tmp_path)
    assert "training, averaged: " in html
    assert "held out: 55" in html
    assert "held out, averaged" not in html


def test_nulls_leave_gaps(tmp_path: Path) -> None:
    empty = {key: None for key in line(0) if key != "step"}
    lines = [line(1), {"step": 2, **empty}, line(3), line(4, grad_norm=None)]
    (tmp_path / "metrics.jsonl").write_text(text_of(lines))
    html, _ = written(tmp_path)
    paths = re.findall(r'<path class="line raw" d="([^"]*)"', html)
    assert [d.count("M") for d in paths] == [2] * 7  # a gap at step 2; the learning rate is drawn once, thick
    assert sum("h0" in d for d in paths) == 7
    (tmp_path / "metrics.jsonl").write_text(text_of([{"step": 2, **empty}]))
    html, reader = written(tmp_path, {})
    assert "1 skipped" not in reader.text  # there is no chart to mark it in
    assert html.count('<div class="chart">') == 0
    assert "2 steps." in reader.text


def test_values_without_meaning_are_not_drawn() -> None:
    lines = [
        line(1, pairs=0, implicit_accuracy=0.0),
        line(2, prompts=0, loss=0.0),
        line(3),
        line(4, loss=math.inf),
    ]
    found = run_report.learnt(run_report.parse_metrics(text_of(lines)), [3])
    np.testing.assert_array_equal(found["implicit_accuracy"], [NAN, 0.5, NAN, 0.5])
    np.testing.assert_array_equal(found["loss"], [0.6975, NAN, NAN, NAN])
    np.testing.assert_array_equal(found["model_error"], [0.3, NAN, NAN, 0.3])
    np.testing.assert_array_equal(found["data_wait_share"], [0.02] * 4)
    # An objective without a reference writes errors of 0 for it.
    bare = run_report.learnt(run_report.parse_metrics(text_of([line(1, ref_error=0.0, step_s=0)])), [])
    assert all(np.isnan(bare[name]).all() for name in ("ref_error", "implicit_accuracy", "margin"))
    assert np.isnan(bare["data_wait_share"]).all()


@pytest.mark.parametrize("pairs", [0, 88])
def test_a_run_without_reference_has_one_error_curve(tmp_path: Path, pairs: int) -> None:
    lines = [line(step, ref_error=0.0, pairs=pairs) for step in range(1, 5)]
    (tmp_path / "metrics.jsonl").write_text(text_of(lines))
    html, reader = written(tmp_path)
    assert html.count('<div class="chart">') == 6  # neither accuracy nor margin
    assert 'class="key"' not in html
    assert "reference's" not in reader.text


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], None), ([NAN], None), ([3.0], (3.0, 3.0)), ([1.0, NAN, 5.0], (1.0, 5.0))],
)
def test_ends(values: list[float], expected: tuple[float, float] | None) -> None:
    assert run_report.ends(np.array(values)) == expected


def test_ends_of_twenty_are_means_of_two() -> None:
    assert run_report.ends(np.arange(20.0)) == (0.5, 18.5)


def test_grids_are_first_newest_and_even_between(tmp_path: Path) -> None:
    grids(tmp_path, [50 * n for n in range(15)])
    (tmp_path / "samples" / "step-000050.png.1a2b.tmp").write_bytes(b"half")
    _, reader = written(tmp_path)
    alts = [attributes["alt"] for tag, attributes in reader.tags if tag == "img"]
    # Of places 0 to 14 the eight are 0, 2, 4, ... 14.
    expected = [0, 700, 100, 200, 300, 400, 500, 600]
    assert alts == [f"sample pictures at step {step}" for step in expected]
    assert "step 0, the starting model" in reader.text
    assert "step 700, the newest" in reader.text
    assert len(re.findall("the newest(?! grid)", reader.text)) == 1


@pytest.mark.parametrize(("steps", "shown"), [([0], [0]), ([0, 50], [0, 50]), ([0, 50, 100], [0, 100, 50])])
def test_few_grids(tmp_path: Path, steps: list[int], shown: list[int]) -> None:
    grids(tmp_path, steps)
    _, reader = written(tmp_path, {})
    found = [attributes["alt"] for tag, attributes in reader.tags if tag == "img"]
    assert found == [f"sample pictures at step {step}" for step in shown]


def test_a_broken_grid_costs_only_itself(tmp_path: Path) -> None:
    grids(tmp_path, [0, 50, 100])
    (tmp_path / "samples" / "step-000050.png").write_bytes(png(32, 16)[:40])
    (tmp_path / "samples" / "prompts.json").write_text('{"prompts": ["a')
    _, reader = written(tmp_path)
    assert sum(tag == "img" for tag, _ in reader.tags) == 2
    assert "the picture cannot be read: " in reader.text
    assert sum(tag == "ol" for tag, _ in reader.tags) == 0


@pytest.mark.parametrize(("cell", "pixelated"), [(128, True), (129, False)])
def test_small_pictures_are_shown_as_sharp_squares(tmp_path: Path, cell: int, pixelated: bool) -> None:
    grids(tmp_path, [0], ["a", "b"], cell)
    _, reader = written(tmp_path)
    (classes,) = [attributes.get("class") for tag, attributes in reader.tags if tag == "img"]
    assert (classes == "pixelated") == pixelated


def test_grids_share_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).resize((1600, 1600)).save(tmp_path / "samples" / "step-000000.png")
    data = (tmp_path / "samples" / "step-000000.png").read_bytes()
    for step in range(1, 9):
        (tmp_path / "samples" / f"step-{step:06}.png").write_bytes(data)
    html, reader = written(tmp_path)
    sources = [str(attributes["src"]) for tag, attributes in reader.tags if tag == "img"]
    pictures = [base64.b64decode(source.partition(",")[2]) for source in sources]
    assert len(pictures) == run_report.SHOWN_GRIDS
    assert max(map(len, pictures)) <= 500_000
    assert Image.open(io.BytesIO(pictures[0])).width in run_report.GRID_SIDES
    assert len(html) < 5_500_000


def test_long_runs_stay_small(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(text_of([line(step) for step in range(1, 5001)]))
    html, reader = written(tmp_path)
    assert len(html) < 400_000
    assert (
        "Thin lines are means of up to 13 steps, thick ones an exponential average over about 250"
        in reader.text
    )
    assert "<title>steps 1–50\n" in html
