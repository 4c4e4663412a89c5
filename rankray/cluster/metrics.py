"""A job's figures as metrics of Ray, live: Prometheus collects them, `cluster/grafana-dashboard.json` draws them.

They are told where progress is counted, by the driver of a dataset and the first worker of a training, each with the
output, kind and model that it is of. Ray's agent on that node serves them as `ray_NAME`, counters as `ray_NAME_total`,
up to ten seconds later; it drops a gauge that is not told anew within twenty, so a dashboard asks for the last value.
A job's last ten seconds may so be missing, which its own summary has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import ray
from ray.util.metrics import Counter, Gauge

COUNTERS = {
    "items": "images, scores, encoded blocks or training prompts that are done, failed ones too",
    "failures": "of these, those that failed; of a training, steps that were left out",
    "busy_seconds": "seconds that actors or workers spent computing",
    "alive_seconds": "seconds that they were there, and paid for",
    "usd": "dollars, by the prices of the configuration",
}
"""What has come together since this process began with the job."""

GAUGES = {
    "left": "items that are left to do",
    "queue": "blocks that the model before has finished and this one has not",
    "step": "a training's step",
    "loss": "a training step's loss",
    "implicit_accuracy": "share of a training step's pairs that the model orders as the labels do",
    "learning_rate": "what a training step was taken with",
    "grad_norm": "a training step's gradient norm, before clipping",
    "memory_gb": "most memory that the first worker has had, in 1e9 bytes",
    "validation_loss": "loss on held-out prompts",
    "validation_implicit_accuracy": "share of held-out pairs that the model orders as the labels do",
}
"""What is so now."""

PREFIX = "rankray_"
TAGS = ("output", "kind", "model")

_counted: dict[tuple[str, ...], float] = {}


def tell(tags: tuple[str, str, str], totals: Mapping[str, float], now: Mapping[str, object]) -> None:
    """Tells Ray where one model of a job stands; without a Ray nothing.

    Args:
        tags: output, kind ("generator", "reward", "blocks", "training"), model.
        totals: of `COUNTERS`, since the job began; one that is less than before has begun anew.
        now: of `GAUGES`; what else is in it, and what is no finite number, is passed over.
    """
    if not ray.is_initialized():
        return
    # Ray takes ASCII alone, and raises where a label has more.
    named = {
        key: tag.encode("ascii", "backslashreplace").decode() for key, tag in zip(TAGS, tags, strict=True)
    }
    for name, total in totals.items():
        key = (name, *tags)
        before, _counted[key] = _counted.get(key, 0.0), total
        if (more := total - before if total >= before else total) > 0:
            Counter(PREFIX + name, COUNTERS[name], TAGS).inc(more, named)
    for name, value in now.items():
        if name in GAUGES and isinstance(value, int | float) and math.isfinite(value):
            Gauge(PREFIX + name, GAUGES[name], TAGS).set(value, named)
