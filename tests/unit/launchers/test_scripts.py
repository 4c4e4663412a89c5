"""`cluster/slurm.sbatch` and `cluster/skypilot.yaml`: what their scripts would run, by stand-ins for the schedulers.

SkyPilot's own parser and Slurm's `sbatch --test-only` took the files when they were written (SkyPilot 0.14.1, Slurm
22.05); neither is light enough to be installed for a test. The schema below is SkyPilot's for the fields in use.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from rankray.cli import parse_synpic

ROOT = Path(__file__).parents[3]
SBATCH = ROOT / "cluster" / "slurm.sbatch"
TEXT = {"type": "string", "minLength": 1}
TASK = {
    "type": "object",
    "required": ["name", "resources", "setup", "run"],
    "additionalProperties": False,
    "properties": {
        "name": TEXT,
        "workdir": TEXT,
        "num_nodes": {"type": "integer", "minimum": 1},
        "resources": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "accelerators": {"type": "string", "pattern": r"^[\w-]+:\d+$"},
                "use_spot": {"type": "boolean"},
                "disk_size": {"type": "integer"},
            },
        },
        "envs": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        "secrets": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        "setup": TEXT,
        "run": TEXT,
    },
}
STAND_INS = {
    "scontrol": "echo node-1; echo node-2",
    "hostname": "echo 10.0.0.1",
    # As with Ray: a head stays, `ray status` finds it only once its `ray start` is under way, and symmetric-run ends
    # with 0 where its head does not start.
    "ray": """
[ "$2" != "$FAILS" ] || exit 1
echo "$RAY_AUTH_MODE ${#RAY_AUTH_TOKEN} $SRUN_CPUS_PER_TASK" > "$CALLED.environment"
echo ray "$@" >> "$CALLED"
case "$1 $2" in
    status*) grep -q "^ray start --head" "$CALLED" ;;
    "start --head") exec sleep 60 ;;
    symmetric-run*)
        [ "$FAILS" != head ] || exit 0
        while [ "$1" != -- ]; do shift; done
        shift
        "$@" ;;
esac""",
    "python": '[ "$1" != -c ] || exec python3 "$@"; echo python "$@" >> "$CALLED"',
    "pip": "true",
    # An srun that runs what follows its options, here.
    "srun": 'while [[ "$1" == -* ]]; do shift; done; "$@"',
}


@pytest.fixture
def called(tmp_path: Path) -> dict[str, str]:
    """An environment in which those programs write what they are called with, to the file `CALLED`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "rankray-env" / "bin").mkdir(parents=True)
    for activate in (".venv/bin/activate", "rankray-env/bin/activate"):
        (tmp_path / activate).write_text("")
    for name, body in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "called").write_text("")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(tmp_path), "CALLED": str(tmp_path / "called"), "FAILS": "nothing"}


def options_of_ray_start() -> set[str]:
    from ray.scripts.scripts import cli

    assert "symmetric-run" in cli.commands
    return {option for parameter in cli.commands["start"].params for option in parameter.opts}


def lines(called: dict[str, str]) -> list[str]:
    return Path(called["CALLED"]).read_text().splitlines()


def check_job(words: list[str], monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """A job of this repository, whose options parse."""
    assert words[:2] == ["python", "jobs/synpic.py"]
    monkeypatch.chdir(ROOT)
    settings = parse_synpic(words[2:])
    assert (settings.output, settings.prompts.path) == (f"{place}/synpic", f"{place}/prompts.parquet")


def test_slurm_starts_ray_everywhere_and_the_job_once(
    called: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "24",
    }
    words = ["bash", str(SBATCH), "/scratch/prompts.parquet", "/scratch/synpic", "--prompts.limit", "5"]
    subprocess.run(words, env={**called, **slurm, "SLURM_GPUS_ON_NODE": "4"}, check=True)
    line, entry = lines(called)
    started, _, _ = line.partition(" -- ")
    assert started.split()[:6] == ["ray", "symmetric-run", "--address", "10.0.0.1:6379", "--min-nodes", "2"]
    assert {w for w in started.split()[6:] if w.startswith("--")} <= options_of_ray_start()
    assert "--num-gpus 4" in started
    assert Path(f"{called['CALLED']}.environment").read_text().split() == ["token", "64", "24"]
    check_job(shlex.split(entry), monkeypatch, "/scratch")


def test_slurm_fails_where_ray_does_not_start(called: dict[str, str], tmp_path: Path) -> None:
    """`ray symmetric-run` ends with 0 there, by which a job would count as done."""
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "node-1", "SLURM_JOB_NUM_NODES": "1"}
    words = ["bash", str(SBATCH), "/scratch/prompts.parquet", "/scratch/synpic"]
    env = {**called, **slurm, "FAILS": "head", "TMPDIR": str(tmp_path)}
    ended = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.splitlines()[-1:]) == (
        1,
        ["Ray did not start on node-1, so nothing was run: its error is above"],
    )
    assert not list(tmp_path.glob("tmp.*"))


def test_slurm_says_what_is_missing(called: dict[str, str]) -> None:
    ended = subprocess.run(["bash", str(SBATCH)], env=called, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "give the prompts file" in ended.stderr


def test_slurm_s_directives_stand_before_the_first_command() -> None:
    """sbatch reads none after it."""
    before = re.split(r"^[^#\n]", SBATCH.read_text(), maxsplit=1, flags=re.M)[0]
    directives = re.findall(r"^#SBATCH --([a-z-]+)", SBATCH.read_text(), re.M)
    assert len(directives) == len(re.findall(r"^#SBATCH ", before, re.M)) >= 8
    assert {"nodes", "ntasks-per-node", "exclusive", "requeue"} <= set(directives)


@pytest.fixture
def task() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / "skypilot.yaml").read_text())


def test_skypilot_s_fields_are_known(task: dict[str, Any]) -> None:
    jsonschema.validate(task, TASK)
    with pytest.raises(jsonschema.ValidationError, match="use_spots"):
        jsonschema.validate({**task, "resources": {"use_spots": True}}, TASK)


SKY = {
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    "BUCKET": "s3://bucket",
}


@pytest.mark.parametrize("rank", ["0", "1"])
def test_skypilot_s_first_node_runs_the_job_and_the_others_join(
    called: dict[str, str], task: dict[str, Any], monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    subprocess.run(["bash", "-n"], input=task["setup"], text=True, check=True)
    words = ["bash", "-c", task["run"]]
    subprocess.run(words, env={**called, **SKY, "SKYPILOT_NODE_RANK": rank}, check=True, timeout=60)
    found = lines(called)
    begun = [line.split() for line in found if line.startswith("ray start")]
    assert len(begun) == 1
    assert {w for w in begun[0] if w.startswith("--")} <= options_of_ray_start()
    assert ("--head" in begun[0]) == (rank == "0")
    jobs = [line for line in found if line.startswith("python")]
    assert len(jobs) == (1 if rank == "0" else 0)
    assert not any("stop" in line for line in found), "SkyPilot's own Ray would be stopped too"
    if jobs:
        check_job(shlex.split(jobs[0]), monkeypatch, "s3://bucket")


def test_skypilot_s_first_node_ends_where_ray_does_not_start(
    called: dict[str, str], task: dict[str, Any]
) -> None:
    """It waited for ever, on nodes that are paid for."""
    words = ["bash", "-c", task["run"]]
    env = {**called, **SKY, "SKYPILOT_NODE_RANK": "0", "FAILS": "--head"}
    assert subprocess.run(words, env=env, check=False, timeout=60).returncode == 1
    assert not [line for line in lines(called) if line.startswith("python")]
