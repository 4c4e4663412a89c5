"""`rankray` as it is typed: what it prints, and one line for what cannot be done."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_dataset

from rankray import commands, store
from rankray.data import convert


def test_rerank_convert_and_validate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, other = small_dataset.write(tmp_path / "d"), str(tmp_path / "o")
    assert commands.main(["validate", source]) == 0
    assert "is valid: 3 rows, 9 candidates, 8 images, 2 failures" in capsys.readouterr().out
    options = ["--rewards", "t,r", "--weights", "t=2", "--aggregation", "majority"]
    assert commands.main(["rerank", source, "--output", other, *options]) == 0
    assert "3 rows ranked by majority of 2 rewards" in capsys.readouterr().out
    assert store.read(other).info["ranking"] == {"aggregation": "majority", "weights": {"t": 2.0, "r": 1.0}}
    assert (tmp_path / "o" / "report.html").stat().st_size > 10_000
    assert commands.main(["validate", other]) == 0
    capsys.readouterr()
    assert commands.main(["convert", other, "--to", "all-pairs", "--output", str(tmp_path / "p")]) == 0
    assert "pairs of 3 prompts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["validate", "nowhere"], "no dataset there, nor anything else; look at how it is written"),
        (["validate", "F"], "no dataset there, but a file; give the directory that holds dataset.json"),
        (["validate", "N"], "no dataset there, but a training; give the dataset that it learnt from"),
        (["validate", "B"], "no dataset there, but an evaluation; give a dataset"),
        (["validate", "E"], "no dataset there, as there is no dataset.json; give the output of a finished"),
        (["rerank", "D", "--output", "F"], "f is a file; give a directory"),
        (["rerank", "D", "--output", "F/o"], "f is a file; give a directory"),
        (["rerank", "D", "--output", "s3:/b/o"], "a URI has two slashes: s3://BUCKET/NAME"),
        (["import", "D", "--output", "O", "--ties", "win"], "ties 'win'; allowed: drop, half"),
        (["import", "D", "--output", "O", "--pairs", "many"], "pairs 'many'; allowed: all, one"),
        (["import", "nowhere", "--output", "O"], "input 'nowhere' is not there"),
        (["import", "F", "--output", "O"], "Tables end in .parquet, .json, .jsonl, .csv or .tsv"),
        (
            ["import", "T", "--output", "O"],
            "rankray: {T} has no column prompt or caption or text, it has x, y",
        ),
        (["rerank", "D", "--output", "O", "--weights", "t"], "--weights 't' is no NAME=NUMBER"),
        (["rerank", "D", "--output", "O", "--rewards", "rr"], "the dataset has no reward 'rr'"),
        (["rerank", "D"], "the following arguments are required: --output"),
        (["convert", "D", "--output", "O", "--to", "pears"], "format 'pears' (did you mean 'pairs'?)"),
        (
            ["report", "nowhere"],
            "none of dataset.json, run.json, align.json, results.json, ablation.json is there",
        ),
        (["report", "R"], "results.json is not a file that rankray wrote"),
        (["report", "B"], "cannot be read"),
        (["valdate", "D"], "no verb 'valdate' (did you mean 'validate'?)"),
        (
            ["rerank", "D", "--output", "O", "--ouput", "P"],
            "unknown option '--ouput' (did you mean '--output'?)",
        ),
        (["validate", "D", "more"], "'more' is not expected there; usage: rankray validate"),
        (["envs"], "the following arguments are required: build|check; usage: rankray envs"),
        (["envs", "chek"], "invalid choice: 'chek' (did you mean 'check'?); allowed: build, check"),
    ],
)
def test_one_line_for_what_cannot_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    for name, text in (("r", '{"map": 0.5}'), ("b", "[half")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    for name in ("n", "e"):
        (tmp_path / name).mkdir()
    (tmp_path / "n" / "run.json").write_text("{}")
    (tmp_path / "f").write_text("a red circle")
    (tmp_path / "t.csv").write_text("x,y\n1,2\n")
    places = {"D": small_dataset.write(tmp_path / "d"), "F/o": str(tmp_path / "f" / "o")}
    places |= {name: str(tmp_path / name.lower()) for name in "ORBNEF"} | {"T": str(tmp_path / "t.csv")}
    assert commands.main([places.get(word, word) for word in words]) == 2
    printed = capsys.readouterr().err
    assert message.format(**places) in printed
    assert printed.startswith("rankray: ")
    assert printed.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_report_tells_what_is_there_and_writes_its_page_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = small_dataset.write(tmp_path / "d")
    assert commands.main(["report", source + "/"]) == 0
    assert capsys.readouterr().out == f"dataset: {source}\nreport: {source}/report.html\n"
    assert "3 prompts" in (tmp_path / "d" / "report.html").read_text()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    assert commands.main(["report", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.startswith("unfinished run: ")
    assert "1 step, loss 0.5" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("left", "there"),
    [
        (None, "no file in data/"),
        ([], "no file in data/"),
        (["1"], "1 rows in data/"),
        ("a file", "no file in data/"),
    ],
)
def test_a_dataset_whose_rows_are_not_all_there_is_refused_by_whoever_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: list[str] | str | None, there: str
) -> None:
    """Its directory of rows is gone, empty, has one of two files, or is a file."""
    small_dataset.write(tmp_path / "d")
    for file in (tmp_path / "d" / "data").iterdir():
        if not isinstance(left, list) or file.stem not in left:
            file.unlink()
    if not isinstance(left, list):
        (tmp_path / "d" / "data").rmdir()
    if isinstance(left, str):
        (tmp_path / "d" / "data").write_text("rows")
    before, output = sorted((tmp_path / "d").rglob("*")), ["--output", str(tmp_path / "o")]
    for verb, *words in (
        ["report"],
        ["browse", "--port", "0"],
        ["rerank", *output],
        ["import", *output],
        ["export", "--to", "hub", "--output", "a/b"],
        *(["convert", "--to", form, *output] for form in convert.FORMATS),
    ):
        assert commands.main([verb, str(tmp_path / "d"), *words]) == 2
        printed = capsys.readouterr().err
        assert f"{tmp_path}/d: {there}, and rows are due: 3; copy all of it again" in printed
        assert printed.count("\n") == 1
        assert not (tmp_path / "o").exists()
    assert commands.main(["validate", str(tmp_path / "d")]) == 2
    assert sorted((tmp_path / "d").rglob("*")) == before
