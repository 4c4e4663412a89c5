"""`--submit` as its user has it: a configuration and a reward of one's own in a directory, and a Ray that runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from rankray import store

REPOSITORY = Path(__file__).parents[2]
REWARD = """
import numpy as np

class Redness:
    def __init__(self, device): pass
    def score(self, images, prompts):
        return np.array([np.asarray(image)[..., 0].mean() for image in images], np.float32)
"""
JOB = """
output = "{output}"
prompts = {{ path = "shapes:train", limit = 4 }}
generators = [{{ model = "shapes-sdxl", samples = 2 }}]
rewards = [{{ model = "my_rewards:Redness" }}, {{ model = "my_rewards:Redness", name = "again" }}]
"""


def rankray(*words: str, here: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rankray", *words]
    return subprocess.run(
        command, cwd=here, env=dict(environment), capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.slow
@pytest.mark.ray
def test_a_submitted_job_has_what_lies_beside_its_configuration(tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location("rankray_demo", REPOSITORY / "scripts" / "demo.py")
    assert specification is not None
    assert specification.loader is not None
    demo = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(demo)
    output = tmp_path / "out"
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my_rewards.py").write_text(REWARD)
    (folder / "job.toml").write_text(JOB.format(output=output))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
        patch.setenv("PYTHONPATH", str(REPOSITORY))  # of the nodes: rankray is installed there
        with demo.private_ray() as environment:
            words = ("synpic", "--config", "mine/job.toml", "--submit", "--json")
            done = rankray(*words, here=tmp_path, environment=environment)
            assert done.returncode == 0, done.stderr
            found = json.loads(done.stdout)
            assert (found["status"], found["exit_code"]) == ("SUCCEEDED", 0)
            assert f"uploading {folder}: 2 files" in done.stderr
            assert "4 rows, 8 images, 0 failures" in done.stderr  # the job's log
            refused = rankray(*words, "--prompts.limit", "5", here=tmp_path, environment=environment)
            assert refused.returncode == 2  # the job's own code
            assert "holds others; take another output" in refused.stderr
    assert [item["name"] for item in store.read(str(output)).info["rewards"]] == [
        "my_rewards:Redness",
        "again",
    ]
