"""What a job reads besides weights, by its configuration alone: prompts, lists of words, datasets."""

from __future__ import annotations

from collections.abc import Iterator

from rankray import evals
from rankray.config import Strict, flatten
from rankray.config.evaluate import EvaluateConfig

READ = ("path", "block", "dataset", "reuse", "measured", "follow")
"""The last words of keys that name such a place."""


def places(settings: Strict) -> Iterator[tuple[str, str]]:
    """(key, place) of each, as the configuration has it; a key comes again where a benchmark's path names several."""
    several = set()
    if isinstance(settings, EvaluateConfig):
        known = [choice for choice in settings.evals if choice.model in evals.EVALS]
        several = {f"prompts.{one.label}.path" for one in known if evals.EVALS[one.model].several}
    for key, value in flatten(settings.model_dump(mode="json")):
        if isinstance(value, str) and key.rpartition(".")[2] in READ:
            for place in evals.parts(value) if key in several else [value]:
                yield key, place
