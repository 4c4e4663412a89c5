"""The reward of docs/extending.md, executed."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rankray import config
from rankray.config import ConfigError, RewardChoice
from rankray.models import rewards
from rankray.models.targets import load

PAGE = Path(__file__).parents[4] / "docs" / "extending.md"


@pytest.fixture
def beside_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Writes the page's module; returns the page's TOML."""
    text = PAGE.read_text()
    (code,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Sharpness" in b)
    (toml,) = (block for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "sharpness" in block)
    (tmp_path / "sharpness.py").write_text(code)
    (tmp_path / "c.toml").write_text(toml)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sharpness", raising=False)
    return config.read_toml(tmp_path / "c.toml")["rewards"][0]


def test_the_page_is_true(beside_the_job: dict) -> None:
    target = rewards.resolve(RewardChoice(**beside_the_job))
    reward = load(target, "cpu")
    rows = [
        np.tile(np.uint8(row), (2, 1)) for row in ([0, 1, 20, 41], [0, 99, 0, 99])
    ]  # two apart: 20 and 40; 0
    scores = reward.score([Image.fromarray(row) for row in rows], ["x", "y"])
    np.testing.assert_array_equal(scores, np.array([30, 0], np.float32))


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="no package 'darknes_nowhere' can be imported here"):
        rewards.resolve(RewardChoice(model="darknes_nowhere:Darkness"))


def test_settings_of_the_table_are_refused_for_a_class_of_ones_own(beside_the_job: dict) -> None:
    with pytest.raises(ConfigError, match="takes its settings by `options`; move dtype there"):
        rewards.resolve(RewardChoice(**beside_the_job, dtype="float16"))
