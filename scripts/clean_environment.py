"""A virtual environment that holds what rankray declares and nothing else, without a download: for `.ci/wheel-check`.

    python scripts/clean_environment.py DIRECTORY

Whatever pyproject.toml's `dependencies` need, and what that needs, is linked from the environment that runs this. What
else lies there (the development tools, a library that somebody installed by hand) is not to be found in DIRECTORY, so a
dependency that nobody declared fails there as it would at a user's. It takes seconds; a copy would take 5.5 GB.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from rankray import config

ROOT = Path(__file__).resolve().parents[1]


def declared() -> list[str]:
    """The requirements of a user's install, as pyproject.toml has them."""
    found: list[str] = config.read_toml(ROOT / "pyproject.toml")["project"]["dependencies"]
    return found


def closure(requirements: Iterable[str]) -> dict[str, metadata.Distribution]:
    """Every distribution that the requirements lead to on this machine, by its name in lower case.

    Raises:
        LookupError: one of them is not installed, or in another version.
    """
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    due = [(Requirement(text), "") for text in requirements]
    while due:
        wanted, extra = due.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = wanted.name.lower().replace("_", "-")
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise LookupError(f"{wanted} is needed and not installed") from None
        if not wanted.specifier.contains(distribution.version, prereleases=True):
            raise LookupError(f"{wanted} is needed, and {distribution.version} is installed")
        found[name] = distribution
        for own in ("", *wanted.extras):
            if (name, own) not in seen:
                seen.add((name, own))
                due += [(Requirement(text), own) for text in distribution.requires or ()]
    return found


def make(place: Path, requirements: Iterable[str], *options: str) -> Path:
    """Makes the environment with options of `venv`; returns its interpreter."""
    # `sys._base_executable` is what this environment was made with: no environment may lie beneath.
    python = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([python, "-m", "venv", *options, str(place)], check=True)
    python = place / "bin" / "python"
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    for stale in (
        "setuptools",
        "setuptools-*",
        "pkg_resources",
        "_distutils_hack",
    ):  # before 3.12 venv brings its own
        for found in site.glob(stale):
            shutil.rmtree(found)
    for name, distribution in closure(requirements).items():
        root = Path(str(distribution.locate_file(""))).absolute()
        tops = {
            file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")
        }
        # What pip before 23.1 installs from a source lists the source's files: its record has another name there.
        tops |= {
            record.name
            for record in root.glob(f"*-{distribution.version}*.egg-info")
            if record.name.lower().replace("_", "-").startswith(f"{name}-")
        }
        for top in tops:
            if (root / top).exists() and not (site / top).exists():
                (site / top).symlink_to(root / top)
    return python


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), declared()))
