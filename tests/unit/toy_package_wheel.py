"""Wheels of a package made on the spot, so that environments are built for real and without a network."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

from rankray.models.environments import EnvironmentSpec


def wheel(directory: Path, version: str, body: str = "") -> EnvironmentSpec:
    """The spec of an environment with `toy_package` of that version."""
    directory.mkdir(exist_ok=True)
    path = directory / f"toy_package-{version}-py3-none-any.whl"
    info = f"toy_package-{version}.dist-info"
    files = {
        "toy_package.py": f"VERSION = {version!r}\n{body}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: toy-package\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{name},sha256={_digest(text)},{len(text.encode())}" for name, text in files.items()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": "\n".join([*record, f"{info}/RECORD,,"])}.items():
            archive.writestr(name, text)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return EnvironmentSpec(f"toy-package @ {path.as_uri()} --hash=sha256:{digest}\n", ("toy_package",))


def source(directory: Path, version: str, building: str) -> EnvironmentSpec:
    """The same package as what pip has to build first, by a backend that runs the line `building`."""
    wheel(directory, version)
    made = directory / f"toy_package-{version}-py3-none-any.whl"
    build = f"    {building}\n    shutil.copy({str(made)!r}, place)\n    return {made.name!r}\n"
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": f"import importlib.util\nimport shutil\n\n\ndef build_wheel(place, *more):\n{build}",
    }
    path = directory / f"toy-package-{version}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"toy-package-{version}/{name}", text)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return EnvironmentSpec(f"toy-package @ {path.as_uri()} --hash=sha256:{digest}\n", ("toy_package",))


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
