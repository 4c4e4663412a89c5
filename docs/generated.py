"""What the site's pages take from the code as it is built: keys, commands, the dataset's columns, notebooks.

A page holds `<!-- generated: NAME -->`, or `<!-- generated: notebook FILE -->`, and the text stands there in the built
site. Nothing generated is kept in the repository, so it cannot be of another day than the code; the price is that
whoever reads the pages as files reads `--help` in its place.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from rankray import cli, schema
from rankray.config import MAX_CANDIDATES, options
from rankray.verbs import VERBS

DOCS = Path(__file__).parent
MARK = re.compile(r"<!-- generated: (\w+)(?: (\S+))? -->")
OUTSIDE = re.compile(r"\]\((\.\./[\w/.-]+\.md)(?:#[\w-]*)?\)")
"""A link to a Markdown file that is no page of the site: it is offered as a file."""


def filled(text: str) -> str:
    """A page with each mark in it replaced by what it names.

    Raises:
        KeyError: a mark that nothing is known of.
    """
    written = MARK.sub(lambda mark: WRITERS[mark[1]](*filter(None, [mark[2]])), text)
    return OUTSIDE.sub(r"](path:\1)", written)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; bars and line ends within a cell are escaped."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    cells = ([re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def anchor(model: type[BaseModel]) -> str:
    """Where a model's table stands on the page."""
    return f"table-{model.__name__.lower()}"


def listed() -> list[type[BaseModel]]:
    """Models that stand in lists or by name, which are one key each to an option: they are described by themselves."""
    found: dict[type[BaseModel], None] = {}

    def visit(annotation: Any, plain: bool) -> None:
        model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        if model and (plain or annotation not in found):
            if not plain:
                found[annotation] = None
            for field in annotation.model_fields.values():
                visit(field.annotation, plain=isinstance(field.annotation, type))
        for part in typing.get_args(annotation):
            visit(part, plain=False)

    for job in cli.JOBS.values():
        visit(job.model, plain=True)
    return sorted(found, key=lambda model: model.__name__)


def keys(model: type[BaseModel]) -> str:
    """The table of a model's keys, as `--help-all` has them."""
    return table(
        ("key", "value", "default", "", "what it is"),
        (
            [
                f"`{option.key}`",
                f"`{option.value}`",
                "required" if option.default is None else f"`{option.default}`" if option.default else "",
                ", ".join(filter(None, [option.allowed, option.unit])),
                option.description,
            ]
            for option in options(model)
        ),
    )


def configuration() -> str:
    """Every key of every job, then the tables that stand in lists."""
    parts = []
    for name, job in cli.JOBS.items():
        first = (job.model.__doc__ or "").strip().partition("\n\n")[0]
        same = "The keys of [`synpic`](#synpic); `reuse` is needed.\n"
        parts.append(f"## {name}\n\n{first}\n\n{same if name == 'extend' else keys(job.model)}")
    parts.append(
        "## Lists of tables\n\nA list of tables is written `[[name]]`, once for each, or in one line: "
        f'`generators = [{{model = "sdxl"}}]`. A ranking takes at most {MAX_CANDIDATES} candidates a prompt.\n'
    )
    for model in listed():
        first = (model.__doc__ or "").strip().partition("\n\n")[0]
        parts.append(f"({anchor(model)})=\n### {model.__name__}\n\n{first}\n\n{keys(model)}")
    return "\n".join(parts)


def command_line() -> str:
    """Every verb of `rankray`, as its parser knows it."""
    parts = []
    for group in dict.fromkeys(verb.group for verb in VERBS.values()):
        parts.append(f"## {group[0].upper()}{group[1:]}\n")
        for name, verb in VERBS.items():
            if verb.group == group:
                parser = importlib.import_module(verb.module).parser(name)
                parts += [f"### {name}\n", f"{verb.summary[0].upper()}{verb.summary[1:]}.\n"]
                parts += map(_verb, _parsers(parser))
    return "\n".join(parts)


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A verb's parser, or those of its actions."""
    found = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
    if found is None:
        yield parser
    else:
        for below in dict.fromkeys(found.choices.values()):
            yield from _parsers(below)


def _verb(parser: argparse.ArgumentParser) -> str:
    actions = [a for a in parser._actions if a.help != argparse.SUPPRESS and a.dest not in ("help", "json")]
    keyed = {option.key for job in cli.JOBS.values() for option in options(job.model)}
    job = any("." in action.dest for action in actions)  # its keys stand on the configuration's own page
    prog = f"rankray {parser.prog.removeprefix('rankray ')}"
    words = [str(a.metavar or a.dest.upper()) for a in actions if not a.option_strings]
    rows = [_option(action) for action in actions if not (job and action.dest in keyed)]
    more = (
        "Every key of its [configuration](configuration.md) is an option too: `--KEY VALUE`.\n" if job else ""
    )
    epilog = (parser.epilog or "").partition("exit codes:\n  0 ")[0].strip()
    return "\n".join(
        [
            f"```text\n{' '.join([prog, *words, '[OPTIONS]'])}\n```\n",
            table(("", "default", ""), rows) if rows else "",
            more,
            f"```text\n{epilog}\n```\n" if epilog else "",
        ]
    )


def _option(action: argparse.Action) -> list[str]:
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest.upper())
    default = "" if action.default in (None, False, "", [], argparse.SUPPRESS) else f"`{action.default}`"
    choices = "" if action.choices is None else f" ({', '.join(map(str, action.choices))})"
    return [f"`{name}`", default, (action.help or "").replace("%%", "%") + choices]


def columns() -> list[list[str]]:
    """(column, Arrow type) of the ranked dataset, nested ones by path; a list's elements are `[]`."""
    found: list[list[str]] = []

    def visit(path: str, kind: pa.DataType) -> None:
        if pa.types.is_list(kind):
            found.append([path, "list"])
            visit(f"{path}[]", kind.value_type)
        elif pa.types.is_struct(kind):
            if not path.endswith("[]"):
                found.append([path, "struct"])
            for field in kind:
                visit(f"{path}.{field.name}", field.type)
        elif path.endswith("[]"):
            found[-1][1] = f"list of {kind}"
        else:
            found.append([path, str(kind)])

    for field in schema.ranked_schema({}, {}):
        visit(field.name, field.type)
    for row in found:
        if row[1] == "list":
            row[1] = "list of struct"
    return found


def notebook(name: str) -> str:
    """A notebook's cells as a page: its prose, and its code as fences."""
    cells = json.loads((DOCS / name).read_text())["cells"]
    texts = ("".join(cell["source"]) for cell in cells)
    parts = (
        text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for cell, text in zip(cells, texts, strict=True)
    )
    return "\n\n".join(parts)


def other_pages() -> str:
    """The pages that no table of contents names: a page that is added stands in the site by itself."""
    named = {
        line.strip()
        for block in re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), re.S)
        for line in block.splitlines()
    }
    rest = sorted(page.stem for page in DOCS.glob("*.md") if page.stem not in {*named, "index"})
    return "\n".join(["```{toctree}", ":caption: More", ":hidden:", "", *rest, "```"]) if rest else ""


WRITERS: dict[str, Callable[..., str]] = {
    "configuration": configuration,
    "commands": command_line,
    "notebook": notebook,
    "pages": other_pages,
}
