"""Pictures on their way into rows and out of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from rankray.config import ImagesConfig
from rankray.data.pictures import decode, encode_image, encoded, image_key, picture_of, stored


@pytest.mark.parametrize("uri", ["", "file://"])
def test_a_file_is_named_within_its_dataset(tmp_path: Path, uri: str) -> None:
    (tmp_path / "first" / "images").mkdir(parents=True)
    images = ImagesConfig(store="files")
    data = encode_image(Image.new("RGB", (2, 1), (1, 2, 3)), images)
    entry = stored(data, "key", images, f"{uri}{tmp_path}/first")
    assert entry == {"path": "images/key.png"}
    (tmp_path / "first").rename(tmp_path / "second")
    for path in ("images/key.png", f"{tmp_path}/first/images/key.png"):  # the latter as it once was
        found = decode(encoded({"image": None, "path": path}, f"{uri}{tmp_path}/second"))
        assert (found.size, found.getpixel((1, 0))) == ((2, 1), (1, 2, 3))


def test_a_picture_is_on_disk_before_its_row_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Data notes the row as finished; after a power cut an empty picture would be one for good."""
    (tmp_path / "images").mkdir()
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    stored(b"png" * 100, "key", ImagesConfig(store="files"), str(tmp_path))
    assert synced == [300]
    assert os.listdir(tmp_path / "images") == ["key.png"]


@pytest.mark.parametrize("uri", ["", "file://"])
def test_a_generator_may_have_any_name(tmp_path: Path, uri: str) -> None:
    (tmp_path / "images").mkdir()
    images, places = ImagesConfig(store="files"), set()
    for n, name in enumerate(("a b", "ä", "a#b", "a?b", "a%20b", "50%", "a=b/c", "a+b:[c]")):
        data = encode_image(Image.new("RGB", (n + 1, 1)), images)
        entry = {"image": None, **stored(data, image_key("id", name, 0), images, f"{uri}{tmp_path}")}
        assert decode(encoded(entry, f"{uri}{tmp_path}")).size == (n + 1, 1)
        former = {**entry, "path": f"s3://bucket/first/{entry['path']}"}  # from the root, as it once was
        assert decode(encoded(former, f"{uri}{tmp_path}")).size == (n + 1, 1)
        places.add(entry["path"])
    assert {"images/id-a b-0.png", "images/id-a=3Db=2Fc-0.png", "images/id-a%20b-0.png"} < places


def test_a_generator_s_transparent_picture_lies_on_white() -> None:
    data = encode_image(picture_of(Image.new("RGBA", (1, 1), (255, 0, 0, 51))), ImagesConfig())
    assert decode(data).getpixel((0, 0)) == (255, 204, 204)
