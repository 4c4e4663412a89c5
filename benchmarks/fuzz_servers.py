"""Hostile answers of servers that rankray asks, and hostile questions to the one that it is."""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import requests
from fuzz_changes import WORDS, Case, Rng, bytes_changed, called, json_changed, verb
from PIL import Image

from rankray.config import ConfigError, PromptsConfig, RewardChoice
from rankray.data import prompts
from rankray.models import hub
from rankray.models.rewards import resolve
from rankray.models.rewards.http import ServerError
from rankray.models.targets import load
from rankray.report import browse

HOST = "127.0.0.1"
SHA = "0123456789abcdef0123456789abcdef01234567"
CODES = ("", "RevisionNotFound", "GatedRepo", "RepoNotFound", "\x1b[2J", "é")
PLACES = (
    "/x",
    "http://[",
    "file:///etc/passwd",
    "//",
    "http://127.0.0.1:9/x",
    "ftp://127.0.0.1/x",
    "\x00",
    "",
)


def answering(data: bytes) -> int:
    """Port of a server that answers every request with `data`, until the next call."""
    port, answers = _listening()
    answers["now"] = data
    return port


@functools.cache
def _listening() -> tuple[int, dict[str, bytes]]:
    """Port of a server of this process that answers every request with `answers["now"]`, whatever was asked."""
    server, answers = socket.create_server((HOST, 0)), {"now": b""}

    def answer(asked: socket.socket) -> None:
        with asked, contextlib.suppress(OSError):
            asked.settimeout(2)
            read = b""
            while b"\r\n\r\n" not in read and (part := asked.recv(2**16)):
                read += part
            head, _, body = read.partition(b"\r\n\r\n")
            for line in head.lower().splitlines():
                if line.startswith(b"content-length:"):
                    while len(body) < int(line.split(b":")[1]) and (part := asked.recv(2**16)):
                        body += part
            asked.sendall(answers["now"])

    def serve() -> None:
        while True:
            threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()[1], answers


@functools.cache
def spaces() -> bytes:
    """What 256 MB of spaces are, packed."""
    return gzip.compress(b" " * 2**28)


def _reply(rng: Rng, body: bytes, told: str) -> tuple[bytes, str]:
    """`body` as an HTTP answer, one time in two an odd one."""
    status, headers = 200, {"Content-Type": "application/json", "Content-Length": str(len(body))}
    kind = rng.randrange(20)
    if kind == 0:
        status, headers["Location"] = rng.choice((301, 302, 307, 308, 304)), rng.choice(PLACES)
    elif kind == 1:
        status = rng.choice((100, 204, 401, 403, 404, 429, 500, 503, 999))
        headers["X-Error-Code"], headers["Retry-After"] = rng.choice(CODES), rng.choice(("0", "x", "-1"))
    elif kind == 2:
        headers["Content-Length"] = rng.choice(("-1", "x", "9" * 40, str(2 * len(body) + 9), "0", ""))
    elif kind == 3:
        del headers["Content-Length"]
    elif kind == 4:
        body = gzip.compress(body)
        body, more = bytes_changed(rng, body) if rng.random() < 0.7 else (body, "")
        headers |= {"Content-Encoding": "gzip", "Content-Length": str(len(body))}
        told += f", gzip {more}"
    elif kind == 5:
        body, told = spaces(), "256 MB of spaces"
        headers |= {"Content-Encoding": "gzip", "Content-Length": str(len(body))}
    elif kind == 6:
        body = rng.choice((b"5\r\nab", b"zz\r\n", b"-1\r\n\r\n", b"0\r\n\r\n", b"f" * 9000))
        headers = {"Transfer-Encoding": "chunked"}
        told = f"chunks {body[:8]!r}"
    elif kind == 7:
        body = b" " * 2**24 + body
        headers["Content-Length"] = str(len(body))
        told += ", behind 16 MB of spaces"
    lines = [f"HTTP/1.1 {status} {rng.choice(('OK', '', 'x' * 9000)) if kind == 8 else 'OK'}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    data = "\r\n".join([*lines, "", ""]).encode("utf-8", "replace") + body
    if kind == 9:
        return bytes_changed(rng, data)[0], f"{told}, then {bytes_changed(rng, data)[1]} of all"
    return data, f"{status} {told}"


def _answered(rng: Rng, value: Any) -> tuple[int, str]:
    """(port of a server that answers with a change of `value`, what it is)."""
    body, told = json_changed(rng, value) if rng.random() < 0.7 else (json.dumps(value).encode(), "right")
    data, told = _reply(rng, body, told)
    return answering(data), told


def rewards(rng: Rng, place: Path) -> Case:
    """Answers to the two rewards that ask a server: an item's error is one of those that they state."""
    words = [{"token": word, "logprob": -0.1 * n} for n, word in enumerate((" Yes", "No", "maybe"))]
    chosen = {"message": {"content": "It is a 7."}, "logprobs": {"content": [{"top_logprobs": words}]}}
    number = rng.random() < 0.3
    kind, value, options = rng.choice(
        (
            ("http", {"scores": [0.5, None]}, {}),
            ("vlm-judge", {"choices": [chosen]}, {"model": "m", "score": "number" if number else "yes"}),
        )
    )
    port, told = _answered(rng, value)
    url = f"http://{HOST}:{port}/v1"
    options = {**options, "retries": 0, "timeout_s": 3}
    target = resolve(RewardChoice(model=kind, source=url, options=options))

    def work() -> None:
        try:
            found = load(target, "cpu").score([Image.new("RGB", (2, 2))] * 2, ["a", "b"])
        except (ServerError, requests.RequestException) as error:
            raise ConfigError(f"{url}: {error!r}") from None
        for one in found:
            if isinstance(one, ServerError | requests.RequestException):
                raise ConfigError(f"{url}: {one!r}")
        assert np.asarray(found, np.float32).shape == (2,)

    return Case(lambda: called(work), f"{kind}: {told}", (HOST,))


def hub_commits(rng: Rng, place: Path) -> Case:
    """Answers to the driver's question of which commit a name is."""
    port, told = _answered(rng, {"id": "a/b", "sha": SHA, "gated": rng.choice((False, "auto"))})
    home = {"HF_ENDPOINT": f"http://{HOST}:{port}", "HF_TOKEN": "hf_x"}

    def work() -> None:
        os.environ.update(home)
        found = hub.commit("a/b", "main")
        assert found is None or found == SHA, found

    return Case(lambda: called(work), told, ("'a/b'",))


def hub_uploads(rng: Rng, place: Path, dataset: Path) -> Case:
    """Answers to the hub's own client, while a dataset is written there."""
    about = {"id": "a/b", "sha": SHA, "private": False, "tags": [], "siblings": [{"rfilename": "x"}]}
    uploads = {"files": [{"path": "README.md", "uploadMode": "regular"}], "commitOid": SHA, "commitUrl": "x"}
    siblings = rng.choice(([], [{"rfilename": "x"}]))
    port, told = _answered(rng, {**about, **uploads, "siblings": siblings})

    def call() -> int:
        from huggingface_hub import constants

        os.environ["HF_TOKEN"] = "hf_x"
        # With telemetry the client asks the same server which agents there are, and keeps what it hears for a day.
        closed = {"ENDPOINT": f"http://{HOST}:{port}", "HF_HUB_DISABLE_TELEMETRY": True}
        with mock.patch.multiple(constants, **closed):
            return asked()

    asked = verb(rng, ["export", str(dataset), "--to", "hub", "--output", "a/b"])
    return Case(call, told, ("'a/b'",))


HEADERS = ("Host", "Origin", "Content-Length", "Content-Type", "Range", "Transfer-Encoding")
PATHS = (
    *(
        "/",
        "/vote",
        "/votes",
        "/picture/RUN/0/0/small",
        "/picture/RUN/0/0/full",
        "/picture/RUN/2/2/full",
        "/picture/0/0/full",
        "/pair/x/left",
    ),
    *(
        "/picture/RUN/-1/0/full",
        "/picture/RUN/1e9/0/full",
        "/picture/RUN/٣/0/full",
        "/../../etc/passwd",
        "//",
        "/?page=0",
    ),
    *("/?page=99999999999999999999999", "/?page=x", "/?text=%00%ff%d8", "/?order=x&first=two&mind=r"),
)


def browser(rng: Rng, place: Path, dataset: Path) -> Case:
    """Requests to `rankray browse`: every one is answered, or its connection closed, and no handler raises."""
    asked = []
    for _ in range(3):
        method, path = rng.choice(("GET", "GET", "POST", "HEAD", "BREW")), rng.choice(PATHS)
        if rng.random() < 0.3:
            path += rng.choice(("?", "&", "/", "%")) + rng.choice(WORDS)[:300].replace(" ", "+")
        headers = {"Host": "PORT", **{name: rng.choice(WORDS)[:300] for name in rng.sample(HEADERS, 1)}}
        body = rng.choice((b"", b"choice=undo&token=x", b"token=\xff&pair=%00", b"a" * 20_000))
        headers.setdefault("Content-Length", str(len(body)))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        data = "\r\n".join([*lines, "Connection: close", "", ""]).encode("utf-8", "surrogatepass") + body
        asked.append(bytes_changed(rng, data)[0] if rng.random() < 0.3 else data)

    def work() -> None:
        server, site = browse.server(str(dataset), 0, str(place / "votes.jsonl"), "me")
        raised: list[Any] = []
        server.handle_error = lambda *_: raised.append(sys.exc_info()[1])  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            for data in asked:
                named = data.replace(b"/RUN/", f"/{site.run}/".encode())
                _ask(server.server_port, named.replace(b"Host: PORT", b"Host: localhost"))
        finally:
            server.shutdown()
            server.server_close()
        for error in raised:
            raise error

    return Case(lambda: called(work), repr(asked[0])[:200], ())


def _ask(port: int, data: bytes) -> None:
    read = b""
    with contextlib.suppress(ConnectionError), socket.create_connection((HOST, port), 30) as asked:
        asked.sendall(data)
        with contextlib.suppress(OSError):  # it may be closed already
            asked.shutdown(socket.SHUT_WR)
        while part := asked.recv(2**16):
            read += part
    status = read.split(b" ")[1] if read.startswith(b"HTTP/") else b"0"
    assert not status.startswith(b"5") or status in (b"501", b"505"), read[:80]


def hub_directories(rng: Rng, place: Path, parquet: bytes) -> Case:
    """`hub:` of a directory that is laid out as a dataset: its card, and one of its files."""
    card = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: '*.parquet'\n---\n"
    )
    odd, told = bytes_changed(rng, card.encode())
    data, more = bytes_changed(rng, parquet)
    first = rng.random() < 0.5
    (place / "README.md").write_bytes(odd if first else card.encode())
    (place / "a.parquet").write_bytes(parquet if first else data)
    asked = PromptsConfig(path=f"hub:{place}")

    def work() -> None:
        os.environ["HF_HUB_OFFLINE"], os.environ["HF_DATASETS_CACHE"] = "1", str(place / "cache")
        prompts.read_prompts(asked)

    return Case(lambda: called(work), f"card: {told}" if first else f"file: {more}", (place.name, "prompts"))
