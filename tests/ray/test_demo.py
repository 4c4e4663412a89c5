"""`make demo`'s script: a job's failure is its own failure, and nothing of its Ray is left behind."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "scripts" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    specification = importlib.util.spec_from_file_location("rankray_demo", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.ray
def test_a_failing_job_fails_the_demo_and_its_ray_is_gone(tmp_path: Path) -> None:
    """On a Ray of its own, whatever others there are; the job claims no GPU, as it is refused."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    before = set(Path(tempfile.gettempdir()).glob("rankray-*"))
    process = subprocess.Popen(
        [
            sys.executable,
            str(SCRIPT),
            "--own-ray",
            "--config",
            "jobs/missing.toml",
            "--output",
            str(tmp_path / "out"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PATH": path},
    )
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 1, printed
    assert "no configuration file at" in printed
    assert "the job failed" in printed
    assert set(Path(tempfile.gettempdir()).glob("rankray-*")) <= before
    assert not (tmp_path / "out").exists()


def test_ports_are_free_and_different(demo: ModuleType) -> None:
    ports = demo.free_ports(20)
    assert len(set(ports)) == 20
    assert all(1024 < port < 65536 for port in ports)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_descendants_are_found_whatever_session_they_are_in(demo: ModuleType) -> None:
    child = subprocess.Popen(["sh", "-c", "setsid sleep 60 & wait"], start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while len(demo.descendants(child.pid)) < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(demo.descendants(child.pid)) == 1
        assert child.pid in demo.descendants(os.getpid())
    finally:
        for pid in [*demo.descendants(child.pid), child.pid]:
            os.kill(pid, 9)
        child.wait()


def test_a_ray_that_the_environment_names_is_used(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert demo.running_ray() is None
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert demo.running_ray() is None
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert demo.running_ray() == {"RAY_ADDRESS": "http://head:8265"}
