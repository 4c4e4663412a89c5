"""The architecture, enforced: what each floor may import, who may call Ray Data, and how large things grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rankray

PACKAGE = Path(rankray.__file__).parent
REPOSITORY = Path(__file__).parents[2]
CONVERTER = PACKAGE / "rewards" / "mps_convert.py"

# Where each module or folder stands. docs/architecture.md draws this picture.
FLOORS = {
    "config": 0,
    "schema": 0,
    "ranking": 0,
    "aggregation": 0,
    "figures": 0,
    "losses": 0,
    "diffusion": 0,
    "cost": 0,
    "published": 0,
    "intervals": 0,
    "hardware": 0,
    "footprint": 0,
    "training_config": 0,
    "evaluation_config": 0,
    "scoreboard": 0,
    "schedules": 0,
    "comparison": 0,
    "labels": 0,
    "ablation_config": 0,
    "ablation_table": 0,
    "prompts": 1,
    "prompt_lists": 1,
    "choices": 1,
    "store": 1,
    "targets": 1,
    "item_safe": 1,
    "components": 1,
    "demand": 1,
    "meta_run": 1,
    "hub": 1,
    "weight_copies": 1,
    "weight_files": 1,
    "loading": 1,
    "generators": 1,
    "rewards": 1,
    "evals": 1,
    "denoisers": 1,
    "shapes": 1,
    "encoded": 1,
    "batches": 1,
    "zero": 1,
    "environments": 2,
    "actors": 2,
    "pictures": 2,
    "pools": 2,
    "stages": 2,
    "layout": 2,
    "seats": 2,
    "phases": 2,
    "balance": 2,
    "measured": 2,
    "forecast": 2,
    "output": 2,
    "progress": 2,
    "synpic": 2,
    "ray_session": 2,
    "streaming": 2,
    "encode_actors": 2,
    "encoding": 2,
    "feed": 2,
    "memory": 2,
    "checkpoints": 2,
    "samples": 2,
    "run_log": 2,
    "training": 2,
    "rankdpo": 2,
    "training_forecast": 2,
    "training_nodes": 2,
    "align": 2,
    "evaluation": 2,
    "trials": 2,
    "trial_actor": 2,
    "ablation": 2,
    "evaluate": 2,
    "evaluated_models": 2,
    "evaluation_results": 2,
    "evaluation_table": 2,
    "rerank": 2,
    "pickapic": 2,
    "reuse": 2,
    "random_weights": 2,
    "convert": 2,
    "commands": 3,
    "dry_run": 3,
    "forecast_text": 3,
    "report": 3,
    "run_report": 3,
    "align_report": 3,
    "pages": 3,
    "evaluation_report": 3,
    "ablation_report": 3,
    "evaluate_options": 3,
    "cli": 3,
}
PURE = {"numpy", "pyarrow", "pydantic", "rankray", "tomli", "torch"}  # floor 0, beside the standard library
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

SOURCES = sorted(PACKAGE.rglob("*.py"))


def name(path: Path) -> str:
    """`rankray/shapes/train.py` is `shapes`; `rankray/__init__.py` is the package itself."""
    first = path.relative_to(PACKAGE).parts[0]
    return "rankray" if first == "__init__.py" else first.removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every module imported anywhere in a file: at its top, within functions, or for its types only."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_parts(path: Path) -> set[str]:
    """Which of rankray's modules a file imports, by the name of their floor's entry."""
    parts = (module.split(".") for module in imports(path))
    return {p[1] for p in parts if p[0] == "rankray" and len(p) > 1 and p[1] in FLOORS}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward_only(path: Path) -> None:
    own = name(path)
    if own == "rankray":
        assert set(imports(path)) == set(), "the package itself imports nothing"
        return
    assert own in FLOORS, f"{own} has no floor: give it one here and in docs/architecture.md"
    above = {part for part in imported_parts(path) if FLOORS[part] > FLOORS[own]}
    assert not above, f"{own} (floor {FLOORS[own]}) imports from a floor above: {sorted(above)}"


@pytest.mark.parametrize("part", [part for part, floor in FLOORS.items() if floor == 0])
def test_floor_zero_is_pure(part: str) -> None:
    path = PACKAGE / f"{part}.py"
    if not path.exists():
        pytest.skip("not built yet")
    roots = {module.split(".")[0] for module in imports(path)}
    assert roots - set(sys.stdlib_module_names) <= PURE


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_ray_stays_above_floor_one(path: Path) -> None:
    if FLOORS.get(name(path), 0) <= 1:
        assert "ray" not in {module.split(".")[0] for module in imports(path)}


def test_only_stages_calls_map_batches() -> None:
    def calls(path: Path) -> bool:
        nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        return any(isinstance(node, ast.Attribute) and node.attr == "map_batches" for node in nodes)

    allowed = {PACKAGE / "stages.py"}
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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    functions = [
        n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}
    assert {f: lines for f, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize(
    "module", ["rankray.config", "rankray.generators", "rankray.rewards", "rankray.evals", "rankray.cli"]
)
def test_the_driver_never_imports_a_model(module: str) -> None:
    """Models are named by string: the process that plans a job loads none of their libraries."""
    if (
        not (PACKAGE / f"{module.split('.')[1]}.py").exists()
        and not (PACKAGE / module.split(".")[1]).is_dir()
    ):
        pytest.skip("not built yet")
    code = (
        f"import sys, {module}; print({{'torch', 'diffusers', 'transformers'}} & set(sys.modules) or 'none')"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert seen.stdout.strip() == "none"
