"""Pairs hold the pictures, the preference and the weight that the ranking gives them."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import small_dataset
from PIL import Image

from rankray import schema
from rankray.config import ConfigError
from rankray.data import convert


def quiet(line: str) -> None:
    pass


def pairs(path: Path) -> list[dict[str, Any]]:
    return [row for file in sorted((path / "data").iterdir()) for row in pq.read_table(file).to_pylist()]


def test_best_against_worst(tmp_path: Path) -> None:
    """a: wins of 6 are 4, 4 and 1, so 0 before 2. b: 1 and 2 tie at the top, 0 is last. c: both tie, so no pair."""
    source = small_dataset.write(tmp_path / "d")
    info = convert.run(source, str(tmp_path / "o"), "pairs", quiet)
    first, second = pairs(tmp_path / "o")
    assert info["pairs"] == 2
    assert (first["prompt"], first["chosen_generator"], first["rejected_generator"]) == ("a", "one", "two")
    assert first["chosen"]["bytes"] == small_dataset.picture("a", 0)
    assert first["rejected"]["bytes"] == small_dataset.picture("a", 2)
    gains = 2 ** (4 / 6) - 2 ** (1 / 6)
    assert first["weight"] == pytest.approx(gains * (1 / math.log(2) - 1 / math.log(4)))
    assert second["prompt"] == "b"
    assert second["rejected"]["bytes"] == small_dataset.picture("b", 0)


def test_all_pairs_leave_ties_out(tmp_path: Path) -> None:
    """a: 0 and 1 tie at 4 of 6, so 0-2 and 1-2 remain. b: 1 and 2 tie, so 1-0 and 2-0. c: none."""
    source = small_dataset.write(tmp_path / "d")
    convert.run(source, str(tmp_path / "o"), "all-pairs", quiet)
    found = [
        (pair["prompt"], pair["chosen"]["bytes"], pair["rejected"]["bytes"]) for pair in pairs(tmp_path / "o")
    ]
    assert found == [
        (prompt, small_dataset.picture(prompt, better), small_dataset.picture(prompt, worse))
        for prompt, better, worse in (("a", 0, 2), ("a", 1, 2), ("b", 1, 0), ("b", 2, 0))
    ]
    assert all(
        pair["chosen_win_probability"] > pair["rejected_win_probability"] for pair in pairs(tmp_path / "o")
    )


def test_pickapic_columns(tmp_path: Path) -> None:
    source = small_dataset.write(tmp_path / "d")
    convert.run(source, str(tmp_path / "o"), "pickapic", quiet)
    first, second = pairs(tmp_path / "o")
    for pair, best, worst in ((first, 0, 2), (second, 1, 0)):
        place = int(pair["label_1"])
        assert (pair["label_0"] + pair["label_1"], pair["has_label"]) == (1.0, True)
        assert pair[f"jpg_{place}"] == small_dataset.picture(pair["caption"], best)
        assert pair[f"jpg_{1 - place}"] == small_dataset.picture(pair["caption"], worst)
        assert pair["best_image_uid"] == pair[f"image_{place}_uid"]
        assert pair["image_0_uid"] != pair["image_1_uid"]
        with Image.open(io.BytesIO(pair["jpg_0"])) as image:
            assert image.size == (4, 2)
    assert first["ranking_id"] != second["ranking_id"]


def test_either_side_may_be_the_better_one() -> None:
    sides = set()
    for prompt in ("a kite", "a drum", "a fig", "a mill", "an owl", "a pear"):
        row = {**small_dataset.row("a"), "prompt_id": schema.prompt_id(prompt), "prompt": prompt}
        sides |= {pair["label_0"] for pair in convert.pickapic(row)}
    assert sides == {0.0, 1.0}


def test_datasets_shows_pictures(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    source = small_dataset.write(tmp_path / "d")
    convert.run(source, str(tmp_path / "o"), "pairs", quiet)
    files = [str(file) for file in sorted((tmp_path / "o" / "data").iterdir())]
    found = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "c"))
    assert found[0]["chosen"].size == (4, 2)
    assert found[0]["chosen"].getpixel((0, 0)) == (ord("a"), 0, 0)


def test_a_second_run_does_nothing_and_another_format_is_refused(tmp_path: Path) -> None:
    source = small_dataset.write(tmp_path / "d")
    convert.run(source, str(tmp_path / "o"), "pairs", quiet)
    said: list[str] = []
    convert.run(source, str(tmp_path / "o"), "pairs", said.append)
    assert said == [f"{tmp_path / 'o'} is complete already; nothing to do"]
    with pytest.raises(ConfigError, match="format: 'pairs' there, 'pickapic' here"):
        convert.run(source, str(tmp_path / "o"), "pickapic", quiet)
    with pytest.raises(
        ConfigError, match=r"format 'pair' \(did you mean 'pairs'\?\); allowed: pairs, all-pairs"
    ):
        convert.run(source, str(tmp_path / "p"), "pair", quiet)
