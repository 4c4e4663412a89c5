"""Numbers, counts and texts as people read them, in reports and on a terminal: one place for all rooms.

It stands in the lowest row, as jobs and clusters print too, and may not know the reports above them. A missing value is
a dash everywhere; a thousand has its comma; a minus sign stands where pages are read, and ASCII where a line may be
parsed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

Say = Callable[[str], None]
"""Who takes lines for whoever looks on."""

PROMPT_CHARACTERS = 240
MISSING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """`1,234`, `0.123`, or a dash for what is missing."""
    if value is None or math.isnan(value):
        return MISSING
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def compact(value: float | None, digits: int = 4) -> str:
    """That many significant digits: `0.6931`, `1.2e-5`, `123,400`; a dash for what is missing."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value and not 1e-3 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    rounded = float(f"{value:.{digits}g}") + 0.0
    return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:g}"


def figure(value: float | None, share: bool) -> str:
    """A metric's figure: of a share in per cent, `60.4`, of any other four digits; a dash for what is missing."""
    return f"{100 * value:.1f}" if share and value is not None and math.isfinite(value) else compact(value)


def percent(value: float | None) -> str:
    """`12.3 %`, or a dash."""
    return MISSING if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def signed(value: float | None, text: str) -> str:
    """`text`, which says how large a value is, with the value's sign: `+0.04`, `−3.1`; a dash for what is missing."""
    return MISSING if value is None else ("+" if value >= 0 else "−") + text


def money(value: float | None) -> str:
    """`$1,234.56`; below ten cents with two significant digits."""
    if value is None:
        return MISSING
    return f"${value:,.2f}" if value == 0 or value >= 0.1 else f"${value:.2g}"


def seconds(value: float) -> str:
    """`12.3 s`, `4.5 min`, `6.7 h`."""
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def hours(value: float) -> str:
    """Of seconds that a plan expects: `55.5 min`, `1,234.5 h`."""
    return f"{value / 3600:,.1f} h" if value >= 3600 else f"{value / 60:.1f} min"


def size(bytes_: float) -> str:
    """`12 GB`, `3.4 GB`, `56.7 MB`, of 1e9 and 1e6 bytes."""
    if bytes_ < 1e8:
        return f"{bytes_ / 1e6:.1f} MB"
    return f"{bytes_ / 1e9:,.0f} GB" if bytes_ >= 1e10 else f"{bytes_ / 1e9:.1f} GB"


def count(number_: int, noun: str) -> str:
    """`1 actor`, `2048 actors`."""
    return f"{number_} {noun}" + ("" if number_ == 1 else "s")


def short(text: str, characters: int = PROMPT_CHARACTERS) -> str:
    """The text, or its beginning and an ellipsis where it is longer."""
    return text if len(text) <= characters else text[:characters].rstrip() + "…"


def first_line(error: BaseException) -> str:
    """What an error says, without its further lines; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a Markdown table; a bar within a cell stays one."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (header, *rows)]
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return [lines[0], "|---" * len(cells[0]) + "|", *lines[1:]]


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a table on a terminal: `left` columns to the left, numbers to the right, two blanks between."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if n < left else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return ("  " + "  ".join(padded)).rstrip()

    return [line(row) for row in cells]
