"""Every format, and everything that people's files hold by accident."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankray import shapes
from rankray.config import ConfigError, PromptsConfig
from rankray.data.prompts import PromptsRead, read_prompts
from rankray.synpic.job import _prompts_line


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


def test_a_seed_draws_the_limit_from_all_of_them(tmp_path: Path) -> None:
    path, more = tmp_path / "p.txt", tmp_path / "more.txt"
    lines = [f"{first} {second}" for first in ("a", "b", "c", "d") for second in range(250)]
    path.write_text("\n".join(["", "a 0", *lines]))
    found = read(path, limit=100, shuffle_seed=0)
    assert counts(found) == (1_002, 1, 1, 0)
    assert found.cut
    assert min(Counter(row[0] for row in found.rows).values()) > 10  # of 25 each, give or take 4.1
    assert read(path, limit=200, shuffle_seed=0).rows[:100] == found.rows
    assert not set(read(path, limit=100, shuffle_seed=1).rows) >= set(found.rows)
    more.write_text("\n".join(reversed([*lines, "e"])))
    assert [row for row in read(more, limit=101, shuffle_seed=0).rows if row != "e"][:100] == found.rows
    whole = read(path, shuffle_seed=0)
    assert (len(whole.rows), whole.cut) == (1_000, False)
    assert read(path, limit=1_000, shuffle_seed=0) == whole


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
    (tmp_path / "p.doc").touch()
    assert (
        "ends in no known format; allowed: .txt, .csv, .tsv, .jsonl, .ndjson, .json, .parquet, text also with "
        ".gz, .bz2, .zst, .lz4, .xz behind it, directories and patterns of them, shapes:SPLIT, hub:OWNER/NAME"
        in fault("p.doc")
    )
    (tmp_path / "d.txt").mkdir()
    assert fault("d.txt").startswith(f"no prompts file at {tmp_path}/d.txt")
    (tmp_path / "d.txt" / "picture.png").touch()
    assert "d.txt holds no known format" in fault("d.txt")
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
    assert "j.jsonl, line 2: one object a line is due, and this is no JSON: Expecting value" in fault(
        "j.jsonl"
    )
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


THREE = "a cat\nzwei Bären\n三只猫\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    ("mark", "ends"), [(True, "\n"), (True, "\r\n"), (True, "\r"), (False, "\n"), (False, "\r\n")]
)
def test_text_is_read_by_its_mark_and_by_its_line_ends(
    tmp_path: Path, encoding: str, mark: bool, ends: str
) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes((("\ufeff" if mark else "") + THREE.replace("\n", ends)).encode(encoding))
    found = read(path)
    assert found.rows == ["a cat", "zwei Bären", "三只猫"]
    assert counts(found) == (3, 0, 0, 0)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "text", ["三只猫\n两只狗\n", "a red ball", "a red ball\rtwo\r", "ein Bär\r\n" * 3000]
)
def test_wide_text_without_a_mark(tmp_path: Path, encoding: str, text: str) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(text.encode(encoding))
    assert read(path).rows == list(
        dict.fromkeys(text.split()) if "\n" in text[:8] else dict.fromkeys(text.splitlines())
    )


@pytest.mark.parametrize(
    "content", [b"a cat\nnul \0 in\n", b"\0\n\0\0a\n", "é\n\0ü".encode(), b"caf\xe9\nnul \0 in\nb\n"]
)
def test_nul_bytes_do_not_make_utf_8_wide(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(content)
    found = read(path)
    assert found.rows == [
        line for line in content.decode("utf-8", "replace").split("\n") if line and "\ufffd" not in line
    ]
    assert found.with_control == [row for row in found.rows if "\0" in row]


def test_control_characters_are_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("a\tb\nbell \a\nnext \x85 line\nfine\n".encode())
    assert read(path).with_control == ["bell \a", "next \x85 line"]
    assert _prompts_line(read(path)).endswith("0 not UTF-8, 2 with control characters, as 'bell \\x07' is")


def test_wide_text_that_ends_within_a_character_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa cat\n".encode("utf-16-le") + b"x")
    assert "p.txt cannot be read: 'utf-16-le' codec can't decode byte 0x78" in fault(path)


def test_quotes_of_a_tsv_are_quotes(tmp_path: Path) -> None:
    path = tmp_path / "p.tsv"
    path.write_text('\nPrompt\tn\n"hello" on a sign\tx\n"never closed\ty\nlast "one"\tz\n')
    found = read(path, column="Prompt")
    assert found.rows == ['"hello" on a sign', '"never closed', 'last "one"']
    assert counts(found) == (4, 1, 0, 0)


def test_a_quote_that_a_csv_never_closes_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text('\nprompt,n\n"two\nlines",1\n"never closed,2\nc,3\n')
    assert "p.csv, line 5: a quote is opened and never closed; a field with quotes is due as" in fault(path)
    path.write_text('prompt,n\n"hello" on a sign,1\n')
    assert "p.csv, line 2: ',' expected after" in fault(path)
    path.write_text('\n\nprompt,n\n"two\n""lines""",1\nsay "x",2\n')
    found = read(path)
    assert (found.rows, counts(found)) == (['two\n"lines"', 'say "x"'], (4, 2, 0, 0))


def test_a_comma_that_is_no_end_of_a_field_cuts_no_prompt(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("prompt\na cat\na cat, sitting\n")
    assert "p.csv, line 3: 2 fields, and the header has 1" in fault(path)
    path.write_text("prompt,n\na,1,,\n")
    assert read(path).rows == ["a"]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_csv_of_other_separators(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(delimiter.join(["n", "prompt"]) + "\n" + delimiter.join(["1", '"a, b"']))
    assert read(path).rows == ["a, b"]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_long_field_and_bare_carriage_returns(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p.{suffix}"
    path.write_bytes(b"prompt\r" + b"x" * 200_000 + b"\rb\r")
    assert list(map(len, read(path).rows)) == [200_000, 1]


@pytest.mark.parametrize(
    ("value", "column"),
    [
        (["a", "b"], "prompt"),
        ([{"prompt": "a", "n": 1}, {"prompt": "b"}], "prompt"),
        ({"prompts": ["a", "b"]}, "prompts"),
        ({"prompt": {"0": "a", "1": "b"}}, "prompt"),
        ({"annotations": [{"caption": "a"}, {"caption": "b"}]}, "annotations.caption"),
        ([{"meta": {"text": "a"}}, {"meta": {"text": "b"}}], "meta.text"),
        ([{"meta.text": "a"}, {"meta.text": "b"}], "meta.text"),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_json_arrays(tmp_path: Path, value: object, column: str, indent: int | None) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(value, indent=indent), "utf-8-sig")
    found = read(path, column=column)
    assert (found.rows, counts(found)) == (["a", "b"], (2, 0, 0, 0))


def test_json_lines_that_are_called_json_and_json_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert (read(path).rows, counts(read(path))) == (["a", "b"], (3, 1, 0, 0))
    path.write_text('["a", null, "", "\\ud800", "a"]')
    assert counts(read(path)) == (5, 2, 1, 1)
    for text, words in {
        '["a",': "an array of prompts is due, and this is no JSON: Expecting value",
        "[" * 100_000: "this is no JSON: maximum recursion depth",
        "[" + "1" * 5000 + "]": "this is no JSON: Exceeds the limit",
        '"a"': "there is str under 'prompt'; an array of prompts is due",
        "[3]": "column 'prompt' holds int in entry 1",
        '[{"promt": 3}]': "no column 'prompt' (did you mean 'promt'?)",
        json.dumps({f"id{n}": {} for n in range(1000)}): "id19 and 980 more; choose by",
    }.items():
        path.write_text(text)
        assert words in fault(path)


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst", "lz4"])
def test_compressed_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p.csv.{suffix}"
    content = b"prompt\n" + b"".join(b"number %d\n" % n for n in range(20_000))
    standard = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    half = len(content) // 2
    if suffix in standard:  # such files may be several behind each other
        path.write_bytes(standard[suffix](content[:half]) + standard[suffix](content[half:]))
    else:
        path.write_bytes(pa.compress(content, {"zst": "zstd", "lz4": "lz4"}[suffix], asbytes=True))
    found = read(path)
    assert (found.rows[-1], found.read) == ("number 19999", 20_000)
    path.write_bytes(path.read_bytes()[:-20])
    assert "cannot be read" in fault(path)
    path.write_bytes(content)
    assert "cannot be read" in fault(path)


def test_a_directory_and_a_pattern_hold_a_prompt_a_file(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name, text in {"10.txt": "ten", "9.txt": "nine\n", "2.txt": "", "2.png": "x", ".h.txt": "h"}.items():
        (tmp_path / "d" / name).write_text(text)
    for path in ("d", "d/", "d/*.txt", "*/*.txt", "d/[0-9]*"):
        found = read(tmp_path / path) if path != "d/" else read(f"{tmp_path}/d/")
        assert (found.rows, counts(found)) == (["ten", "nine"], (3, 1, 0, 0))
    assert read(f"file://{tmp_path}/d/*.txt").rows == ["ten", "nine"]
    (tmp_path / "d" / "3.txt").write_text("one\ntwo\n")
    assert "3.txt, has several lines, and in a directory or a pattern a .txt file is one prompt" in fault(
        tmp_path / "d"
    )
    assert read(tmp_path / "d" / "3.txt").rows == ["one", "two"]
    (tmp_path / "d" / "p.csv").write_text("prompt\na\n")
    assert "d holds .csv, .txt files; choose by a pattern such as *.csv" in fault(tmp_path / "d")
    (tmp_path / "d" / "q.csv.gz").write_bytes(gzip.compress(b"prompt\nb\na\n"))
    assert counts(read(tmp_path / "d" / "*.csv*")) == (3, 0, 1, 0)
    assert fault(tmp_path / "d" / "*.tsv") == f"no prompts file at {tmp_path}/d/*.tsv"


def test_a_file_whose_name_is_a_pattern_is_itself(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("one\ntwo\n")
    assert read(tmp_path / "a[1].txt").rows == ["one", "two"]


def hub(tmp_path: Path, columns: dict[str, list[object]], name: str = "data.parquet") -> str:
    (tmp_path / "hub").mkdir(exist_ok=True)
    table = pa.table(columns)
    features = {"prompt": {"dtype": "string", "_type": "Value"}, "image": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "hub" / name)
    return f"hub:{tmp_path / 'hub'}"


def test_of_a_hub_dataset_the_column_alone_is_decoded(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    bad = {"bytes": b"no picture", "path": None}
    path = hub(tmp_path, {"prompt": ["a", "b", "a"], "image": [bad] * 3})
    assert counts(read(path)) == (3, 0, 1, 0)
    assert "no column 'promt' (did you mean 'prompt'?); there are prompt, image" in fault(
        path, column="promt"
    )
    assert "split 'test': Bad split: test. Available splits: ['train']" in fault(path, split="test")


def test_of_a_hub_dataset_with_several_configurations_one_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    place = tmp_path / "hub"
    place.mkdir()
    (place / "a.jsonl").write_text('{"prompt": "of a"}\n')
    (place / "b.jsonl").write_text('{"prompt": "of b"}\n')
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in "ab")
    (place / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert read(f"hub:{place}", config="b").rows == ["of b"]
    told = fault(f"hub:{place}")
    assert "['a', 'b']" in told
    assert told.endswith("choose by --prompts.config")
    assert re.search("'c' not found.*'a', 'b'.*choose by --prompts.config", fault(f"hub:{place}", config="c"))


def test_a_hub_dataset_that_is_a_script_or_damaged_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    path = hub(tmp_path, {"prompt": ["a"], "image": [None]})
    (tmp_path / "hub" / "data.parquet").write_bytes(b"PAR1 no more PAR1")
    assert fault(path).startswith(f"hub dataset '{tmp_path / 'hub'}', split 'train': ")
    (tmp_path / "hub" / "hub.py").write_text("raise SystemExit")
    assert "scripts are no longer supported, but found hub.py; convert it to Parquet" in fault(path)
