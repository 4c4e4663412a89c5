"""Jobs as users start them: a process each, with a Ray of its own, on models of a user's own."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

REPOSITORY = Path(__file__).parents[2]
JOB_TIMEOUT_S = 300


def environment() -> dict[str, str]:
    paths = [str(REPOSITORY), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    quiet = {
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "RAY_ADDRESS": "local"}


@dataclass(frozen=True)
class Ended:
    """A finished job: exit code and what it printed."""

    code: int
    text: str


def command(output: Path, *options: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / "jobs" / "synpic.py"), "--output", str(output), *options]


def run(words: list[str], place: Path) -> Ended:
    """Runs a command to its end in the directory `place`."""
    ended = subprocess.run(
        words,
        env=environment(),
        cwd=place,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=JOB_TIMEOUT_S,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Ended]:
    """`job(output, *options)` runs the job script to its end."""
    return lambda output, *options: run(command(output, *options), tmp_path)


def rows(output: Path) -> dict[str, Any]:
    """prompt_id -> the whole row, of a dataset; fails on a repeated id."""
    found: dict[str, Any] = {}
    for file in sorted((output / "data").glob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            assert row["prompt_id"] not in found, f"{row['prompt_id']} stands twice"
            found[row["prompt_id"]] = _comparable(row)
    return found


def _comparable(value: Any) -> Any:
    """NaN as a word, so that equal rows compare equal."""
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    return value
