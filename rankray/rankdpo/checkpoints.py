"""Ray Train's list of a run's checkpoints, mended where a kill or a power cut left it, or one of them, half.

Ray Train writes the list in place: a kill within that leaves a part of it, which neither this start nor any later one
could read. And what it names was copied, which is before a disk has it. So before workers start, all is looked at, a
few bytes of each file; a run goes on from the last checkpoint that is whole, which costs the steps after it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.fs as pafs
import ray

from rankray import store
from rankray.config import ConfigError
from rankray.data.place import Output
from rankray.models.weights import check_safetensors
from rankray.rankdpo.train_job import SNAPSHOT
from rankray.words import Say

LAST = "latest_checkpoint_result"
"""The key of what training goes on from; of no checkpoint yet it is None."""


def mend(output: Output, averaged: bool, say: Say) -> None:
    """Makes the list name whole checkpoints alone; `averaged` ones hold an average of the weights.

    Nothing is done in an object store: objects are there whole or not at all, and the list is the last.
    """
    root = Path(output.at("checkpoints"))
    file = root / SNAPSHOT
    if not isinstance(output.fs, pafs.LocalFileSystem) or not file.exists():
        return
    names = ("weights", "ema") if averaged else ("weights",)
    there = {
        place.name: step for place in root.glob("checkpoint_*") if (step := _step(place, names)) is not None
    }
    found = _listed(file)
    if found is None:
        listed, what = list(there), "the list of checkpoints was cut off"
    elif there.keys() >= set(found):
        return
    else:
        listed, what = found, f"{[name for name in found if name not in there]} is not whole"
    kept = sorted((name for name in listed if name in there), key=lambda name: there[name])
    if kept:
        store.write_text(str(file), _list_of({name: there[name] for name in kept}), output.fs)
        say(f"{root}: {what}; training goes on from step {there[kept[-1]]:,}")
    else:
        file.unlink()
        say(f"{root}: {what}, and no other is there; training begins anew")


def _step(place: Path, names: tuple[str, ...]) -> int | None:
    """The steps before a checkpoint, None where a part of it is missing."""
    try:
        state = json.loads((place / "state.json").read_text())
        for name in (*names, *(f"optimizer.{key}" for key in state["optimizer_tensors"])):
            share = re.compile(re.escape(name) + r"(?:-\d+-of-(\d+))?\.safetensors")
            files = [file for file in place.iterdir() if share.fullmatch(file.name)]
            count = share.fullmatch(files[0].name)[1] if files else None  # type: ignore[index]
            if len(files) != int(count or 1):
                return None
            for file in files:
                check_safetensors(file)
        return int(state["run"]["step"])
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, ConfigError):
        return None


def _listed(file: Path) -> list[str] | None:
    """The names in Ray Train's list, None where it is none that Ray Train reads: cut short, or of another shape."""
    try:
        value, due = store.parse_json(file.read_bytes()), json.loads(_list_of({"": 0}))
        if any(type(value[key]) is not type(due[key]) for key in due if key != LAST):
            return None
        results, last = value["checkpoint_results"], value[LAST]
        named = [*results, *([last] if last is not None else [])]
        kinds = {(type(one["checkpoint_dir_name"]), type(one["metrics"])) for one in named}
        indices = [int(index) for index in value["checkpoint_report_indices"]]
        names = [one["checkpoint_dir_name"] for one in results]
        if not kinds <= {(str, dict)} or len(indices) != len(names):
            return None
        return names if last is None or last["checkpoint_dir_name"] in names else None
    except (LookupError, TypeError, ValueError):
        return None


def _list_of(steps: dict[str, int]) -> str:
    """What Ray Train reads, of checkpoints by name in their order."""
    results = [{"checkpoint_dir_name": name, "metrics": {"step": step}} for name, step in steps.items()]
    return store.json_text(
        {
            "ray_version": ray.__version__,
            "checkpoint_results": results,
            "checkpoint_report_indices": list(range(len(results))),
            LAST: results[-1],
            "pending_training_results": [],
            "pending_validation_specs": [],
            "current_report_index": len(results),
            "validated_checkpoint_dir_names": [],
            "timed_out_validation_checkpoint_dir_names": [],
            "failed_validation_checkpoint_dir_names": [],
        }
    )
