"""A finished dataset that was moved, copied to a bucket and back, or belongs to another: every verb works there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import small_dataset

from rankray import store
from rankray.models.generators import GENERATORS
from rankray.rankdpo import job as rankdpo
from rankray.rankdpo.encoding import EncodeActor, EncodeJob
from rankray.report import browse
from rankray.verbs import main

ROOT = Path(__file__).parents[2]
LOCAL = pafs.LocalFileSystem()


def moved(dataset: Path, bucket: str) -> str:
    return str(dataset.rename(dataset.with_name("moved elsewhere, ü")))


def copied(dataset: Path, bucket: str) -> str:
    """Into a bucket, under a key with a space, which an URI escapes; nothing is left where it was."""
    fs, key = store.filesystem(f"s3://{bucket}")[0], f"{bucket}/{dataset.parent.name}/copied here"
    pafs.copy_files(str(dataset), key, LOCAL, fs)
    shutil.rmtree(dataset)
    return f"s3://{quote(key)}"


def copied_back(dataset: Path, bucket: str) -> str:
    fs, place = store.filesystem(copied(dataset, bucket))
    back = dataset.with_name("back")
    pafs.copy_files(place, str(back), fs, LOCAL)
    return str(back)


def verb(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What a verb says with `--json`, which has to succeed."""
    assert main([*words, "--json"]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def text_of(place: str) -> str:
    fs, path = store.filesystem(place)
    with fs.open_input_stream(path) as stream:
        return bytes(stream.read()).decode()


def encoded(path: str, into: Path) -> list[str]:
    """What training makes of the dataset: its check before anything starts, then its encoder's rows, as text because
    of NaN."""
    dataset = rankdpo._dataset(path)
    job = EncodeJob(
        GENERATORS["shapes-sdxl"], "cpu", "float32", "float32", 4, str(into), dataset=dataset.path
    )
    actor = EncodeActor(job)
    tables = [store.read_table(file, dataset.fs, images=True) for file in dataset.files]
    return [str(row) for table in tables for row in actor(table).to_pylist()]


@pytest.mark.parametrize("kept", ["inline", "files", "files, named from the root"])
@pytest.mark.parametrize("go", [moved, copied, copied_back])
def test_every_verb_works_on_a_dataset_elsewhere(
    tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str], kept: str, go: Callable[..., str]
) -> None:
    """Its pictures are those of the dataset where it was made, in every form that comes out of it."""
    dataset = tmp_path / "made here"
    small_dataset.write(dataset)
    due = encoded(str(dataset), tmp_path / "due")
    if kept != "inline":
        small_dataset.as_files(dataset, str(dataset) if "root" in kept else None)
    place = go(dataset, bucket)
    pictures = {small_dataset.picture(p, k) for p in "abc" for k in range(3)}

    counts = verb(capsys, "validate", place)
    assert (counts["rows"], counts["images"]) == (3, 8)
    verb(capsys, "report", place)
    page = text_of(f"{place}/report.html")
    assert (page.count("data:image/png"), "cannot be read" in page) == (8, False)
    verb(capsys, "export", place, "--to", "all-pairs", "--output", str(tmp_path / "pairs"))
    pairs = pq.read_table(tmp_path / "pairs" / "data").to_pylist()
    assert pairs
    assert {pair[side]["bytes"] for pair in pairs for side in ("chosen", "rejected")} <= pictures
    verb(capsys, "rerank", place, "--rewards", "s", "--output", f"{place}-again")
    assert verb(capsys, "validate", f"{place}-again")["images"] == 8
    assert encoded(place, tmp_path / "set") == due
    server, site = browse.server(place, 0, str(tmp_path / "votes.jsonl"))
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        picture = site.gallery.picture(1, 2)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/") as answer:
            assert answer.status == 200
        server.shutdown()
    assert picture == small_dataset.picture("b", 2)


def test_half_a_copy_is_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its `dataset.json` alone tells of rows; re-ranked, exported, imported they would be none, and all well."""
    small_dataset.write(tmp_path / "d")
    shutil.rmtree(tmp_path / "d" / "data")
    for words in (
        ["validate"],
        ["export", "--to", "pairs"],
        ["rerank", "--rewards", "s"],
        ["import"],
    ):
        more = ["--output", str(tmp_path / "o")] if words[0] != "validate" else []
        assert main([words[0], str(tmp_path / "d"), *words[1:], *more]) == 2
        line = capsys.readouterr().err
        assert "no file in data/, and rows are due: 3" in line
        assert line.count("\n") == 1
    assert not (tmp_path / "o" / "dataset.json").exists()


WORDS_BY_WORDS = """
import json, os, sys
import pandas, PIL.PngImagePlugin, torch, rankray.commands, rankray.losses
from rankray.verbs import main
if os.getuid() == 0:
    os.setgroups([]), os.setresgid(4242, 4242, 4242), os.setresuid(4242, 4242, 4242)
for words in json.loads(sys.argv[1]):
    sys.stderr.write("----")
    sys.stderr.write(f"{main(words)}")
"""
READS_ALL = ["setpriv", "--reuid", "4242", "--regid", "4242", "--clear-groups"]
READS_ALL += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
"""Another user who may read what root may, as this Python and rankray's own files, and write nothing of root's."""


def as_another(*commands: Sequence[str], reads_all: bool) -> list[tuple[str, int]]:
    """What each says on stderr, and its exit code, run by a user who owns nothing and has no home."""
    settings = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*(READS_ALL if reads_all else []), sys.executable, "-c", WORDS_BY_WORDS, json.dumps(commands)],
        env=settings,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.stderr.startswith("setpriv"):
        pytest.skip("this machine gives no such capability away")
    assert done.returncode == 0, done.stderr
    told = [re.fullmatch(r"(.*?)(\d+)", part, re.DOTALL) for part in done.stderr.split("----")[1:]]
    return [(found[1], int(found[2])) for found in told if found]


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that every user may enter: pytest's own are their owner's alone."""
    with tempfile.TemporaryDirectory(prefix="rankray-") as place:
        os.chmod(place, 0o755)
        yield Path(place)


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="becomes another user")
def test_another_user_reads_and_writes_elsewhere(shared: Path) -> None:
    """Reading works; what would write into the dataset, and what may not be read, is one line that names the place."""
    for name in ("inline", "files", "closed", "a file closed", "images closed"):
        small_dataset.write(shared / name)
    for name in ("files", "images closed"):
        small_dataset.as_files(shared / name)
    (shared / "closed").chmod(0o700)
    (shared / "a file closed" / "data" / "1.parquet").chmod(0)
    (shared / "images closed" / store.IMAGES).chmod(0o700)
    (shared / "mine").mkdir()
    os.chown(shared / "mine", 4242, 4242)
    before = {path: path.stat().st_mtime_ns for path in shared.rglob("*") if path.name != "mine"}

    def words(verb: str, name: str) -> list[str]:
        more = {"export": ["--to", "pairs"], "rerank": ["--rewards", "s"]}.get(verb)
        output = ["--output", str(shared / "mine" / f"{verb} {name}")] if more else []
        return [verb, str(shared / name), *(more or []), *output]

    free = [words(verb, name) for name in ("inline", "files") for verb in ("validate", "export", "rerank")]
    assert as_another(*free, reads_all=True) == [("", 0)] * len(free)
    assert store.validate(str(shared / "mine" / "rerank files")).images == 8

    refused = [words("report", "inline"), [*words("rerank", "files")[:-1], str(shared / "other")]]
    for (line, code), place in zip(as_another(*refused, reads_all=True), ("inline", "other"), strict=True):
        assert (code, line.count("\n")) == (2, 1), line
        assert "cannot be written" in line
        assert str(shared / place) in line

    verbs = ("validate", "report", "export", "rerank")
    closed = {"closed": verbs, "a file closed": verbs, "images closed": ("export", "rerank")}
    commands = [words(verb, name) for name, which in closed.items() for verb in which]
    for (line, code), command in zip(as_another(*commands, reads_all=False), commands, strict=True):
        assert (code, line.count("\n")) == (2, 1), line
        assert "Permission denied" in line
        assert command[1] in line
    found = {path: path.stat().st_mtime_ns for path in shared.rglob("*") if "mine" not in path.parts}
    assert found == before
