"""Every `jobs/*.py` command in the documents: the script is there and its options are options."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[tuple[str, str]]:
    """(document, options) of each `python jobs/synpic.py ...`, lines joined at their backslashes."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text().replace("\\\n", " ")
        found += [
            (document.name, match[1]) for match in re.finditer(r"python jobs/synpic\.py ([^\n`]+)", text)
        ]
    return found


@pytest.mark.parametrize(("document", "options"), commands())
def test_options_parse(document: str, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rankray.cli import parse_synpic

    monkeypatch.chdir(ROOT)
    settings = parse_synpic(shlex.split(options.replace("$BUCKET", "bucket"), comments=True))
    assert settings.output.startswith(("/", "s3://")), (
        f"{document}: a relative output is refused in a submitted job"
    )


def test_there_are_some() -> None:
    assert {document for document, _ in commands()} >= {"README.md", "cluster.md"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    lines = re.findall(r"^(?:\$ )?make ([a-z -]+?)(?=\s*(?:#|$|&&|[A-Z]+=))", document.read_text(), re.M)
    assert {target for line in lines for target in line.split()} <= targets
