"""Overlays built for real, from wheels that the test makes: no network, some seconds each."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from toy_package_wheel import source, wheel

from rankray.config import ConfigError
from rankray.models import environments, rewards
from rankray.models.environments import ENVIRONMENTS, MARKER, EnvironmentSpec


def asked(python: str, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(environments.HOME, str(tmp_path / "envs"))
    return tmp_path / "envs"


def test_an_overlay_has_its_own_packages_and_the_jobs(tmp_path: Path, home: Path) -> None:
    spec, said = wheel(tmp_path / "w", "1.0"), []
    assert environments.check("toy", spec).fault == "not built"
    found = environments.build("toy", spec, said.append)
    assert (found.fault, found.place.parent) == (None, home)
    assert said == [f"environment 'toy': not built; building {found.place}"]
    code = "import sys, toy_package, numpy, rankray; print(toy_package.VERSION, numpy.__version__, rankray.__file__)"
    version, numpy_version, place = asked(found.python, code).split(" ", 2)
    here = asked(sys.executable, "import numpy, rankray; print(numpy.__version__, rankray.__file__)")
    assert (version, f"{numpy_version} {place}") == ("1.0", here)
    assert environments.build("toy", spec, said.append) == found
    assert len(said) == 1, "nothing is built twice"


def test_other_pins_are_another_overlay(tmp_path: Path) -> None:
    one, two = (
        environments.build("toy", wheel(tmp_path / "w", v), lambda line: None) for v in ("1.0", "2.0")
    )
    assert one.place != two.place
    shown = [asked(found.python, "import toy_package; print(toy_package.VERSION)") for found in (one, two)]
    assert shown == ["1.0", "2.0"]


def test_another_installation_has_overlays_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them on one machine would otherwise build over each other's, under jobs that run."""
    spec = wheel(tmp_path / "w", "1.0")
    ours = environments.build("toy", spec, lambda line: None)
    monkeypatch.setattr(sys, "prefix", "/elsewhere")
    assert environments.check("toy", spec).fault == "not built"
    assert environments.place_of("toy", spec) != ours.place


def test_builders_wait_for_each_other(tmp_path: Path) -> None:
    spec, said = wheel(tmp_path / "w", "1.0"), []
    builders = [
        threading.Thread(target=environments.build, args=("toy", spec, said.append)) for _ in range(3)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len(said) == 1
    assert environments.check("toy", spec).fault is None


def test_what_a_killed_builder_left_is_built_anew(tmp_path: Path) -> None:
    spec = wheel(tmp_path / "w", "1.0")
    place = environments.place_of("toy", spec)
    (place.with_name(f"{place.name}.building") / "lib").mkdir(parents=True)
    place.mkdir()
    assert environments.check("toy", spec).fault == "not built"
    assert environments.build("toy", spec, lambda line: None).fault is None
    assert [path.name for path in place.parent.iterdir() if path.is_dir()] == [place.name]


def test_an_overlay_of_another_environment_is_no_use(tmp_path: Path) -> None:
    spec = wheel(tmp_path / "w", "1.0")
    place = environments.build("toy", spec, lambda line: None).place
    marker = json.loads((place / MARKER).read_text())
    (place / MARKER).write_text(json.dumps({**marker, "base": "/elsewhere"}))
    assert environments.check("toy", spec).fault == f"built over /elsewhere, this is {sys.prefix}"
    assert environments.build("toy", spec, lambda line: None).fault is None


def test_what_cannot_be_built_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    good = wheel(tmp_path / "w", "1.0")
    altered = EnvironmentSpec(re.sub("sha256:.*", f"sha256:{'0' * 64}", good.requirements))
    with pytest.raises(
        ConfigError, match="environment 'toy' cannot be built: -m pip --python: ERROR: THESE PACKAGES DO"
    ):
        environments.build("toy", altered, lambda line: None)
    broken = wheel(tmp_path / "w", "3.0", "import not_there_at_all")
    with pytest.raises(ConfigError, match="No module named 'not_there_at_all'") as caught:
        environments.build("toy", broken, lambda line: None)
    assert "\n" not in str(caught.value)
    for spec in (altered, broken):
        assert environments.check("toy", spec).fault == "not built"


def test_what_is_built_from_source_does_not_see_the_jobs_packages(tmp_path: Path) -> None:
    """hpsv2's was built with half of one setuptools and half of another."""
    alone = "assert importlib.util.find_spec('numpy') is None, 'numpy of the environment beneath'"
    assert environments.build("toy", source(tmp_path / "w", "1.0", alone), lambda line: None).fault is None


def test_what_fails_while_it_is_built_is_told_by_its_own_error(tmp_path: Path) -> None:
    spec = source(tmp_path / "w", "1.0", "raise RuntimeError('no compiler')")
    with pytest.raises(ConfigError, match="cannot be built: -m pip --python: RuntimeError: no compiler"):
        environments.build("toy", spec, lambda line: None)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_shipped_pins_have_hashes(name: str) -> None:
    blocks = re.split(r"\n(?=[a-z])", ENVIRONMENTS[name].requirements)
    packages = [block for block in blocks if not block.startswith("#")]
    assert packages
    for block in packages:
        assert re.match(r"[a-z0-9-]+==[0-9.]+ \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n?)+$", block), block


def test_rewards_name_environments_that_there_are() -> None:
    named = {row.environment for row in rewards.REWARDS.values()} - {None}
    assert named == set(ENVIRONMENTS)
    with pytest.raises(ConfigError, match=r"unknown environment 'vqa' \(did you mean 'vqascore'\?\)"):
        environments.spec_of("vqa")


def test_an_overlay_with_another_version_is_made_anew(tmp_path: Path) -> None:
    digest = wheel(tmp_path / "w", "1.0").requirements.split("--hash=")[1]
    lines = ["--no-index", f"--find-links {tmp_path / 'w'}", f"toy-package==1.0 --hash={digest}"]
    spec = EnvironmentSpec("\n".join(lines), ("toy_package",))
    found = environments.build("toy", spec, lambda line: None)
    ask = "from rankray.models import environments; environments.require_pins(); print('as pinned')"
    assert asked(found.python, ask) == "as pinned"
    (information,) = found.place.glob("lib/*/site-packages/toy_package-1.0.dist-info/METADATA")
    information.write_text(information.read_text().replace("Version: 1.0", "Version: 1.5"))
    changed = "changed since it was built: toy-package 1.5, pinned is 1.0"
    assert environments.check("toy", spec).fault == changed
    ended = subprocess.run([found.python, "-c", ask], capture_output=True, text=True, check=False)
    assert ended.stderr.splitlines()[-1] == (
        f"rankray.config.ConfigError: environment 'toy' at {found.place} was {changed}; "
        "`rankray envs build toy` makes it anew"
    )
    said: list[str] = []
    assert environments.build("toy", spec, said.append).fault is None
    assert said == [f"environment 'toy': {changed}; building {found.place}"]
    assert environments.check("toy", spec).fault is None
