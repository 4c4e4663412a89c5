"""Shards that the published reader reads, and that come back as the dataset they were made of."""

from __future__ import annotations

import io
import json
import math
import tarfile
from pathlib import Path
from typing import Any

import pytest
import small_dataset
import webdataset as published
from PIL import Image

from rankray import commands, store
from rankray.config import ConfigError
from rankray.data import convert, pictures, webdataset


def quiet(line: str) -> None:
    pass


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    convert.run(small_dataset.write(tmp_path / "d"), str(tmp_path / "w"), "webdataset", quiet)
    return tmp_path / "w"


def ordered(path: Path) -> list[str]:
    """Every row as text, so that NaN equals NaN."""
    return [repr(row) for row in sorted(store.read(str(path)).rows(images=True), key=lambda r: r["prompt"])]


def test_the_published_reader_reads_them(shards: Path) -> None:
    assert sorted(path.name for path in shards.iterdir()) == ["000000.tar", "webdataset.json"]
    found = published.WebDataset(str(shards / "000000.tar"), shardshuffle=False).decode("pil")
    a, b, c = sorted(found, key=lambda sample: sample["txt"])
    assert (a["txt"], b["txt"], c["txt"]) == ("a", "b", "c")
    assert a["1.png"].getpixel((0, 0)) == (ord("a"), 100, 0)
    best = min(a["json"]["candidates"], key=lambda candidate: candidate["rank"])
    assert (best["image"], best["scores"]) == ("0.png", {"r": 3.0, "s": 30.0, "t": 0.0})
    assert b["json"]["candidates"][0]["scores"]["t"] is None
    assert "2.png" not in c, "no picture came of it"


def test_there_and_back(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = webdataset.read(str(shards), str(tmp_path / "back"), quiet)
    assert store.validate(str(tmp_path / "back")) == store.Validation(3, 9, 8, 2)
    assert ordered(tmp_path / "back") == ordered(tmp_path / "d")
    assert info["identity"]["seed"] == small_dataset.SEED
    said: list[str] = []
    webdataset.read(str(shards), str(tmp_path / "back"), said.append)
    assert said == [f"{tmp_path / 'back'} is complete already; nothing to do"]
    monkeypatch.setattr(webdataset, "SHARD_BYTES", 1)  # a shard a file
    convert.run(str(tmp_path / "d"), str(tmp_path / "more"), "webdataset", quiet)
    assert len(list((tmp_path / "more").glob("*.tar"))) == 2
    webdataset.read(str(tmp_path / "more"), str(tmp_path / "again"), quiet)
    assert ordered(tmp_path / "again") == ordered(tmp_path / "d")


def test_pictures_beside_the_rows_count_for_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without them are some hundred bytes: by these alone everything would be one shard."""
    source = small_dataset.write(tmp_path / "d", {"0": "a", "1": "b", "2": "c"})
    small_dataset.as_files(tmp_path / "d")
    rows = [file.stat().st_size for file in (tmp_path / "d" / "data").iterdir()]
    for file in (tmp_path / "d" / "images").iterdir():
        file.write_bytes(file.read_bytes() + bytes(sum(rows)))  # a PNG is read to its own end
    pictures_bytes = sum(file.stat().st_size for file in (tmp_path / "d" / "images").iterdir())
    monkeypatch.setattr(webdataset, "SHARD_BYTES", max(rows) + pictures_bytes // 3 + 1)
    convert.run(source, str(tmp_path / "w"), "webdataset", quiet)
    assert len(list((tmp_path / "w").glob("*.tar"))) == 3


def test_what_json_has_no_number_for() -> None:
    for value in (0.1, math.inf, -math.inf):
        assert webdataset._read(json.loads(json.dumps(webdataset._written(value), allow_nan=False))) == value
    assert math.isnan(webdataset._read(webdataset._written(math.nan)))


def changed(shard: Path, name: str, data: bytes) -> None:
    """Puts other content under the first name that ends so."""
    with tarfile.open(shard) as tar:
        parts: list[tuple[str, Any]] = [(member.name, tar.extractfile(member)) for member in tar]
        contents = [(each, file.read()) for each, file in parts]
    with tarfile.open(shard, "w") as tar:
        for each, content in contents:
            put = data if each.endswith(name) else content
            member = tarfile.TarInfo(each)
            member.size = len(put)
            tar.addfile(member, io.BytesIO(put))


def test_what_is_damaged_is_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = shards / "000000.tar"
    whole = shard.read_bytes()
    large = io.BytesIO()
    Image.new("1", (16_384, 8_192)).save(large, "PNG")  # 17 KB on disk
    small = io.BytesIO()
    Image.new("RGB", (3, 3)).save(small, "PNG")
    cases = (
        (".0.png", large.getvalue(), "a picture of 16384x8192; at most"),
        (".0.png", small.getvalue(), "a picture of 3x3, stated are 4x2"),
        (".json", b"{", "Expecting property name"),
        (".json", b"{}", "'candidates'"),
    )
    for name, data, message in cases:
        shard.write_bytes(whole)
        changed(shard, name, data)
        assert commands.main(["import", str(shards), "--output", str(tmp_path / "o")]) == 2
        printed = capsys.readouterr().err
        assert printed.startswith(f"rankray: {shard} cannot be read beyond its beginning")
        assert message in printed
        assert printed.count("\n") == 1
    shard.write_bytes(whole[:3000])
    with pytest.raises(ConfigError, match="cannot be read beyond"):
        webdataset.read(str(shards), str(tmp_path / "o"), quiet)
    shard.unlink()
    with pytest.raises(ConfigError, match=r"shard 000000\.tar is missing"):
        webdataset.read(str(shards), str(tmp_path / "p"), quiet)
    assert not store.complete(str(tmp_path / "o"))


def test_shards_that_are_whole_and_lack_rows_are_refused_until_they_are_got_again(
    shards: Path, tmp_path: Path
) -> None:
    """The list of them lacks one; or one ends behind its first prompt."""
    marker, tar, back = shards / webdataset.MARKER, shards / "000000.tar", str(tmp_path / "back")
    about, whole = marker.read_text(), tar.read_bytes()
    marker.write_text(json.dumps({**json.loads(about), "shards": []}))
    with pytest.raises(
        ConfigError, match=rf"^{shards}: 0 rows in its shards, and rows are due: 3; get it again$"
    ):
        webdataset.read(str(shards), back, quiet)
    marker.write_text(about)
    with tarfile.open(tar) as found:
        second = [member for member in found if member.name.endswith(".json")][1]
    tar.write_bytes(whole[: second.offset] + bytes(1024))
    with pytest.raises(ConfigError, match=r": 1 rows in its shards, and rows are due: 3"):
        webdataset.read(str(shards), back, quiet)
    assert not store.complete(back)
    tar.write_bytes(whole)
    webdataset.read(str(shards), back, quiet)
    assert ordered(tmp_path / "back") == ordered(tmp_path / "d")


def test_a_picture_is_kept_as_it_is_or_becomes_png() -> None:
    for kind, due in (("PNG", None), ("JPEG", None), ("WEBP", None), ("BMP", "PNG"), ("TIFF", "PNG")):
        buffer = io.BytesIO()
        Image.new("RGB", (5, 3), (9, 8, 7)).save(buffer, kind)
        data, size = pictures.imported(buffer.getvalue())
        assert size == (5, 3)
        assert (data == buffer.getvalue()) == (due is None)
        assert pictures.suffix(data) == {"JPEG": "jpg"}.get(due or kind, (due or kind).lower())
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    Image.new("RGB", (5, 3)).save(turned, "JPEG", exif=exif)
    assert pictures.imported(turned.getvalue())[1] == (3, 5)
