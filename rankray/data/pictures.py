"""Pictures as rows hold them: encoded on the way in, decoded for each reward, inline or as files beside the rows.

On one core a 1024x1024 PNG takes 78 ms to encode and 33 ms to decode, the latter once for each reward; a JPEG 3 and 9.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from rankray.config import ImagesConfig
from rankray.store import IMAGES, filesystem, image_bytes, image_place, opened, put, shown

if TYPE_CHECKING:
    from PIL import Image

PICTURE_MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr")
"""What a generator may return; kept as RGB, on white. Modes of more bits (I;16, I, F) have no range that is known."""

LONGEST_SIDE = 16_383
"""What WebP can hold, the narrowest of the formats."""
SUFFIXES = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
"""What rows hold, by Pillow's names; what is imported in another format becomes PNG."""
READABLE = (*SUFFIXES, "BMP", "GIF", "TIFF")
"""What is imported: none whose reader starts a program of its own, as that of EPS does."""
MAX_PIXELS = 2**26
"""Of a picture, drawn or imported, 8192 x 8192: 200 MB when decoded, and a file of 100 KB can claim much more."""
MAX_BYTES = 2**29
"""Of an imported picture's file: `MAX_PIXELS` of 16-bit RGBA as they are."""


def image_key(row_id: str, generator: str, sample: int) -> str:
    """What names a candidate's file; no two candidates share one."""
    return f"{row_id}-{file_name(generator)}-{sample}"


def stored(data: bytes, key: str, images: ImagesConfig, dataset: str) -> dict[str, Any]:
    """A picture's bytes as a row of `dataset` holds them: inline, or the path within it that they were written to."""
    if images.store == "inline":
        return {"image": data}
    fs, directory = filesystem(dataset)
    path = f"{IMAGES}/{key}.{images.format}"
    put(f"{directory}/{path}", data, fs)
    return {"path": path}


def picture_of(image: Any) -> Image.Image:
    """What a generator returned as it is shown, decoded to its last pixel, if it is a picture that can be kept.

    Raises:
        TypeError, ValueError: it is none, or of a mode or size that is not kept as it is.
        OSError, SyntaxError: it was opened and not read yet, and is cut short or damaged.
    """
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise TypeError(f"a generator returned {type(image).__name__}; a PIL picture is due")
    if image.mode not in PICTURE_MODES or not all(image.size):
        raise ValueError(
            f"a generator returned a picture of mode {image.mode}, {image.width}x{image.height}; due are 8-bit modes "
            f"({', '.join(PICTURE_MODES)}) of at least 1x1: convert it to RGB"
        )
    if max(image.size) > LONGEST_SIDE or image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"a generator returned a picture of {image.width}x{image.height}; due are at most {LONGEST_SIDE:,} a side "
            f"and {MAX_PIXELS:,} pixels"
        )
    return shown(image)


def suffix(data: bytes) -> str:
    """How the name of a file with a stored picture ends."""
    with opened(data) as picture:
        return SUFFIXES.get(picture.format or "", "img")


def imported(data: bytes) -> tuple[bytes, tuple[int, int]]:
    """(bytes, size) of somebody's picture: the bytes as they are where rows may hold such, else as PNG. Its size is
    looked at before it is decoded, to its last pixel, as it is shown.

    Raises:
        OSError, ValueError, SyntaxError: it is none, is cut short, or is larger than `MAX_PIXELS`.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=READABLE) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(
                    f"a picture of {picture.width}x{picture.height}; at most {MAX_PIXELS:,} pixels"
                )
            seen = shown(picture)
            kept = picture.format in SUFFIXES
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
    return (data if kept else encode_image(seen, ImagesConfig())), seen.size


def file_name(label: str) -> str:
    """A label as part of a file's name; no two labels share one."""
    return label.replace("=", "=3D").replace("/", "=2F")


def encode_image(image: Image.Image, images: ImagesConfig) -> bytes:
    """The bytes of a picture that is as `shown` makes it. PNG at level 1: three times as fast as Pillow's default for
    6 % more bytes."""
    settings: dict[str, dict[str, Any]] = {
        "png": {"compress_level": 1},
        "webp": {"lossless": True},
        "jpeg": {"quality": images.quality},
    }
    buffer = io.BytesIO()
    image.save(buffer, format=images.format.upper(), **settings[images.format])
    return buffer.getvalue()


def encoded(entry: dict[str, Any], dataset: str) -> bytes:
    """The bytes of an entry that `stored` wrote for `dataset`.

    Raises:
        OSError: its file is not there, or its place is away, which is no fault of the picture.
    """
    path = entry["path"] and image_place(entry["path"], dataset)
    return image_bytes({"bytes": entry["image"], "path": path})


def decode(data: bytes) -> Image.Image:
    """The RGB picture of stored bytes.

    Raises:
        OSError, ValueError, SyntaxError: they are none, are cut short, or claim more pixels than Pillow decodes.
    """
    from PIL import UnidentifiedImageError

    try:
        return shown(opened(data))
    except UnidentifiedImageError:  # which names an address in memory, and rows would differ by it
        raise ValueError(f"{len(data):,} bytes that are no picture") from None
