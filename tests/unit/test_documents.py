"""Documents name what is there, and what they say to type works: see `documented` for who runs what."""

import glob
import importlib
import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import documented
import numpy as np
import pytest
import small_dataset
from documented import ROOT, Command, Fence
from PIL import Image

from rankray import cli, config, shapes
from rankray.verbs import submit

FOLDERS = "tests|rankray|recipes|jobs|benchmarks|scripts|docs"
MADE_BY_USERS = {"benchmarks/results/full-size.json", "rankray/evals/colour.py"}


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


TYPED = re.compile(r"(?:python jobs/|rankray )(\w+)(?:\.py)? (--[^\n`]+)")
HERE = [c for c in documented.runnable() if documented.elsewhere(c) is None and documented.job(c) is None]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What documents call `/data` and work in: finished datasets, the shipped configurations, a home of its own."""
    names = ("hpsv2.1", "pickscore", "vqascore")
    monkeypatch.setattr(small_dataset, "REWARDS", dict(zip(names, "xyz", strict=True)))
    for name in ("first", "second", "synpic", "my-dataset", "home/rankray/align-demo"):
        small_dataset.write(tmp_path / name)
    assert rankray()(["init", "shapes", str(tmp_path)]) == 0
    assert rankray()(["init", "paper", str(tmp_path / "paper")]) == 0
    (tmp_path / "empty").mkdir()
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RANKRAY_ENVS", str(tmp_path / "envs"))
    return tmp_path


def rankray() -> Callable[[list[str]], int]:
    """What the script `rankray` calls."""
    named = re.search(r'^rankray = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert named is not None
    return getattr(importlib.import_module(named[1]), named[2])


def placed(text: str, data: Path) -> str:
    """The same with `data` for `/data` and for what the demo leaves."""
    text = text.replace("demo-output/round-1/synpic", str(data / "first"))
    return re.sub(r"(?<![\w/.-])/data\b", str(data), text)


def words_of(text: str, data: Path, fresh: bool) -> list[str]:
    """A command's words, with `data` for `/data`, and patterns expanded; outputs are new ones if `fresh`."""
    words = [os.path.expanduser(word) for word in shlex.split(placed(text, data))]
    if fresh and "--output" in words:
        words[words.index("--output") + 1] += "-made"
    return [found for word in words for found in (sorted(glob.glob(word)) if "*" in word else [word])]


CODES = {"envs check": {1}, "doctor": {0, 2}}
"""Exit codes that say something of this machine; 0 is everything else's."""


@pytest.mark.parametrize("command", HERE, ids=lambda c: f"{c.where} {c.text[:60]}")
def test_a_documented_command_works(
    command: Command, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here, in this process, on a small finished dataset."""
    program, *words = words_of(command.bare, data, fresh=True)
    if "pickapic_v2" in command.text:
        way = ("convert", str(data / "first"), "--to", "pickapic", "--output", str(data / "pickapic_v2"))
        assert rankray()(list(way)) == 0
        for file in (data / "pickapic_v2" / "data").iterdir():
            file.rename(data / "pickapic_v2" / file.name)
        program, *words = words_of(command.bare, data, fresh=True)
    if program == "python" and words[0].startswith("jobs/"):
        program, words = "rankray", [Path(words[0]).stem, *words[1:]]
    assert program == "rankray", (
        f"{command.where}: no test runs `{command.text}`; see tests/unit/documented.py"
    )
    monkeypatch.chdir(data / "empty" if words[0] == "init" else data)
    code = rankray()(words)
    printed = capsys.readouterr()
    allowed = next((c for start, c in CODES.items() if " ".join(words).startswith(start)), {0})
    assert code in allowed, printed.err
    assert printed.out


def typed() -> list[tuple[str, str, str]]:
    """(document, job, options) of each job in a document, in prose too, whatever it needs."""
    return [
        (place.name, found[1], found[2])
        for place in documented.documents()
        for found in TYPED.finditer(re.sub(r"\\\n\s*", "", place.read_text()))
        if found[1] in cli.JOBS
        and found[2] != "--submit"
        and not re.search(r"larger\.toml|\.\.\.|\$THEN", found[2])
    ]


@pytest.mark.parametrize(("document", "name", "options"), typed())
def test_options_of_a_documented_job_parse(
    document: str, name: str, options: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those too that need a GPU or a cloud; a relative output is refused in a submitted job."""
    monkeypatch.chdir(data)
    monkeypatch.setenv("HF_TOKEN", "a token")
    _, words = submit.split(shlex.split(options.replace("$BUCKET", "bucket"), comments=True))
    settings = cli.JOBS[name].parse(words)
    assert settings.output.startswith(("/", "s3://", "~")), document


@pytest.mark.parametrize("document", documented.documents(), ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", documented.documents(), ids=lambda path: path.name)
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    lines = re.findall(r"^(?:\$ )?make ([a-z -]+?)(?=\s*(?:#|$|&&|[A-Z]+=))", document.read_text(), re.M)
    assert {target for line in lines for target in line.split()} <= targets


def test_a_job_is_a_verb_and_its_script_is_named_where_a_checkout_is_submitted() -> None:
    script = re.compile(r"\bjobs/\w+\.py\b")
    named = {place.name for place in documented.documents() if script.search(place.read_text())}
    assert named == {"README.md", "command-line.md"}


def test_there_are_commands_of_each_kind() -> None:
    found = documented.runnable()
    assert len(HERE) >= 8
    assert {documented.job(c) for c in found} >= {"synpic", "extend", "rankdpo", "align"}
    assert sum(bool(fence.needs) for fence in documented.fences()) >= 10
    assert {name for _, name, _ in typed()} == {*cli.JOBS} - {"extend"}


def test_needs_are_words_that_are_known_and_commands_stand_in_bash() -> None:
    typed = re.compile(
        r"^\$? ?(?:python3?|pip|ray|rankray|make|aws|gcloud|sky|sbatch|kubectl|helm) +[-\w./]+", re.M
    )
    for fence in documented.fences():
        where = f"{fence.document}:{fence.line}"
        if fence.language == "bash":
            assert fence.needs <= set(documented.NEEDS), f"{where}: {fence.words}"
        elif fence.language in ("", "sh", "shell", "console"):
            assert not typed.search(fence.text), f"{where} holds a command and is no ```bash"


def test_whoever_is_said_to_run_a_command_is_there() -> None:
    texts = [c.bare for c in documented.runnable()]
    for start, who in documented.ELSEWHERE.items():
        assert any(text.startswith(start) for text in texts), f"no document says `{start}`"
        file, _, test = who.partition("::")
        assert (ROOT / file).is_file(), who
        assert f"def {test}(" in (ROOT / file).read_text() if test else True, who


PYTHON = [
    fence
    for fence in documented.fences()
    if fence.language == "python" and fence.document not in documented.PAGES
]


@pytest.mark.parametrize("fence", PYTHON, ids=lambda fence: f"{fence.document}:{fence.line}")
def test_a_documented_snippet_runs(fence: Fence, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a document says `image` it has a picture; a class of it is asked for a picture or a score."""
    monkeypatch.chdir(data)
    monkeypatch.setattr(Image.Image, "show", lambda picture: picture.load())  # opens no window
    found: dict[str, Any] = {"image": np.zeros((64, 64, 3), np.uint8), "shapes": shapes}
    exec(compile(placed(fence.text, data), f"{fence.document}:{fence.line}", "exec"), found)
    for made in [
        value for value in found.values() if isinstance(value, type) and value.__module__ == "builtins"
    ]:
        model = made(device="cpu")
        if hasattr(model, "generate"):
            assert [p.size for p in model.generate(["a", "b"], [1, 2])] == [(64, 64)] * 2
        if hasattr(model, "score"):
            scores = model.score([Image.new("RGB", (4, 4), "red")] * 2, ["a", "b"])
            assert (scores.shape, scores.dtype) == ((2,), np.float32)


TOML = [fence for fence in documented.fences() if fence.language == "toml"]
TABLES = {
    "generators": config.GeneratorChoice,
    "rewards": config.RewardChoice,
    "evals": config.EvalChoice,
    "prices": config.PricesConfig,
    "execution": config.ExecutionConfig,
    "prompts": config.PromptsConfig,
}


@pytest.mark.parametrize("fence", TOML, ids=lambda fence: f"{fence.document}:{fence.line}")
def test_a_documented_configuration_is_one(fence: Fence) -> None:
    for name, value in config.parse_toml(fence.text.encode(), fence.document).items():
        for table in value if isinstance(value, list) else [value]:
            if name in TABLES and isinstance(table, dict) and "path" not in value:
                config.build(TABLES[name], table)


NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize(
    "place", [n for n in NOTEBOOKS if n.stem not in documented.NOTEBOOKS_ON_RAY], ids=lambda n: n.stem
)
def test_a_notebook_runs(place: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASET", str(data / "first"))
    documented.run_notebook(place, data)


def test_notebooks_are_kept_without_what_they_printed() -> None:
    assert len(NOTEBOOKS) == 3
    for place in NOTEBOOKS:
        for cell in json.loads(place.read_text())["cells"]:
            assert not any(cell.get(key) for key in ("outputs", "execution_count")), place
