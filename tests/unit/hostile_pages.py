"""The reports of every kind of work, with script in every text that they show."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzz
import small_dataset

from rankray import commands

RAN = "document.title='ran'"
TEXT = (
    f"</script></style></title><script>{RAN}</script><img src=x onerror={RAN}><svg onload={RAN}>"
    f"<a href=javascript:{RAN}>x</a> \" autofocus onfocus={RAN} onmouseover={RAN} ' onmouseover={RAN} {{{{7*7}}}} <!--"
)


def texts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the texts of a JSON-like value stand."""
    if isinstance(value, str):
        yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from texts(item, (*path, key))


def replaced(value: Any, places: list[tuple[Any, ...]]) -> Any:
    """A copy with `TEXT` at these places."""
    found = json.loads(json.dumps(value))
    for *parents, last in places:
        inner = found
        for key in parents:
            inner = inner[key]
        inner[last] = TEXT
    return found


def write(place: Path) -> dict[str, Path]:
    """The pages, by the file that they are made of. Texts that a page cannot do without, such as times, stay."""
    infos = {file: fuzz._golden(name, file) for file, name in fuzz.PAGES.items()}
    rounds = range(1, len(infos["align.json"]["rounds"]) + 1)
    measured = [
        place / "align.json" / "evaluation" / name for name in ("before", *map("round-{}".format, rounds))
    ]
    for shift, dataset in enumerate([place / "dataset.json", *measured]):
        known = [[score + shift for score in scores] for scores in small_dataset.SCORES["a"]]
        small_dataset.write(dataset, {"0": [TEXT, "b"], "1": ["c"]}, {**small_dataset.SCORES, TEXT: known})
    infos["dataset.json"] = json.loads((place / "dataset.json" / "dataset.json").read_text())
    for file, info in infos.items():
        output = place / file
        output.mkdir(exist_ok=True)
        kept: list[tuple[Any, ...]] = []

        def add(group: list[tuple[Any, ...]], file: str = file, info: Any = info, kept: Any = kept) -> None:
            try:
                commands.REPORTS[file][1](str(place / file), replaced(info, [*kept, *group]))
                kept += group
            except (ValueError, LookupError, TypeError, AttributeError):
                if len(group) > 1:
                    add(group[: len(group) // 2])
                    add(group[len(group) // 2 :])

        add(list(texts(info)))
        with contextlib.suppress(FileNotFoundError):
            (output / "README.md").unlink()  # a card is no page
        commands.REPORTS[file][1](str(output), replaced(info, kept))
    return {file: place / file / "report.html" for file in infos}
