"""What `fuzz.py` changes in a valid input, and the case that it makes of it."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import struct
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from rankray import verbs
from rankray.verbs import Answer

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "unit"))
import small_dataset

VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        2**31,
        2**63,
        -(2**63),
        10**30,
        1e-320,
        1e308,
        float("nan"),
        float("inf"),
        -0.5,
    ),
    *(
        "",
        " ",
        "\x00",
        "\x1b[2J",
        "x" * 9000,
        "\ud800",
        "é" * 40,
        "../../etc/passwd",
        "/dev/null",
        "s3:///",
        "file:///",
    ),
    *("NaN", "1e999", "<script>alert(1)</script>", "{}", "%s%n", "{0.__class__}", "2026-13-45T99:99:99"),
    *([], {}, [[]], [None], {"": ""}, [{}], {"a": {"b": [1]}}, [1, "a", None], ["x"] * 300),
)
WORDS = (
    *(
        "1",
        "-1",
        "0",
        "true",
        "[",
        "]]",
        "{a=1}",
        "[1,2",
        '"',
        "'",
        "\x00",
        "nan",
        "inf",
        "1e400",
        "9" * 5000,
    ),
    *(
        "2026-01-01",
        "[[[[1]]]]",
        "[" * 3000,
        "{}",
        "[{}]",
        "[{model='x'}]",
        "é",
        "\ud800",
        "a.b",
        "../..",
        "x" * 9000,
    ),
    *(
        "shapes:",
        "shapes:nowhere",
        "hub:",
        "hub:/",
        "s3://",
        "gs://",
        "file:///dev/null",
        "http://x",
        "~nobody/x",
        "",
    ),
    *(
        "[{model='toys:Nowhere'}]",
        "[{model='shapes-sdxl', samples=9e9}]",
        "0x_",
        "[true]",
        "\n",
        "a\nb=1",
        "# c",
    ),
)
BYTES = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\x80",
    b"\xed\xa0\x80",
    b'"',
    b"\n",
    b"\r",
    b"[",
    b"{",
    b"}",
    b",",
    b"\t",
)


@dataclass(frozen=True)
class Case:
    """A call, what was changed in what it reads, the words of which a refusal has one, and what it writes."""

    call: Callable[[], int]
    changed: str
    named: tuple[str, ...]
    output: Path | None = None
    marker: str = "dataset.json"


Rng = random.Random


def bytes_changed(rng: Rng, data: bytes) -> tuple[bytes, str]:
    """One to three changes: a byte, a span gone or doubled or of zeros, bytes put in, the end cut off."""
    told = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        if rng.random() < 0.3:  # heads and feet are where sizes stand
            at = rng.choice((rng.randrange(min(64, len(data) + 1)), max(0, len(data) - rng.randrange(1, 64))))
        size = rng.choice((1, 1, 4, 8, 64, 1000))
        kind = rng.randrange(6)
        if kind == 0:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[at + size :]
        elif kind == 2:
            data = data[:at] + data[at : at + size] * 2 + data[at + size :]
        elif kind == 3:
            data = data[:at] + rng.choice(BYTES) * rng.choice((1, 1, 3, 2000)) + data[at:]
        elif kind == 4:
            data = data[:at]
        else:
            data = data[:at] + rng.choice((b"\x00", b"\xff")) * size + data[at + size :]
        told.append(f"{('byte', 'cut out', 'doubled', 'put in', 'cut off', 'filled')[kind]} at {at}")
    return data, ", ".join(told)


def value_changed(rng: Rng, value: Any) -> tuple[Any, str]:
    """One or two places of a JSON-like value replaced, removed, or put into a list."""
    found, told = copy.deepcopy(value), []
    for _ in range(rng.choice((1, 1, 1, 2))):
        path: list[Any] = []
        inner = found
        while isinstance(inner, dict | list) and inner and (not path or rng.random() < 0.75):
            path.append(rng.choice(sorted(inner)) if isinstance(inner, dict) else rng.randrange(len(inner)))
            parent, inner = inner, inner[path[-1]]
        if not path:
            return rng.choice(VALUES), "the whole"
        place = "/".join(map(str, path))
        kind = rng.randrange(5)
        if kind == 0:
            del parent[path[-1]]
            told.append(f"/{place} gone")
        elif kind == 1:
            parent[path[-1]] = [inner, inner]
            told.append(f"/{place} twice in a list")
        else:
            new = rng.choice(VALUES)
            parent[path[-1]] = new
            told.append(f"/{place} = {new!r:.60}")
    return found, ", ".join(told)


def json_changed(rng: Rng, value: Any) -> tuple[bytes, str]:
    """A JSON text with other values, seldom with other bytes, another encoding, or brackets 5,000 deep."""
    kind = rng.random()
    if kind < 0.75:
        made, told = value_changed(rng, value)
        return json.dumps(made).encode(), told
    data = json.dumps(value).encode()
    if kind < 0.92:
        return bytes_changed(rng, data)
    if kind < 0.94:
        return data.decode().encode("utf-16"), "as UTF-16"
    if kind < 0.96:
        return b'{"a": ' * 100_000, "100,000 brackets"
    if kind < 0.98:
        return b'{"schema_version": ' + b"9" * 6000 + b"}", "a number of 6,000 digits"
    return b"", "empty"


def toml_changed(rng: Rng, tables: Mapping[str, Any], text: bytes) -> tuple[bytes, str]:
    """A TOML text with other values, other bytes, another encoding; deep; with a number of 5,000 digits."""
    kind = rng.random()
    if kind < 0.55:
        made, told = value_changed(rng, tables)
        with contextlib.suppress(TypeError, ValueError, AttributeError, UnicodeError):
            return tomli_w.dumps(made).encode(), told
    if kind < 0.85:
        return bytes_changed(rng, text)
    odd = (
        (text.decode().encode("utf-16"), "as UTF-16"),
        (b"\xef\xbb\xbf" + text, "with a byte order mark"),
        (text + b"\na = " + b"[" * 20_000, "20,000 brackets"),
        (text + b"\na = " + b"{b=" * 5000, "5,000 braces"),
        (b"seed = " + b"9" * 5000, "5,000 digits"),
        (b".".join([b"a"] * 20_000) + b" = 1", "20,000 dots"),
        (b"[" + b".".join([b"a"] * 5000) + b"]\n" + text, "a table 5,000 deep"),
        (text.replace(b"=", b"= 99999-99-99 #"), "no dates"),
        (b"", "empty"),
        (b"\x00" * 100, "zeros"),
        (b'"' + b"k" * 200_000 + b'" = 1', "a long key"),
    )
    return rng.choice(odd)


def picture_changed(rng: Rng) -> tuple[bytes, str]:
    """A picture with other bytes, or a PNG that says that it is larger than it is."""
    data = small_dataset.picture("a", 0)
    if rng.random() < 0.4:
        size = rng.choice(((40_000, 40_000), (2**31 - 1, 2**31 - 1), (0, 0), (1, 2**30), (5, 2)))
        head = b"IHDR" + struct.pack(">II", *size) + data[24:29]
        return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:], f"a picture of {size}"
    if rng.random() < 0.1:
        odd = (
            b"",
            b"<svg/>",
            b"GIF89a",
            b"II*\x00\x08\x00\x00\x00",
            b"\xff\xd8\xff",
            b"RIFF\x00\x00\x00\x00WEBPVP8 ",
        )
        return rng.choice(odd), "no picture"
    made, told = bytes_changed(rng, data)
    return made, f"picture: {told}"


def called(work: Callable[[], Any]) -> int:
    """The exit code of `work()`, as a verb's."""

    def answer(_: Sequence[str]) -> Answer:
        work()
        return Answer()

    return verbs.answered("rankray", [], answer)


def verb(rng: Rng, words: list[str]) -> Callable[[], int]:
    """A call of `rankray`, one time in four with `--json`, whose answer is then held against what it promises."""
    if rng.random() > 0.25:
        return lambda: verbs.main(words)

    def call() -> int:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = verbs.main([*words[:1], "--json", *words[1:]])
        found = json.loads(out.getvalue(), parse_constant=_no_json)
        assert found["exit_code"] == code, found
        assert code == 0 or isinstance(found["error"], str), found
        return code

    return call


def _no_json(word: str) -> None:
    raise AssertionError(f"--json printed {word}, which is no JSON")
