"""The report is written from files and escapes everything that other people wrote."""

from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rankray import ranking, report, schema
from rankray.config import PricesConfig
from rankray.cost import ActorUsage, ledger

ODD = [
    "<script>alert(1)</script>",
    "\"quoted\" & 'single' {{ 7 * 7 }}",
    "🦊 é",
    "nul \0 in",
    "<b>" + "long " * 2000,
]


def png(size: int, colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def dataset(path: Path, prompts: list[str], size: int = 8) -> dict[str, Any]:
    """Writes files; returns the summary. The second generator fails for the first prompt."""
    rows = []
    for n, prompt in enumerate(prompts):
        failed = n == 0
        scores = np.array([[n, 1.0], [math.nan] * 2 if failed else [1.0, n]], np.float32)
        phi = ranking.win_probability(scores)
        ranks = ranking.rank(phi)
        candidates = [
            {
                "generator": name,
                "seed": n,
                "image": None if failed and i else {"bytes": png(size), "path": None},
                "width": None if failed and i else size,
                "height": None if failed and i else size,
                "scores": scores[i].tolist(),
                "win_probability": phi[i],
                "rank": int(ranks[i]),
                "error": "ValueError: <i>no</i>" if failed and i else None,
            }
            for i, name in enumerate(["one", "two"])
        ]
        rows.append({"prompt_id": schema.prompt_id(prompt), "prompt": prompt, "candidates": candidates})
    (path / "data").mkdir(parents=True)
    due = schema.ranked_schema({"one": "x", "two": "y"}, {"r": "", "s": ""})
    pq.write_table(pa.Table.from_pylist(rows, due), path / "data" / "0.parquet")
    usage = ActorUsage("one", "generator", "1", 30.0, 5.0, 60.0, len(rows), 0, 0, 0.0, 1.0)
    model = {"model": "m", "revision": "sha256:<x>"}
    return {
        "schema_version": 1,
        "rankray_version": "0",
        "created": "now",
        "seed": 0,
        "layout": "streaming",
        "runs": 1,
        "prompts": {"source": "<p>.txt", "duplicates": 1, "empty": 2, "undecodable": 3},
        "generators": [{"name": "one", **model}, {"name": "two", **model}],
        "rewards": [{"name": "r", **model}, {"name": "s", **model}],
        "rows": len(rows),
        "candidates": 2 * len(rows),
        "images": 2 * len(rows) - 1,
        "failures": {
            "total": 1,
            "by_model": {"two": 1},
            "tolerance": 0.01,
            "examples": [{"prompt_id": "p", "model": "two", "error": "ValueError: <i>no</i>"}],
        },
        "throughput": {"wall_s": 10.0, "images_per_s": 1.0, "rows_per_s": 1.0},
        "cost": ledger([usage], PricesConfig(cpu_usd_per_hour=1.0)),
    }


class Reader(HTMLParser):
    """Tags with their attributes, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def written(path: Path, prompts: list[str], size: int = 8) -> tuple[str, Reader]:
    report.write_report(str(path), dataset(path, prompts, size))
    html = (path / "report.html").read_text()
    reader = Reader()
    reader.feed(html)
    return html, reader


def test_other_peoples_text_is_text(tmp_path: Path) -> None:
    html, reader = written(tmp_path, ODD)
    assert {tag for tag, _ in reader.tags} & {"script", "i", "iframe", "link"} == set()
    assert "<script>alert(1)</script>" in reader.text
    assert "{{ 7 * 7 }}" in reader.text
    assert "🦊 é" in reader.text
    assert "\0" not in html
    assert reader.text.count("long ") < 60
    titles = [attributes["title"] for _, attributes in reader.tags if attributes.get("title")]
    assert len(titles) == 1
    assert str(titles[0]).startswith("<b>long long")


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    html, reader = written(tmp_path, ["a", "b"])
    sources = [attributes.get("src") or "" for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", html)
    assert "@import" not in html
    assert "url(" not in html


def test_failures_and_figures_are_shown(tmp_path: Path) -> None:
    _, reader = written(tmp_path, ["a", "b", "c"])
    assert "1 items failed" in reader.text
    assert "ValueError: <i>no</i>" in reader.text
    assert "no picture" in reader.text
    # 60 s of one CPU at $1/h for 3 images: 1/60 $ / 3 * 1000.
    assert "$5.56" in reader.text


def test_size_is_bounded_for_big_pictures(tmp_path: Path) -> None:
    html, reader = written(tmp_path, [f"prompt {i}" for i in range(60)], size=1024)
    assert sum(tag == "section" for tag, _ in reader.tags) == report.SHOWN_PROMPTS
    assert len(html) < 8_000_000
    source = next(str(a["src"]) for tag, a in reader.tags if tag == "img")
    data = base64.b64decode(source.partition(",")[2])
    assert max(Image.open(io.BytesIO(data)).size) == report.THUMBNAIL_PIXELS


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "–"), (1234, "1,234"), (0.12345, "0.123"), (1234.5, "1,234.500")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert report.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "$0.00"), (0.0123, "$0.012"), (185.6, "$185.60"), (0.0000321, "$3.2e-05")],
)
def test_money(value: float | None, text: str) -> None:
    assert report.money(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(3.21, "3.2 s"), (119, "119.0 s"), (240, "4.0 min"), (7200, "2.0 h")]
)
def test_seconds(value: float, text: str) -> None:
    assert report.seconds(value) == text
