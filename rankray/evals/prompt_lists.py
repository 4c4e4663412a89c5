"""The prompt lists of an evaluation: who judges the pictures of each, and what a benchmark asks of every prompt.

A list is read once, on the driver, and its questions travel to the judges with their stage, so that no node needs the
file. Lists of the same prompts and as many pictures are one: metrics share the pictures that a benchmark has drawn.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from rankray import evals
from rankray.config import ConfigError, EvalChoice, Faults, ModelChoice, PromptsConfig
from rankray.config.evaluate import PLAIN_SAMPLES, EvaluateConfig, MetricChoice
from rankray.data.prompts import PromptsRead, read_prompts
from rankray.evals import EvalSpec, Item
from rankray.models import rewards
from rankray.models.targets import Target, require_resolved, resolve_all
from rankray.models.weights import SHAPES

Entry = TypeVar("Entry")

_OF_PLAIN = ("column", "config", "split", "shuffle_seed", "block")
"""Keys that say nothing of a benchmark's file, which has a form of its own."""
_KEY = re.compile(rf"(?<![\w/.-])(--)?prompts\.(?=({'|'.join(_OF_PLAIN)})\b)")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark on a list.

    Attributes:
        spec: its row with the choice's settings.
        items: what it asks of each prompt.
        published: how many prompts its file holds.
        target: its judge.
    """

    spec: EvalSpec
    items: tuple[Item, ...]
    published: int
    target: Target

    @property
    def asked(self) -> str:
        """Digest of what it asks."""
        text = json.dumps([[item.prompt, item.data] for item in self.items])  # in order: scores depend on it
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class PromptList:
    """Prompts whose pictures every model draws once, and all who judge and score these.

    Attributes:
        name: its name in the configuration.
        samples: pictures a prompt.
        scorers: benchmarks first, then metrics, in the configuration's order.
        benchmarks: by label, those of the scorers that are one.
    """

    name: str
    prompts: PromptsRead
    samples: int
    scorers: tuple[ModelChoice, ...]
    benchmarks: Mapping[str, Benchmark]

    @property
    def judges(self) -> dict[str, Target]:
        """Targets of the benchmarks, by label."""
        return {label: benchmark.target for label, benchmark in self.benchmarks.items()}

    @property
    def asked(self) -> dict[str, str]:
        """What each benchmark asks, as a digest."""
        return {label: benchmark.asked for label, benchmark in self.benchmarks.items()}

    @property
    def described(self) -> str:
        """`"dpg: 20 prompts x 4 pictures, judged by dpg, vqascore"`."""
        names = ", ".join(choice.label for choice in self.scorers)
        return f"{self.name}: {len(self.prompts.rows):,} prompts x {self.samples} pictures, judged by {names}"


def read_lists(config: EvaluateConfig) -> list[PromptList]:
    """The lists that a benchmark or a metric is on, in the configuration's order.

    Raises:
        ConfigError: a file is missing or of another format, a benchmark, part or option is unknown, or weights cannot
            be found.
    """
    found, faults = list[PromptList](), Faults()
    read: dict[str, PromptList] = {}
    for name in config.prompts:
        with faults.kept():
            read[name] = _read(config, name)
    faults.raise_any()
    for scored in read.values():
        if not scored.scorers:
            continue
        for n, other in enumerate(found):
            if other.samples == scored.samples and set(other.prompts.rows) == set(scored.prompts.rows):
                found[n] = _merged(other, scored)
                break
        else:
            found.append(scored)
    return found


def scorer_revisions(config: EvaluateConfig, lists: Sequence[PromptList]) -> dict[str, str]:
    """The revision of every judge and metric; of the metrics alone where there are no lists.

    Raises:
        ConfigError: a reward is unknown, or weights of one of them cannot be found anywhere.
    """
    scorers = {choice.label: choice for prompts in lists for choice in prompts.scorers}
    asked = [
        choice
        for choice in (scorers.values() if lists else config.metrics)
        if isinstance(choice, MetricChoice)
    ]
    found = {target.name: target for target in resolve_all(asked, rewards.resolve)}
    for prompts in lists:
        found |= {label: benchmark.target for label, benchmark in prompts.benchmarks.items()}
    require_resolved(found.values())
    return {label: target.revision for label, target in found.items()}


def _read(config: EvaluateConfig, name: str) -> PromptList:
    settings = config.prompts[name]
    own = [choice for choice in config.evals if choice.label == name]
    metrics = [choice for choice in config.metrics if choice.on is None or name in choice.on]
    if own:
        read, benchmark = _benchmark(own[0], settings)
        samples = settings.samples or benchmark.spec.samples
        return PromptList(name, read, samples, (*own, *metrics), {name: benchmark})
    if not metrics:
        return PromptList(name, PromptsRead([], 0, 0, 0, 0, settings.path), 1, (), {})
    return PromptList(name, _plain(name, settings), settings.samples or PLAIN_SAMPLES, tuple(metrics), {})


def _plain(name: str, settings: PromptsConfig) -> PromptsRead:
    try:
        return read_prompts(PromptsConfig(**settings.model_dump(exclude={"samples"})))
    # It names keys of a job with one list; here `prompts.column` is a list's name.
    except ConfigError as error:
        raise ConfigError(_KEY.sub(rf"\1prompts.{name}.", str(error))) from None


def _benchmark(choice: EvalChoice, settings: PromptsConfig) -> tuple[PromptsRead, Benchmark]:
    given = [key for key in _OF_PLAIN if getattr(settings, key) != PromptsConfig.model_fields[key].default]
    if given:
        keys = ", ".join(f"`{key}`" for key in given)
        raise ConfigError(f"prompts of benchmark '{choice.label}': they are its own; leave out {keys}")
    spec, faults, chosen = evals.spec_of(choice), Faults(), list[Item]()
    with faults.kept():
        items, repeats = _items(choice, spec, settings.path)
        chosen = spread(items, settings.limit)
    with faults.kept():
        target = evals.resolve(choice, chosen)
        if not chosen:
            require_resolved([target])
    faults.raise_any()
    source = settings.path if settings.path.startswith(SHAPES) else f"{settings.path} ({choice.model})"
    rows, lines = [item.prompt for item in chosen], len(items) + repeats
    read = PromptsRead(rows, lines, 0, repeats, 0, source, cut=len(chosen) < len(items))
    return read, Benchmark(spec, tuple(chosen), len(items), target)


def _items(choice: EvalChoice, spec: EvalSpec, path: str) -> tuple[list[Item], int]:
    try:
        found = evals.items_and_repeats(spec, path)
    except ValueError as error:
        raise ConfigError(f"prompts of benchmark '{choice.label}': {error}") from None
    if not found[0]:
        raise ConfigError(f"prompts of benchmark '{choice.label}': {path} holds none")
    return found


def spread(items: Sequence[Entry], limit: int | None) -> list[Entry]:
    """`limit` of the items at even distances: files hold one category after another, and all should be met."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[n * len(items) // limit] for n in range(limit)]


def _merged(one: PromptList, other: PromptList) -> PromptList:
    """One list for both; whoever is on either scores its pictures once."""
    known = {choice.label for choice in one.scorers}
    scorers = (*one.scorers, *(choice for choice in other.scorers if choice.label not in known))
    judges = tuple(choice for choice in scorers if isinstance(choice, EvalChoice))
    metrics = tuple(choice for choice in scorers if not isinstance(choice, EvalChoice))
    return replace(one, scorers=(*judges, *metrics), benchmarks={**one.benchmarks, **other.benchmarks})
