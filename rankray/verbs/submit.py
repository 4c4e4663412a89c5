"""`--submit`: hands a job to a Ray that runs, by the packaged entry point, and follows its log.

What is uploaded is the configuration file, or, where it names models or files beside it, its whole directory: a few KB
where a checkout is 20 MB. The price is that every node needs rankray installed, of this version.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankray import words
from rankray.config import ConfigError, Strict, flatten
from rankray.data import place
from rankray.endings import FAULT_EXIT
from rankray.verbs import Answer, inputs, say
from rankray.words import first_line

MOST_FILES, MOST_BYTES = 1000, 100 * 10**6
"""What a directory of a configuration may hold to be uploaded: code and prompts, and no dataset by mistake."""

SKIPPED = ("__pycache__", "node_modules")
CONNECT_S = 5.0
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
LOOK_AGAIN_S, LOST_S = 2.0, 60.0


@dataclass(frozen=True)
class Submission:
    """`address` of a Ray, empty where the environment or this machine says; variables of the job's environment."""

    address: str
    environment: dict[str, str]


def options() -> argparse.ArgumentParser:
    """`--submit` and what belongs to it, to stand beside the options of a job."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("on a Ray that runs")
    group.add_argument(
        "--submit",
        metavar="ADDRESS",
        nargs="?",
        const="",
        help="hand the job to it and follow its log; by default RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or this machine's",
    )
    group.add_argument(
        "--submit-env",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help="a variable of the job's environment, such as HF_TOKEN; of this shell where no value is given",
    )
    return parser


def split(argv: Sequence[str]) -> tuple[Submission | None, list[str]]:
    """(what `--submit` asks for, None where it is not there; all other arguments).

    Raises:
        ConfigError: `--submit-env` without `--submit`, or of a variable that this shell does not have.
    """
    found, rest = options().parse_known_args(list(argv))
    if found.submit is None:
        if found.submit_env:
            raise ConfigError("--submit-env is of a submitted job; add --submit")
        return None, rest
    environment = {"OMP_NUM_THREADS": "1"}
    for word in found.submit_env:
        name, equals, value = word.partition("=")
        if not equals and name not in os.environ:
            raise ConfigError(f"--submit-env {name}: this shell has no such variable; give {name}=VALUE")
        environment[name] = value if equals else os.environ[name]
    return Submission(found.submit, environment), rest


def run(verb: str, settings: Strict, argv: Sequence[str], asked: Submission) -> Answer:
    """Submits `rankray VERB` with `argv`, whose configuration is `settings`, and follows it to its end.

    Raises:
        ConfigError: a path that is not there in a submitted job, too much to upload, or no Ray that answers.
    """
    argv, config = _without_config(argv)
    whole = _needs_directory(settings, config)
    with _quiet(), _upload(config, whole) as folder:
        client = _client(asked.address)
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = words.size(sum(path.stat().st_size for path in files))
        what = f"{config.parent}: {len(files):,} files" if config and whole else config or "nothing"
        say(f"uploading {what}, {size}" if files else "uploading nothing")
        given = ["--config", config.name] if config else []
        command = shlex.join(["python", "-m", "rankray", verb, *given, *argv])
        runtime = {"working_dir": str(folder), "env_vars": asked.environment}
        try:
            name = client.submit_job(entrypoint=command, runtime_env=runtime)
        except RuntimeError as error:
            raise ConfigError(f"the Ray at {client.get_address()} took no job: {first_line(error)}") from None
    say(f"submitted as {name} to {client.get_address()}: {command}")
    with _quiet():
        return _followed(client, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Ray's client logs of itself: that it packs, uploads, hangs up. Its warnings stay."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def _without_config(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    """`argv` without `--config FILE`, and the file."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    found, rest = parser.parse_known_args(list(argv))
    return rest, Path(found.config).absolute() if found.config else None


def _needs_directory(settings: Strict, config: Path | None) -> bool:
    """Whether the job needs what lies beside its configuration: a model of the user's own, or a file that it names.

    Raises:
        ConfigError: a relative path that leads to nothing beside the configuration, or a relative output.
    """
    beside = config.parent if config else None
    needed = False
    for key, value in flatten(settings.model_dump(mode="json")):
        if not isinstance(value, str):
            continue
        leaf = key.rpartition(".")[2]
        if leaf == "output":
            place.open_output(value, in_job=True)
        elif leaf == "model" and ":" in value and "://" not in value and beside is not None:
            package = value.partition(":")[0].partition(".")[0]
            needed |= (beside / f"{package}.py").exists() or (beside / package).is_dir()
    for key, value in inputs.places(settings):
        if _is_relative(value):
            if beside is None or not (beside / value).exists():
                raise ConfigError(
                    f"{key} '{value}' is relative, and a submitted job sees what lies beside its configuration alone "
                    f"({beside or 'none is given'}); put it there, or give an absolute path that every node sees"
                )
            needed = True
    return needed


def _is_relative(value: str) -> bool:
    return not value.startswith(("/", "~")) and ":" not in value


@contextmanager
def _upload(config: Path | None, whole: bool) -> Iterator[Path]:
    """A directory with what is uploaded: nothing, the configuration, or all that lies beside it.

    Raises:
        ConfigError: more lies there than is uploaded without being asked.
    """
    with tempfile.TemporaryDirectory(prefix="rankray-submit-") as folder:
        if config is not None:
            for path in _beside(config) if whole else [config]:
                to = Path(folder) / path.relative_to(config.parent)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, to)
        yield Path(folder)


def _beside(config: Path) -> list[Path]:
    """The files of a configuration's directory, but for hidden ones, caches and virtual environments."""
    found, size = [], 0
    for root, folders, names in os.walk(config.parent):
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".")
            and name not in SKIPPED
            and not Path(root, name, "pyvenv.cfg").exists()
        ]
        for name in sorted(names):
            if not name.startswith("."):
                found.append(Path(root, name))
                size += found[-1].stat().st_size
        if len(found) > MOST_FILES or size > MOST_BYTES:
            raise ConfigError(
                f"{config.parent} holds over {MOST_FILES:,} files or {words.size(MOST_BYTES)}, and a model or a file "
                "of the configuration lies there, so all of it would be uploaded; give them a directory of their own"
            )
    return found


def _client(address: str) -> Any:
    """A client of the Ray at `address`, or at the environment's, or of this machine's.

    Raises:
        ConfigError: none answers, or it wants a token.
    """
    from ray.exceptions import AuthenticationError, RayError
    from ray.job_submission import JobSubmissionClient  # 1 s, and of nobody who does not submit

    named = address or next((os.environ[name] for name in VARIABLES if os.environ.get(name)), "")
    if named == "local":
        raise ConfigError("RAY_ADDRESS=local starts a Ray for one job; name one that runs: --submit ADDRESS")
    parts = urllib.parse.urlsplit(named)
    if parts.scheme in ("http", "https") and parts.hostname:
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname, port), CONNECT_S).close()
        except OSError as error:
            raise ConfigError(f"no Ray answers at {named} ({error}); {_REMEDY}") from None
    kept = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}  # they would win
    try:
        return JobSubmissionClient(named or None)
    except AuthenticationError as error:
        raise ConfigError(
            f"the Ray at {named or 'this machine'} lets nobody in without its token ({first_line(error)}); export "
            "RAY_AUTH_MODE=token, and have the token of the one who started it in ~/.ray/auth_token or RAY_AUTH_TOKEN"
        ) from None
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise ConfigError(
            f"no Ray answers at {named or 'this machine'} ({first_line(error)}); {_REMEDY}"
        ) from None
    finally:
        os.environ.update(kept)


_REMEDY = "start one (`ray start --head`), or name its dashboard: --submit http://HEAD:8265"


def _followed(client: Any, name: str) -> Answer:
    """Prints the job's log until it ends; its exit code is ours."""
    address = client.get_address()
    found = {"submission_id": name, "address": address}
    how = (
        f"follow it: ray job logs -f {name} --address {address}\n"
        f"stop it:   ray job stop {name} --address {address}"
    )
    try:
        asyncio.run(_follow(client, name))
    except KeyboardInterrupt as stopped:
        say(f"\nthe job goes on\n{how}")
        return Answer(128 + (stopped.args or (signal.SIGINT,))[0], {**found, "status": "RUNNING"})
    except (RuntimeError, OSError) as error:
        print(
            f"the Ray at {address} no longer answers ({first_line(error)})\n{how}",
            file=sys.stderr,
            flush=True,
        )
        return Answer(FAULT_EXIT, {**found, "error": first_line(error)})
    details = client.get_job_info(name)
    status = str(getattr(details.status, "value", details.status))
    code = 0 if status == "SUCCEEDED" else details.driver_exit_code or FAULT_EXIT
    if code:
        print(f"the job {status.lower()} (exit code {code}): {name}", file=sys.stderr, flush=True)
        if "No module named" in (details.message or "") and "rankray" in details.message:
            print("rankray is not installed there: install this version on every node", file=sys.stderr)
    return Answer(code, {**found, "status": status})


async def _follow(client: Any, name: str) -> None:
    """Prints what the job prints, across lost connections, until it has ended.

    Raises:
        OSError, RuntimeError: the Ray has not answered for `LOST_S`.
    """
    printed, answered_at = 0, time.monotonic()
    while True:
        seen, broken = 0, False
        try:
            async for text in client.tail_job_logs(name):
                print(text[max(0, printed - seen) :], end="", flush=True)
                seen += len(text)
                printed = max(printed, seen)
        except (RuntimeError, OSError):
            broken = True  # and the job is not: from the log's begin again, without what was printed
        try:
            over = client.get_job_status(name).is_terminal()
            if over and (not broken or time.monotonic() - answered_at > LOST_S):
                return
            answered_at = answered_at if over else time.monotonic()
        except (RuntimeError, OSError):
            if time.monotonic() - answered_at > LOST_S:
                raise
        await asyncio.sleep(LOOK_AGAIN_S)
