"""Every format, and everything that people's files hold by accident."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankray import shapes
from rankray.config import ConfigError, PromptsConfig
from rankray.data.prompts import PromptsRead, read_prompts


def read(path: Path | str, **fields: object) -> PromptsRead:
    return read_prompts(PromptsConfig(path=str(path), **fields))  # type: ignore[arg-type]


def counts(found: PromptsRead) -> tuple[int, int, int, int]:
    return found.read, found.empty, found.duplicates, found.undecodable


def test_text_counts_everything(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(
        "﻿a cat\r\n\r\n  a cat \n🦊 é\n".encode() + b"\xff\xfe broken\n<b>&</b>\nnul \0 in\n" + b"x" * 10_000
    )
    found = read(path)
    assert found.rows == ["a cat", "🦊 é", "<b>&</b>", "nul \0 in", "x" * 10_000]
    assert counts(found) == (8, 1, 1, 1)
    assert found.source == str(path)


def test_limit_counts_usable_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a\n\na\nb\nc\n")
    found = read(path, limit=2)
    assert (found.rows, counts(found)) == (["a", "b"], (4, 1, 1, 0))
    assert found.cut
    assert not read(path, limit=3).cut


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_tables(tmp_path: Path, suffix: str, delimiter: str) -> None:
    path = tmp_path / f"p.{suffix}"
    rows = [["n", "caption"], ["1", '"a, ""b"""' if suffix == "csv" else "a, b"], ["2"], ["3", "c"]]
    path.write_text("\r\n".join(delimiter.join(row) for row in rows))
    found = read(path, column="caption")
    assert found.rows == (['a, "b"', "c"] if suffix == "csv" else ["a, b", "c"])
    assert counts(found) == (3, 1, 0, 0)


def test_a_row_of_a_table_that_is_not_utf_8_costs_itself(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(b"prompt\ngood\nb\xffd\n")
    found = read(path)
    assert (found.rows, found.undecodable) == (["good"], 1)


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "a", "n": 1}\n\n"b"\n{"prompt": null}\n"\\ud800"\n"\xff"\n')
    found = read(path)
    assert (found.rows, counts(found)) == (["a", "b"], (6, 2, 0, 2))


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"caption": ["a", None, "a", "b"], "n": [1, 2, 3, 4]}), path)
    found = read(path, column="caption")
    assert (found.rows, counts(found)) == (["a", "b"], (4, 1, 1, 0))


def test_the_shapes_world() -> None:
    found = read("shapes:heldout", limit=5)
    assert found.rows == shapes.prompts("heldout")[:5]


def fault(path: Path | str, **fields: object) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path, **fields)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_faults_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fault("no.txt").startswith(f"no prompts file at {tmp_path}/no.txt; a relative path")
    assert fault("/no/such.txt") == "no prompts file at /no/such.txt"
    assert "ends in no known format; allowed: .txt, .csv, .tsv, .jsonl, .parquet, shapes:SPLIT" in fault(
        "p.doc"
    )
    (tmp_path / "d.txt").mkdir()
    assert "is a directory; name a file in it" in fault("d.txt")
    (tmp_path / "e.txt").write_text("\n \n")
    assert "e.txt is empty: 2 entries, 2 of them blank" in fault("e.txt")
    (tmp_path / "z.csv").write_text("")
    assert "is empty: 0 entries" in fault("z.csv")
    (tmp_path / "c.csv").write_text("id,promt\n1,a\n")
    assert (
        "no column 'prompt' (did you mean 'promt'?); there are id, promt; choose by --prompts.column"
        in fault("c.csv")
    )
    (tmp_path / "j.jsonl").write_text('{"prompt": "a"}\n{"prompt":\n')
    assert fault("j.jsonl").startswith("line 2 of the prompts file is no JSON")
    (tmp_path / "n.jsonl").write_text(json.dumps({"prompt": 3}))
    assert "column 'prompt' holds int in line 1; prompts are text" in fault("n.jsonl")
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    assert "cannot be read" in fault("x.parquet")
    assert "no shapes split 'heldot' (did you mean 'heldout'?)" in fault("shapes:heldot")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(st.binary(max_size=12), max_size=12))
def test_counts_add_up_for_any_bytes(tmp_path: Path, entries: list[bytes]) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"\n".join([b"first", *entries]))
    found = read(path)
    assert found.read == len(found.rows) + found.empty + found.duplicates + found.undecodable
    assert len(set(found.rows)) == len(found.rows)
    assert all(row == row.strip() != "" for row in found.rows)
