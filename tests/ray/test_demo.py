"""`make demo`'s script: a job's failure is its own failure, and nothing of its Ray is left behind."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest
import ray

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
    assert process.returncode == 2, printed
    assert "no configuration file at" in printed
    assert "the job failed" in printed
    assert set(Path(tempfile.gettempdir()).glob("rankray-*")) <= before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("busy", [False, True])
def test_a_ray_that_takes_no_job_is_a_line(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], busy: bool
) -> None:
    """As one that wants a token, which answers 401, or ends as it is asked to take the job."""

    class Closed(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not busy:
                self.send_error(401, "Missing authentication token")
                return
            about = {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(about).encode())

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with HTTPServer(("127.0.0.1", 0), Closed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{server.server_port}")
        assert demo.submit([], "c.toml", {}) == 2
        server.shutdown()
    logging.disable(logging.NOTSET)
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("demo: that Ray takes no job (")
    assert "RAY_AUTH_MODE=token" in said[-1]


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
