"""`rankray` as it is typed: what it prints, and one line for what cannot be done."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_dataset

from rankray import commands, store


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
        (["validate", "nowhere"], "no dataset there"),
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
        (["polish", "D"], "invalid choice: 'polish'"),
    ],
)
def test_one_line_for_what_cannot_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    for name, text in (("r", '{"map": 0.5}'), ("b", "[half")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    places = {"D": small_dataset.write(tmp_path / "d")}
    places |= {name: str(tmp_path / name.lower()) for name in "ORB"}
    assert commands.main([places.get(word, word) for word in words]) == 2
    printed = capsys.readouterr().err
    assert message in printed
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
