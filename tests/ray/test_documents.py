"""The documented commands that need Ray, as they stand, with fewer prompts, models and steps.

Pools and workers claim no GPUs: the shipped configurations of the shapes world have none.
"""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import documented
import pytest
from conftest import Ended
from documented import Command
from ray.cluster_utils import Cluster

from rankray import verbs

SMALLER = {
    "synpic": "--prompts.limit 2 --generators '[{model=\"shapes-sdxl\", samples=2, steps=2, pool={num_cpus=0.5}}]' "
    "--rewards '[{model=\"shapes-clipscore\", pool={num_cpus=0.5}}]'",
    "rankdpo": "--steps 2 --batch_size 4 --validation.share 0 --validation.stop none "
    "--checkpoints.every 2 --checkpoints.sample_every 2 --workers.count 1",
}
"""What is appended to a job's command: an option that stands twice is the last one's."""
HERE = [c for c in documented.runnable() if documented.job(c) and documented.elsewhere(c) is None]
ONCE = {re.search(r"^.*?--config \S+", command.bare)[0]: command for command in HERE}
"""One of each job and file: `tests/unit/test_documents.py` reads the options of all."""


@pytest.mark.ray
@pytest.mark.parametrize("command", ONCE.values(), ids=lambda c: f"{c.where} {documented.job(c)}")
def test_a_documented_job_works(
    job: Callable[..., Ended],
    dataset: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert verbs.main(["init", "shapes", str(tmp_path)]) == 0
    (tmp_path / "jobs").symlink_to(documented.ROOT / "jobs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red circle\ntwo blue squares\n")
    for name in ("synpic", "first"):
        (tmp_path / name).symlink_to(dataset)
    name = documented.job(command)
    assert name in SMALLER, f"{command.where}: no test runs `{command.text}`; see tests/unit/documented.py"
    text = documented.JOB.sub("", command.bare)
    words = [re.sub(r"^/data\b", str(tmp_path), word) for word in shlex.split(f"{text} {SMALLER[name]}")]
    output = words.index("--output") + 1
    words[output] += "-made"
    ended = job(name, *words)
    assert ended.code == 0, ended.text
    assert (Path(words[output]) / "report.html").is_file()


@pytest.mark.ray
@pytest.mark.parametrize("name", sorted(documented.NOTEBOOKS_ON_RAY))
def test_a_notebook_on_ray_runs(
    head: Cluster, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel joins this session's Ray."""
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    documented.run_notebook(documented.ROOT / "docs" / "notebooks" / f"{name}.ipynb", tmp_path)
