"""What the reports share: sizes of pictures, numbers in words, and a page that loads nothing."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import hostile_pages
import numpy as np
import pytest
from page_reader import Reader
from PIL import Image

from rankray.report import pages


def png(size: int, colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_size_is_bounded_for_many_candidates(tmp_path: Path) -> None:
    """16 noisy pictures a prompt: each gets a 24 * 16th of the bytes, so it is made smaller."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    limit = pages.PICTURE_BYTES // (24 * 16)
    kind, data = pages.thumbnail(buffer.getvalue(), limit)
    assert kind == "jpeg"
    assert len(data) <= limit
    assert 64 <= max(Image.open(io.BytesIO(data)).size) < pages.THUMBNAIL_PIXELS


def test_small_pictures_stay_what_they_are() -> None:
    data = png(64)
    assert pages.thumbnail(data) == ("png", data)
    assert (
        pages.picture({"bytes": data, "path": None})["src"]
        == f"data:image/png;base64,{base64.b64encode(data).decode()}"
    )


def test_a_large_jpeg_is_made_small_as_any_picture_is() -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((1024, 512)).convert("RGB").save(buffer, "JPEG")
    kind, data = pages.thumbnail(buffer.getvalue())
    assert kind == "jpeg"
    small = Image.open(io.BytesIO(data))
    assert small.size == (256, 128)
    # Black above, white below: the ends of the gradient, within a JPEG's and a filter's reach.
    assert (np.asarray(small)[0].max() < 12, np.asarray(small)[-1].min() > 243) == (True, True)


@pytest.mark.parametrize(("width", "pixelated"), [(128, True), (129, False)])
def test_small_pictures_are_enlarged_as_sharp_squares(width: int, pixelated: bool) -> None:
    found = pages.picture({"bytes": png(width), "path": None})
    assert (found["missing"], found["pixelated"]) == (None, pixelated)
    assert found["src"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (None, "no picture"),
        ({"bytes": b"nothing", "path": None}, "UnidentifiedImageError"),
        ({"bytes": None, "path": "/nowhere/at/all.png"}, "FileNotFoundError"),
    ],
)
def test_a_picture_that_is_not_there_says_why(image: dict[str, Any] | None, why: str) -> None:
    found = pages.picture(image)
    assert found["src"] is None
    assert why in found["missing"]


def test_every_page_forbids_loads_and_has_print_phone_and_dark_rules(tmp_path: Path) -> None:
    pages.write_page(str(tmp_path), "page.html.j2", {})
    page = (tmp_path / "report.html").read_text()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in page
    for rule in ("@media print", "@media (max-width: 30rem)", "prefers-color-scheme: dark"):
        assert rule in page
    assert not re.findall(r"(?:src|href)=|@import|url\(|//", page)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_difference_in_words() -> None:
    found = {"before": 0.5, "after": 0.45, "gain": -0.05, "low": -0.2, "high": -0.01, "wins": 1, "losses": 4}
    shown = pages.difference(found | {"p_value": 0.375}, lambda value: f"{100 * (value or 0):.2f}")
    assert (shown["gain"], shown["interval"], shown["verdict"]) == ("−5.00", "−20.00 to −1.00", "worse")
    assert (shown["before"], shown["votes"], shown["balance"], shown["p"]) == ("50.00", "1 : 4", -3, "0.38")
    alone = pages.difference(found | {"p_value": 1.0, "low": None}, str, str)
    assert (alone["interval"], alone["verdict"], alone["sign"]) == ("–", "no interval", 0)
    assert pages.difference(None, str)["verdict"] == ""


def test_script_in_every_text_of_every_page_is_text(tmp_path: Path) -> None:
    """Beside it `test_in_chromium.py` lets a browser judge."""
    for name, file in hostile_pages.write(tmp_path).items():
        reader = Reader()
        reader.feed(file.read_text())
        ours = {pages._SCRIPTS[each]["text"].strip() for each in pages._SCRIPTS}
        scripts = re.findall("<script[^>]*>(.*?)</script>", file.read_text(), re.DOTALL)
        assert {script.strip() for script in scripts} <= ours, name
        assert [tag for tag, _ in reader.tags].count("script") == len(scripts) <= 1, name
        for tag, attributes in reader.tags:
            assert not [key for key in attributes if key.startswith("on") or key == "autofocus"], (name, tag)
            for key in ("href", "src"):
                led = attributes.get(key) or "#"
                assert re.match(r"#|data:|([\w-]+/)+report\.html$", led), (name, attributes)
        assert hostile_pages.TEXT[:60] in reader.text, name
