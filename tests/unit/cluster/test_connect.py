"""Addresses at which no Ray answers: one line, before anything is started."""

from __future__ import annotations

import socket
import time

import pytest
import ray

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
