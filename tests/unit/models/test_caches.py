"""Without a home, or with one that cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rankray.config import ConfigError
from rankray.models import caches, environments, weights
from rankray.models.loading import one_line

ROOT = Path(__file__).parents[3]


def test_a_variable_names_the_place_and_else_it_is_below_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/some")
    monkeypatch.delenv("RANKRAY_WEIGHTS", raising=False)
    assert weights.copies_dir() == Path("/some/.cache/rankray/weights")
    monkeypatch.setenv("RANKRAY_WEIGHTS", "~/mine")
    assert weights.copies_dir() == Path("/some/mine")


@pytest.mark.parametrize(
    ("variable", "use"),
    [
        ("RANKRAY_ENVS", lambda: environments.build("hpsv2", environments.ENVIRONMENTS["hpsv2"])),
        ("RANKRAY_WEIGHTS", lambda: weights.copy_here("file:///weights#sha256:0")),
    ],
)
def test_a_home_that_takes_nothing_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, use: Callable[[], object]
) -> None:
    monkeypatch.setenv("HOME", "/proc/nobody")
    monkeypatch.delenv(variable, raising=False)
    # /proc takes no directories whoever asks, root included; it says that there is none of that name
    monkeypatch.setattr(caches, "_CLOSED", (*caches._CLOSED, errno.ENOENT))
    with pytest.raises(
        ConfigError, match=rf"/proc/nobody.* cannot be written .*; set {variable} to a directory"
    ):
        use()


def test_other_faults_pass() -> None:
    with pytest.raises(FileNotFoundError), caches.writing("X"):
        raise FileNotFoundError(errno.ENOENT, "no such file", "/x")


def test_a_hub_cache_that_cannot_be_written_names_its_variable() -> None:
    from huggingface_hub import constants

    place = f"{constants.HF_HUB_CACHE}/models--a--b"
    with (
        pytest.raises(ConfigError, match=r"models--a--b cannot be written .Permission denied.; set HF_HOME "),
        one_line("a/b"),
    ):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="becomes another user")
@pytest.mark.parametrize("home", [None, "/", "/nonexistent"])
def test_an_unknown_user_asks_for_environments(home: str | None) -> None:
    """As in a container: no entry in /etc/passwd, HOME unset or of no use. It may read what only root may."""
    user = ["setpriv", "--reuid", "4242", "--regid", "4242", "--clear-groups"]
    user += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    named = {} if home is None else {"HOME": home}
    settings = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **named}
    command = [*user, sys.executable, "-m", "rankray.commands", "envs"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *words], env=settings, capture_output=True, text=True, check=False)

    if run("--help").stderr.startswith("setpriv"):
        pytest.skip("this machine gives no such capability away")
    found = run("check")
    assert (found.returncode, found.stderr) == (1, "")
    assert found.stdout.count("not built") == 3
    found = run("build", "hpsv2")
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert found.stderr.endswith("; set RANKRAY_ENVS to a directory that can be, and has room\n")
