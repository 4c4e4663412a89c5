"""What a finished dataset says of its models' speed and memory, to stand where a plan would assume.

An actor's busy seconds are those inside its model's calls. On a shared GPU they are taken for its share of the GPU, as
the plan takes them: what two models on one GPU cost each other is in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rankray import store
from rankray.config import ConfigError, SynPicConfig, differing_keys
from rankray.hardware import CONTEXT_GB, GpuType, by_device

ASIDE = frozenset({"model", "name", "samples", "source", "revision"})
"""Settings that do not change how long an item takes."""


@dataclass(frozen=True)
class Measured:
    """What a finished job measured of one model: `seconds` an item, of a whole GPU or else of an actor's CPUs."""

    seconds: float
    gpu: GpuType | None = None
    memory_gb: float | None = None


def read_measured(path: str, config: SynPicConfig) -> tuple[dict[str, Measured], list[str]]:
    """(by label what the dataset at `path` measured of the models of `config`, a line for each that is of no use).

    Raises:
        ConfigError: there is no finished dataset, or it holds nothing of any of the models.
    """
    try:
        info = store.read(path).info
    except store.DatasetError as error:
        raise ConfigError(f"nothing measured: {error}") from None
    rows = {row["model"]: row for row in info["cost"]["models"]}
    found, lines = {}, []
    for kind, choices in (("generators", config.generators), ("rewards", config.rewards)):
        for choice in choices:
            row = rows.get(choice.label)
            if row is None or row["items"] <= row["failures"]:
                continue
            ours, theirs = (
                _settings(identity, kind, choice.label) for identity in (config.identity(), info["identity"])
            )
            differing = differing_keys(theirs, ours)
            if differing:
                lines.append(f"'{choice.label}' was measured with other settings: {', '.join(differing)}")
                continue
            measured = _of(row)
            if measured is None:
                gpu = row.get("gpu") or "an unnamed GPU"
                lines.append(f"'{choice.label}' was measured on {gpu}, which is no GPU type known here")
            else:
                found[choice.label] = measured
    if not found:
        raise ConfigError("; ".join([f"{path} measured none of these models", *lines]))
    return found, lines


def _of(row: Mapping[str, Any]) -> Measured | None:
    """None where the work was on a GPU of no known type."""
    seconds = row["busy_s"] / row["items"]
    if not row["gpu_hours"]:
        return Measured(seconds)
    gpu = by_device(row["gpu"], row["gpu_gb"]) if row.get("gpu") else None
    if gpu is None:
        return None
    share = min(1.0, row["gpu_hours"] * 3600 / row["alive_s"])
    memory_gb = row["peak_gpu_gb"] + CONTEXT_GB if row.get("peak_gpu_gb") else None
    return Measured(seconds * share, gpu, memory_gb)


def _settings(identity: Mapping[str, Any], kind: str, label: str) -> dict[str, Any]:
    """Of the model called `label`, those that change how long an item takes."""
    for number in sorted({key.split(".")[1] for key in identity if key.startswith(f"{kind}.")}):
        prefix = f"{kind}.{number}."
        own = {key.removeprefix(prefix): value for key, value in identity.items() if key.startswith(prefix)}
        if (own["name"] or own["model"]) == label:
            return {key: value for key, value in own.items() if key.split(".")[0] not in ASIDE}
    return {}
