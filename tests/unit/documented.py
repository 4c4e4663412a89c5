"""The commands and the Python of README, CONTRIBUTING and docs, and which of them a test can run.

A fence's info string says what a command needs that no test has: "```bash needs=gpu,cloud". Everything else in a
fence of `bash` is run: by `tests/unit/test_documents.py`, by `tests/ray/test_documents.py` where it needs Ray, or by
what `ELSEWHERE` names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDS = {
    "gpu": "a GPU",
    "cluster": "a cluster of several machines",
    "cloud": "a cloud's account",
    "account": "an account, or files and packages that others give out",
    "hours": "no more than two cores, and hours of them",
}
SETTINGS = ("export ", "source ", "cd ", "mkdir ")
"""What only prepares the lines after it."""

ELSEWHERE = {
    "make install": ".ci/run",
    "make test": ".ci/run",
    "make check": ".ci/run",
    "make demo": "tests/ray/test_demo.py::test_a_failing_job_fails_the_demo_and_its_ray_is_gone",
    "make docs": "tests/unit/test_site.py::test_the_site_is_built_without_a_warning",
    "make hooks": ".ci/run",
    "make tiny": ".ci/wheel-check",
    "make rehearse": "tests/ray/test_rehearse.py::test_make_rehearse",
    ".ci/run": ".ci/run",
    "ray get-auth-token --generate": "tests/ray/test_demo.py::test_a_failing_job_fails_the_demo_and_its_ray_is_gone",
    "ray start --head": "tests/ray/test_demo.py::test_a_failing_job_fails_the_demo_and_its_ray_is_gone",
    "python -m recipes.random_weights": ".ci/wheel-check",
    "rankray synpic --config jobs/synpic-tiny.toml": ".ci/wheel-check",
    "rankray synpic --config paper/synpic.toml --dry-run --measured": "tests/unit/plan/test_measured.py",
    "rankray extend --config larger.toml": "tests/ray/test_extend.py::test_more_of_everything",
    "rankray align --config align.toml": "tests/ray/test_align.py::test_rounds_end_to_end",
    "rankray envs build": "tests/ray/test_environments.py",
    "rankray convert-mps": "tests/unit/models/rewards/test_mps_convert.py",
    "rankray browse": "tests/unit/report/test_browse.py",
    "rankray rerank /data/first --votes": "tests/unit/data/test_votes.py",
}
"""Beginnings of commands, and who runs them: a test, a file of tests, or what CI runs."""

PAGES = {"docs/exchange.md": "tests/unit/test_exchange_page.py"}
"""Documents whose commands need each other's outcomes, and the test that runs them in order."""


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Fence:
    """A block of code: where it stands, its language, the words after it, its text."""

    document: str
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def needs(self) -> set[str]:
        return {need for word in self.words for need in word.removeprefix("needs=").split(",")}


@dataclass(frozen=True)
class Command:
    """One command as it is typed, without its comment."""

    where: str
    text: str

    @property
    def bare(self) -> str:
        """The same without what hands it to a running Ray."""
        return re.sub(r"^ray job submit (?:(?!-- ).)*-- ", "", self.text)


def fences() -> Iterator[Fence]:
    """Every fence of every document."""
    for document in documents():
        name, text = document.relative_to(ROOT).as_posix(), document.read_text()
        for found in re.finditer(r"^( *)```(\S*)([^\n`]*)\n(.*?)^\1```$", text, re.M | re.S):
            line = text.count("\n", 0, found.start()) + 1
            yield Fence(name, line, found[2], tuple(found[3].split()), found[4])


def commands(fence: Fence) -> Iterator[Command]:
    """The commands of a fence of `bash`, lines joined at their backslashes."""
    lines = re.sub(r"\\\n\s*", "", fence.text).splitlines()
    for text in lines:
        bare = re.sub(r"(^|\s)#.*$", "", text).strip()
        for part in bare.split(" && "):
            if part and not part.startswith(SETTINGS):
                yield Command(f"{fence.document}:{fence.line}", part.removesuffix(" > /dev/null"))


def runnable() -> list[Command]:
    """Commands that a test runs, wherever."""
    return [c for fence in fences() if fence.language == "bash" and not fence.needs for c in commands(fence)]


def elsewhere(command: Command) -> str | None:
    """Who runs it, where that is not whoever asks."""
    page = command.where.partition(":")[0]
    return PAGES.get(page) or next(
        (who for start, who in ELSEWHERE.items() if command.bare.startswith(start)), None
    )


JOB = re.compile(
    r"^(?:python jobs/(?P<script>\w+)\.py|rankray (?P<verb>synpic|extend|rankdpo|align|evaluate|ablate))\b"
)


def job(command: Command) -> str | None:
    """The job that it starts, None where it starts none: a dry run starts nothing."""
    found = JOB.match(command.bare)
    return None if found is None or "--dry-run" in command.bare else found["script"] or found["verb"]


NOTEBOOKS_ON_RAY = {"own_prompts"}


def run_notebook(place: Path, directory: Path) -> None:
    """Every cell of a notebook, in a kernel of its own that works in `directory`, of this interpreter.

    Raises:
        CellExecutionError: a cell raised, with what it printed.
    """
    import nbformat
    from nbclient import NotebookClient

    NotebookClient(
        nbformat.read(place, as_version=4), timeout=300, resources={"metadata": {"path": str(directory)}}
    ).execute()
