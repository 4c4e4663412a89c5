"""Names of models: resolved without importing them, hashed, refused in one line."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankray.config import ConfigError
from rankray.models.targets import Target, load, split_name
from rankray.models.weights import locate, weights_revision


@given(
    st.from_regex(r"[a-z_]{1,8}(\.[a-z_]{1,8}){0,2}", fullmatch=True),
    st.from_regex(r"[A-Z][a-z]{0,8}", fullmatch=True),
)
def test_a_name_splits_into_what_it_was_joined_from(module: str, attribute: str) -> None:
    assert split_name(f"{module}:{attribute}") == (module, attribute)


@pytest.mark.parametrize("name", ["", ":", "a.b", "a:", ":B", "a..b:C", "a:B:C", "a:b-c", "a/b:C"])
def test_other_forms_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is not of the form 'package\.module:Class'"):
        split_name(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "rankray.models.rewards.pickscor:PickScore",
            "'rankray.models.rewards' has no module 'pickscor' (did you mean 'pickscore'?)",
        ),
        (
            "rankray.models.rewards.pickscore:PickScor",
            "has no 'PickScor' (did you mean 'PickScore'?); its classes:",
        ),
        ("rankray.config:nearest", "it must be a class with a method `generate`, `score` or `judge`"),
        ("rankray.config:ConfigError", "it must be a class with a method `generate`, `score` or `judge`"),
        ("pandsa:Model", "no package 'pandsa' can be imported here (did you mean 'pandas'?)"),
    ],
)
def test_what_cannot_be_loaded_is_named_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Target("x", name), "cpu")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_package_that_a_model_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy_model.py").write_text("import not_installed_here.deep\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ConfigError, match="needs the package 'not_installed_here', which is not installed here"
    ):
        load(Target("x", "needy_model:Model"), "cpu")


def test_a_constructor_s_own_fault_passes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faulty_model.py").write_text(
        "class Faulty:\n    def __init__(self, device):\n        raise OSError('disk')\n    def score(self): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(OSError, match="disk"):
        load(Target("x", "faulty_model:Faulty"), "cpu")


def test_the_hash_is_of_names_sizes_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "w.safetensors").write_bytes(b"weights")
    (tmp_path / "a.json").write_bytes(b"{}")
    (tmp_path / "README.md").write_text("not part of it")
    digest = hashlib.sha256(b"a.json\x002\x00{}" + b"unet/w.safetensors\x007\x00weights").hexdigest()
    before = weights_revision(str(tmp_path), "main")
    assert before == f"sha256:{digest}"
    (tmp_path / "README.md").write_text("changed")
    (tmp_path / ".cache.json").write_text("hidden")
    assert weights_revision(str(tmp_path), "other") == before
    (tmp_path / "unet" / "w.safetensors").write_bytes(b"weightz")
    assert weights_revision(str(tmp_path), "main") != before


def test_an_empty_directory_holds_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no weights"):
        weights_revision(str(tmp_path), "main")


def test_a_full_commit_is_its_own_revision() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert weights_revision("owner/name", commit) == commit


def test_an_unknown_pipeline_of_the_shapes_world_is_named() -> None:
    with pytest.raises(ConfigError, match="shapes-sdxl"):
        locate("shapes:shapes-sdx")
