"""The command line of an evaluation: models, benchmarks and prompt lists by short words, all else as in every job.

--model WHAT         ROW, ROW@DIRECTORY, RUN or CHECKPOINT, once for each model; NAME= before it names it
--baseline WHAT      the same, or a model's name
--evals NAME,NAME    benchmarks and metrics, as in geneval,dpg,vqascore; those of the file keep their settings
--prompts.NAME PATH  a list's file; --prompts.NAME.limit N and the like are its keys
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rankray.config import ConfigError, nearest, parse_value
from rankray.config.evaluate import PromptListConfig
from rankray.evals import EVALS
from rankray.evals import models as evaluated_models
from rankray.models.rewards import REWARDS

GROUPS = {"qalign": ("qalign-quality", "qalign-aesthetic")}
"""Names for several metrics at once."""

_EXAMPLE = {"evals": "geneval", "metrics": "vqascore"}
_LIST = re.compile(r"--prompts\.([\w-]+)(?:\.(\w+))?")


def split(argv: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """(words of the options of this module, by option; all other arguments).

    Raises:
        ConfigError: an option has no value.
    """
    own: dict[str, list[str]] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("--model", "--evals") or _LIST.fullmatch(name):
            if not equals:
                value = next(words, "")
            if not value:
                raise ConfigError(f"option '{name}' needs a value")
            own.setdefault(name, []).append(value)
        else:
            rest.append(word)
    return own, rest


def applied(
    tables: Mapping[str, Any], own: Mapping[str, Sequence[str]], metrics_given: bool = False
) -> dict[str, Any]:
    """The tables of a TOML file and plain options, with what `split` found.

    Args:
        metrics_given: the tables' metrics are an option's, and stay beside those that `--evals` names.

    Returns:
        The tables; lists of the file that nothing asks for after `--evals` are gone from them.

    Raises:
        ConfigError: an unknown benchmark, metric or key of a list (nearest named).
    """
    merged = dict(tables)
    for key in ("evals", "metrics"):
        entries = tables.get(key, [])
        if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in entries):
            raise ConfigError(f'{key} = {entries!r}: give tables, such as [{{model = "{_EXAMPLE[key]}"}}]')
    if not isinstance(tables.get("prompts", {}), Mapping):
        raise ConfigError(f"prompts = {tables['prompts']!r}: give each list a name, --prompts.NAME PATH")
    if "--model" in own:
        models = [evaluated_models.parse(text) for text in own["--model"]]
        merged["models"] = [model.model_dump(exclude_unset=True, exclude_none=True) for model in models]
    if "--evals" in own:
        names = [name.strip() for text in own["--evals"] for name in text.split(",") if name.strip()]
        chosen = _chosen([part for name in names for part in GROUPS.get(name, (name,))], tables)
        if metrics_given:
            given = list(tables["metrics"])
            chosen["metrics"] = given + [one for one in chosen["metrics"] if one not in given]
        merged |= chosen
    lists, given = dict(tables.get("prompts", {})), []
    for option, values in own.items():
        if (found := _LIST.fullmatch(option)) is not None:
            lists[found[1]] = {**lists.get(found[1], {}), **_key(option, found[2], values[-1])}
            given.append(found[1])
    return merged | _judged(merged, lists, given, narrowed="--evals" in own) if lists else merged


def _judged(
    tables: Mapping[str, Any], lists: Mapping[str, Any], given: Sequence[str], narrowed: bool
) -> dict[str, Any]:
    """`metrics` and `prompts`, where nothing asks for a list.

    It is every metric's if an option gave it, and goes if the file's judges were `narrowed` to some; else it stays, for
    the configuration to refuse.
    """
    metrics = list(tables.get("metrics", ()))
    asked = {str(entry.get("name") or entry.get("model")) for entry in tables.get("evals", ())}
    asked.update(name for entry in metrics for name in entry.get("on") or lists)
    more = [name for name in dict.fromkeys(given) if name not in asked]
    if more:
        metrics = [{**entry, "on": [*entry["on"], *more]} for entry in metrics]
    prompts = {name: entry for name, entry in lists.items() if not narrowed or name in asked or name in more}
    return {"prompts": prompts, **({"metrics": metrics} if metrics else {})}


def _key(option: str, key: str | None, value: str) -> dict[str, Any]:
    allowed = list(PromptListConfig.model_fields)
    if key is not None and key not in allowed:
        raise ConfigError(
            f"unknown option '{option}'{nearest(key, allowed)}; allowed there: {', '.join(allowed)}"
        )
    return {"path": value} if key in (None, "path") else {str(key): parse_value(value)}


def _chosen(names: Iterable[str], tables: Mapping[str, Any]) -> dict[str, Any]:
    """`evals` and `metrics` of those names, with the settings that the file gives them.

    Raises:
        ConfigError: a name is neither a benchmark nor a metric.
    """
    found: dict[str, list[Any]] = {"evals": [], "metrics": []}
    known = {
        (entry.get("name") or entry.get("model")): (kind, entry)
        for kind in found
        for entry in tables.get(kind, ())
    }
    for name in dict.fromkeys(names):
        if name in known:
            kind, entry = known[name]
        elif name in EVALS or name in REWARDS or ":" in name:
            kind, entry = ("evals" if name in EVALS else "metrics"), {"model": name}
        else:
            allowed = [*EVALS, *GROUPS, *REWARDS, *(str(key) for key in known)]
            raise ConfigError(
                f"unknown eval '{name}'{nearest(name, allowed)}; benchmarks: {', '.join(EVALS)}; metrics: "
                f"{', '.join((*GROUPS, *REWARDS))}, or a class of your own as 'package.module:Class'"
            )
        found[kind].append(entry)
    return found
