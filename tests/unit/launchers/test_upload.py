"""What `ray job submit --working-dir .` uploads, asked of the Ray that is installed: what a job needs, no more."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import _get_excludes, get_excludes_from_ignore_files

ROOT = Path(__file__).parents[3]


def uploaded(root: Path) -> Iterator[Path]:
    excluded = [
        _get_excludes(root, get_runtime_env_default_excludes()),
        *get_excludes_from_ignore_files(root, include_gitignore=True),
    ]

    def walk(directory: Path) -> Iterator[Path]:
        for path in sorted(directory.iterdir()):
            if any(match(path) for match in excluded):
                continue
            if path.is_dir():
                yield from walk(path)
            else:
                yield path.relative_to(root)

    return walk(root)


def test_a_job_finds_what_it_needs() -> None:
    files = set(uploaded(ROOT))
    needed = [*(ROOT / "jobs").glob("*"), *(ROOT / "rankray").rglob("*.py")]
    weights = [path for path in (ROOT / "rankray" / "shapes" / "weights").rglob("*") if path.is_file()]
    assert {
        path.relative_to(ROOT) for path in [*needed, *weights] if "__pycache__" not in path.parts
    } <= files


def test_the_upload_is_small() -> None:
    sizes = {path: (ROOT / path).stat().st_size for path in uploaded(ROOT)}
    assert {path.parts[0] for path in sizes} & {
        ".venv",
        "tests",
        "docs",
        "demo-output",
        "benchmarks",
    } == set()
    assert sum(sizes.values()) < 40 * 1024**2  # the weights are 25 MB of it at most


@pytest.mark.parametrize("name", ["my_rewards.py", "models/aesthetic.py", "prompts.txt"])
def test_what_a_user_adds_travels_along(tmp_path: Path, name: str) -> None:
    for ignore in (".gitignore", ".rayignore"):
        (tmp_path / ignore).write_text((ROOT / ignore).read_text())
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    assert Path(name) in set(uploaded(tmp_path))


def test_environments_and_outputs_stay_behind(tmp_path: Path) -> None:
    for ignore in (".gitignore", ".rayignore"):
        (tmp_path / ignore).write_text((ROOT / ignore).read_text())
    for name in (
        ".venv/a",
        ".git/a",
        "demo-output/data/a.parquet",
        "dist/a.whl",
        "docs/a.md",
        "rankray/__pycache__/a.pyc",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert {str(path) for path in uploaded(tmp_path)} == {".gitignore", ".rayignore"}
