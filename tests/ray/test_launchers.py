"""What the launchers' files start, on this machine: nodes with a token join each other, and a job joins them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
JOB = """
import ray
from rankray.cluster.job import connect
from rankray.config import ConfigError
try:
    connect()
    print("nodes:", len(ray.nodes()))
except ConfigError as error:
    print("refused:", error)
"""


@pytest.fixture
def node() -> Iterator[dict[str, str]]:
    """The environment of a user who has a token and has exported nothing."""
    short = tempfile.mkdtemp(prefix="rr-", dir="/tmp")  # Ray's sockets have short names
    home = Path(short, "home")
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "LANG") if name in os.environ}
    yield {
        "PATH": path,
        "HOME": str(home),
        "RAY_TMPDIR": short,
        "RAY_prestart_worker_first_driver": "0",
        **kept,
    }
    subprocess.run(["pkill", "-9", "-f", f"{short}/"], check=False)
    shutil.rmtree(short, ignore_errors=True)


def started(line: str, port: int, environment: dict[str, str]) -> None:
    """A start line of a launcher's file, here: on another port, with neither autoscaler nor dashboard."""
    changes = {
        "--autoscaling-config=~/ray_bootstrap_config.yaml": "",
        "--dashboard-host=127.0.0.1": "--include-dashboard=false",
        "--object-manager-port=8076": "--num-cpus=1",
        "6379": str(port),
    }
    for theirs, ours in changes.items():
        line = line.replace(theirs, ours)
    done = subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def job(environment: dict[str, str]) -> str:
    words = [sys.executable, "-c", JOB]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return (done.stdout or done.stderr).splitlines()[-1]


@pytest.mark.ray
@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_nodes_of_a_launcher_join_by_the_token_that_it_copied(name: str, node: dict[str, str]) -> None:
    launcher = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    started(launcher["head_start_ray_commands"][-1], port, node)
    found = Path(node["RAY_TMPDIR"], "ray", "ray_current_cluster").read_text().strip()
    host = found.rpartition(":")[0]
    started(launcher["worker_start_ray_commands"][-1], port, {**node, "RAY_HEAD_IP": host})
    assert job(node) == "nodes: 2", "by the note of this machine's `ray start`, without an export"
    if name == "aws":
        told = job({**node, "RAY_ADDRESS": found})
        assert told.startswith("refused: ")
        assert "export RAY_AUTH_MODE=token" in told
        assert job({**node, "RAY_ADDRESS": found, "RAY_AUTH_MODE": "token"}) == "nodes: 2"
