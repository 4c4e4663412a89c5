"""Rewards that stand on a package give the package's own scores; without its environment they say what to do."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from odd_prompts import PROMPTS

from rankray.config import ConfigError
from rankray.models import environments
from rankray.models.rewards import REWARDS
from rankray.models.rewards.hpsv2 import Hpsv2
from rankray.models.rewards.imagereward import ImageReward
from rankray.models.rewards.vqascore import VqaScore

# Q-Align needs no package to run: this one has what it is compared with.
QALIGN = environments.EnvironmentSpec(
    Path(__file__).with_name("qalign_parity.txt").read_text(), ("sentencepiece",)
)


NOT_COMMERCIAL = pytest.mark.skipif(
    "RANKRAY_NOT_COMMERCIAL" not in os.environ,
    reason="pyiqa, which carries Q-Align's model, is not for commercial use; set RANKRAY_NOT_COMMERCIAL=1",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("hpsv2", ()),
        ("imagereward", ()),
        ("vqascore", ("with-tower",)),
        ("vqascore", ("without-tower",)),  # such a checkpoint gets the tower's own weights
        pytest.param("qalign", (), marks=NOT_COMMERCIAL),
    ],
)
def test_equals_the_package_one_picture_at_a_time(
    name: str, arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Builds the overlay where it is missing: pip needs a package index."""
    spec = QALIGN if name == "qalign" else environments.spec_of(name)
    overlay = environments.build(name, spec)
    script = Path(__file__).with_name(f"{name}_parity.py")
    command = [overlay.python, str(script), str(tmp_path), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\n{' '.join([name, *arguments])}: ours - the package's, max abs {found['difference']:.2g}")
    assert found["difference"] < 1e-5
    assert np.ptp(found["scores"]) > 1e-4
    assert found["half"] < 0.1
    assert (found.get("neighbours", 0.0), found.get("float16", 0.0)) == (0.0, 0.0)
    assert found["truncated"] == [len(prompt) > 1000 for prompt in PROMPTS]


@pytest.mark.parametrize(
    ("row", "reward", "environment"),
    [
        ("hpsv2.1", Hpsv2, "hpsv2"),
        ("imagereward", ImageReward, "imagereward"),
        ("vqascore", VqaScore, "vqascore"),
    ],
)
def test_outside_its_environment_it_says_what_to_do(row: str, reward: type, environment: str) -> None:
    with pytest.raises(ConfigError, match=f"environment '{environment}': rankray envs build {environment}"):
        reward(spec=REWARDS[row], device="cpu")
