"""Joining Ray, and keeping a second job off an output."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from rankray.cluster.progress import start_meter
from rankray.config import ConfigError


def connect() -> None:
    """Joins the Ray that runs (a job's, RAY_ADDRESS's, or this machine's), or starts one for this job alone."""
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS") != "local":
        try:
            ray.init(address="auto")
        except ConnectionError:
            pass
        else:
            return
    ray.init(address="local", include_dashboard=False)


def in_submitted_job() -> bool:
    """Whether this is the driver of a `ray job submit`, whose working directory is a copy that Ray deletes."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextmanager
def exclusive(kind: str, uri: str) -> Iterator[Any]:
    """The job's meter, whose name keeps a second job of this Ray off the same output.

    Raises:
        ConfigError: another job is writing there.
    """
    try:
        meter = start_meter(f"{kind} {uri}")
    except ValueError:
        raise ConfigError(f"another job is writing to {uri}; wait for it, or stop it") from None
    try:
        yield meter
    finally:
        ray.kill(meter)
