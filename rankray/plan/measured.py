"""What a finished dataset, or a benchmark, says of models' speed and memory, to stand where a plan would assume."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankray import store
from rankray.config import ConfigError, ModelChoice, SynPicConfig, differing_keys, parse_toml
from rankray.data.place import as_written, settings_of
from rankray.models.hardware import CONTEXT_GB, by_device
from rankray.synpic.forecast import Measured

ASIDE = frozenset({"model", "name", "samples", "source", "revision"})
"""Settings that do not change how long an item takes."""

Finding = tuple[str, list[str], Measured | None, str]
"""Of a model: label, settings that differed, what was measured (None on a GPU that nobody knows), and on what."""


def read_measured(path: str, config: SynPicConfig) -> tuple[dict[str, Measured], list[str]]:
    """(by label what was measured of the models of `config`, a line for each measurement that is of no use).

    Args:
        path: a finished dataset, or the JSON file that `benchmarks/full_size.py` writes.
        config: the job's.

    Raises:
        ConfigError: there is neither, or it holds nothing of any of the models.
    """
    found, lines = {}, []
    with as_written(path):
        findings = list((_benchmark if path.endswith(".json") else _dataset)(path, config))
    for label, differing, measured, device in findings:
        if differing:
            lines.append(f"'{label}' was measured with other settings: {', '.join(differing)}")
        elif measured is None:
            lines.append(f"'{label}' was measured on {device}, which is no GPU type known here")
        else:
            found[label] = measured
    if not found:
        raise ConfigError("; ".join([f"{path} measured none of these models", *lines]))
    return found, lines


def _benchmark(path: str, config: SynPicConfig) -> Iterator[Finding]:
    try:
        parts = json.loads(Path(path).expanduser().read_text("utf-8"))["parts"]
        rows = [row for row in parts.values() if "images_per_s" in row]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no result of benchmarks/full_size.py ({type(error).__name__}); name a dataset, or such a file"
        ) from None
    for choice in (*config.generators, *config.rewards):
        own = [
            (_other_settings(choice, row), choice.batch_size != row["batch_size"], n)
            for n, row in enumerate(rows)
            if row["model"] == choice.model
        ]
        if not own:
            continue
        differing, _, n = min(own, key=lambda found: (len(found[0]), *found[1:]))
        row, measured = rows[n], None
        if gpu := by_device(row["gpu"]) if row["gpu"] else None:
            alike = choice.batch_size in (None, row["batch_size"]) and row["peak_memory_gb"]
            memory_gb = row["peak_memory_gb"] + CONTEXT_GB if alike else None
            measured = Measured(1 / row["images_per_s"], gpu, memory_gb)
        yield choice.label, differing, measured, row["gpu"] or "a CPU"


def _other_settings(choice: ModelChoice, row: Mapping[str, Any]) -> list[str]:
    """What the choice sets otherwise than it was measured; the benchmark takes the row's settings, at full size, and
    says which options of a generator it switched on beside them."""
    pixels = row["pixels"] if row["kind"] == "generator" else None
    theirs = {**{key: row[key] for key in ("size", "steps", "dtype")}, "height": pixels, "width": pixels}
    ours = {key: getattr(choice, key, None) for key in theirs} | {"size": "full"}
    set_ = {key: value for key, value in ours.items() if value is not None}
    theirs = {key: theirs[key] for key in set_}
    if row["kind"] == "generator":
        set_, theirs = {**set_, **choice.options}, {**theirs, **row["options"]}
    return differing_keys(theirs, set_)


def _dataset(path: str, config: SynPicConfig) -> Iterator[Finding]:
    try:
        dataset = store.read(path)
    except store.DatasetError as error:
        raise ConfigError(f"nothing measured: {error}") from None
    info, batches = dataset.info, _batch_sizes(dataset)
    rows = {row["model"]: row for row in info["cost"]["models"]}
    for kind, choices in (("generators", config.generators), ("rewards", config.rewards)):
        for choice in choices:
            label = choice.label
            row = rows.get(label)
            if row is not None and row["items"] > row["failures"]:
                sides = [settings_of(every, kind, label) for every in (info["identity"], config.identity())]
                theirs, ours = (
                    {key: side[key] for key in side if key.split(".")[0] not in ASIDE} for side in sides
                )
                measured = _of(row)
                if measured is not None and batches.get(label, "unknown") != choice.batch_size:
                    measured = replace(measured, memory_gb=None)
                yield label, differing_keys(theirs, ours), measured, row.get("gpu") or "an unnamed GPU"


def _batch_sizes(dataset: store.RankedDataset) -> dict[str, int | None]:
    """By label the `batch_size` that a dataset's models were set to, None where it was their own; without those of
    which fewer at once had to do. Its identity does not have it, as no row depends on it; its memory does."""
    place = f"{store.filesystem(dataset.path)[1]}/config.toml"
    written = parse_toml((store.read_text(place, dataset.fs) or "").encode(), place)
    choices = [*written.get("generators", ()), *written.get("rewards", ())]
    found = {choice.get("name") or choice["model"]: choice.get("batch_size") for choice in choices}
    fewer = dataset.info.get("smaller_batches", {})
    return {label: batch for label, batch in found.items() if label not in fewer}


def _of(row: Mapping[str, Any]) -> Measured | None:
    """None where the work was on a GPU of no known type."""
    seconds = row["busy_s"] / row["items"]
    if not row["gpu_hours"]:
        # An actor computes on as many threads as it has whole cores, and all of them are paid for.
        return Measured(seconds * max(1.0, row["cpu_hours"] * 3600 / row["alive_s"]))
    gpu = by_device(row["gpu"], row["gpu_gb"]) if row.get("gpu") else None
    if gpu is None:
        return None
    share = min(1.0, row["gpu_hours"] * 3600 / row["alive_s"])
    memory_gb = row["peak_gpu_gb"] + CONTEXT_GB if row.get("peak_gpu_gb") else None
    return Measured(seconds * share, gpu, memory_gb)
