"""A model hub on this machine: real HTTP that answers as the hub does, with its status codes and X-Error-Code headers.

Its API and its files, as the hub's clients ask for them: `/api/models/NAME/...` and `/NAME/resolve/REVISION/FILE`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_accepted"


@dataclass
class Hub:
    """Repositories by name: a directory each, under one commit. `asked` are the paths of all requests."""

    url: str
    repositories: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    broken: bool = False
    asked: list[str] = field(default_factory=list)

    def sha(self, name: str) -> str:
        return hashlib.sha1(name.encode()).hexdigest()


class _Refused(Exception):
    def __init__(self, status: int, code: str = "") -> None:
        self.status, self.code = status, code


def _model(hub: Hub, path: str, token: str | None) -> Any:
    """What `/api/models/OWNER/NAME/...` answers."""
    owner, repo, action, *rest = path.split("/")
    name, revision = f"{owner}/{repo}", unquote(rest[0]) if rest else "main"
    if name not in hub.repositories:
        raise _Refused(404 if token else 401, "RepoNotFound")
    if revision not in ("main", hub.sha(name)):
        raise _Refused(404, "RevisionNotFound")
    if action == "auth-check":
        _allowed(hub, name, token)
        return {}
    files = [file for file in sorted(hub.repositories[name].rglob("*")) if file.is_file()]
    names = [file.relative_to(hub.repositories[name]).as_posix() for file in files]
    if action == "tree":
        return [
            {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
            for name, file in zip(names, files, strict=True)
        ]
    siblings = [{"rfilename": name} for name in names]
    return {
        "id": name,
        "sha": hub.sha(name),
        "gated": "auto" if name in hub.gated else False,
        "siblings": siblings,
    }


def _allowed(hub: Hub, name: str, token: str | None) -> None:
    if name in hub.gated and token != f"Bearer {TOKEN}":
        raise _Refused(403 if token else 401, "GatedRepo")


def _file(hub: Hub, path: str, token: str | None) -> tuple[str, bytes]:
    owner, repo, _, revision, file = path.split("/", 4)
    name = f"{owner}/{repo}"
    if name not in hub.repositories:
        raise _Refused(404 if token else 401, "RepoNotFound")
    if revision not in ("main", hub.sha(name)):
        raise _Refused(404, "RevisionNotFound")
    _allowed(hub, name, token)
    place = hub.repositories[name] / file
    if not place.is_file():
        raise _Refused(404, "EntryNotFound")
    return hub.sha(name), place.read_bytes()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.asked.append(self.path)
            path, token = urlsplit(self.path).path, self.headers.get("Authorization")
            headers = {"Content-Type": "application/json"}
            try:
                if hub.broken:
                    raise _Refused(503)
                if path.startswith("/api/models/"):
                    status, body = (
                        200,
                        json.dumps(_model(hub, path.removeprefix("/api/models/"), token)).encode(),
                    )
                else:
                    sha, body = _file(hub, path.lstrip("/"), token)
                    status = 200
                    headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": sha}
            except _Refused as refused:
                status, body = refused.status, b'{"error": "refused"}'
                headers["X-Error-Code"] = refused.code
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
