"""Documents name what is there."""

import re
from pathlib import Path

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
