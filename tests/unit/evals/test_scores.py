"""Two models' pictures of the same prompts and seeds: what is paired, what the table and the report's title say."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_dataset
from PIL import Image

from rankray import schema
from rankray.evals import scores as evaluation
from rankray.report.align import changed, verdict, write_align_report
from rankray.shapes.prompts import parse, prompts
from rankray.shapes.renderer import compose, paint
from rankray.stats import compare

PROMPTS = prompts("heldout")[:6]


def dataset(place: Path, right: list[bool], texts: list[str] = PROMPTS, size: int = 64) -> str:
    """One model's pictures: a rendered one of the prompt where `right`, an empty page where not; the score says so."""
    rows = []
    for text, good in zip(texts, right, strict=True):
        page = np.full((64, 64, 3), 240, np.uint8)
        pixels = paint(compose(parse(text), np.random.default_rng(0))) if good else page
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((size, size)).save(buffer, "PNG")
        candidate = {
            "generator": "model",
            "seed": 1,
            "image": {"bytes": buffer.getvalue(), "path": None},
            "width": size,
            "height": size,
            "scores": [2.0 if good else 1.0],
            "win_probability": 0.0,
            "rank": 1,
            "error": None,
        }
        rows.append(
            {"prompt_id": schema.prompt_id(text), "prompt": text, "candidates": [candidate, dict(candidate)]}
        )
    (place / "data").mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=schema.ranked_schema({"model": "x"}, {"r": "y"}))
    pq.write_table(table, place / "data" / "0.parquet")
    info = {"rewards": [{"name": "r", "revision": "y"}], "rows": len(rows)}
    (place / "dataset.json").write_text(json.dumps(info))
    return str(place)


def test_pictures_of_another_size_are_not_the_checker_s(tmp_path: Path) -> None:
    """Any model may be measured on this world's prompts: one that draws larger by its rewards."""
    places = [dataset(tmp_path / name, [True] * 6, size=128) for name in ("before", "after")]
    assert set(evaluation.difference(*places)) == {"r"}


def test_the_checker_is_a_metric_of_the_shapes_world(tmp_path: Path) -> None:
    before = dataset(tmp_path / "before", [True, False, False, False, True, False])
    after = dataset(tmp_path / "after", [True, True, True, True, False, False])
    found = evaluation.difference(before, after)
    row = found["checker"]
    assert (row["before"], row["after"]) == (pytest.approx(2 / 6), pytest.approx(4 / 6))
    assert (row["wins"], row["losses"]) == (3, 1)
    assert found["r"]["gain"] == pytest.approx(2 / 6)
    assert "| checker % | 33.3 | 66.7 | +33.3 |" in evaluation.table(found)
    assert verdict(found) == "checker: 33.3% before, 66.7% after: not measurably different"
    one = {"checker": asdict(compare([0.0], [1.0]))}
    assert evaluation.table(one).endswith("| checker % | 0.0 | 100.0 | +100.0 | – | 1 : 0 |")
    assert verdict(one) == "checker: 0.0% before, 100.0% after: no interval"


def test_a_measurement_is_read_by_model_and_reward(tmp_path: Path) -> None:
    found = evaluation.by_model(small_dataset.write(tmp_path / "dataset"))
    assert list(found) == ["one", "two"]
    ids = {"a": 0, "b": 1, "c": 2}
    place = {prompt: found["one"].prompts.index(prompt) for prompt in ids}
    # Reward s of the first generator's two samples of each prompt.
    assert found["one"].scores["s"][place["a"]].tolist() == [30.0, 20.0]
    assert found["two"].scores["s"][place["a"]].tolist() == [10.0]
    # t failed for b's first candidate; c's last has no picture.
    assert np.isnan(found["one"].scores["t"][place["b"], 0])
    assert np.isnan(found["two"].scores["r"][place["c"], 0])
    assert "checker" not in found["one"].scores  # these prompts are none of the shapes world


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    before = dataset(tmp_path / "before", [True] * 6)
    after = dataset(tmp_path / "after", [True] * 5, PROMPTS[:5])
    with pytest.raises(ValueError, match="hold different prompts"):
        evaluation.difference(before, after)


def test_the_report_shows_what_changed_most(tmp_path: Path) -> None:
    before = dataset(tmp_path / "evaluation" / "before", [True, False, False, True, True, True])
    after = dataset(tmp_path / "evaluation" / "round-1", [True, True, False, False, True, True])
    pairs = changed(before, after)
    ids = {schema.prompt_id(text): n for n, text in enumerate(PROMPTS)}
    by_prompt = {text: ids[schema.prompt_id(text)] for text in PROMPTS}
    assert [by_prompt[pair["prompt"]] for pair in pairs] == [1, 1, 3, 3]
    assert [pair["change"][0] for pair in pairs] == ["+", "+", "-", "-"]
    gain: dict[str, Any] = evaluation.difference(before, after)
    info = {"rounds": [{"rows": 6, "images": 12, "steps": 3, "gain": gain}]}
    run = tmp_path / "round-1" / "rankdpo"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"created": "then"}')
    write_align_report(str(tmp_path), info)
    page = (tmp_path / "report.html").read_text()
    assert "checker: 66.7% before, 66.7% after: not measurably different" in page
    kept = json.loads((run / "gain.json").read_text())
    assert kept["created"] == "then"
    assert kept["gain"]["checker"].startswith("66.7% → 66.7%: +0.0 points (")
    assert page.count("data:image/png") == 8
    assert "http" not in page.replace("http-equiv", "")
