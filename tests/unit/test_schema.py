"""Ids and seeds are fixed numbers: a change here would orphan every dataset that exists."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_dataset
from hypothesis import given
from hypothesis import strategies as st

from rankray import schema


def test_a_reward_s_error_is_its_own_whatever_words_it_uses() -> None:
    names, errors = ["red", "green"], ["bad; green: x", "dark"]
    text = schema.joined_errors(names, errors)
    assert text == "red: bad; green: x; green: dark"
    candidate = {"image": {}, "scores": [math.nan, math.nan], "error": text, "score_errors": errors}
    assert schema.score_errors(candidate, names) == errors
    assert schema.joined_errors(names, [None, None]) is None
    assert schema.score_errors({**candidate, "scores": [1.0, 1.0], "score_errors": [None, None]}, names) == [
        None,
        None,
    ]


def test_errors_of_a_dataset_without_the_field_are_read_out_of_the_text() -> None:
    candidate = {"image": {}, "scores": [math.nan, 1.0, math.nan], "error": "a: what; c: no; b: x"}
    assert schema.score_errors(candidate, ["a", "b", "c"]) == ["what", None, "no; b: x"]
    assert schema.score_errors({**candidate, "image": None, "error": "gone"}, ["a", "b", "c"]) == [None] * 3
    former = schema.ranked_schema({"g": "1"}, {"a": "1"}, candidate=schema.FIRST_CANDIDATE_TYPE)
    assert former.field("candidates").type.value_type.get_field_index("score_errors") == -1


def test_prompt_id_is_the_head_of_sha256() -> None:
    assert schema.prompt_id("a red circle") == hashlib.sha256(b"a red circle").hexdigest()[:32]
    assert schema.prompt_id("") == "e3b0c44298fc1c149afbf4c8996fb924"


def test_seed_is_a_fixed_number() -> None:
    digest = hashlib.sha256(b"rankray.seed.v1\x000\x00abc\x00sdxl\x001").digest()
    assert schema.candidate_seed(0, "abc", "sdxl", 1) == int.from_bytes(digest[:8], "big") // 2


@given(st.integers(0, 2**63 - 1), st.text(), st.text(), st.integers(0, 15))
def test_seed_is_a_torch_and_arrow_seed(seed: int, row_id: str, name: str, sample: int) -> None:
    value = schema.candidate_seed(seed, row_id, name.replace("\0", ""), sample)
    assert 0 <= value < 2**63
    assert pa.scalar(value, pa.int64()).as_py() == value


def test_seed_differs_by_every_field() -> None:
    seeds = {
        schema.candidate_seed(0, "p", "g", 0),
        schema.candidate_seed(1, "p", "g", 0),
        schema.candidate_seed(0, "q", "g", 0),
        schema.candidate_seed(0, "p", "h", 0),
        schema.candidate_seed(0, "p", "g", 1),
        schema.candidate_seed(0, "p0", "g", 0),
    }
    assert len(seeds) == 6


def test_metadata_survives_a_file(tmp_path) -> None:
    written = schema.ranked_schema({"sdxl": "abc", "sd3": "def"}, {"pickscore": "123"})
    pq.write_table(written.empty_table(), tmp_path / "x.parquet")
    read = pq.read_schema(tmp_path / "x.parquet")
    assert schema.schema_names(read) == ({"sdxl": "abc", "sd3": "def"}, {"pickscore": "123"})
    features = json.loads(read.metadata[b"huggingface"])["info"]["features"]
    assert set(features["candidates"][0]) == {field.name for field in schema.CANDIDATE_TYPE}


def test_foreign_and_newer_files_are_named() -> None:
    with pytest.raises(ValueError, match="not written by rankray"):
        schema.schema_names(pa.schema([("prompt", pa.string())]))
    newer = schema.ranked_schema({}, {}).with_metadata({"rankray.schema_version": "2"})
    with pytest.raises(ValueError, match="version 2, this rankray reads version 1"):
        schema.schema_names(newer)


def feature_types(described: object) -> set[str]:
    if isinstance(described, list):
        return set().union(*map(feature_types, described))
    if not isinstance(described, dict):
        return set()
    own = {described["_type"]} if isinstance(described.get("_type"), str) else set()
    return own.union(*(feature_types(value) for value in described.values()))


@pytest.mark.parametrize("details", [False, True])
def test_features_are_described_in_the_words_of_the_oldest_datasets_that_is_promised(details: bool) -> None:
    # `datasets` 3.0 knows no List, and reads a Sequence of structs as a struct of lists.
    metadata = schema.ranked_schema({"g": "1"}, {"r": "1"}, details=details).metadata
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    assert feature_types(features) == {"Value", "Image"}
    assert [type(features[name]) for name in features] == [dict, dict, list, *([list] if details else [])]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", ["3.0.*", "3.6.*", "4.*"])
def test_every_datasets_that_is_promised_shows_pictures(tmp_path: Path, version: str) -> None:
    small_dataset.write(tmp_path / "d")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    wanted = [f"datasets=={version}", "pillow"]
    subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
    read = (
        "import datasets, json\n"
        f"rows = datasets.load_dataset('parquet', data_files={str(tmp_path / 'd/data/*.parquet')!r}, split='train',"
        f" cache_dir={str(tmp_path / 'cache')!r})\n"
        "first = rows[0]['candidates'][1]\n"
        "print(json.dumps([first['image'].size, first['image'].getpixel((0, 0)), first['scores']]))"
    )
    told = subprocess.run(
        [python, "-c", read], check=True, capture_output=True, text=True, env={}, cwd=tmp_path
    )
    assert json.loads(told.stdout) == [[4, 2], [ord("a"), 100, 0], [2, 20, 9]]
