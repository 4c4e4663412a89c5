"""The report is written from files and escapes everything that other people wrote."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import math
import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_dataset
from hypothesis import given
from hypothesis import strategies as st
from page_reader import Reader
from PIL import Image

from rankray import ranking, schema, store
from rankray.config import PricesConfig
from rankray.data import rerank
from rankray.data.cost import ActorUsage, ledger
from rankray.report import dataset as report
from rankray.report import pages
from rankray.report.gallery import Query, open_gallery

NAN = math.nan
ODD = [
    "<script>alert(1)</script>",
    "\"quoted\" & 'single' {{ 7 * 7 }}",
    "🦊 é",
    "nul \0 and \x1b in",
    "<b>" + "long " * 2000,
]


@functools.cache
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
    usage = [
        ActorUsage("one", "generator", "1", 30.0, 5.0, 40.0, len(rows), 0, 0, 0.0, 1.0),
        ActorUsage("two", "generator", "2", 10.0, 5.0, 20.0, len(rows), 1, 0, 0.0, 1.0),
    ]
    model = {"model": "m", "revision": "sha256:<x>"}
    return {
        "schema_version": 1,
        "rankray_version": "0",
        "created": "now",
        "seed": 0,
        "identity": {"seed": 0, "prompts.path": "<p>.txt"},
        "layout": "streaming",
        "runs": 1,
        "prompts": {"source": "<p>.txt", "duplicates": 1, "empty": 2, "undecodable": 3},
        "generators": [{"name": name, "samples": 1, **model} for name in ("one", "two")],
        "rewards": [{"name": "r", **model}, {"name": "s", **model}],
        "rows": len(rows),
        "candidates": 2 * len(rows),
        "images": 2 * len(rows) - 1,
        "failures": {
            "total": 1,
            "by_model": {"two": 1},
            "tolerance": 0.01,
            "examples": [
                {"prompt_id": rows[0]["prompt_id"], "model": "two", "error": "ValueError: <i>no</i>"}
            ],
        },
        "throughput": {"wall_s": 10.0, "images_per_s": 1.0, "rows_per_s": 1.0},
        "cost": ledger(usage, PricesConfig(cpu_usd_per_hour=1.0)),
    }


def written(
    path: Path, prompts: list[str], size: int = 8, bounds: report.Bounds = report.BOUNDS
) -> tuple[str, Reader]:
    report.write_report(str(path), dataset(path, prompts, size), bounds)
    html = (path / "report.html").read_text()
    reader = Reader()
    reader.feed(html)
    return html, reader


def test_other_peoples_text_is_text(tmp_path: Path) -> None:
    html, reader = written(tmp_path, ODD)
    tags = [tag for tag, _ in reader.tags]
    assert set(tags) & {"i", "iframe", "link"} == set()
    assert tags.count("script") == 1
    # Nothing runs but the script whose hash the policy states.
    digest = re.findall(r"script-src 'sha256-([^']+)'\"", html)
    script = html.rpartition("<script>")[2].partition("</script>")[0]
    assert digest == [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()]
    assert "<script>alert(1)</script>" in reader.text
    assert "{{ 7 * 7 }}" in reader.text
    assert "🦊 é" in reader.text
    assert "nul \ufffd and \ufffd in" in reader.text
    assert not set(html) & set("\0\x1b")
    assert reader.text.count("long ") < 60
    titles = [
        attributes["title"] for tag, attributes in reader.tags if tag == "h3" and attributes.get("title")
    ]
    assert len(titles) == 1
    assert len(str(titles[0])) == 2001  # the beginning, and the ellipsis
    assert str(titles[0]).startswith("<b>long long")


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    html, reader = written(tmp_path, ["a", "b"])
    sources = [attributes.get("src") or "" for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", html)
    assert "@import" not in html
    assert "url(" not in html


def test_failures_and_figures_are_shown(tmp_path: Path) -> None:
    _, reader = written(tmp_path, ["a", "b", "c"])
    assert "1 item failed" in reader.text
    assert reader.text.count("ValueError: <i>no</i>") == 2  # under its picture's place, and in the table
    assert "prompts.path" in reader.text
    assert "no picture" in reader.text
    # 60 s of one CPU at $1/h for 5 images: 1/60 $ / 5 * 1000, and of 58,000 prompts with two each.
    assert "$3.33" in reader.text
    assert "At this rate 58,000 prompts would cost $386.67." in reader.text


@pytest.mark.parametrize("more", [{"reused": {"dataset": "/old"}}, {"images": 6}])
def test_a_bill_of_a_part_says_nothing_of_the_whole(tmp_path: Path, more: dict[str, Any]) -> None:
    """An extended dataset paid for what was added; a copy of rows, for none of them."""
    report.write_report(str(tmp_path), dataset(tmp_path, ["a", "b", "c"]) | more)
    assert "At this rate" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("runs", "stated"), [(1, True), (2, False)])
def test_a_rate_is_stated_only_where_one_run_made_all_rows(tmp_path: Path, runs: int, stated: bool) -> None:
    report.write_report(str(tmp_path), dataset(tmp_path, ["a"]) | {"runs": runs})
    html = (tmp_path / "report.html").read_text()
    assert ("images/s" in html) == stated
    assert ("the last of 2 runs" in html) != stated


def test_a_page_says_what_models_were_run_with(tmp_path: Path) -> None:
    """As far as it is known: an earlier version's `dataset.json` has neither key, and both forms are valid."""
    place = small_dataset.write(tmp_path / "d")
    file = tmp_path / "d" / "dataset.json"
    info = json.loads(file.read_text())
    report.write_report(place, info)
    assert "steps, guidance" not in (tmp_path / "d" / "report.html").read_text()
    how = {"steps": 12, "guidance": 2.5, "height": 64, "width": 96, "dtype": "float32", "scheduler": None}
    info["generators"][0]["run_with"] = how
    info["versions"] = {"torch": "2.13.0, 2.14.1"}
    file.write_text(json.dumps(store.sealed(info)))
    report.write_report(place, info)
    html = (tmp_path / "d" / "report.html").read_text()
    assert '<td class="text">12 steps, guidance 2.5, 96 x 64, float32</td>' in html
    assert "torch 2.13.0, 2.14.1, schema 1" in html
    assert store.validate(place).rows == 3


def test_size_is_bounded_for_big_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    monkeypatch.setitem(globals(), "png", lambda size: buffer.getvalue())
    bounds = report.Bounds(picture_bytes=30 * 2 * 9_000)
    html, reader = written(tmp_path, [f"prompt {i}" for i in range(30)], 300, bounds)
    assert sum(tag == "section" for tag, _ in reader.tags) == 30
    assert len(html) < 30 * 2 * 9_000 * 4 / 3 + 150_000


def test_big_pictures_are_thumbnails(tmp_path: Path) -> None:
    _, reader = written(tmp_path, ["a", "b"], size=1024)
    source = next(str(a["src"]) for tag, a in reader.tags if tag == "img")
    data = base64.b64decode(source.partition(",")[2])
    assert max(Image.open(io.BytesIO(data)).size) == pages.THUMBNAIL_PIXELS


def test_pictures_in_files_are_read_and_a_missing_one_costs_only_itself(tmp_path: Path) -> None:
    info = dataset(tmp_path, ["a", "b"])
    place = tmp_path / "data" / "0.parquet"
    table = pq.read_table(place)
    rows = table.to_pylist()
    (tmp_path / "there.png").write_bytes(png(8))
    for row in rows:
        row["candidates"][0]["image"] = {"bytes": None, "path": str(tmp_path / "there.png")}
    rows[0]["candidates"][0]["image"] = {"bytes": None, "path": str(tmp_path / "gone.png")}
    rows[1]["candidates"][1]["image"] = {"bytes": png(8)[:40], "path": None}
    pq.write_table(pa.Table.from_pylist(rows, table.schema), place)
    report.write_report(str(tmp_path), info)
    html = (tmp_path / "report.html").read_text()
    assert html.count("<img ") == 1
    assert html.count("the picture cannot be read") == 2
    assert "FileNotFoundError" in html


def test_the_same_dataset_gives_the_same_report_in_any_file_order(tmp_path: Path) -> None:
    prompts = [f"prompt {i}" for i in range(40)]
    html, _ = written(tmp_path / "one", prompts)
    table = pq.read_table(tmp_path / "one" / "data" / "0.parquet")
    info = dataset(tmp_path / "two", prompts)
    for n in range(2):  # the second half first
        half = table.slice(20 * (1 - n), 20)
        pq.write_table(half, tmp_path / "two" / "data" / f"{n}.parquet")
    report.write_report(str(tmp_path / "two"), info)
    assert (tmp_path / "two" / "report.html").read_text() == html
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["data", "report.html"]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([[3, 30], [2, 20], [1, 10]], 1.0),
        ([[1, 2], [2, 1]], 0.0),
        # Pairs: 3 votes to 0, 2 to 1, 1 to 1 with one tie.
        ([[3, 3, 3], [2, 1, 2], [1, 4, 2]], (3 / 3 + 1 / 3 + 0) / 3),
        # One vote of one in the first pair; the third candidate has no scores and no pairs.
        ([[1, math.nan], [2, 5], [math.nan, math.nan]], 1.0),
        ([[1, 1], [1, 1]], 0.0),
        ([[math.inf, math.inf], [math.inf, 0]], 0.5),
        ([[math.nan], [1.0]], math.nan),
    ],
)
def test_unanimity(scores: list[list[float]], expected: float) -> None:
    assert report.unanimity(scores) == pytest.approx(expected, nan_ok=True)


def test_unanimity_of_many_prompts_at_once() -> None:
    scores = [[[3, 30], [2, 20], [1, 10]], [[1, 2], [2, 1], [math.nan, math.nan]]]
    assert report.unanimity(scores).tolist() == [1.0, 0.0]


@given(
    st.dictionaries(st.text("abc", min_size=1), st.floats(0, 1) | st.just(math.nan), max_size=40),
    st.integers(1, 12),
    st.randoms(),
)
def test_chosen_prompts_span_the_dataset(values: dict[str, float], count: int, random: Random) -> None:
    failed = sorted(values)[::3]
    chosen = report.choose(values, failed, count)
    assert len(chosen) == len(set(chosen)) <= count
    assert set(chosen) <= set(values)
    shuffled = random.sample(sorted(values), len(values))
    assert report.choose({row_id: values[row_id] for row_id in shuffled}, failed, count) == chosen
    known = [values[row_id] for row_id in chosen if not math.isnan(values[row_id])]
    assert known == sorted(known, reverse=True)
    if failed:
        assert 1 <= len(set(chosen) & set(failed)) <= max(1, count // 4)


def test_both_ends_are_chosen() -> None:
    values = {f"{i:03}": i / 100 for i in range(100)}
    chosen = report.choose(values, [], 5)
    # Of 100 in falling order, places 0, 24, 49, 74 and 99: quarters of 99, rounded down.
    assert chosen == ["099", "075", "050", "025", "000"]


def test_of_many_prompts_a_sample_is_shown_and_said_with_its_neighbours(tmp_path: Path) -> None:
    _, reader = written(tmp_path, [f"prompt {i}" for i in range(40)], bounds=report.Bounds(prompts=30))
    assert sum(tag == "section" for tag, _ in reader.tags) == 30
    assert "30 of 40 prompts" in reader.text
    assert "rankray browse" in reader.text


def test_what_is_sought_is_shown_and_then_what_its_files_hold_while_it_is_cheap() -> None:
    """Files of ten prompts and ten bytes; the rewards agree on all prompts but "35"."""
    held = {f"f{9 - n}": [f"{10 * n + i:02}" for i in range(10)] for n in range(10)}
    minds = {row_id: 0.0 if row_id == "35" else 1.0 for ids in held.values() for row_id in ids}
    sought = report.choose(minds, ())
    assert (len(sought), sought[-1]) == (24, "35")
    found = report.sample(sought, held, dict.fromkeys(held, 10.0), report.Bounds(prompts=60))
    shown = [row_id for ids in found.values() for row_id in ids]
    assert len(shown) == len(set(shown)) == 60
    assert set(sought) <= set(shown)
    assert all(set(ids) <= set(held[file]) for file, ids in found.items())
    # Nothing is read but what is sought where that is too much already; its neighbours cost nothing.
    bounds = report.Bounds(prompts=60, read_bytes=5)
    found = report.sample(["21", "97"], held, dict.fromkeys(held, 10.0), bounds)
    assert {file: len(ids) for file, ids in found.items()} == {"f7": 10, "f0": 10}


def figures_of(rows: list[dict], names: list[str], rewards: list[str]) -> report.Figures:
    figures = report.Figures(names, rewards, {})
    for row in rows:
        figures.add(row)
    return figures


def candidate(generator: str, scores: list[float], phi: float, rank: int) -> dict:
    return {"generator": generator, "scores": scores, "win_probability": phi, "rank": rank, "error": None}


def two_prompts() -> list[dict]:
    return [
        {
            "prompt_id": "1",
            "candidates": [
                candidate("a", [3, 1], 0.5, 1),
                candidate("b", [2, 1], 0.25, 2),
                candidate("b", [1, 2], 0.5, 3),
            ],
        },
        {
            "prompt_id": "2",
            "candidates": [
                candidate("a", [0, NAN], 0.0, 3),
                candidate("b", [1, 5], 1.0, 1),
                candidate("b", [1, 4], 0.5, 2),
            ],
        },
    ]


def test_wins_count_between_generators_only() -> None:
    figures = figures_of(two_prompts(), ["a", "b"], ["r", "s"])
    # Prompt 1: a beats both b in r; in s it ties with one and loses to the other. Prompt 2: a loses both in r.
    assert figures.wins.tolist() == [[0, 2], [3, 0]]
    assert figures.compared.tolist() == [[0, 6], [6, 0]]
    np.testing.assert_allclose(figures.win_share, [[NAN, 2 / 6], [3 / 6, NAN]])


def test_agreement_leaves_out_ties_and_failures() -> None:
    figures = figures_of(two_prompts(), ["a", "b"], ["r", "s"])
    # Prompt 1: of three pairs s ties one; the other two it orders against r. Prompt 2: b and b tie in r.
    assert figures.judged.tolist() == [[5, 2], [2, 3]]
    assert figures.agreed.tolist() == [[5, 0], [0, 3]]


def test_standings_are_of_ranked_candidates() -> None:
    rows = two_prompts()
    rows[0]["candidates"][2] = candidate("b", [NAN, NAN], NAN, 0)
    figures = figures_of(rows, ["a", "b"], ["r", "s"])
    assert figures.firsts.tolist() == [1, 1]
    assert figures.counted.tolist() == [2, 3]
    assert figures.phi_sum.tolist() == pytest.approx([0.5, 1.75])
    assert figures.scores == [[[3, 0], [1]], [[2, 1, 1], [1, 5, 4]]]


def test_nothing_gives_no_shares() -> None:
    figures = figures_of([], ["a"], ["r"])
    assert np.isnan(figures.win_share).all()
    assert np.isnan(figures.agreement).all()


def test_ties_are_a_share_of_comparisons() -> None:
    rows = [
        {
            "prompt_id": "1",
            "candidates": [candidate("a", [1.0, 2.0], 0.5, 1), candidate("b", [1.0, 1.0], 0.0, 2)],
        }
    ]
    assert report.tie_share(figures_of(rows, ["a", "b"], ["r", "s"])) == 0.5
    assert report.tie_share(figures_of([], ["a", "b"], ["r", "s"])) is None


def test_an_infinite_score_has_no_place_on_the_axis() -> None:
    rows = [{"prompt_id": "1", "candidates": [candidate("a", [s], 0.0, 0) for s in (1.0, 3.0)]}]
    figures = figures_of(rows, ["a"], ["r"])
    figures.scores[0][0].append(math.inf)
    (found,) = report.histograms(["a"], ["r"], figures)
    assert (found["low"], found["high"], found["series"][0]["mean"]) == (1.0, 3.0, 2.0)


def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    path = small_dataset.write(tmp_path / "d")
    info = json.loads((tmp_path / "d" / "dataset.json").read_text())
    blocked = {"count": 2, "by": {"<gun>": 2}, "prompts": [{"prompt": "a <gun>", "by": "<gun>"}]}
    more = {
        "ranking": {"aggregation": "win_probability", "weights": {}, "least": {"s": 0.5}},
        "withheld": {"s": 3},
        "prompts": {**info["prompts"], "blocked": blocked},
    }
    report.write_report(path, {**info, **more})
    page = " ".join((tmp_path / "d" / "report.html").read_text().split())
    assert "below its threshold, of 9 candidates: s (below 0.5) 3." in page
    assert (
        "2 prompts were left out by the block-list, for &lt;gun&gt; (2); dataset.json names the first of them."
        in page
    )


def test_figures_are_of_what_the_ranking_compared(tmp_path: Path) -> None:
    """Of a dataset with rewards r, s and t, of which t orders the candidates of `a` otherwise than r and s."""
    dataset = store.read(small_dataset.write(tmp_path / "d"))

    def figures(how: dict[str, Any]) -> report.Figures:
        found = report.Figures(["one", "two"], ["r", "s", "t"], how)
        for row in dataset.rows():
            found.add(row)
        return found

    # Without t: one's two samples beat two's in `a` by both rewards, 4 of 4; in `b` one loses and one ties.
    found = figures({"aggregation": "win_probability", "weights": {"t": 0.0}})
    assert found.wins.tolist() == [[0.0, 4.0], [2.0, 0.0]]
    assert found.compared.tolist() == [[0.0, 8.0], [8.0, 0.0]]
    assert report.tie_share(found) == pytest.approx(0.25)
    assert found.unanimity[schema.prompt_id("a")] == 1.0
    assert np.array_equal(found.agreement, figures({}).agreement), (
        "how rewards agree is no matter of the ranking"
    )
    # r >= 2 leaves out the last of `a`, the first of `b`, whose others tie three times, and what has no picture of `c`.
    found = figures({"least": {"r": 2.0}})
    assert found.wins.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert found.compared.tolist() == [[0.0, 3.0], [3.0, 0.0]]


def test_the_page_says_how_a_dataset_was_ranked(tmp_path: Path) -> None:
    source = small_dataset.write(tmp_path / "d")
    report.write_report(source, store.read(source).info)
    assert "ranked by the share of comparisons won (φ)." in (tmp_path / "d" / "report.html").read_text()
    how = rerank.Reranking(weights={"t": 0.0}, aggregation="mean_z")
    rerank.run(source, str(tmp_path / "o"), how, lambda line: None, report.write_report)
    page = (tmp_path / "o" / "report.html").read_text()
    assert "ranked by the mean of z-scores within the prompt, by weight: r 1, s 1, t 0 (φ)." in page
    assert "unanimity 100.0 %" in page
    # r and s order every pair of `a` alike, and of `b` and `c` what they order at all, which is not every pair.
    gallery = open_gallery(str(tmp_path / "o"))
    assert [gallery.row(n)["prompt"] for n in gallery.find(Query(mind="one"))] == ["a"]
    assert open_gallery(source).find(Query(mind="one")).size == 0
