"""Overlay environments: a reward's packages where they cannot live with the others, over the environment of the job.

An overlay is a virtual environment without pip whose own packages come first and the job's environment's after them, so
that it costs what differs: 13 to 150 MB instead of the 5.5 GB that a copy with torch would be. Ray starts a pool's
actors with its interpreter (`runtime_env = {"py_executable": ...}`), and two versions of transformers serve one job.

Pins stand in a file beside this one, with a hash for each file that may be installed. What is built is found again by
these pins and by the environment beneath; another of either is another directory, so neither an upgrade nor a second
installation of rankray changes an environment that a job is using.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

from filelock import FileLock

from rankray.config import ConfigError, nearest
from rankray.models.caches import cache, writing
from rankray.words import Say

HOME = "RANKRAY_ENVS"
"""Environment variable: where overlays are kept; `~/.cache/rankray/envs` unless it is set."""

_REQUIREMENTS = "requirements.txt"
_RAISED = re.compile(r"\s*(\w+\.)*\w+(Error|Exception): ")
_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s\\;]+)", re.MULTILINE)

MARKER = "rankray-environment.json"
"""Written last: an overlay with it is whole."""


@dataclass(frozen=True)
class EnvironmentSpec:
    """One overlay.

    Attributes:
        requirements: lines of a pip requirements file, each pinned and with its hashes; nothing else is installed.
        imports: modules that must import there, or it is not kept.
    """

    requirements: str
    imports: tuple[str, ...] = ()


def _shipped(name: str, *imports: str) -> EnvironmentSpec:
    text = resources.files("rankray.models.environments").joinpath(f"{name}.txt").read_text("utf-8")
    return EnvironmentSpec(text, imports)


ENVIRONMENTS: Mapping[str, EnvironmentSpec] = {
    "hpsv2": _shipped("hpsv2", "hpsv2.src.open_clip"),
    "imagereward": _shipped("imagereward", "timm", "fairscale", "transformers.models.bert"),
    "vqascore": _shipped("vqascore", "transformers.models.t5"),
}


@dataclass(frozen=True)
class Status:
    """What is there of an environment: `fault` says what is wrong with it, None where it can be used."""

    name: str
    place: Path
    fault: str | None

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.place / "bin" / "python")


def spec_of(name: str) -> EnvironmentSpec:
    """The row of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ENVIRONMENTS:
        raise ConfigError(
            f"unknown environment '{name}'{nearest(name, ENVIRONMENTS)}; known: {', '.join(ENVIRONMENTS)}"
        )
    return ENVIRONMENTS[name]


def place_of(name: str, spec: EnvironmentSpec) -> Path:
    """Where the overlay is, or would be: by its pins, the environment that runs this, and Python's version."""
    digest = hashlib.sha256(f"{sys.prefix}\0{spec.requirements}".encode()).hexdigest()[:10]
    return cache(HOME, "envs") / f"{name}-{digest}-py{sys.version_info.major}{sys.version_info.minor}"


def check(name: str, spec: EnvironmentSpec) -> Status:
    """What is there of it on this machine, under the environment that runs this."""
    place = place_of(name, spec)
    marker = place / MARKER
    try:
        if not marker.exists():
            return Status(name, place, "not built")
        base = json.loads(marker.read_text("utf-8"))["base"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        return Status(name, place, f"{MARKER} cannot be read ({error}); build it again")
    if base != sys.prefix:
        return Status(name, place, f"built over {base}, this is {sys.prefix}")
    wrong = _wrong_versions(place, spec.requirements)
    return Status(name, place, f"changed since it was built: {wrong}" if wrong else None)


def require_pins() -> None:
    """For a process that runs in an overlay: its packages are those that were pinned. Elsewhere it asks nothing.

    Raises:
        ConfigError: another version is there, or none.
    """
    place = Path(sys.prefix)
    if not (place / MARKER).exists():
        return
    wrong = _wrong_versions(place, (place / _REQUIREMENTS).read_text("utf-8"))
    if wrong:
        name = json.loads((place / MARKER).read_text("utf-8"))["name"]
        raise ConfigError(
            f"environment '{name}' at {place} was changed since it was built: {wrong}; `rankray envs build {name}` "
            "makes it anew"
        )


def _wrong_versions(place: Path, requirements: str) -> str:
    """`"transformers 5.1.0, pinned is 4.57.6"`, the first of an overlay's packages that is not as pinned, or `""`."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    here = metadata.distributions(path=[str(place / "lib" / version / "site-packages")])
    installed = {_canonical(one.metadata["Name"]): one.version for one in here}
    for name, pinned in _PIN.findall(requirements):
        there = installed.get(_canonical(name), "missing")
        if there != pinned:
            return f"{name} {there}, pinned is {pinned}"
    return ""


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def build(name: str, spec: EnvironmentSpec, say: Say = print) -> Status:
    """Builds the overlay unless it is there; a second builder waits for the first, and one that is killed leaves none.

    Raises:
        ConfigError: it cannot be installed, or does not import (pip's or Python's last line).
    """
    place = place_of(name, spec)
    with writing(HOME):
        place.parent.mkdir(parents=True, exist_ok=True)
    with writing(HOME), FileLock(f"{place}.lock"):
        status = check(name, spec)
        if status.fault is None:
            return status
        say(f"environment '{name}': {status.fault}; building {place}")
        passing = place.with_name(f"{place.name}.building")
        shutil.rmtree(passing, ignore_errors=True)
        _install(name, spec, passing)
        marker = {"name": name, "base": sys.prefix, "python": sys.version.split()[0]}
        (passing / MARKER).write_text(json.dumps(marker, indent=1) + "\n", "utf-8")
        shutil.rmtree(place, ignore_errors=True)
        passing.rename(place)
    return check(name, spec)


def _install(name: str, spec: EnvironmentSpec, place: Path) -> None:
    _run(name, sys.executable, "-m", "venv", "--without-pip", str(place))
    python = str(place / "bin" / "python")
    requirements = place / _REQUIREMENTS
    requirements.write_text(spec.requirements, "utf-8")
    options = (
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--ignore-installed",  # in the base: the overlay has its own, whatever becomes of that one
        "--require-hashes",
        "-r",
        str(requirements),
    )
    _run(name, sys.executable, "-m", "pip", "--python", python, "install", *options)
    # Only now: what builds a package from source must not see another version of its tools beneath.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # `addsitedir` and not a bare path: it reads the .pth files there, by which editable packages are found.
    bases = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    text = "".join(f"import site; site.addsitedir({base!r})\n" for base in bases)
    (place / "lib" / version / "site-packages" / "base.pth").write_text(text, "utf-8")
    if spec.imports:
        _run(name, python, "-c", f"import {', '.join(spec.imports)}")


def _run(name: str, *command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        lines = (ended.stderr or ended.stdout).strip().splitlines() or [f"exit code {ended.returncode}"]
        # pip's own words, or the exception of a package's build, after which pip says only where to look
        told = [line for line in lines if line.startswith("ERROR: ")]
        told = told or [line.strip() for line in lines if _RAISED.match(line)][-1:] or lines[-1:]
        raise ConfigError(f"environment '{name}' cannot be built: {' '.join(command[1:4])}: {told[0]}")
