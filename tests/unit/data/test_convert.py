"""Pairs hold the pictures, the preference and the weight that the ranking gives them."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import small_dataset
from PIL import Image

from rankray import schema, store
from rankray.config import ConfigError
from rankray.data import convert, importing
from rankray.data.pickapic import Importing


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


def by_published_columns(place: str, cache: Path) -> list[tuple[str, bytes]]:
    """A reader as public Diffusion-DPO trainers have it (diffusers' script for SDXL and its descendants for SD3 and
    FLUX): `load_dataset` of a name or a directory, bytes in `jpg_0` and `jpg_1`, where `label_0` is 0 the second is the
    better one; both at the first one's size, one above the other. (caption, the pair's pixels)."""
    datasets = pytest.importorskip("datasets")
    found = []
    for batch in datasets.load_dataset(place, split="train", cache_dir=str(cache)).iter(2):
        for n, caption in enumerate(batch["caption"]):
            pair = [Image.open(io.BytesIO(batch[name][n])).convert("RGB") for name in ("jpg_0", "jpg_1")]
            pair[1] = pair[1].resize(pair[0].size)
            better = pair if batch["label_0"][n] != 0 else pair[::-1]
            found.append((caption, b"".join(image.tobytes() for image in better)))
    return found


def test_public_trainers_see_the_better_picture_first(tmp_path: Path) -> None:
    convert.run(small_dataset.write(tmp_path / "d"), str(tmp_path / "o"), "pickapic", quiet)

    def pixels(prompt: str, k: int) -> bytes:
        return Image.open(io.BytesIO(small_dataset.picture(prompt, k))).tobytes()

    due = [("a", pixels("a", 0) + pixels("a", 2)), ("b", pixels("b", 1) + pixels("b", 0))]
    assert by_published_columns(str(tmp_path / "o"), tmp_path / "c") == due


@pytest.mark.parametrize("to", ["pairs", "all-pairs"])
def test_the_directory_is_a_dataset_by_itself(tmp_path: Path, to: str) -> None:
    """Of chosen and rejected, as trainers that name columns take them."""
    datasets = pytest.importorskip("datasets")
    info = convert.run(small_dataset.write(tmp_path / "d"), str(tmp_path / "o"), to, quiet)
    found = datasets.load_dataset(str(tmp_path / "o"), split="train", cache_dir=str(tmp_path / "c"))
    assert len(found) == info["pairs"]
    assert found[0]["chosen"].getpixel((0, 0)) == (ord("a"), 0, 0)


def by_simpletuner(backends: list[dict[str, Any]]) -> list[tuple[str, bytes, bytes]]:
    """A reader of SimpleTuner's published shape for flow-DPO: local directories, the second a strict reference of the
    first, in which a picture's partner has its name; captions in text files beside. (caption, preferred, rejected)."""
    by_id = {one["id"]: one for one in backends}
    (first,) = (one for one in backends if one["dataset_type"] == "image")
    (partner,) = (by_id[name] for name in first["conditioning_data"])
    assert partner["conditioning_type"] == "reference_strict"
    assert partner["source_dataset_id"] == first["id"]
    assert {one["type"] for one in backends} == {"local"}
    assert (first["caption_strategy"], first["disable_multiline_split"]) == ("textfile", True)
    found = []
    for file in sorted(Path(first["instance_data_dir"]).rglob("*")):
        if file.suffix not in (".png", ".jpg", ".jpeg", ".webp"):
            continue
        other = Path(partner["instance_data_dir"]) / file.relative_to(first["instance_data_dir"])
        pair = [Image.open(place).convert("RGB").tobytes() for place in (file, other)]
        found.append((file.with_suffix(".txt").read_text(), *pair))
    return found


def test_simpletuner_finds_a_partner_and_a_caption_for_each_picture(tmp_path: Path) -> None:
    """By the configuration that the page on exchange has."""
    info = convert.run(small_dataset.write(tmp_path / "d"), str(tmp_path / "folders"), "folders", quiet)
    assert info["pairs"] == 2
    page = (Path(__file__).parents[3] / "docs" / "exchange.md").read_text()
    (text,) = re.findall(r"^```json\n(.*?)^```", page, re.M | re.S)
    found = by_simpletuner(json.loads(text.replace("/data/", f"{tmp_path}/")))

    def pixels(prompt: str, k: int) -> bytes:
        return Image.open(io.BytesIO(small_dataset.picture(prompt, k))).tobytes()

    assert sorted(found) == [("a", pixels("a", 0), pixels("a", 2)), ("b", pixels("b", 1), pixels("b", 0))]


def test_folders_come_back_as_the_pairs_that_they_are(tmp_path: Path) -> None:
    source = small_dataset.write(tmp_path / "d")
    convert.run(source, str(tmp_path / "folders"), "folders", quiet)
    importing.run([str(tmp_path / "folders" / "rankings.json")], str(tmp_path / "o"), Importing(), quiet)
    found = {
        (row["prompt"], *(c["image"]["bytes"] for c in sorted(row["candidates"], key=lambda c: c["rank"])))
        for row in store.read(str(tmp_path / "o")).rows(images=True)
    }
    due = (("a", 0, 2), ("b", 1, 0))
    assert found == {(p, *(small_dataset.picture(p, k) for k in pair)) for p, *pair in due}
