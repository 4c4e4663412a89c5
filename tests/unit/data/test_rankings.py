"""Published rankings and tables of one's own become rows ranked as their authors ranked them."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rankray import commands, schema, store
from rankray.config import ConfigError
from rankray.data import importing
from rankray.data.pickapic import Importing


def quiet(line: str) -> None:
    pass


def draw(path: Path, shade: int, kind: str = "JPEG", size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 20, 90)).save(path, kind)


def ranked(path: Path) -> dict[str, list[tuple[int, int, float]]]:
    """prompt -> (red of the picture, its rank, its score) of each candidate, in their order."""
    found: dict[str, list[tuple[int, int, float]]] = {}
    for row in store.read(str(path)).rows(images=True):
        for candidate in row["candidates"]:
            with Image.open(io.BytesIO(candidate["image"]["bytes"])) as image:
                red = image.getpixel((0, 0))[0]  # type: ignore[index]
            found.setdefault(row["prompt"], []).append(
                (round(red, -1), candidate["rank"], candidate["scores"][0])
            )
    return found


def test_hpdv2_test_rankings(tmp_path: Path) -> None:
    """As published: a list of paths within test/, ranks beside it, less is better, ties kept."""
    for name, shade in (("00.jpg", 10), ("01.jpg", 50), ("02.jpg", 90), ("03.jpg", 130)):
        draw(tmp_path / "test" / name, shade)
    records = [
        {
            "prompt": "a kite",
            "image_path": ["00.jpg", "01.jpg", "02.jpg"],
            "rank": [2, 0, 1],
            "raw_annotations": [],
        },
        {"prompt": "a mill", "image_path": ["03.jpg", "00.jpg", "gone.jpg"], "rank": [1, 1, 2]},
        {"prompt": "a drum", "image_path": ["01.jpg", "00.jpg", "02.jpg"], "rank": [1, 0, 1]},
        {"prompt": "a fig", "image_path": ["01.jpg"], "rank": [1]},
        {"prompt": "an owl", "image_path": ["01.jpg", "00.jpg"], "rank": [1]},
        {"prompt": " ", "image_path": ["01.jpg", "00.jpg"], "rank": [1, 2]},
        {"prompt": "a pear", "image_path": ["gone.jpg", "00.jpg"], "rank": [1, 2]},
        "no record",
    ]
    (tmp_path / "test.json").write_text(json.dumps(records))
    info = importing.run([str(tmp_path / "test.json")], str(tmp_path / "o"), Importing(), quiet)
    assert ranked(tmp_path / "o") == {
        "a kite": [(10, 3, -2.0), (50, 1, 0.0), (90, 2, -1.0)],
        "a drum": [(50, 2, -1.0), (10, 1, 0.0), (90, 3, -1.0)],
    }
    assert info["imported"]["format"] == "hpdv2"
    counts = {"read": 8, "kept": 2, "ties": 1, "few": 2, "bad_labels": 1, "empty": 2, "pictures": 2}
    assert info["imported"]["counts"] == counts
    assert store.validate(str(tmp_path / "o")) == store.Validation(2, 6, 6, 0)
    importing.run([str(tmp_path / "test.json")], str(tmp_path / "half"), Importing(ties="half"), quiet)
    drum = next(row for row in store.read(str(tmp_path / "half")).rows() if row["prompt"] == "a drum")
    assert [c["win_probability"] for c in drum["candidates"]] == [0.25, 1.0, 0.25]


def test_hpdv2_train_choices_are_a_row_each(tmp_path: Path) -> None:
    for n in range(3):
        draw(tmp_path / "train" / f"{n}.jpg", 40 * n + 10)
    pairs = (([0, 1], [1, 0]), ([1, 2], [0, 1]), ([1, 0], [0, 1]))
    records = [
        {
            "human_preference": label,
            "prompt": "a kite",
            "file_path": [f"{n}.jpg" for n in who],
            "user_hash": "x",
        }
        for who, label in pairs
    ]
    (tmp_path / "train.json").write_text("\n".join(map(json.dumps, records)))
    info = importing.run([str(tmp_path / "train.json")], str(tmp_path / "o"), Importing(), quiet)
    assert info["imported"]["counts"] == {"read": 3, "kept": 2, "repeated": 1}
    first, second = store.read(str(tmp_path / "o")).rows(images=True)
    assert [c["rank"] for c in first["candidates"]] == [1, 2]
    assert [c["rank"] for c in second["candidates"]] == [2, 1]
    assert first["prompt_id"] == schema.prompt_id("a kite") != second["prompt_id"]
    assert store.validate(str(tmp_path / "o")).rows == 2
    one = importing.run([str(tmp_path / "train.json")], str(tmp_path / "p"), Importing(pairs="one"), quiet)
    assert one["rows"] == 1


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_end_where_json_lines_end(tmp_path: Path, end: str) -> None:
    """A prompt may hold Unicode's other line ends, which JSON writes as they are."""
    for n in range(2):
        draw(tmp_path / f"{n}.png", 40 * n + 10, "PNG")
    odd = [f"a{mark}kite" for mark in "\u2028\u2029\x85"]
    rows = [{"prompt": prompt, "image_path": ["0.png", "1.png"], "rank": [1, 2]} for prompt in odd]
    text = "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)
    (tmp_path / "t.jsonl").write_bytes(text.encode())
    importing.run([str(tmp_path / "t.jsonl")], str(tmp_path / "o"), Importing(), quiet)
    assert set(ranked(tmp_path / "o")) == set(odd)


def reward_db(tmp_path: Path) -> list[dict[str, Any]]:
    """Rows as ImageRewardDB has them: paths from the repository's root."""
    rows = []
    for n, (prompt, rank) in enumerate(
        (("a kite", 2), ("a mill", 1), ("a kite", 1), ("a mill", 2), ("a kite", 2))
    ):
        path = f"images/train/train_1/{n}.webp"
        draw(tmp_path / path, 10 + 40 * n, "WEBP")
        about = {"image_path": path, "prompt_id": f"{prompt}-id", "prompt": prompt, "rank": rank}
        rows.append({**about, "image_amount_in_total": 3, "overall_rating": 4, "fidelity_rating": 4})
    return rows


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_image_reward_db(tmp_path: Path, kind: str) -> None:
    rows = reward_db(tmp_path)
    if kind == "json":
        table = tmp_path / "images" / "train" / "train_1" / "train_1.json"
        table.write_text(json.dumps(rows))
    else:
        table = tmp_path / "metadata-train.parquet"
        pq.write_table(pa.Table.from_pylist(rows), table)
    info = importing.run([str(table)], str(tmp_path / "o"), Importing(), quiet)
    found = {
        prompt: [(rank, score) for _, rank, score in all_] for prompt, all_ in ranked(tmp_path / "o").items()
    }
    assert found == {"a kite": [(2, -2.0), (1, -1.0), (3, -2.0)], "a mill": [(1, -1.0), (2, -2.0)]}
    assert info["imported"]["format"] == "imagerewarddb"
    assert store.validate(str(tmp_path / "o")).candidates == 5


def test_image_reward_benchmark(tmp_path: Path) -> None:
    for name, shade in (("x.webp", 10), ("y.webp", 130)):
        draw(tmp_path / "test" / name, shade, "WEBP")
    record = {"id": "1", "prompt": "a kite", "generations": ["x.webp", "y.webp"], "ranking": [5, 1]}
    (tmp_path / "test.json").write_text(json.dumps([record]))
    importing.run([str(tmp_path / "test.json")], str(tmp_path / "o"), Importing(), quiet)
    assert [rank for _, rank, _ in ranked(tmp_path / "o")["a kite"]] == [2, 1]


TABLE = """prompt;image;model;aesthetic;clip;note;seed
a kite;one/a.png;sdxl;0.5;0.1;good;1
a kite;b.bmp;flux;0.25;;bad;2
"a ""mill""; old";one/a.png;sdxl;1;2;;3
a kite;one/c.png;sdxl;0.75;0.3;;4
"a ""mill""; old";b.bmp;flux;2;3;;5
"""


def test_a_table_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Columns of numbers are rewards, a cell that is empty is no score, and the seed judges nothing."""
    draw(tmp_path / "one" / "a.png", 10, "PNG")
    draw(tmp_path / "b.bmp", 50, "BMP")
    Image.new("RGBA", (6, 4), (0, 0, 0, 0)).save(tmp_path / "one" / "c.png")
    (tmp_path / "t.csv").write_text(TABLE)
    place = str(tmp_path / "o")
    assert commands.main(["import", str(tmp_path / "t.csv"), "--output", place]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 rankings; left out: none" in printed
    assert "rewards: aesthetic, clip; not used: 'note', 'seed'\n" in printed
    info = store.read(place).info
    assert [reward["name"] for reward in info["rewards"]] == ["aesthetic", "clip"]
    assert [item["name"] for item in info["generators"]] == ["flux", "sdxl"]
    assert info["failures"]["by_model"] == {"clip": 1}
    kite, mill = store.read(place).rows(images=True)
    assert [c["scores"][0] for c in kite["candidates"]] == [0.5, 0.25, 0.75]
    assert math.isnan(kite["candidates"][1]["scores"][1])
    assert kite["candidates"][1]["score_errors"] == [None, "not scored"]
    # aesthetic: c > a > b; clip: c > a, b not compared. Wins of comparisons: a 1 of 3, b 0 of 2, c 3 of 3.
    assert [c["win_probability"] for c in kite["candidates"]] == pytest.approx([1 / 3, 0.0, 1.0])
    assert mill["prompt"] == 'a "mill"; old'
    assert mill["candidates"][1]["image"]["bytes"].startswith(b"\x89PNG"), "a BMP becomes a PNG"
    assert store.validate(place) == store.Validation(2, 5, 5, 1)


def test_ranks_in_a_table_and_another_kind_beside_it(tmp_path: Path) -> None:
    for n in (1, 2):
        draw(tmp_path / f"{n}.png", 50 * n, "PNG")
    (tmp_path / "t.tsv").write_text("caption\tfile_name\trank\na kite\t1.png\t2\na kite\t2.png\t1\n")
    (tmp_path / "u.csv").write_text("prompt,image,clip\na mill,1.png,2\na mill,2.png,1\n")
    importing.run([str(tmp_path / "t.tsv")], str(tmp_path / "o"), Importing(), quiet)
    assert [(rank, score) for _, rank, score in ranked(tmp_path / "o")["a kite"]] == [(2, -2.0), (1, -1.0)]
    with pytest.raises(ConfigError, match="not of one kind"):
        importing.run(
            [str(tmp_path / name) for name in ("t.tsv", "u.csv")], str(tmp_path / "p"), Importing(), quiet
        )


@pytest.mark.parametrize("column", ["ranking", "Rank", "RANKING"])
def test_a_rank_by_another_spelling_is_a_rank(tmp_path: Path, column: str) -> None:
    """Read as a score it would turn every preference round."""
    for n in (1, 2):
        draw(tmp_path / f"{n}.png", 50 * n, "PNG")
    (tmp_path / "t.csv").write_text(f"prompt,image,{column}\na kite,1.png,2\na kite,2.png,1\n")
    info = importing.run([str(tmp_path / "t.csv")], str(tmp_path / "o"), Importing(), quiet)
    assert [(rank, score) for _, rank, score in ranked(tmp_path / "o")["a kite"]] == [(2, -2.0), (1, -1.0)]
    assert [reward["name"] for reward in info["rewards"]] == ["human"]


@pytest.mark.parametrize("index", ["", "Unnamed: 0", "index", "Seed", "image_id"])
def test_a_count_of_rows_is_no_reward(tmp_path: Path, index: str) -> None:
    """The first column that pandas writes has no name, and none of these judges."""
    for n in (1, 2):
        draw(tmp_path / f"{n}.png", 50 * n, "PNG")
    text = f"{index},prompt,image,generator,clip\n0,a kite,1.png,sdxl,2\n1,a kite,2.png,flux,1\n"
    (tmp_path / "t.csv").write_text(text)
    said: list[str] = []
    info = importing.run([str(tmp_path / "t.csv")], str(tmp_path / "o"), Importing(), said.append)
    assert [reward["name"] for reward in info["rewards"]] == ["clip"]
    assert said[0] == f"rewards: clip; not used: {index!r}"


@pytest.mark.parametrize("cell", ["nan", "N/A", "-", "NULL", "<NA>", " none "])
def test_a_cell_without_a_score_is_a_score_that_failed(tmp_path: Path, cell: str) -> None:
    """As an empty one is; the reward's other scores count."""
    for n in range(3):
        draw(tmp_path / f"{n}.png", 50 * n + 10, "PNG")
    rows = [f"a kite,{n}.png,{score},{n}" for n, score in enumerate(("2", cell, "1"))]
    (tmp_path / "t.csv").write_text("\n".join(["prompt,image,clip,mps", *rows]))
    info = importing.run([str(tmp_path / "t.csv")], str(tmp_path / "o"), Importing(), quiet)
    assert [reward["name"] for reward in info["rewards"]] == ["clip", "mps"]
    (row,) = store.read(str(tmp_path / "o")).rows()
    assert [c["scores"][0] for c in row["candidates"]] == pytest.approx([2.0, math.nan, 1.0], nan_ok=True)


def test_ranks_beside_scores_are_not_compared_across_tables(tmp_path: Path) -> None:
    """Rank 1 of two poor pictures is no better than rank 2 of two good ones; scores alone may be compared."""
    for n in range(4):
        draw(tmp_path / f"{n}.png", 10 + 40 * n, "PNG")
    for table, pictures in (("t", (0, 1)), ("u", (2, 3))):
        lines = [f"a kite,{n}.png,{1 + n % 2},{9 - n}" for n in pictures]
        for name, header in (("mixed", "prompt,image,rank,clip"), ("scores", "prompt,image,id,clip")):
            (tmp_path / f"{table}-{name}.csv").write_text("\n".join([header, *lines]) + "\n")
            into = str(tmp_path / f"{table}-{name}")
            importing.run([str(tmp_path / f"{table}-{name}.csv")], into, Importing(), quiet)
    merged = {}
    for name in ("mixed", "scores"):
        places = [str(tmp_path / f"{table}-{name}") for table in "tu"]
        importing.run(places, str(tmp_path / name), Importing(), quiet)
        merged[name] = sorted(len(row["candidates"]) for row in store.read(str(tmp_path / name)).rows())
    assert merged == {"mixed": [2, 2], "scores": [4]}
    info = store.read(str(tmp_path / "mixed")).info
    assert [(one["name"], one["revision"]) for one in info["rewards"]] == [
        ("human", "labels"),
        ("clip", "unrecorded"),
    ]


def test_hostile_and_broken_pictures_cost_themselves(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 10, "PNG")
    draw(tmp_path / "b.png", 50, "PNG")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    (tmp_path / "text.png").write_text("no picture")
    header = b"P6 60000 60000 255\n"  # claims 10 GB
    (tmp_path / "huge.png").write_bytes(header)
    Image.new("1", (16_384, 8_192)).save(tmp_path / "bomb.png")  # decoded it is 400 MB, on disk 17 KB
    names = ("a", "cut", "text", "huge", "bomb", "b", "../outside/x")
    lines = [f"a kite,{name}.png,{n}" for n, name in enumerate(names, 1)]
    (tmp_path / "t.csv").write_text("\n".join(["prompt,image,rank", *lines]))
    info = importing.run([str(tmp_path / "t.csv")], str(tmp_path / "o"), Importing(), quiet)
    assert info["imported"]["counts"] == {"read": 1, "kept": 1, "pictures": 5}
    assert ranked(tmp_path / "o") == {"a kite": [(10, 1, -1.0), (50, 2, -6.0)]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "t.csv",
            "prompt,picture\na,b\n",
            "has no column image or file_name or path, it has prompt, picture",
        ),
        ("t.csv", "prompt,image,note\na,b,good\n", "has no column of numbers to rank by"),
        ("t.csv", "", "has no column prompt or caption or text"),
        ("t.json", "[{", "cannot be read: "),
        ("t.json", '[{"a": 1}]', "no known ranking in its first record (a)"),
        ("t.json", "[]", "no known ranking in its first record (there is none)"),
        (
            "t.json",
            '[{"prompt": "a", "image_path": ["x", "y"], "rank": [1, 2]}]',
            "no ranking of 1 can be used: 1 with",
        ),
        (
            "t.csv",
            "prompt,image,rank,human\na kite,1.png,1,2\na kite,2.png,2,1\n",
            "has two columns of reward 'human' among rank, human",
        ),
        (
            "t.csv",
            "prompt,image,rank,Ranking\na kite,1.png,1,2\na kite,2.png,2,1\n",
            "has two columns of reward 'human' among rank, Ranking",
        ),
        (
            "t.csv",
            "prompt,image,human_rank\na kite,1.png,1\na kite,2.png,2\n",
            "a column 'human_rank', and its name does not say whether 1 is best; call it rank if so",
        ),
        ("t.csv", "prompt,image,clip,clip\na kite,1.png,1,2\n", "has two columns of reward 'clip'"),
        (
            "t.csv",
            "prompt,image,clip\na kite,1.png,1\na kite,2.png,2\na kite,3.png,bad\n",
            "t.csv, line 4: 'bad' in column 'clip', of which 2 cells are numbers; leave a cell without a score empty",
        ),
        (
            "t.csv",
            "prompt,image,clip,mps\na kite, red,1.png,1,2\na kite,2.png,2,1\n",
            "t.csv, line 2: more fields than the 4 of the header",
        ),
        (
            "t.csv",
            'prompt,image,clip\na kite,1.png,1\n"a kite,2.png,2\na mill,1.png,2\n',
            "t.csv, line 3: unexpected end of data; is a quote left open?",
        ),
        ("t.tar", "", "is a shard; give the directory that it lies in"),
        ("nowhere.json", None, "is not there; look at how it is written"),
    ],
)
def test_one_line_for_what_is_no_ranking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert commands.main(["import", str(tmp_path / name), "--output", str(tmp_path / "o")]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.startswith("rankray: ")
    assert printed.count("\n") == 1
