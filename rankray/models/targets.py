"""Models named by string: what a pool runs, how an actor loads it, and which weights those are.

The driver resolves names, settings and revisions without importing a model, so packages that cannot live in
one process can serve one job; the price is that a fault inside a model's constructor shows only in its actor.
Hashing a directory of weights reads it once on the driver: 1.2 s a GB on one core, nothing for hub models.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankray.config import ConfigError, ModelChoice, nearest
from rankray.models import hardware, hub, weight_copies, weight_files

UNRECORDED = "unrecorded"
"""Revision of a user's own class that was given none."""

METHODS = ("generate", "score", "judge")
"""What a model does: a generator, a reward, a benchmark's judge."""

UNRESOLVED = "unresolved:"
"""Before the revision of a hub repository that could not be asked for its commit."""

SHAPES = "shapes:"
URLS = ("http://", "https://")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Target:
    """One model as a pool's actors construct it: `module:Class` called with `kwargs` and the actor's device.

    Attributes:
        name: label in the dataset.
        target: "package.module:Class".
        kwargs: picklable arguments of the constructor, beside `device`.
        revision: "sha256:..." of a directory, a commit of a hub repository, "unresolved:..." where offline.
        num_gpus: GPUs of one actor, before the configuration's own number.
        num_cpus: CPUs of one actor, before the configuration's own number.
        environment: overlay environment of the actors, None for the job's own.
        samples: candidates it draws for each prompt (generators).
        seed_name: label whose seeds it draws from (generators), None for its own.
        unresolved: hub repositories among its weights of which neither the hub nor the local cache has a commit.
    """

    name: str
    target: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    revision: str = UNRECORDED
    num_gpus: float = 0.0
    num_cpus: float = 1.0
    environment: str | None = None
    samples: int = 1
    seed_name: str | None = None
    unresolved: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one picture.

    Attributes:
        score: the picture's value by the benchmark's rule, never NaN: a judge raises instead.
        detail: JSON-ready and small: what the value was made from (reason, answers, boxes found).
    """

    score: float
    detail: Mapping[str, Any]


def load(target: Target, device: str) -> Any:
    """Imports the target's class and constructs it on `device` ("cpu", "cuda", "cuda:1").

    Raises:
        ConfigError: no such module or attribute (one line that names what there is), the attribute is not a class with
            one of `METHODS`, or the device is not there. What the constructor raises passes through.
    """
    hardware.require_device(device)
    module_name, attribute = split_name(target.target)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ConfigError(f"'{target.target}': {_no_module(missing)}") from None
        raise ConfigError(
            f"'{target.target}' needs the package '{missing.split('.')[0]}', which is not installed here; install it, "
            "or give the pool's nodes an environment that has it"
        ) from error
    found = getattr(module, attribute, None)
    if found is None:
        own = sorted(
            key for key, value in vars(module).items() if isinstance(value, type) and not key.startswith("_")
        )
        raise ConfigError(
            f"'{module_name}' has no '{attribute}'{nearest(attribute, own)}; its classes: {', '.join(own) or 'none'}"
        )
    if not isinstance(found, type) or not any(hasattr(found, name) for name in METHODS):
        raise ConfigError(
            f"'{target.target}' is no model: it must be a class with a method `generate`, `score` or `judge`"
        )
    return found(device=device, **target.kwargs)


def split_name(target: str) -> tuple[str, str]:
    """("package.module", "Class") of "package.module:Class".

    Raises:
        ConfigError: it is not of that form.
    """
    module, _, attribute = target.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ConfigError(f"'{target}' is not of the form 'package.module:Class'")
    return module, attribute


def user_target(choice: ModelChoice, kind: str, samples: int = 1, seed_name: str | None = None) -> Target:
    """The target of a user's own class, constructed as `Class(device=..., **options)`.

    Args:
        choice: its `model` is "package.module:Class".
        kind: "generator" or "reward", for the message.
        samples, seed_name: candidates a prompt, and whose seeds they are drawn from (generators).

    Raises:
        ConfigError: the form is wrong, its top-level package cannot be found here, or settings are given that
            only the table's own models take.
    """
    module, _ = split_name(choice.model)
    package = module.split(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{kind} '{choice.model}': {_no_module(package)}")
    own = {"model", "name", "revision", "options", "pool", "samples", "seed_name"}
    given = sorted(key for key in choice.model_fields_set - own if getattr(choice, key) is not None)
    if given:
        raise ConfigError(
            f"{kind} '{choice.model}' takes its settings by `options`; move {', '.join(given)} there"
        )
    return Target(
        choice.label,
        choice.model,
        dict(choice.options),
        choice.revision or UNRECORDED,
        samples=samples,
        seed_name=seed_name,
    )


def unknown_model(kind: str, name: str, table: Mapping[str, Any]) -> ConfigError:
    """The error for a name that is in no table, with the nearest that is."""
    return ConfigError(
        f"unknown {kind} '{name}'{nearest(name, table)}; known: {', '.join(sorted(table))}, "
        f"or a class of your own as 'package.module:Class'"
    )


def _no_module(name: str) -> str:
    parent, _, leaf = name.rpartition(".")
    if not parent:
        near = difflib.get_close_matches(
            name, [found.name for found in pkgutil.iter_modules()], n=1, cutoff=0.8
        )
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        return (
            f"no package '{name}' can be imported here{hint}; install it, or put it in the working directory"
        )
    package = importlib.import_module(parent)
    modules = sorted(found.name for found in pkgutil.iter_modules(getattr(package, "__path__", [])))
    return (
        f"'{parent}' has no module '{leaf}'{nearest(leaf, modules)}; it has: {', '.join(modules) or 'none'}"
    )


def locate(source: str) -> str:
    """The directory of "shapes:NAME", of an existing path or of a URI's copy on this machine; a hub's name as it is.

    What a URI names is copied here where it is not yet, which may take minutes: actors do it, drivers do not.

    Raises:
        ConfigError: a path that does not exist, no such pipeline in the shapes world, or a URI that cannot be copied.
    """
    if weight_copies.is_uri(source):
        return str(weight_copies.on_this_node(source))
    if source.startswith(SHAPES):
        from rankray import shapes

        try:
            return str(shapes.pipeline_dir(source[len(SHAPES) :]))
        except ValueError as error:
            raise ConfigError(str(error)) from None
    path = Path(source).expanduser()
    if path.exists():
        return str(path)
    if _HUB_NAME.fullmatch(source) and not source.startswith("."):
        return source
    raise ConfigError(
        f"no directory '{source}' here; give a directory, a URI, or a hub repository as 'owner/name'"
    )


def weights_revision(source: str, revision: str) -> str:
    """What identifies the weights of `source`, without importing a model.

    Args:
        source: a directory or file, "shapes:NAME", a hub repository "owner/name", a URI of weights, or a server's URL.
        revision: branch, tag or commit of a hub repository, "sha256:..." of what a URI names, or what its user calls a
            server's model; not used for directories.

    Returns:
        "sha256:<hex>" over names and bytes of a directory's weight, configuration and vocabulary files; the commit
        of a hub repository, asked from the hub, or else from the local cache; "unresolved:<revision>" if neither
        knows it. A URI's is the hash that was given, or "listing:<hex>" over names, sizes and times of its files. A
        server's is the one given, or `UNRECORDED`.

    Raises:
        ConfigError: the directory is missing or holds no weights, or the hub says that there is no such
            repository or revision, or that this user may not read it.
    """
    if source.startswith(URLS):
        return UNRECORDED if revision == "main" else revision
    if weight_copies.is_uri(source):
        return weight_copies.identity(source, revision)
    place = locate(source)
    path = Path(place)
    if path.exists():
        return f"sha256:{weight_files.sha256(path)}"
    if _COMMIT.fullmatch(revision):
        # Asked all the same, as a wrong one would show only where the model is loaded.
        return revision if hub.snapshot(place, revision).is_dir() else hub.commit(place, revision) or revision
    return hub.commit(place, revision) or hub.cached_commit(place, revision) or f"{UNRESOLVED}{revision}"


@dataclass(frozen=True)
class Found:
    """Weights as the driver found them.

    Attributes:
        source, revision: what actors load: a hub's at its commit, a URI with what identifies its content.
        recorded: what identifies them in the dataset.
    """

    source: str
    revision: str
    recorded: str


def find(source: str, revision: str) -> Found:
    """What `weights_revision` says, and where an actor finds just that.

    Raises:
        ConfigError: as `weights_revision`.
    """
    recorded = weights_revision(source, revision)
    if weight_copies.is_uri(source):
        return Found(weight_copies.pinned(source, recorded), revision, recorded)
    return Found(source, revision if ":" in recorded or recorded == UNRECORDED else recorded, recorded)


def same_place(one: str, other: str) -> bool:
    """Whether two sources are the same directory, repository or URI."""
    if weight_copies.is_uri(one) or weight_copies.is_uri(other):
        return one.rstrip("/") == other.rstrip("/")
    return locate(one) == locate(other)


def check_files(source: str, pickles: bool) -> None:
    """Refuses weights on this machine that are cut short, incomplete, or pickles where safetensors are due.

    Args:
        source: as in `weights_revision`; what is not on this machine is not looked at.
        pickles: pickles of plain tensors will do.

    Raises:
        ConfigError: which file, and what is wrong with it.
    """
    if not source.startswith(URLS) and not weight_copies.is_uri(source) and Path(locate(source)).exists():
        weight_files.check(Path(locate(source)), pickles)


def require_resolved(targets: Iterable[Target]) -> None:
    """Refuses models of which neither the hub nor the local cache knows anything: no actor could load them.

    Raises:
        ConfigError: a line a repository.
    """
    lines = {hub.unreachable(name) for target in targets for name in target.unresolved}
    if lines:
        raise ConfigError("\n".join(sorted(lines)))
