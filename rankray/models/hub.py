"""The model hub, asked by the driver: which commit a name is, and whether this user may have its files.

With the standard library: the hub client's own calls raise another HTTP library's errors in each of its major versions,
so "offline" could not be told from a fault. A model costs one request, a gated one two, 0.2 s each; `HF_ENDPOINT`,
`HF_HUB_OFFLINE`, `HF_TOKEN` and the client's cache are honoured.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from rankray.config import ConfigError

TIMEOUT_S = 10.0
MOST_BYTES = 16_000_000
"""Of an answer, which lists a repository's files."""
COMMIT = re.compile("[0-9a-f]{40}")
_MISSING = "check its name, and run `hf auth login` if it is private"


def endpoint() -> str:
    """Address of the hub."""
    from huggingface_hub import constants

    return str(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def offline() -> bool:
    """Whether the user forbids asking it."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def commit(repository: str, revision: str) -> str | None:
    """The commit that the hub has for a branch, tag or commit; None where it cannot be reached or does not answer.

    Raises:
        ConfigError: the hub says that there is no such repository or revision, or that this user may not read it.
    """
    if offline():
        return None
    place = urllib.parse.quote(revision, safe="")
    info = _ask(f"/api/models/{repository}/revision/{place}", repository, revision)
    if info is None or not COMMIT.fullmatch(sha := str(info.get("sha"))):
        return None
    # A gated repository tells everyone about itself; its files it keeps for those who accepted its terms.
    if info.get("gated") and not snapshot(repository, sha).is_dir():
        _ask(f"/api/models/{repository}/auth-check", repository, revision)
    _remember(repository, revision, sha)
    return sha


def cached_commit(repository: str, revision: str) -> str | None:
    """The commit that the local cache holds for the revision, or None."""
    ref = _ref(repository, revision)
    return ref.read_text().strip() if ref.is_file() else None


def _remember(repository: str, revision: str, sha: str) -> None:
    """Leaves in the local cache which commit a name is, as the client's `resolve_revision` does.

    Actors load the commit, for which the client notes no name, and the next start may have no network.
    """
    if revision == sha:
        return
    ref = _ref(repository, revision)
    with suppress(OSError):  # of a cache that cannot be written: what is loaded does not hang on it
        if cached_commit(repository, revision) != sha:
            ref.parent.mkdir(parents=True, exist_ok=True)
            passing = ref.with_name(f"{ref.name}.{uuid.uuid4().hex[:8]}.tmp")
            passing.write_text(sha)
            passing.replace(ref)


def _ref(repository: str, revision: str) -> Path:
    """Where the local cache has, or would have, the commit of a branch or tag."""
    return snapshot(repository, "").parent / "refs" / revision


def snapshot(repository: str, sha: str) -> Path:
    """Where the local cache has, or would have, the files of a commit."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=repository, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / folder / "snapshots" / sha


def unreachable(repository: str) -> str:
    """One line for a repository of which neither the hub nor the cache has a word."""
    return f"{uncached(repository)}, and {silence(repository)}"


def uncached(repository: str) -> str:
    """What is wrong with it."""
    return f"hub repository '{repository}' is not in the local cache"


def silence(repository: str = "REPOSITORY") -> str:
    """Why the hub cannot help, and what to do."""
    why = "HF_HUB_OFFLINE is set" if offline() else f"{endpoint()} does not answer"
    return (
        f"{why}; connect this machine, or download it elsewhere (`hf download {repository}`) and name the directory as "
        "`source`"
    )


def refusal(code: str, status: int, repository: str, revision: str) -> str | None:
    """One line for what the hub answered: its X-Error-Code and HTTP status. None where it says nothing about us."""
    if code == "RevisionNotFound":
        return (
            f"hub repository '{repository}' has no revision '{revision}'; name a branch, tag or commit of it"
        )
    if code == "GatedRepo":
        return (
            f"hub repository '{repository}' is gated, and "
            f"{'no token is given here' if status == 401 else 'your token may not read it'}; accept its terms at "
            f"{endpoint()}/{repository} and run `hf auth login` on every node, or set HF_TOKEN for the job"
        )
    if code == "RepoNotFound" or status == 404:
        return f"there is no hub repository '{repository}', or it is private; {_MISSING}"
    if status in (401, 403):
        return f"the hub does not let you read '{repository}' (HTTP {status}); {_MISSING}"
    return None


def _ask(path: str, repository: str, revision: str) -> dict[str, Any] | None:
    """The JSON object that the hub answers; empty where it says nothing, None where it does not answer."""
    from huggingface_hub import get_token

    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{endpoint()}{path}", headers=headers)
    try:
        with urllib.request.build_opener(_TokenStays).open(request, timeout=TIMEOUT_S) as reply:
            content = reply.read(MOST_BYTES)
            return dict(json.loads(content)) if content.lstrip()[:1] == b"{" else {}
    except urllib.error.HTTPError as error:
        line = refusal(error.headers.get("X-Error-Code", ""), error.code, repository, revision)
        if line is not None:
            raise ConfigError(line) from None
        return None
    # No connection, or something else than the hub answers.
    except (OSError, ValueError, RecursionError, OverflowError, http.client.HTTPException):
        return None


class _TokenStays(urllib.request.HTTPRedirectHandler):
    """Goes where it is pointed to, as where a repository was renamed, and takes the token to no other host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        found = super().redirect_request(req, fp, code, msg, headers, newurl)
        if found is not None and (found.type, found.host) != (req.type, req.host):
            found.remove_header("Authorization")
        return found
