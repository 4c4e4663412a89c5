"""Models named by string: a row of a table or a class of the user's, what a pool runs, how an actor loads it.

The driver resolves names, settings and revisions without importing a model, so packages that cannot live in
one process can serve one job; the price is that a fault inside a model's constructor shows only in its actor.
Generators, rewards and benchmarks' judges are tables of one kind of row, `Spec`, resolved by one function.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeVar

from rankray.config import ConfigError, Faults, ModelChoice, nearest
from rankray.models import hardware, hub, weights
from rankray.models.weights import UNRECORDED, UNRESOLVED, Pinned

METHODS = ("generate", "score", "judge")
"""What a model does: a generator, a reward, a benchmark's judge."""


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

    @property
    def run_with(self) -> dict[str, Any]:
        """What decides its output beside its weights, as JSON has it: its row with the configuration's own settings.
        Of a class of the user's nothing: its `options` are all that is known."""
        spec = self.kwargs.get("spec")
        found = spec.settings() if isinstance(spec, Spec) else {}
        plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
        return plain


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one picture.

    Attributes:
        score: the picture's value by the benchmark's rule, never NaN: a judge raises instead.
        detail: JSON-ready and small: what the value was made from (reason, answers, boxes found).
    """

    score: float
    detail: Mapping[str, Any]


class Weights(NamedTuple):
    """Where a part of a model has its weights, and whether pickles of plain tensors will do; None: do not look."""

    source: str
    revision: str
    pickles: bool | None = None


S = TypeVar("S", bound="Spec")
C = TypeVar("C", bound=ModelChoice)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One row of a table. What generators, rewards and judges have in common.

    Attributes:
        target: "module:Class", constructed as `Class(spec=..., device=...)`.
        source: hub repository, directory or file of its weights, "shapes:NAME", a URI, or a server's URL.
        revision: branch, tag or commit; a hub branch is resolved to its commit before the job starts.
        dtype: "float32", "float16" or "bfloat16".
        batch_size: items computed at once; smaller remainders are padded to it.
        num_gpus, num_cpus: of one actor.
        full_size: file of `full_size/` that says what it is made of, from which a plan gets memory and speed.
        environment: overlay environment of its actors (`rankray.models.environments`), None for the job's own.
        licence: what the page of its weights states, by the hub's short names where it has one; None: it states none,
            or was not read.
        remedy: what to do where the weights are not, in place of the usual; only for those that no hub has as needed.
    """

    target: str
    source: str = ""
    revision: str = "main"
    dtype: str = "float32"
    batch_size: int = 32
    num_gpus: float = 1.0
    num_cpus: float = 1.0
    full_size: str | None = None
    environment: str | None = None
    licence: str | None = None
    remedy: str | None = None

    def elsewhere(self: S) -> S:
        """The row as it is for another source: what was said of the table's own is not true of it."""
        return replace(self, revision="main", licence=None, remedy=None)

    def with_options(self: S, choice: Any) -> S:
        """The row with what else its choice says.

        Raises:
            ConfigError: an option that the row does not have.
        """
        return self

    def weights(self) -> dict[str, Weights]:
        """What it loads: its weights under "", and its parts by name."""
        return {"": Weights(self.source, self.revision)}

    def pinned(self: S, pins: Mapping[str, Pinned]) -> S:
        """The row with every source of `weights` where actors find just that."""
        return replace(self, source=pins[""].source, revision=pins[""].revision)

    def settings(self) -> dict[str, Any]:
        """What decides its output beside its weights, of which `recorded` tells: neither where it runs nor how fast."""
        return {"dtype": self.dtype}

    def recorded(self, pins: Mapping[str, Pinned]) -> str:
        """What the dataset says of its weights."""
        return "; ".join(f"{part}={one.recorded}" if part else one.recorded for part, one in pins.items())


def resolve(choice: ModelChoice, table: Mapping[str, S], kind: str, look_up: bool = True) -> Target:
    """What a pool has to run for one model of the configuration: a row of the table, or a class of the user's.

    Args:
        choice: its entry there.
        kind: "generator", "reward" or "benchmark", for messages.
        look_up: find its weights and what identifies them; without, nothing is read and nobody asked.

    Raises:
        ConfigError: unknown name (nearest match given), unknown option, or weights that cannot be found.
    """
    if ":" in choice.model:
        return _of_the_user(choice, kind)
    return target_of(configured(choice, table, kind), kind, choice.label, look_up)


def resolve_all(
    choices: Iterable[C], resolve: Callable[[C, bool], Target], look_up: bool = True
) -> list[Target]:
    """`resolve(choice, look_up)` of each choice, or one error of all that is wrong with any of them.

    Names and options are looked at before any weights, which may mean to wait for a hub. Repositories of which nobody
    knows a word are left to `require_resolved`, unless there is another fault to tell them with.

    Raises:
        ConfigError: a line a fault.
    """
    choices, found, faults = list(choices), list[Target](), Faults()
    for looking in (False, True) if look_up else (False,):
        found = []
        for choice in choices:
            with faults.kept():
                found.append(resolve(choice, looking))
        if len(found) < len(choices):
            with faults.kept():
                require_resolved(found)
        faults.raise_any()
    return found


def configured(choice: ModelChoice, table: Mapping[str, S], kind: str) -> S:
    """The row that a choice names, with the choice's own settings; revisions are as they were written.

    Raises:
        ConfigError: as `resolve`.
    """
    if choice.model not in table:
        raise unknown_model(kind, choice.model, table)
    spec = table[choice.model]
    if choice.source is not None:
        spec = spec.elsewhere()
    given = {key.name: getattr(choice, key.name, None) for key in fields(spec)}
    settings: dict[str, Any] = {
        key: value for key, value in given.items() if value is not None and not isinstance(value, Mapping)
    }
    return replace(spec, **settings).with_options(choice)


def left_to_row(choice: ModelChoice, target: Target) -> dict[str, Any]:
    """`Target.run_with` by `"run_with.steps"`, without what the choice gives itself: identities have that already, and
    not that a release changed a row. Tables are whole, as a choice's is merged into its row's."""
    own = {key for key in type(choice).model_fields if getattr(choice, key) is not None} - {"model"}
    return {
        f"run_with.{key}": value
        for key, value in target.run_with.items()
        if isinstance(value, Mapping) or key not in {*own, *choice.options}
    }


def licence_of(
    item: Mapping[str, Any], kind: str, identity: Mapping[str, Any], table: Mapping[str, Spec]
) -> str | None:
    """The licence of the weights that an entry of `dataset.json` was made with; None where none is known.

    A dataset of a version that did not record it has the row's, where its settings say that the row's own weights ran.

    Args:
        item: of its "generators" or "rewards", whichever `kind` is.
        identity: the dataset's.
    """
    if "licence" in item:
        found: str | None = item["licence"]
        return found
    model = item.get("model")
    for key, value in identity.items():
        place = key.removesuffix(".model")
        if value == model and key.startswith(f"{kind}.") and key != place:
            label, source = identity.get(f"{place}.name") or model, identity.get(f"{place}.source", "unknown")
            if label == item["name"] and source is None and model in table:
                return table[model].licence
    return None


def target_of(spec: Spec, kind: str, label: str, look_up: bool = True) -> Target:
    """The target of a row, its weights pinned to what lies there now.

    Raises:
        ConfigError: weights are missing, cut short, pickled where safetensors are due, or not to be read.
    """
    pins: dict[str, Pinned] = {"": Pinned(spec.source, spec.revision, UNRECORDED)}
    if look_up:
        pins, faults = {}, Faults()
        for part, (source, revision, pickles) in spec.weights().items():
            with (
                faults.kept(),
                _naming_the_model(f"{kind} '{label}'", spec.remedy if source == spec.source else None),
            ):
                if pickles is not None:
                    weights.check(source, pickles)
                pins[part] = weights.pin(source, revision)
        faults.raise_any()
        spec = spec.pinned(pins)
    return Target(
        name=label,
        target=spec.target,
        kwargs={"spec": spec},
        revision=spec.recorded(pins),
        num_gpus=spec.num_gpus,
        num_cpus=spec.num_cpus,
        environment=spec.environment,
        unresolved=tuple(one.source for one in pins.values() if one.recorded.startswith(UNRESOLVED)),
    )


@contextmanager
def _naming_the_model(whose: str, remedy: str | None) -> Iterator[None]:
    """Within it errors name the model, and what mends it where its row knows better than they do."""
    try:
        yield
    except ConfigError as error:
        told = str(error) if remedy is None else f"{str(error).partition(';')[0]}; {remedy}"
        raise ConfigError(f"{whose}: {told}") from error


def _of_the_user(choice: ModelChoice, kind: str) -> Target:
    """The target of a user's own class, constructed as `Class(device=..., **options)`.

    Raises:
        ConfigError: the form is wrong, its top-level package cannot be found here, or settings are given that
            only the table's own models take.
    """
    module, _ = split_name(choice.model)
    package = module.split(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{kind} '{choice.model}': {_no_module(package)}")
    own = {"model", "name", "revision", "options", "pool", "samples", "seed_name", "least"}
    given = sorted(key for key in choice.model_fields_set - own if getattr(choice, key) is not None)
    if given:
        raise ConfigError(
            f"{kind} '{choice.model}' takes its settings by `options`; move {', '.join(given)} there"
        )
    return Target(choice.label, choice.model, dict(choice.options), choice.revision or UNRECORDED)


def unknown_model(kind: str, name: str, table: Mapping[str, Any]) -> ConfigError:
    """The error for a name that is in no table, with the nearest that is."""
    return ConfigError(
        f"unknown {kind} '{name}'{nearest(name, table)}; known: {', '.join(sorted(table))}, "
        f"or a class of your own as 'package.module:Class'"
    )


def require_known(whose: str, what: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Refuses what is given and not allowed.

    Args:
        whose: such as "reward 'pickscore'".
        what: "option", "part".

    Raises:
        ConfigError: with the nearest that is allowed.
    """
    allowed = tuple(allowed)
    for key in given:
        if key not in allowed:
            raise ConfigError(
                f"{whose}: unknown {what} '{key}'{nearest(key, allowed)}; allowed: {', '.join(allowed) or 'none'}"
            )


def require_resolved(targets: Iterable[Target]) -> None:
    """Refuses models of which neither the hub nor the local cache knows anything: no actor could load them.

    Raises:
        ConfigError: a line a repository, and one that says what to do.
    """
    whose: dict[str, dict[str, None]] = {}
    for target in targets:
        for name in target.unresolved:
            whose.setdefault(name, {})[target.name] = None
    if whose:
        lines = [f"{', '.join(names)}: {hub.uncached(name)}" for name, names in whose.items()]
        if len(lines) == 1:
            raise ConfigError(f"{lines[0]}, and {hub.silence(*whose)}")
        raise ConfigError("\n".join([*lines, hub.silence()]))


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
    cls = getattr(module, attribute, None)
    if cls is None:
        own = sorted(
            key for key, value in vars(module).items() if isinstance(value, type) and not key.startswith("_")
        )
        raise ConfigError(
            f"'{module_name}' has no '{attribute}'{nearest(attribute, own)}; its classes: {', '.join(own) or 'none'}"
        )
    if not isinstance(cls, type) or not any(hasattr(cls, name) for name in METHODS):
        raise ConfigError(
            f"'{target.target}' is no model: it must be a class with a method `generate`, `score` or `judge`"
        )
    return cls(device=device, **target.kwargs)


def split_name(target: str) -> tuple[str, str]:
    """("package.module", "Class") of "package.module:Class".

    Raises:
        ConfigError: it is not of that form.
    """
    module, _, attribute = target.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ConfigError(f"'{target}' is not of the form 'package.module:Class'")
    return module, attribute


def _no_module(name: str) -> str:
    parent, _, leaf = name.rpartition(".")
    if not parent:
        near = difflib.get_close_matches(name, [one.name for one in pkgutil.iter_modules()], n=1, cutoff=0.8)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        return (
            f"no package '{name}' can be imported here{hint}; install it, or put it in the working directory"
        )
    package = importlib.import_module(parent)
    modules = sorted(one.name for one in pkgutil.iter_modules(getattr(package, "__path__", [])))
    return (
        f"'{parent}' has no module '{leaf}'{nearest(leaf, modules)}; it has: {', '.join(modules) or 'none'}"
    )
