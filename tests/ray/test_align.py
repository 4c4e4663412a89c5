"""Algorithm 3 end to end: two rounds through `ray job submit`, killed in each phase, ending as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rankray import store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "rounds": "2",
    "prompts.limit": "12",
    "generators": '[{model = "shapes-sdxl", samples = 2, steps = 4}]',
    "rewards": '[{model = "shapes-pickscore"}]',
    "execution.rows_per_block": "4",
    "training.steps": "6",
    "training.batch_size": "4",
    "training.workers.num_cpus": "0.4",
    "training.checkpoints.every": "2",
    "training.checkpoints.sample_every": "0",
    "held_out.prompts.limit": "8",
}
PHASES = {
    "evaluation before": "evaluation/before/_work/checkpoint-data",
    "synpic": "round-1/synpic/_work/checkpoint-data",
    "encoding": "round-1/synpic/encoded",
    "training": "round-2/rankdpo/checkpoints",
    "evaluation after": "evaluation/round-2/_work",
}


def command(output: Path) -> list[str]:
    options = [word for key, value in OPTIONS.items() for word in (f"--{key}", value)]
    config = str(ROOT / "jobs" / "align-shapes.toml")
    return [
        sys.executable,
        str(ROOT / "jobs" / "align.py"),
        "--config",
        config,
        "--output",
        str(output),
        *options,
    ]


def start(output: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(output),
        env={**os.environ, "RAY_ADDRESS": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(output: Path) -> str:
    process = start(output)
    printed = process.communicate()[0].decode()
    assert process.returncode == 0, printed[-4000:]
    return printed


def weights(output: Path, number: int) -> dict[str, object]:
    return dict(
        load_file(output / f"round-{number}/rankdpo/pipeline/unet/diffusion_pytorch_model.safetensors")
    )


def test_two_rounds_end_to_end(tmp_path: Path) -> None:
    """The second round draws with the first one's model, and the summary compares both with the start."""
    printed = finish(tmp_path / "o")
    info = json.loads((tmp_path / "o" / "align.json").read_text())
    assert [set(found["gain"]) for found in info["rounds"]] == [{"shapes-pickscore", "checker"}] * 2
    assert "| metric | before | after |" in printed
    assert Path(info["pipeline"]) == tmp_path / "o" / "round-2" / "rankdpo" / "pipeline"
    first, second = (store.read(str(tmp_path / "o" / f"round-{n}" / "synpic")) for n in (1, 2))
    revisions = [dataset.info["generators"][0]["revision"] for dataset in (first, second)]
    assert revisions[0] != revisions[1]
    assert first.info["seed"] + 1 == second.info["seed"]
    again = finish(tmp_path / "o")
    assert again.count("is complete already; nothing to do") == 7
    assert (tmp_path / "o" / "report.html").exists()


@pytest.mark.slow
def test_killed_in_each_phase_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    finish(tmp_path / "whole")
    for place in PHASES.values():
        process = start(tmp_path / "killed")
        deadline = time.monotonic() + 600
        while not any((tmp_path / "killed" / place).rglob("*")):
            assert process.poll() is None, f"it ended before {place}"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(1.0)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "align.json").exists()
    finish(tmp_path / "killed")
    gains = [
        [found["gain"] for found in json.loads((tmp_path / name / "align.json").read_text())["rounds"]]
        for name in ("whole", "killed")
    ]
    assert gains[0] == gains[1]
    for number in (1, 2):
        ours, theirs = (weights(tmp_path / name, number) for name in ("whole", "killed"))
        assert all((ours[name] == theirs[name]).all() for name in ours)  # type: ignore[attr-defined]
