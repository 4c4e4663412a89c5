"""`rankray status`: what is read from an output that is finished, running or quiet, by files written here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import small_dataset

from rankray import config, verbs
from rankray.cluster.progress import ModelProgress, as_json
from rankray.config import ConfigError, Strict
from rankray.config.ablate import AblationConfig
from rankray.config.evaluate import EvaluateConfig
from rankray.data import owner, place, running
from rankray.data.cost import ActorUsage
from rankray.verbs.status import status

JOBS = Path(__file__).parents[3] / "jobs"
USAGE = ActorUsage("sdxl", "generator", "a", 3000.0, 60.0, 3600.0, 40, 1, 0, 2.0, 1.0)
PRICED = "[prices]\ngpu_usd_per_hour = 1.5\n"


def begun(folder: Path) -> place.Output:
    """An output whose prompts are staged."""
    output = place.open_output(str(folder), in_job=False)
    output.make("_work")
    output.write_text("config.toml", PRICED)
    output.write_text("_work/staged.json", '{"rows": 50}')
    return output


def test_a_dataset_that_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = begun(tmp_path)
    running.keep_usage(output, "r", [USAGE])
    models = [
        ModelProgress("generator", "sdxl", 40, 1, 100, 2.0),
        ModelProgress("reward", "hps", 0, 0, 100, 0.0),
    ]
    running.keep_progress(output, as_json(models))
    with owner.owned(output, "synpic"):
        found = status(str(tmp_path))
    assert (found["kind"], found["state"], found["prompts"], found["failures"]) == (
        "dataset",
        "running",
        50,
        1,
    )
    assert found["usd"] == pytest.approx(3.0)  # 2 GPUs for an hour
    assert [model["left_s"] for model in found["models"]] == [30.0, None]
    assert verbs.main(["status", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "50 prompts, 1 failed, $3.00" in printed
    assert "40/100 images  2.0/s  1 failed  30.0 s left" in printed
    assert "0/100 scores  0.0/s  0 failed  left ?" in printed


def test_a_job_runs_while_its_process_lives_however_long_an_item_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = begun(tmp_path)
    output.write_text("_work/progress.json", json.dumps({"at": time.time() - 600, "models": []}))
    with owner.owned(output, "synpic"):
        found = status(str(tmp_path))
        assert (found["state"], found["usd"]) == ("running", None)
        assert 600 <= found["last_word_s"] < 660
        assert verbs.main(["status", str(tmp_path)]) == 0
        assert "running, last word 10" in capsys.readouterr().out
    running.keep_progress(output, [])
    assert status(str(tmp_path))["state"] == "quiet", "it ended a moment ago"
    assert verbs.main(["status", str(tmp_path)]) == 0
    assert "nobody is at work on it; the same command goes on from here" in capsys.readouterr().out


@pytest.mark.parametrize(("machine", "beat_s", "state"), [
    ("another", 10, "running"),
    ("another", 100, "quiet"),
    ("", 10, "running"),
    (None, 10, "quiet"),
])  # fmt: skip
def test_of_a_mark_whose_process_the_kernel_does_not_know_the_beat_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], machine: str | None, beat_s: float, state: str
) -> None:
    """None is this machine, where a process of that number began at another time."""
    output = begun(tmp_path)
    here = owner._this_process("synpic")
    there = replace(here, begun=here.begun + 1, machine=here.machine if machine is None else machine)
    output.write_text("_owner.1.json", json.dumps(asdict(there)))
    output.write_text("_owner.1.beat", "000000007 owns")
    then = time.time() - beat_s
    os.utime(tmp_path / "_owner.1.beat", (then, then))
    assert status(str(tmp_path))["state"] == state
    assert verbs.main(["status", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    due = (
        "which is gone"
        if machine is None
        else "which gives no sign of life"
        if state == "quiet"
        else "stops it"
    )
    assert due in said


def test_sigterm_ends_the_looking_by_its_own_exit_code(tmp_path: Path) -> None:
    begun(tmp_path)
    command = [sys.executable, "-m", "rankray", "status", str(tmp_path), "--watch", "--every", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("dataset ")
        process.send_signal(signal.SIGTERM)
        said = process.stdout.read()
    assert process.returncode == 143, said
    assert "stopped by SIGTERM" in said


def test_ctrl_c_ends_the_looking_and_says_that_the_job_goes_on(tmp_path: Path) -> None:
    begun(tmp_path)
    heard = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's `&` ignores it
    heard += "from rankray.verbs import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", heard, "status", str(tmp_path), "--watch", "--every", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("dataset ")
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
    assert process.returncode == 0, said
    assert said.endswith("no longer looking; the job itself is not touched\n")
    assert "stopped by" not in said


def test_a_training_by_its_metrics(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('dataset = "/d"\nsteps = 10\n')
    lines = [
        {"step": n, "loss": 0.5, "step_s": 2.0 * n, "usd": 0.25, "skipped_steps": 0, "prompts_per_s": 8.0}
        for n in (1, 2, 3)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with owner.owned(place.open_output(str(tmp_path), in_job=False), "rankdpo"):
        found = status(str(tmp_path))
    assert (found["kind"], found["state"], found["step"], found["steps"]) == ("training", "running", 3, 10)
    assert found["left_s"] == pytest.approx(7 * 4.0)  # the mean step is of 4 s
    assert found["usd"] == 0.25


def test_an_alignment_is_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_dataset.write(tmp_path / "evaluation" / "before")
    output = begun(tmp_path / "round-1" / "synpic")
    running.keep_usage(output, "r", [USAGE])
    running.keep_progress(output, [])
    whole = place.open_output(str(tmp_path), in_job=False)
    with owner.owned(whole, "align"), owner.owned(output, "synpic"):
        found = status(str(tmp_path))
    assert (found["kind"], found["state"]) == ("alignment", "running")
    assert {name: part["state"] for name, part in found["parts"].items()} == {
        "evaluation/before": "finished",
        "round-1/synpic": "running",
    }
    assert found["usd"] == pytest.approx(3.0 + (found["parts"]["evaluation/before"]["usd"] or 0.0))
    assert verbs.main(["status", "--json", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["parts"]["evaluation/before"]["rows"] == 3
    (tmp_path / "align.json").write_text('{"rounds": []}')
    assert status(str(tmp_path))["state"] == "finished"


WHOLES = [
    (AblationConfig, "ablate-shapes.toml", "ablate", "ablation", "ablation.json"),
    (EvaluateConfig, "evaluate-shapes.toml", "evaluate", "evaluation", "results.json"),
]


@pytest.mark.parametrize(("model", "file", "verb", "kind", "marker"), WHOLES)
def test_an_evaluation_and_an_ablation_are_called_that_from_their_first_moment(
    tmp_path: Path, model: type[Strict], file: str, verb: str, kind: str, marker: str
) -> None:
    output = place.open_output(str(tmp_path / "o"), in_job=False)
    tables = config.read_toml(JOBS / file) | {"output": output.uri}
    tables |= {"models": [{"model": "shapes-sdxl"}]} if model is EvaluateConfig else {}
    with owner.owned(output, verb):
        place.claim(output, marker, {"seed": 1}, config.build(model, tables))  # type: ignore[arg-type]
        assert (status(output.uri)["kind"], status(output.uri)["state"]) == (kind, "running")
        output.write_text(marker, '{"complete": false}')  # of a run that is followed
        assert (status(output.uri)["kind"], status(output.uri)["state"]) == (kind, "running")
    assert (status(output.uri)["kind"], status(output.uri)["state"]) == (kind, "quiet")


def test_a_finished_evaluation_runs_while_somebody_measures_more_into_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = place.open_output(str(tmp_path), in_job=False)
    small_dataset.write(tmp_path / "sets" / "one" / "shapes")
    output.write_text("results.json", '{"complete": true, "cost": {"totals": {"usd": 7.0}}}')
    assert (status(str(tmp_path))["kind"], status(str(tmp_path))["state"]) == ("evaluation", "finished")
    further = begun(tmp_path / "sets" / "two" / "shapes")
    running.keep_usage(further, "r", [USAGE])
    with owner.owned(output, "evaluate"), owner.owned(further, "synpic"):
        found = status(str(tmp_path))
        assert (found["kind"], found["state"]) == ("evaluation", "running")
        assert found["usd"] == pytest.approx(
            3.0 + 1 / 60
        )  # the second set's two GPUs for an hour, the first's CPU
        assert [part["state"] for part in found["parts"].values()] == ["finished", "running"]
        assert verbs.main(["status", str(tmp_path)]) == 0
        assert "evaluation" in (said := capsys.readouterr().out)
        assert "stops it" in said


def test_nothing_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no job's output is there"):
        status(str(tmp_path / "nowhere"))


def test_who_is_at_work_is_said(tmp_path: Path) -> None:
    output = begun(tmp_path / "o")
    with owner.owned(output, "synpic"):
        found = status(output.uri)["owner"]
        assert found["who"].startswith("synpic on ")
        assert f"pid {os.getpid()}" in found["who"]
        assert found["stop"].startswith(f"`kill {os.getpid()}` on ")
        assert found["alive"] is True
    assert status(output.uri)["owner"] is None


@pytest.mark.parametrize("every", ["-1", "0", "nan", "inf", "1e9"])
def test_between_two_looks_there_is_some_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], every: str
) -> None:
    begun(tmp_path / "o")
    assert verbs.main(["status", str(tmp_path / "o"), "--watch", "--every", every]) == 2
    assert "give seconds, above 0 and at most 86400" in capsys.readouterr().err
