"""Documents name what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = "tests|rankray|recipes|jobs|benchmarks|scripts|docs"
MADE_BY_USERS = {"benchmarks/results/full-size.json"}


def test_every_path_that_a_document_names_exists() -> None:
    named = {
        (document.name, path)
        for document in [*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
        for path in re.findall(
            rf"(?<![\w/.])((?:{FOLDERS})/[\w/.-]*\w\.\w+|(?:{FOLDERS})/[\w/.-]*/)", document.read_text()
        )
    }
    assert len(named) > 30
    assert {(name, path) for name, path in named if not (ROOT / path).exists()} - {
        (name, path) for name, path in named if path in MADE_BY_USERS
    } == set()


@pytest.mark.parametrize(
    ("title", "most"), [("A prompt becomes a row", 10), ("A row becomes a better model", 12)]
)
def test_a_walk_is_read_downwards(title: str, most: int) -> None:
    """Each file of it is imported by one above it, or named by it as a target."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    walk = re.findall(r"^(rankray/\S+\.py)", text.partition(f"## {title}")[2].partition("\n## ")[0], re.M)
    assert 8 <= len(walk) <= most
    for n, path in enumerate(walk[1:], 1):
        *parents, leaf = path.removesuffix(".py").removesuffix("/__init__").split("/")
        reached = re.compile(
            rf"from {'.'.join(parents)} import [^#]*?\b{leaf}\b|{'.'.join(parents)}\.{leaf}\b"
        )
        assert any(reached.search((ROOT / above).read_text()) for above in walk[:n]), path
