"""A model hub on this machine: real HTTP that answers as the hub does, with its status codes and X-Error-Code headers.

Its API and its files, as the hub's clients ask for them: `/api/models/NAME/...` and `/NAME/resolve/REVISION/FILE`, and
the same of datasets, whose names here begin with `datasets/`. A branch, a tag and a pull request are each a directory
under a commit of its own, which no other repository knows; a repository that was renamed is answered from its new
place. Whoever has the token is `me`, may make repositories of that owner and commit to them: small files within the
commit, large ones (`LARGE`) before it, by their SHA-256, as git LFS does.

    python tests/unit/hub_server.py --port 8000 [NAME...]       then: export HF_ENDPOINT=http://127.0.0.1:8000

serves small random weights laid out as `published_repositories.py` says, for a job that is not to know the difference.
"""

from __future__ import annotations

import argparse
import base64
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
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_accepted"
OWNER = "me"
LARGE = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".model",
    ".msgpack",
    ".onnx",
    ".h5",
    ".parquet",
    ".jpeg",
    ".png",
)
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
        root: where repositories are made.
        private: names of those that the token's owner made so.
        commits: how many there were, by name.
        large: contents that were put here before their commit, by SHA-256.
        puts: SHA-256 of each content that was put here.
    """

    url: str
    repositories: dict[str, Path] = field(default_factory=dict)
    references: dict[tuple[str, str], Path] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    broken: bool = False
    asked: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    root: Path | None = None
    private: set[str] = field(default_factory=set)
    commits: dict[str, int] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)

    def sha(self, name: str, reference: str = "main") -> str:
        """The commit of a branch, tag or pull request."""
        commit = f"#{self.commits[name]}" if name in self.commits else ""
        return hashlib.sha1(
            (name if reference == "main" else f"{name}@{reference}").encode() + commit.encode()
        ).hexdigest()

    def find(self, name: str, revision: str, token: str | None) -> tuple[str, Path]:
        """(commit, directory) of a revision."""
        if name in self.moved:
            raise _Moved(name, self.moved[name])
        if name not in self.repositories or (name in self.private and token != f"Bearer {TOKEN}"):
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


def _split(path: str) -> tuple[str, list[str]]:
    """(name of a repository, what follows it) of an address behind `/` or `/api/`."""
    words = path.removeprefix("models/").split("/")
    size = 3 if words[0] == "datasets" else 2
    return "/".join(words[:size]), words[size:]


def _asked(hub: Hub, path: str, token: str | None, body: bytes, deep: bool) -> Any:
    """What `/api/models/OWNER/NAME/...` and `/api/datasets/OWNER/NAME/...` answer."""
    name, rest = _split(path)
    action = rest[0] if rest else "revision"
    sha, place = hub.find(name, unquote(rest[1]) if len(rest) > 1 else "main", token)
    if action == "auth-check":
        _allowed(hub, name, token)
        return {}
    if action in ("preupload", "commit"):
        _mine(name, token)
        return _uploaded(json.loads(body)) if action == "preupload" else _commit(hub, name, body)
    files = [file for file in sorted(place.rglob("*")) if file.is_file()]
    if action == "tree":
        within = place / unquote("/".join(rest[2:]))
        if not within.is_dir():
            raise _Refused(404, "EntryNotFound")
        # Without a word on depth a hub lists a folder; the clients of models here always meant all.
        entries = sorted(within.rglob("*") if deep or not name.startswith("datasets/") else within.iterdir())
        return [
            _entry(entry, place, sha) for entry in entries if entry.is_file() or name.startswith("datasets/")
        ]
    if action == "paths-info":
        return [_entry(place / path, place, sha) for path in _paths(body) if path and (place / path).exists()]
    siblings = [{"rfilename": str(file.relative_to(place))} for file in files]
    gated = "auto" if name in hub.gated else False
    about = {"id": name.removeprefix("datasets/"), "sha": sha, "gated": gated, "siblings": siblings}
    return {**about, "private": name in hub.private, "tags": [], "downloads": 0, "likes": 0}


def _paths(body: bytes) -> list[str]:
    """What a client asks the paths of: as JSON, or as a form."""
    if body[:1] == b"{":
        return list(json.loads(body)["paths"])
    return parse_qs(body.decode()).get("paths", [])


def _mine(name: str, token: str | None) -> None:
    if name.removeprefix("datasets/").partition("/")[0] != OWNER or token != f"Bearer {TOKEN}":
        raise _Refused(403 if token else 401)


def _create(hub: Hub, body: bytes, token: str | None) -> Any:
    wanted = json.loads(body)
    prefix = "datasets/" if wanted.get("type") == "dataset" else ""
    name = f"{prefix}{wanted.get('organization') or OWNER}/{wanted['name']}"
    _mine(name, token)
    if name in hub.repositories:
        raise _Refused(409)
    assert hub.root is not None
    hub.repositories[name] = hub.root / name
    hub.repositories[name].mkdir(parents=True)
    (hub.repositories[name] / ".gitattributes").write_text("*.parquet filter=lfs\n")
    hub.commits[name] = 0
    if wanted.get("private") or wanted.get("visibility") == "private":
        hub.private.add(name)
    return {"url": f"{hub.url}/{name}", "id": name, "name": name}


def _uploaded(wanted: dict[str, Any]) -> Any:
    """How each file is to come: within the commit, or before it."""
    return {
        "files": [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in wanted["files"]
        ]
    }


def _batch(hub: Hub, body: bytes) -> Any:
    """git LFS' batch: where contents go that are not here."""
    found = []
    for item in json.loads(body)["objects"]:
        upload = {"upload": {"href": f"{hub.url}/lfs/{item['oid']}", "header": {}}}
        found.append({**item, **({} if item["oid"] in hub.large else {"actions": upload})})
    return {"transfer": "basic", "objects": found}


def _commit(hub: Hub, name: str, body: bytes) -> Any:
    lines = [json.loads(line) for line in body.splitlines()]
    place = hub.repositories[name]
    written: dict[str, bytes | None] = {}
    for line in lines:
        key, value = line["key"], line["value"]
        if key == "file":
            written[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            if value["oid"] not in hub.large:
                raise _Refused(400)
            written[value["path"]] = hub.large[value["oid"]]
        elif key == "deletedFile":
            written[value["path"]] = None
    for path, content in written.items():
        target = place / path
        if content is None:
            target.unlink()
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    hub.commits[name] += 1
    sha = hub.sha(name)
    return {"commitUrl": f"{hub.url}/{name}/commit/{sha}", "commitOid": sha, "pullRequestUrl": None}


def _entry(path: Path, place: Path, sha: str) -> dict[str, Any]:
    """A file or folder as a tree lists it."""
    about = {"path": str(path.relative_to(place))}
    if path.is_dir():
        return {"type": "directory", "oid": sha, "size": 0, **about}
    return {"type": "file", **about, **_identity(path)}


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
    repository, rest = _split(path)
    if len(rest) < 3:
        raise _Refused(404)
    revision, name = rest[1], "/".join(rest[2:])
    sha, place = hub.find(repository, unquote(revision), token)
    _allowed(hub, repository, token)
    file = place / unquote(name)
    if not file.is_file():
        raise _Refused(404, "EntryNotFound")
    identity = _identity(file)
    etag = identity.get("lfs", identity)["oid"]
    return {"ETag": f'"{etag}"', "X-Repo-Commit": sha}, file.read_bytes()


def _answer(
    hub: Hub, command: str, url: SplitResult, token: str | None, body: bytes
) -> tuple[dict[str, str], bytes]:
    """What one request is answered: headers, content."""
    path = url.path.lstrip("/")
    if hub.broken:
        raise _Refused(503)
    if command == "PUT":
        digest = hashlib.sha256(body).hexdigest()
        assert path == f"lfs/{digest}"
        hub.puts.append(digest)
        hub.large[digest] = body
        return {}, b""
    if not path.startswith("api/") and not path.endswith(".git/info/lfs/objects/batch"):
        headers, content = _file(hub, path, token)
        if command == "GET":
            name, rest = _split(path)
            hub.sent.append("/".join([name, *rest[2:]]))
        return headers, content
    if path == "api/repos/create":
        found = _create(hub, body, token)
    elif path == "api/validate-yaml":
        front = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
        found = {"errors": [] if isinstance(front, dict) else [{"message": "no mapping"}], "warnings": []}
    elif path.startswith("api/"):
        deep = "recursive=true" in url.query.lower()
        found = _asked(hub, path.removeprefix("api/"), token, body, deep)
    else:
        _mine(path, token)
        found = _batch(hub, body)
    return {"Content-Type": "application/json"}, json.dumps(found).encode()


def _part(status: int, answer: bytes, asked: str | None) -> tuple[int, bytes, dict[str, str]]:
    """What a client asked a part of, as Parquet's readers do."""
    if status != 200 or not asked:
        return status, answer, {}
    start, _, end = asked.removeprefix("bytes=").partition("-")
    first = int(start) if start else len(answer) - int(end)
    last = min(int(end), len(answer) - 1) if start and end else len(answer) - 1
    return 206, answer[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(answer)}"}


@contextmanager
def serving(port: int = 0) -> Iterator[Hub]:
    """A hub while the context lasts; at a free port by default."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.asked.append(self.path)
            path, token = urlsplit(self.path), self.headers.get("Authorization")
            headers = {"Content-Type": "application/json"}
            status, answer = 200, b'{"error": "refused"}'
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                headers, answer = _answer(hub, self.command, path, token, body)
            except _Refused as refused:
                status, headers["X-Error-Code"] = refused.status, refused.code
            except _Moved as moved:
                status, headers["Location"] = 307, self.path.replace(moved.old, moved.new)
            status, answer, more = _part(status, answer, self.headers.get("Range"))
            self.send_response(status)
            for key, value in {**headers, **more, "Content-Length": str(len(answer))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)

        do_HEAD = do_POST = do_PUT = do_GET

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
