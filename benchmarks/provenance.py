"""What a benchmark's number needs to be believed: commit, versions, hardware. Without Ray, which not all start."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "diffusers", "transformers", "ray", "pyarrow")


def provenance() -> dict[str, Any]:
    """Commit, versions of what is installed, and the hardware: Ray's cluster where it is up in this process."""
    commit = git("rev-parse", "HEAD")
    cpu = next(
        (row.split(":")[1].strip() for row in _cpuinfo() if row.startswith("model name")),
        platform.processor(),
    )
    ray = sys.modules.get("ray")
    resources = ray.cluster_resources() if ray is not None and ray.is_initialized() else {}
    return {
        "commit": commit + ("+changes" if git("status", "--porcelain") else ""),
        "versions": {name: found for name in PACKAGES if (found := _version(name))}
        | {"python": platform.python_version()},
        "hardware": {
            "cpu": cpu,
            "cores": resources.get("CPU", os.cpu_count()),
            "gpus": resources.get("GPU", 0),
        },
    }


def git(*arguments: str) -> str:
    """What git answers in this directory, "" on a machine without it."""
    try:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
        ).stdout.strip()
    except FileNotFoundError:
        return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
