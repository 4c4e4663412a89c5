"""What a running job leaves in OUTPUT/_work for others to read: what its actors used, and how far it is.

Files are written whole every few seconds, from the driver, so that another terminal or machine can look without asking
Ray; a job that is killed leaves its last ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from rankray import store
from rankray.data.cost import ActorUsage
from rankray.data.place import Output, as_written

PROGRESS = "progress.json"


def keep_usage(output: Output, run_id: str, usage: Iterable[ActorUsage]) -> None:
    """Writes this run's usage, so that the bill of a job that is killed is not lost."""
    if not output.exists("_work"):
        return  # another process took the output over, and ended
    found = {"usage": [asdict(item) for item in usage]}
    store.write_json(output.at(f"_work/usage-{run_id}.json"), found, output.fs)


def kept_usage(output: Output, run_id: str) -> list[ActorUsage]:
    """What `keep_usage` wrote last of this run; nothing where it has not yet."""
    path = output.at(f"_work/usage-{run_id}.json")
    return _usage_of(output, path) if output.exists("_work", f"usage-{run_id}.json") else []


def _left(output: Output, path: str) -> dict[str, Any] | None:
    """What a job left at `path`; None of a file that a power cut left empty or cut short, which is no reason not to go
    on: what that run cost until then is in no bill.
    """
    try:
        return store.read_json(path, output.fs)
    except store.DatasetError:
        return None


def _usage_of(output: Output, path: str) -> list[ActorUsage]:
    found = _left(output, path)
    if found is None:
        return []
    with as_written(path):
        return TypeAdapter(list[ActorUsage]).validate_python(found["usage"])


def all_usage(output: Output) -> tuple[list[ActorUsage], int]:
    """The usage of every run on this output, and how many runs there were."""
    files = [path for path in output.files("_work") if "/usage-" in path and path.endswith(".json")]
    return [usage for path in files for usage in _usage_of(output, path)], len(files)


def keep_progress(output: Output, models: Sequence[Mapping[str, Any]]) -> None:
    """Writes how far each model is: kind, model, done, total, failures, rate_per_s; of this run, in its phase."""
    if not output.exists("_work"):
        return
    store.write_json(output.at("_work", PROGRESS), {"at": time.time(), "models": list(models)}, output.fs)


def progress(output: Output) -> dict[str, Any] | None:
    """What `keep_progress` wrote last: `at` (seconds since 1970) and `models`; None where there is nothing."""
    return _left(output, output.at("_work", PROGRESS)) if output.exists("_work", PROGRESS) else None
