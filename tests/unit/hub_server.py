"""A model hub on this machine: real HTTP that answers as the hub does, with its status codes and X-Error-Code headers.

Its API and its files, as the hub's clients ask for them: `/api/models/NAME/...` and `/NAME/resolve/REVISION/FILE`. A
branch, a tag and a pull request are each a directory under a commit of its own, which no other repository knows; a
repository that was renamed is answered from its new place.

    python tests/unit/hub_server.py --port 8000 [NAME...]       then: export HF_ENDPOINT=http://127.0.0.1:8000

serves small random weights laid out as `published_repositories.py` says, for a job that is not to know the difference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_accepted"
LARGE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".model", ".msgpack", ".onnx", ".h5")
"""What the hub keeps outside git, under its SHA-256."""


@dataclass
class Hub:
    """Repositories by name: the directory of `main`.

    Attributes:
        references: of (name, branch, tag or pull request) other than `main`, the directory.
        moved: of a repository's old name, the new one.
        gated: names of those whose files want the token.
        asked: the paths of all requests.
        sent: "NAME/FILE" of each file that was sent, headers alone not counted.
    """

    url: str
    repositories: dict[str, Path] = field(default_factory=dict)
    references: dict[tuple[str, str], Path] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    broken: bool = False
    asked: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)

    def sha(self, name: str, reference: str = "main") -> str:
        """The commit of a branch, tag or pull request."""
        return hashlib.sha1((name if reference == "main" else f"{name}@{reference}").encode()).hexdigest()

    def find(self, name: str, revision: str, token: str | None) -> tuple[str, Path]:
        """(commit, directory) of a revision."""
        if name in self.moved:
            raise _Moved(name, self.moved[name])
        if name not in self.repositories:
            raise _Refused(404 if token else 401, "RepoNotFound")
        found = {"main": self.repositories[name]}
        found |= {reference: place for (owner, reference), place in self.references.items() if owner == name}
        for reference, place in found.items():
            if revision in (reference, self.sha(name, reference)):
                return self.sha(name, reference), place
        raise _Refused(404, "RevisionNotFound")


class _Refused(Exception):
    def __init__(self, status: int, code: str = "") -> None:
        self.status, self.code = status, code


class _Moved(Exception):
    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new


def _model(hub: Hub, path: str, token: str | None) -> Any:
    """What `/api/models/OWNER/NAME/...` answers."""
    owner, repo, *rest = path.split("/")
    name, action = f"{owner}/{repo}", rest[0] if rest else "revision"
    sha, place = hub.find(name, unquote(rest[1]) if len(rest) > 1 else "main", token)
    if action == "auth-check":
        _allowed(hub, name, token)
        return {}
    files = [file for file in sorted(place.rglob("*")) if file.is_file()]
    if action == "tree":
        return [{"type": "file", "path": str(file.relative_to(place)), **_identity(file)} for file in files]
    siblings = [{"rfilename": str(file.relative_to(place))} for file in files]
    gated = "auto" if name in hub.gated else False
    return {"id": name, "sha": sha, "gated": gated, "siblings": siblings}


def _identity(file: Path) -> dict[str, Any]:
    """Size and hashes of a file, as a tree lists them."""
    content = file.read_bytes()
    found: dict[str, Any] = {
        "size": len(content),
        "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
    }
    if file.suffix in LARGE:
        found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return found


def _allowed(hub: Hub, name: str, token: str | None) -> None:
    if name in hub.gated and token != f"Bearer {TOKEN}":
        raise _Refused(403 if token else 401, "GatedRepo")


def _file(hub: Hub, path: str, token: str | None) -> tuple[dict[str, str], bytes]:
    """What `/OWNER/NAME/resolve/REVISION/FILE` answers: headers, content."""
    if path.count("/") < 4:
        raise _Refused(404)
    owner, repo, _, revision, name = path.split("/", 4)
    sha, place = hub.find(f"{owner}/{repo}", unquote(revision), token)
    _allowed(hub, f"{owner}/{repo}", token)
    file = place / unquote(name)
    if not file.is_file():
        raise _Refused(404, "EntryNotFound")
    identity = _identity(file)
    etag = identity.get("lfs", identity)["oid"]
    return {"ETag": f'"{etag}"', "X-Repo-Commit": sha}, file.read_bytes()


@contextmanager
def serving(port: int = 0) -> Iterator[Hub]:
    """A hub while the context lasts; at a free port by default."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.asked.append(self.path)
            path, token = urlsplit(self.path).path, self.headers.get("Authorization")
            headers = {"Content-Type": "application/json"}
            status, body = 200, b'{"error": "refused"}'
            try:
                if hub.broken:
                    raise _Refused(503)
                if path.startswith("/api/models/"):
                    body = json.dumps(_model(hub, path.removeprefix("/api/models/"), token)).encode()
                else:
                    headers, body = _file(hub, path.lstrip("/"), token)
                    if self.command == "GET":
                        owner, name, _, _, file = path.lstrip("/").split("/", 4)
                        hub.sent.append(f"{owner}/{name}/{file}")
            except _Refused as refused:
                status, headers["X-Error-Code"] = refused.status, refused.code
            except _Moved as moved:
                status, headers["Location"] = 307, self.path.replace(moved.old, moved.new)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def asked(code: str, hub: Hub, home: Path, *arguments: str, **more: str) -> list[str]:
    """Runs code to which `hub` is the hub, with a cache of its own in `home`; what it prints behind the word FOUND."""
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(hub, home, **more),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [line.removeprefix("FOUND") for line in ended.stdout.splitlines() if line.startswith("FOUND")]


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """This process' environment, but for whose hub it is."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **more}


def main() -> None:
    """Makes the repositories of the models named, all by default, and serves them until it is stopped."""
    import published_repositories

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of generators, rewards and benchmarks")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--directory", type=Path, help="where repositories are made, or were made before")
    options = parser.parse_args()
    place = options.directory or Path(tempfile.mkdtemp(prefix="hub-"))
    with serving(options.port) as hub:
        published_repositories.publish(hub, place, options.names)
        print(f"HF_ENDPOINT={hub.url}", *sorted(hub.repositories), sep="\n", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print(*sorted(hub.sent), sep="\n")


if __name__ == "__main__":
    main()
