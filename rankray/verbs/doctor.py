"""`rankray doctor`: what this machine lacks for a configuration, each with its remedy, before money is spent.

Nothing is started, loaded or written; what asks a network or reads weights has `LIMIT_S` altogether, and what has not
answered by then is said to have not. It knows this machine: other nodes of a cluster are looked at when a job is.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rankray import config, evals, store, words
from rankray.config import ConfigError, EvalChoice, GeneratorChoice, RewardChoice, Strict, SynPicConfig
from rankray.config.ablate import AblationConfig
from rankray.config.evaluate import EvaluateConfig, EvaluatedModel
from rankray.config.rankdpo import AlignConfig, RankDPOConfig
from rankray.data import place
from rankray.data.prompts import HUB, SHAPES
from rankray.endings import USAGE_EXIT
from rankray.evals import models as evaluated_models
from rankray.models import environments, generators, hub, rewards, targets
from rankray.models.targets import Target
from rankray.synpic.stages import overlay_of
from rankray.verbs import Answer, inputs, painted, parser_of, say
from rankray.words import first_line

LIMIT_S, ASK_S = 8.0, 4.0
LEAST_DISK, LEAST_SHM = 10 * 10**9, 2 * 10**9
FULL = 0.95
"""Share of a disk beyond which Ray stores no more objects there."""

PYTHONS = ((3, 10), (3, 13))
OK, WARNING, FAULT = "ok", "warning", "fault"
COLOURS = {OK: 32, WARNING: 33, FAULT: 31}
JOBS: tuple[type[Strict], ...] = (SynPicConfig, RankDPOConfig, AlignConfig, EvaluateConfig, AblationConfig)


@dataclass(frozen=True)
class Finding:
    """What a check came to; `remedy` says what to do where it is not "ok"."""

    about: str
    state: str
    found: str
    remedy: str = ""


Choice = GeneratorChoice | RewardChoice | EvalChoice
Check = tuple[str, Callable[[], list[Finding]]]


def run(verb: str, argv: Sequence[str]) -> Answer:
    """Prints what was found; exit code 2 where anything is a fault."""
    options = parser(verb).parse_args(argv)
    settings, findings = (None, []) if options.config is None else _read(options.config)
    findings = [*findings, *_together(_checks(settings))]
    width = max(len(finding.about) for finding in findings)
    for finding in findings:
        say(
            f"{painted(f'{finding.state:<7}', COLOURS[finding.state])}  {finding.about:<{width}}  {finding.found}"
        )
        if finding.state != OK:
            say(f"{'':<{width + 11}}-> {finding.remedy}")
    faults = sum(finding.state == FAULT for finding in findings)
    warnings = sum(finding.state == WARNING for finding in findings)
    say(f"{words.count(faults, 'fault')}, {words.count(warnings, 'warning')}")
    return Answer(USAGE_EXIT if faults else 0, {"findings": [asdict(finding) for finding in findings]})


def parser(verb: str) -> argparse.ArgumentParser:
    """The options of the verb."""
    found = parser_of(
        verb,
        "--config align.toml",
        description="What this machine lacks, or a configuration on it, each with its remedy. Nothing is started.",
        more="exit codes: 0 nothing is in the way, 2 something is",
    )
    found.add_argument(
        "--config", metavar="FILE", help="of any job: its weights, environments, output, GPUs too"
    )
    return found


def _read(path: str) -> tuple[Strict | None, list[Finding]]:
    """The configuration in a file, of the job that knows most of its tables; None where it does not fit."""
    try:
        tables = config.read_toml(path)
        model = max(
            JOBS,
            key=lambda job: (
                len(set(tables) & set(job.model_fields)) - len(set(tables) - set(job.model_fields))
            ),
        )
        settings = config.build(model, tables)
    except ConfigError as error:
        remedy = (
            f"mend {path}" if Path(path).is_file() else "`rankray init shapes .` writes some to begin from"
        )
        return None, [Finding("configuration", FAULT, line, remedy) for line in str(error).splitlines()]
    return settings, [Finding("configuration", OK, f"{path}: {_words(model)}")]


def _words(model: type[Strict]) -> str:
    return (model.__doc__ or model.__name__).partition(":")[0].partition(" (")[0]


def _checks(settings: Strict | None) -> Iterator[Check]:
    yield "Python", _python
    yield "Ray", _ray
    yield "C++ compiler", _compiler
    yield "memory of Ray", _shared_memory
    if settings is None:
        yield "GPU", partial(_gpus, 0.0)
        yield "hub", partial(_hub, True)
        return
    choices = list(_choices(settings))
    claimed = _claimed(settings, choices)
    yield "GPU", partial(_gpus, claimed)
    yield "output", partial(_output, str(settings.output))  # type: ignore[attr-defined]
    for about, path in inputs.places(settings):
        if not path.startswith((HUB, SHAPES)):
            yield about, partial(_input, about, path)
    for choice in choices:
        yield f"weights of {choice.label}", partial(_weights, choice)
    for name in sorted({name for choice in choices if (name := _environment(choice)) is not None}):
        yield f"environment {name}", partial(_overlay, name, settings)


def _together(checks: Iterator[Check]) -> list[Finding]:
    """All findings, in the checks' order; what has not answered in `LIMIT_S` is a warning."""
    asked, answers = list(checks), queue.SimpleQueue[tuple[int, list[Finding]]]()
    for n, (about, check) in enumerate(asked):

        def answer(n: int = n, about: str = about, check: Callable[[], list[Finding]] = check) -> None:
            try:
                found = check()
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                found = [Finding(about, FAULT, first_line(error), "see the message")]
            answers.put((n, found))

        threading.Thread(target=answer, daemon=True).start()  # a thread that hangs ends with the process
    found: dict[int, list[Finding]] = {}
    deadline = time.monotonic() + LIMIT_S
    while len(found) < len(asked) and (left := deadline - time.monotonic()) > 0:
        try:
            n, findings = answers.get(timeout=left)
        except queue.Empty:
            break
        found[n] = findings
    late = "no answer yet; the job itself waits longer"
    return [
        finding
        for n, (about, _) in enumerate(asked)
        for finding in found.get(n, [Finding(about, WARNING, f"no answer in {LIMIT_S:g} s", late)])
    ]


def _python() -> list[Finding]:
    version = platform.python_version()
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return [Finding("Python", FAULT, version, "take 3.10 to 3.13")]
    return [Finding("Python", OK, f"{version}, {sys.executable}")]


def _ray() -> list[Finding]:
    """Whether one runs where a job would look, and whether its version is ours."""
    ours = importlib.metadata.version("ray")
    named = "" if _named() == "auto" else _named()
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    address = named or (note.read_text().strip() if note.is_file() else "")
    none = [Finding("Ray", OK, f"{ours}; none runs here, so a job starts one for itself")]
    if address in ("", "local"):
        return none
    try:
        theirs = _answers(address)
    except urllib.error.HTTPError as error:
        remedy = "it may want a token: export RAY_AUTH_MODE=token"
        return [Finding("Ray", WARNING, f"{address} answers {error.code}", remedy)]
    except (OSError, ValueError, KeyError) as error:
        if not named:  # the note of one that ended
            return none
        remedy = "start it, or unset RAY_ADDRESS so that a job starts one for itself"
        return [Finding("Ray", FAULT, f"no Ray answers at {address} ({error})", remedy)]
    if theirs not in ("", ours):
        remedy = f"install ray=={theirs} here, or {ours} there"
        return [Finding("Ray", FAULT, f"{theirs} runs at {address}, {ours} is here", remedy)]
    return [Finding("Ray", OK, f"{ours}; one runs at {address}")]


def _named() -> str:
    """The Ray that the environment names, empty where it names none."""
    values = (os.environ.get(name, "") for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"))
    return next(filter(None, values), "")


def _answers(address: str) -> str:
    """The version of the Ray at `address`; empty where its port answers and no version is to be had there.

    Raises:
        OSError, ValueError, KeyError: nothing of the kind answers.
    """
    if address.startswith("http"):
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=ASK_S) as reply:
            return str(json.loads(reply.read())["ray_version"])
    host, _, port = address.rpartition("://")[2].rpartition(":")
    socket.create_connection((host, int(port)), ASK_S).close()
    return ""


def _compiler() -> list[Finding]:
    """DeepSpeed compiles an operator at its first training."""
    compiler, ninja = os.environ.get("CXX") or "g++", shutil.which("ninja")
    place_ = shutil.which(compiler)
    beside = Path(sys.executable).parent / "ninja"
    if place_ is None:
        remedy = "install one (`apt-get install g++`); without it no model trains"
        return [Finding("C++ compiler", WARNING, f"no {compiler}", remedy)]
    if ninja is None and not beside.exists():
        return [Finding("C++ compiler", WARNING, f"{place_}, but no ninja", "install it: pip install ninja")]
    return [Finding("C++ compiler", OK, place_)]


def _shared_memory() -> list[Finding]:
    """Where Ray keeps objects: shared memory, and a directory that it refuses to fill."""
    found = []
    shm, tmp = Path("/dev/shm"), _existing(os.environ.get("RAY_TMPDIR", "/tmp"))
    if shm.is_dir():
        free = shutil.disk_usage(shm).free
        state = OK if free >= LEAST_SHM else WARNING
        remedy = "give a container more: docker run --shm-size=10g; Ray takes its directory on disk instead, slowly"
        found.append(Finding("/dev/shm", state, f"{words.size(free)} free", remedy))
    usage = shutil.disk_usage(tmp)
    state = OK if usage.used / usage.total < FULL else FAULT
    remedy = f"make room, or set RAY_TMPDIR: Ray stores no objects beyond {FULL:.0%}"
    found.append(
        Finding(
            str(tmp), state, f"{words.size(usage.free)} free, {usage.used / usage.total:.0%} full", remedy
        )
    )
    return found


def _gpus(claimed: float) -> list[Finding]:
    """The GPUs of this machine by its driver, against what models claim and what torch was built for."""
    wanted = (
        f"; the configuration's models claim {claimed:g} if all run at once, and take turns if not"
        if claimed
        else ""
    )
    listed = shutil.which("nvidia-smi")
    asked = [str(listed), "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    lines = []
    if listed:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=ASK_S, check=False)
        said = done.stdout.splitlines() if done.returncode == 0 else []
        lines = [line.strip() for line in said if line.strip()]
    if not lines:
        why = "nvidia-smi finds none" if listed else "no nvidia-smi"
        if not claimed:
            return [Finding("GPU", OK, f"none here ({why}); none is needed")]
        remedy = "submit to a cluster that has some (--submit), install the driver, or `rehearse = true`"
        state = FAULT if _named() in ("", "local") else WARNING
        return [Finding("GPU", state, f"none here ({why}){wanted}", remedy)]
    build = _torch_cuda()
    if build is None:
        remedy = "install a CUDA build of torch (https://pytorch.org)"
        state = FAULT if claimed else WARNING
        return [Finding("GPU", state, f"{lines[0]}, but torch is built for CPUs", remedy)]
    return [Finding("GPU", OK, f"{len(lines)} x {lines[0]}; torch for CUDA {build}{wanted}")]


def _torch_cuda() -> str | None:
    """The CUDA that torch was built for, read without importing it."""
    distribution = importlib.metadata.distribution("torch")
    text = Path(str(distribution.locate_file("torch/version.py"))).read_text("utf-8")
    found = re.search(r"^cuda[^=]*= '([\d.]+)'", text, re.M)
    return found[1] if found else None


def _hub(asked: bool) -> list[Finding]:
    """Whether the hub answers."""
    if hub.offline():
        return [Finding("hub", OK, "HF_HUB_OFFLINE: models come from the local cache alone")]
    try:
        urllib.request.urlopen(hub.endpoint(), timeout=ASK_S).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError as error:
        remedy = "connect this machine, set HF_ENDPOINT, or name local directories as `source`"
        return [Finding("hub", WARNING, f"{hub.endpoint()} does not answer ({error})", remedy)]
    return [Finding("hub", OK, hub.endpoint())]


def _choices(value: Any) -> Iterator[Choice]:
    """Every model that a configuration names, once."""
    seen: set[str] = set()
    for choice in _walked(value):
        told = f"{type(choice).__name__} {choice.model_dump_json()}"
        if told not in seen:
            seen.add(told)
            yield choice


def _walked(value: Any) -> Iterator[Choice]:
    if isinstance(value, (GeneratorChoice, RewardChoice, EvalChoice)):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _walked(getattr(value, name))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _walked(item)


def _target(choice: Choice, look_up: bool) -> Target:
    if isinstance(choice, EvalChoice):
        return targets.target_of(evals.spec_of(choice), "benchmark", choice.label, look_up)
    if isinstance(choice, RewardChoice):
        return rewards.resolve(choice, look_up)
    if isinstance(choice, EvaluatedModel) and look_up:  # a run's pipeline, or a row
        return evaluated_models.resolve(choice, {}).target
    return generators.resolve(choice, look_up)


def _claimed(settings: Strict, choices: Sequence[Choice]) -> float:
    """GPUs that all models claim at their least sizes; 0 in a rehearsal, which claims and takes none."""
    if getattr(settings, "rehearse", False):
        return 0.0
    total = 0.0
    for choice in choices:
        each = choice.pool.num_gpus
        try:
            total += (_target(choice, False).num_gpus if each is None else each) * choice.pool.min_size
        except ConfigError:
            continue  # its own line says why
    training = getattr(settings, "training", settings)
    workers = getattr(training, "workers", None)
    return total if workers is None else max(total, workers.count * workers.num_gpus)


def _environment(choice: Choice) -> str | None:
    """The overlay that a model's actors run in; None for the job's own environment, and of a model nobody knows."""
    try:
        return overlay_of(choice, _target(choice, False))
    except ConfigError:
        return None


def _weights(choice: Choice) -> list[Finding]:
    about = f"weights of {choice.label}"
    try:
        target = _target(choice, True)
        targets.require_resolved([target])
    except ConfigError as error:
        line = first_line(error)
        found, _, remedy = line.rpartition("; ")
        return [Finding(about, FAULT, found or line, remedy or "mend the configuration")]
    return [Finding(about, OK, target.revision)]


def _overlay(name: str, settings: Strict) -> list[Finding]:
    about = f"environment {name}"
    status = environments.check(name, environments.spec_of(name))
    if status.fault is None:
        return [Finding(about, OK, str(status.place))]
    if settings.execution.build_environments:  # type: ignore[attr-defined]
        return [Finding(about, OK, f"{status.fault}; the job builds it (execution.build_environments)")]
    remedy = f"rankray envs build {name}, or execution.build_environments = true"
    return [Finding(about, FAULT, status.fault, remedy)]


def _input(about: str, path: str) -> list[Finding]:
    fs, at = store.filesystem(path)
    pattern = any(mark in at for mark in "*?[")
    if not pattern and fs.get_file_info(at).type.name == "NotFound":
        remedy = f"put it there, or give --{about} PATH"
        return [Finding(about, FAULT, f"nothing is at {store.absolute(path)}", remedy)]
    if about.rpartition(".")[2] in ("dataset", "reuse", "measured") and not store.complete(path):
        return [Finding(about, FAULT, f"{store.absolute(path)} is not finished", "run its job again first")]
    return [Finding(about, OK, store.absolute(path))]


def _output(uri: str) -> list[Finding]:
    """Whether the output can be reached and, on a disk, written, with room."""
    output = place.open_output(uri, in_job=False)
    if "://" in output.uri:
        output.exists("dataset.json")
        return [Finding("output", OK, f"{output.uri} can be read; whether it can be written a job finds out")]
    path = _existing(output.path)
    free = shutil.disk_usage(path).free
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        remedy = "give --output a directory that can be"
        return [Finding("output", FAULT, f"{path} cannot be written", remedy)]
    state = OK if free >= LEAST_DISK else WARNING
    remedy = "give --output a larger disk; 1,000 pictures of 1024 x 1024 are 2 GB"
    return [Finding("output", state, f"{output.uri}, {words.size(free)} free", remedy)]


def _existing(place_: str) -> Path:
    """The nearest directory above a path that is there; the path where it is."""
    path = Path(place_).absolute()
    return next(found for found in (path, *path.parents) if found.exists())
