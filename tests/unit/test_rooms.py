"""The architecture, enforced beside import-linter's contract: what is pure, who may call Ray, how large things grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rankray

PACKAGE = Path(rankray.__file__).parent
REPOSITORY = Path(__file__).parents[2]
CONVERTER = PACKAGE / "models" / "rewards" / "mps_convert.py"

PURE = ("ranking", "losses", "diffusion", "schema")  # the paper, and the dataset's columns
ALLOWED = {"numpy", "pyarrow", "rankray", "torch"}  # beside the standard library
WITHOUT_RAY = (*PURE, "store", "stats", "config", "data", "shapes", "models")
MAX_FUNCTION_LINES = 60
IMPORTED_LATE = {
    "data/convert.py": "the pairs' weights are torch's, and other verbs answer without it",
    "commands.py": "the MPS converter knows torch, and a verb answers in a second",
    "evals/shapes.py": "the checker loads where pictures are judged",
}
"""Files that import modules of ours inside functions, and why; functions of `IN_ACTORS` run in actors and workers."""
IN_ACTORS = ("rankdpo/", "ablate/trials.py")

SOURCES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """`rankray/shapes/checker.py` is of `shapes`; `rankray/__init__.py` of none."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every module imported anywhere in a file: at its top, within functions, or for its types only."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name", PURE)
def test_the_paper_is_pure(name: str) -> None:
    roots = {module.split(".")[0] for module in imports(PACKAGE / f"{name}.py")}
    assert roots - set(sys.stdlib_module_names) <= ALLOWED


@pytest.mark.parametrize("name", WITHOUT_RAY)
def test_ray_begins_with_the_cluster(name: str) -> None:
    users = {
        path for path in SOURCES if room(path) == name and "ray" in {m.split(".")[0] for m in imports(path)}
    }
    assert users == set()


def own_imports(path: Path, within_functions: bool) -> set[str]:
    """Modules of ours that a file imports at its top or, asked so, inside functions."""
    tree = ast.parse(path.read_text("utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {id(node) for function in functions for node in ast.walk(function)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (id(node) in late) == within_functions:
            module = node.module or ""
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names & MODULES.keys()


MODULES = {
    ".".join(("rankray", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in SOURCES
}


def test_no_files_import_each_other_in_a_circle() -> None:
    above = {name: own_imports(path, False) - {name} for name, path in MODULES.items()}
    while free := {name for name, imported in above.items() if not imported & above.keys()}:
        above = {name: imported for name, imported in above.items() if name not in free}
    assert above == {}


def test_what_is_imported_late_says_why() -> None:
    late = {str(path.relative_to(PACKAGE)) for path in SOURCES if own_imports(path, True)}
    assert {name for name in late if not name.startswith(IN_ACTORS)} <= IMPORTED_LATE.keys()
    assert len(IMPORTED_LATE) <= 10


def test_only_the_stream_calls_map_batches() -> None:
    def calls(path: Path) -> bool:
        nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        return any(isinstance(node, ast.Attribute) and node.attr == "map_batches" for node in nodes)

    allowed = {PACKAGE / "cluster" / "streaming.py"}
    assert {path for path in SOURCES if calls(path)} <= allowed


def test_nothing_unpickles() -> None:
    unsafe = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}

    def taken(path: Path) -> Iterator[str]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                # To tell what torch refuses is no unpickling.
                names = {alias.name for alias in node.names} - {"UnpicklingError"}
                yield from (f"{node.module}.{name}" for name in names)

    users = {path for path in SOURCES if unsafe & {module.split(".")[0] for module in taken(path)}}
    assert users == {CONVERTER}


def test_the_converter_s_unpickler_knows_no_code() -> None:
    """The one reader of a pickle: of `pickle` it takes the machine alone, and looks up every name itself."""
    tree = ast.parse(CONVERTER.read_text("utf-8"))
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in used if name.startswith("pickle.")} == {
        "pickle.Unpickler",
        "pickle.UnpicklingError",
    }
    readers = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "pickle.Unpickler" in map(ast.unparse, node.bases)
    ]
    assert len(readers) == 1
    methods = {node.name: ast.unparse(node) for node in readers[0].body if isinstance(node, ast.FunctionDef)}
    assert "import" not in methods["find_class"]
    assert "getattr" not in methods["find_class"]
    assert "super().find_class" not in methods["find_class"]
    called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert "pickle.Unpickler" not in called


def test_torch_loads_weights_only() -> None:
    def unsafe(call: ast.AST) -> bool:
        if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "torch.load"):
            return False
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        return given.get("weights_only") != "True"

    users = {
        path for path in SOURCES if any(unsafe(node) for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    }
    assert users == set()


def test_jobs_are_thin() -> None:
    long = {
        p.name: n for p in (REPOSITORY / "jobs").glob("*.py") if (n := len(p.read_text().splitlines())) > 40
    }
    assert long == {}


def test_functions_stay_small() -> None:
    def lengths(path: Path) -> Iterator[tuple[str, int]]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.name}: {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1

    found = {name: lines for path in SOURCES for name, lines in lengths(path)}
    assert {name: lines for name, lines in found.items() if lines > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize(
    "module",
    ["rankray.config", "rankray.models.generators", "rankray.models.rewards", "rankray.evals", "rankray.cli"],
)
def test_the_driver_never_imports_a_model(module: str) -> None:
    """Models are named by string: the process that plans a job loads none of their libraries."""
    code = (
        f"import sys, {module}; print({{'torch', 'diffusers', 'transformers'}} & set(sys.modules) or 'none')"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert seen.stdout.strip() == "none"
