"""The site is built without a warning, and what it takes from the code is what the code says."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rankray import cli, verbs
from rankray.config import options

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    specification = importlib.util.spec_from_file_location("rankray_site", ROOT / "docs" / "generated.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="the extra `docs` is not installed")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """By the command of `make docs`; every page is reached from the first, which loads nothing from elsewhere."""
    line = re.search(r"^docs: .*\n\t\$\(BIN\)/python (.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert line is not None
    words = line[1].replace("build/docs", str(tmp_path)).split()
    made = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert {page.stem for page in tmp_path.glob("*.html")} >= pages
    first = (tmp_path / "index.html").read_text()
    assert {page for page in pages if f'href="{page}.html' not in first} <= {"index"}
    assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', first) == []
    headings = re.findall(r'<[^>]+role="heading"[^>]*>', first)
    assert headings
    assert all("aria-level=" in heading for heading in headings), "a screen reader knows no level of theirs"
    assert "<td><p><code" in (tmp_path / "configuration.html").read_text()
    assert "wait_for_nodes_" in (tmp_path / "searchindex.js").read_text()


def test_every_key_of_every_job_is_told(generated: ModuleType) -> None:
    told = f"\n{generated.configuration()}"
    for name, job in cli.JOBS.items():
        part = told.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        due = [option.key for option in options(job.model)]
        assert re.findall(r"^\| `([^`]+)` \|", part, re.M) == ([] if name == "extend" else due)
    assert "| `seed_name` | `TEXT` |  |" in told, "of a table that stands in a list"
    assert "| `execution.tolerance` | `X` | `0.01` | 0 to 1 |" in told
    assert "| `execution.wait_for_nodes_s` | `X` | `0` | 0 or more, seconds |" in told


def test_no_key_lacks_a_description(generated: ModuleType) -> None:
    """In a line of its own, which `--help` and the page of the configuration have."""
    models = [*(job.model for job in cli.JOBS.values()), *generated.listed()]
    found = [(model.__name__, option) for model in models for option in options(model)]
    assert len(found) > 500
    assert [f"{name}: {option.key}" for name, option in found if not option.description] == []
    assert [f"{name}: {option.key}" for name, option in found if len(option.description) > 150] == []


def test_every_verb_is_told_and_a_job_s_keys_are_told_once(generated: ModuleType) -> None:
    told = generated.command_line()
    assert re.findall(r"^### ([\w-]+)$", told, re.M) == list(verbs.VERBS)
    assert "| `--weights` |  | as in a=2,b=0.5" in told
    assert "rankray envs build NAME [OPTIONS]" in told
    assert "`--dry-run`" in told
    assert "`--execution.mode`" not in told


def test_the_specification_is_the_schema(generated: ModuleType) -> None:
    """Column by column, with its type."""
    text = (ROOT / "docs" / "dataset.md").read_text()
    assert re.findall(r"^\| `([^`]+)` \| ([\w ]+) \|", text, re.M)[: len(generated.columns())] == [
        tuple(row) for row in generated.columns()
    ]


QUOTED = re.compile(r"^\| `([^`]+)` \|", re.M)


def test_every_message_of_troubleshooting_is_one_of_ours() -> None:
    """A quoted message is looked for between its `...`: what stands for a name or a number."""
    source = "\n".join(path.read_text() for path in (ROOT / "rankray").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # one text that stands on two lines
    quoted = QUOTED.findall((ROOT / "docs" / "troubleshooting.md").read_text())
    assert len(quoted) >= 15
    lost = [
        part for text in quoted for part in map(str.strip, text.split("...")) if part and part not in source
    ]
    assert lost == []
