"""Addresses at which no Ray answers: one line, before anything is started."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray._private import services

from rankray.cluster import job
from rankray.config import ConfigError


def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_that_nobody_answers_at_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    address = f"{scheme}127.0.0.1:{closed_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    begin_s = time.monotonic()
    with pytest.raises(
        ConfigError, match=f"no Ray answers at RAY_ADDRESS '{address}' .*refused.*local to start one"
    ):
        job.connect()
    assert time.monotonic() - begin_s < 20
    assert not ray.is_initialized()  # nor was another one started in its place


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://127.0.0.1:8265", "no address of a Ray; http:// is for RAY_API_SERVER_ADDRESS"),
        ("nonsense", "no address of a Ray; give HOST:PORT"),
        ("head:port", "no address of a Ray; give HOST:PORT"),
        ("127.0.0.1:99999999", "no Ray answers"),
        ("no.such.host.invalid:6379", "no Ray answers"),
    ],
)
def test_what_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch, address: str, told: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=told):
        job.connect()


def test_the_ray_of_another_program_is_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with that one, and may let nobody else in; `ray start` leaves a note, which is what is looked for."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        waiting = ["raylet", "-c", "read line", f"--gcs-address={address}"]
        with subprocess.Popen(waiting, executable="/bin/sh", stdin=subprocess.PIPE) as process:
            services._cached_find_gcs_addresses.cache_clear()
            assert address in services.find_gcs_addresses()  # Ray itself would join it
            assert job.running() == ""
            (tmp_path / "ray").mkdir()
            (tmp_path / "ray" / "ray_current_cluster").write_text(address)
            assert job.running() == address
            assert process.poll() is None
            process.communicate(b"\n")
    assert job.running() == "", "a note outlives a Ray that was killed"


SLOW = """
import itertools, time, types
import ray
from rankray.cluster import job
from rankray.config import ConfigError

def unknown(*_):
    raise RuntimeError("This node is not known yet")

ray._private.services.get_node = unknown
jumps = itertools.count(0, 31)
ray._private.node.time = types.SimpleNamespace(monotonic=jumps.__next__, sleep=time.sleep, time=time.time)
try:
    job.connect()
except ConfigError as error:
    print("refused:", error)
"""


def test_a_ray_that_does_not_come_up_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine whose load is 100 the half minute that Ray gives its parts is not enough; here the clock jumps."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    ended = subprocess.run(
        [sys.executable, "-c", SLOW], capture_output=True, text=True, timeout=120, check=True
    )
    assert "refused: Ray was not up within 30 seconds" in ended.stdout
