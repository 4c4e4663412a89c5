"""Dependencies are what the code imports: nothing undeclared, nothing idle, and each explained in one line."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMPORT_NAMES = {"pillow": "PIL"}
OPTIONAL = {
    "datasets",
    "sentencepiece",  # within the environment of vqascore
    "wandb",
}  # asked for by name in the message of whoever reads from the hub
BEHIND_OTHERS = {"torchvision"}  # imported by transformers' image processors and the rewards' packages


def declared(section: str) -> set[str]:
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(rf"^{section} = \[\n(.*?)^\]", text, re.M | re.S)
    assert block is not None
    return {
        re.split(r"[\[<>=; ]", line.strip().strip('",'))[0] for line in block[1].splitlines() if line.strip()
    }


def imported() -> set[str]:
    roots: set[str] = set()
    for path in (ROOT / "rankray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                roots.add((node.module or "").split(".")[0])
    return roots - set(sys.stdlib_module_names) - {"rankray", "tomllib"}


def test_declared_is_imported_and_imported_is_declared() -> None:
    runtime = {IMPORT_NAMES.get(name, name) for name in declared("dependencies")}
    assert imported() - OPTIONAL - runtime == set()
    assert runtime - imported() == BEHIND_OTHERS


def test_each_dependency_is_explained() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text()
    unexplained = {
        n for n in declared("dependencies") | declared("dev") if not re.search(rf"`{n}[`\[]", text)
    }
    assert unexplained == set()
