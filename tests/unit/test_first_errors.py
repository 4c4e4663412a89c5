"""What the shipped full-size jobs say on a machine that has nothing of theirs: all of it, in one start."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from rankray import cli
from rankray.models import environments

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, an empty cache, an empty home."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(environments.HOME, str(tmp_path / "environments"))


def test_syn_pic(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.run_synpic(["--config", str(JOBS / "synpic.toml"), "--execution.build_environments", "false"])
        == 2
    )
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("synpic: reward 'mps': no directory '~/.cache/rankray/mps' here; convert ")
    assert "`rankray convert-mps FILE`" in lines[0]
    uncached = [line.partition(": hub repository ")[0] for line in lines if "local cache" in line]
    models = [
        "sdxl",
        "sd3-medium",
        "pixart-sigma",
        "stable-cascade",
        "hpsv2.1",
        "pickscore",
        "vqascore",
        "imagereward",
    ]
    assert list(dict.fromkeys(uncached)) == models
    assert len([line for line in lines if "`hf download REPOSITORY`" in line]) == 1
    for name, label in (("hpsv2", "hpsv2.1"), ("vqascore", "vqascore"), ("imagereward", "imagereward")):
        assert any(line.startswith(f"{label}: ") and f"`rankray envs build {name}`" in line for line in lines)
    assert any("prompts.parquet" in line for line in lines)


def test_a_job_that_builds_its_environments_does_not_ask_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_synpic(["--config", str(JOBS / "synpic.toml")]) == 2
    assert "envs build" not in capsys.readouterr().err


def test_an_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_evaluate(["--config", str(JOBS / "evaluate.toml")]) == 2
    told = capsys.readouterr().err
    files = ["evaluation_metadata.jsonl", "dpg_bench.csv", "compbench"]
    repositories = ["blip-vqa-base", "clip-flant5-xxl", "one-align", "stable-diffusion-xl-base-1.0"]
    assert [part for part in [*files, *repositories, "rankdpo-sdxl: give"] if part not in told] == []


def test_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_rankdpo(["--config", str(JOBS / "rankdpo-sdxl.toml")]) == 2
    model, dataset = capsys.readouterr().err.splitlines()
    assert model.startswith("rankdpo: sdxl: hub repository 'stabilityai/stable-diffusion-xl-base-1.0' is not")
    assert dataset.endswith(
        "/mnt/cluster_storage/synpic: no dataset there, nor anything else; look at how it is written"
    )


def test_names_are_looked_at_before_any_weights(capsys: pytest.CaptureFixture[str]) -> None:
    rewards = '[{model="pikscore"}, {model="mpss"}, {model="mps"}]'
    assert cli.run_synpic(["--config", str(JOBS / "synpic.toml"), "--rewards", rewards]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" (did")[0] for line in lines if "did you mean" in line] == [
        "synpic: unknown reward 'pikscore'",
        "unknown reward 'mpss'",
    ]
    assert "local cache" not in " ".join(lines)
