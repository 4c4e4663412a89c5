"""What the reports share: their templates, pictures of a bounded size, differences in words.

Every report extends `templates/page.html.j2`, which fits a phone, paper, light and dark, and forbids the browser to
load anything. Prompts are other people's text: the templates escape everything. Pictures are embedded as thumbnails of
at most 256 pixels: 96 of 1024 pixels are 2 MB instead of 170. A picture that cannot be read costs its place alone.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from PIL import Image

from rankray import store, words
from rankray.report import charts

THUMBNAIL_PIXELS = 256
PICTURE_BYTES = 4_000_000
"""What all pictures of a page may take together (5.3 MB as base64), however many there are."""
PIXELATED_PIXELS = 128
"""Pictures up to this width are shown enlarged as sharp squares; larger ones smoothly."""
VERDICTS = {1: "better", -1: "worse", 0: "not measurably different"}
_Item = TypeVar("_Item")
_SIDES = (THUMBNAIL_PIXELS, 192, 128, 96, 64)
_SHOWN_AS_IS = {"PNG": "png", "JPEG": "jpeg", "WEBP": "webp"}


def _script(name: str) -> dict[str, str]:
    """A script's `text` and its `hash`: a page that has it allows this script by its hash, and no other."""
    text = Path(__file__).with_name("templates").joinpath(name).read_text("utf-8")
    return {
        "text": text,
        "hash": base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii"),
    }


_SCRIPTS = {name: _script(f"{name}.js") for name in ("sort", "gallery")}
"""Sorts tables; finds, enlarges and compares pictures: each where a browser runs it."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def write_page(uri: str, template: str, values: dict[str, Any]) -> None:
    """Writes `uri/report.html`, whole.

    Args:
        uri: a directory or URI on any Arrow filesystem.
        template: one of `templates/`.
        values: what it names.
    """
    fs, place = store.filesystem(uri)
    try:
        page = environment().get_template(template).render(values)
    except jinja2.UndefinedError as error:  # of the contents, as the templates of all pages are tested
        raise KeyError(str(error)) from error
    store.write_text(f"{place}/report.html", page, fs)


@functools.cache
def environment() -> jinja2.Environment:
    """This package's templates: text is escaped and made printable, an undefined name is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("rankray.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    for word in (words.number, words.compact, words.money, words.percent, words.seconds, words.short):
        made.filters[word.__name__] = word
    made.globals |= {"scripts": _SCRIPTS, "frame": charts}
    return made


def spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """`count` items (or all, where there are fewer), evenly spaced from the first to the last."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[0]]
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


def picture(
    image: dict[str, Any] | None,
    limit_bytes: int = PICTURE_BYTES,
    sides: Sequence[int] = _SIDES,
    sharp: int = PIXELATED_PIXELS,
) -> dict[str, Any]:
    """`src` (None without a picture), `missing` (why), and `pixelated`: whether it is at most `sharp` pixels wide.

    Args:
        image: `bytes` and `path` as a candidate has them; None where there is no picture.
        limit_bytes, sides: as `thumbnail` takes them.
    """
    if image is None:
        return {"src": None, "missing": "no picture", "pixelated": False}
    try:
        data = store.image_bytes(image)
        with store.opened(data) as opened:
            width = opened.width
        kind, small = thumbnail(data, limit_bytes, sides)
        src = f"data:image/{kind};base64,{base64.b64encode(small).decode('ascii')}"
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:  # Pillow's, file systems'
        why = f"the picture cannot be read: {type(error).__name__}: {error}"
        return {"src": None, "missing": why, "pixelated": False}
    return {"src": src, "missing": None, "pixelated": width <= sharp}


def thumbnail(
    data: bytes, limit_bytes: int = PICTURE_BYTES, sides: Sequence[int] = _SIDES
) -> tuple[str, bytes]:
    """(png, jpeg or webp; the picture's bytes), at most `sides[0]` pixels (256) wide and high.

    A picture that is small enough already, in pixels and in bytes, stays what it is. Any other becomes the
    JPEG of the first side of at most `limit_bytes`, or of the last side (64 pixels) where none is so small.

    Raises:
        OSError, ValueError, SyntaxError: it is cut short, or no picture (as Pillow says it).
    """
    with store.opened(data) as picture:
        kind = _SHOWN_AS_IS.get(picture.format or "")
        as_it_is = kind and max(picture.size) <= sides[0] and len(data) <= limit_bytes
        if not as_it_is:  # a JPEG is decoded at the least of 1/2, 1/4, 1/8 of its size that will do
            picture.draft(None, (2 * sides[0], 2 * sides[0]))
        picture.load()
        if kind and as_it_is:
            return kind, data
        small = store.shown(picture)
    buffer = io.BytesIO()
    for side in sides:
        small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=88)
        if buffer.tell() <= limit_bytes:
            break
    return "jpeg", buffer.getvalue()


def printable(text: str) -> str:
    """The text with each control character, which HTML has no place for, as U+FFFD."""
    return _CONTROL.sub("\ufffd", text)


Shown = Callable[[float | None], str]


def difference(found: Mapping[str, Any] | None, level: Shown, change: Shown | None = None) -> dict[str, Any]:
    """A `rankray.stats.Difference`, as JSON has it, as every page shows it; all empty where there is none.

    Args:
        level: a figure of its metric in words; change: a difference of two, else the level with its sign.

    Returns:
        in words before, after, gain, interval, votes, p and verdict; as numbers, to sort by, value, balance and
        p_value; sign: which way the interval lies.
    """
    if found is None:
        words_ = dict.fromkeys(("before", "after", "gain", "interval", "votes", "p", "verdict"), "")
        return {**words_, "value": None, "p_value": None, "balance": None, "sign": 0}
    told = change or (lambda value: words.signed(value, level(abs(value or 0.0))))
    sign, ends = charts.side(found), [found["low"], found["high"]]
    return {
        "value": found["gain"],
        "balance": found["wins"] - found["losses"],
        "p_value": found["p_value"],
        "sign": sign,
        "before": level(found["before"]),
        "after": level(found["after"]),
        "gain": told(found["gain"]),
        "interval": words.MISSING if None in ends else " to ".join(map(told, ends)),
        "votes": f"{found['wins']} : {found['losses']}",
        "p": f"{found['p_value']:.2g}",
        "verdict": "no interval" if found["low"] is None else VERDICTS[sign],
    }
