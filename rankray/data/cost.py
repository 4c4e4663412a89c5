"""Who used the cluster for how long, and what that costs (paper Table 8).

An actor is paid for from its first import to its last second, whether it works or waits, because that is what
a rented GPU costs; busy seconds are shown beside it. The paper counts drawing alone: $185.60 for 232,000 images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankray.config import PricesConfig

PAPER_PROMPTS = 58_000
"""Prompts of the paper's dataset, for which every ledger states what this job's rate would cost."""

ADDED = [
    "actors",
    "items",
    "failures",
    "busy_s",
    "load_s",
    "idle_s",
    "alive_s",
    "gpu_hours",
    "cpu_hours",
    "usd",
]
"""What rows of one model add up to; the rest is of one of them."""


@dataclass(frozen=True)
class ActorUsage:
    """Totals of one actor's life so far. `items` are images of a generator, scores of a reward, failed ones too;
    `skipped` are candidates that a reward never saw because they have no image; `truncated` are prompts of which it
    read the beginning alone; `fits` is how many items it computes at once since more did not fit in its device's
    memory, 0 where everything did.

    `busy_s` is inside the model's calls, `load_s` from the actor's start until its model was there (all of `alive_s`
    where that was not to be), `alive_s` from its start to its last report; what is neither busy nor loading is idle.
    `gpu` is the device's name and `gpu_gb` its memory, `peak_gpu_gb` the most of it that the actor had reserved (1e9
    bytes); none of a CPU.
    """

    model: str
    kind: str
    actor_id: str
    busy_s: float
    load_s: float
    alive_s: float
    items: int
    failures: int
    skipped: int
    num_gpus: float
    num_cpus: float
    truncated: int = 0
    fits: int = 0
    gpu: str = ""
    gpu_gb: float = 0.0
    peak_gpu_gb: float = 0.0


def smaller_batches(usages: Iterable[ActorUsage]) -> dict[str, int]:
    """Model -> the fewest items that an actor of it computed at once since more did not fit; none where all did."""
    found: dict[str, int] = {}
    for usage in usages:
        if usage.fits:
            found[usage.model] = min(found.get(usage.model, usage.fits), usage.fits)
    return found


def ledger(usages: Iterable[ActorUsage], prices: PricesConfig) -> dict[str, Any]:
    """The bill of a job, over all of its runs.

    Returns:
        `models`: a row a model with kind, actors, items, failures, busy_s, load_s, idle_s, alive_s, gpu_hours,
        cpu_hours, usd, usd_per_1000 (items), and gpu, gpu_gb, peak_gpu_gb of the actor that reserved most;
        `totals`: gpu_hours, cpu_hours, usd, images; usd_per_1000_images, and usd_generation, usd_labels apart as
        Table 8 has them. All times in seconds unless named hours. A ratio over nothing is None.
    """
    return _bill((_row(actor, prices) for actor in usages), prices)


def merged(ledgers: Iterable[Mapping[str, Any]], prices: PricesConfig) -> dict[str, Any]:
    """One ledger of several; rows of one kind and model are added up."""
    return _bill((row for found in ledgers for row in found["models"]), prices)


def _row(actor: ActorUsage, prices: PricesConfig) -> dict[str, Any]:
    gpu_hours = actor.alive_s * actor.num_gpus / 3600
    # Claims of CPUs are fractions where models share cores, so a CPU second that was worked is a second paid.
    cpu_hours = max(actor.alive_s * actor.num_cpus, actor.busy_s + actor.load_s) / 3600
    # A GPU node's price includes its CPUs; an actor without a GPU pays for its CPUs. A model may have had both.
    usd = gpu_hours * prices.gpu_usd_per_hour if actor.num_gpus else cpu_hours * prices.cpu_usd_per_hour
    told = ("kind", "model", "items", "failures", "busy_s", "load_s", "alive_s")
    return {
        **{key: getattr(actor, key) for key in (*told, "gpu", "gpu_gb", "peak_gpu_gb")},
        "actors": 1,
        "idle_s": max(0.0, actor.alive_s - actor.busy_s - actor.load_s),
        "gpu_hours": gpu_hours,
        "cpu_hours": cpu_hours,
        "usd": usd,
        "usd_per_1000": None,
    }


def _sum(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of one model as one, with the GPU of the one that reserved most of it."""
    most = max(rows, key=lambda row: row.get("peak_gpu_gb", 0.0))
    total = {**most, **{key: sum(row[key] for row in rows) for key in ADDED}}
    return {**total, "usd_per_1000": _per(1000 * total["usd"], total["items"])}


def _bill(rows: Iterable[Mapping[str, Any]], prices: PricesConfig) -> dict[str, Any]:
    by_model: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_model.setdefault((row["kind"], row["model"]), []).append(row)
    models = [_sum(found) for _, found in sorted(by_model.items())]
    gpu_hours, cpu_hours, usd = (sum(row[key] for row in models) for key in ("gpu_hours", "cpu_hours", "usd"))
    drawn = [row for row in models if row["kind"] == "generator"]
    usd_generation = sum(row["usd"] for row in drawn)
    images = sum(row["items"] - row["failures"] for row in drawn)
    return {
        "models": models,
        "totals": {
            "gpu_hours": gpu_hours,
            "cpu_hours": cpu_hours,
            "usd": usd,
            "usd_generation": usd_generation,
            "usd_labels": usd - usd_generation,
            "images": images,
            "usd_per_1000_images": _per(1000 * usd, images),
        },
        "prices": prices.model_dump(mode="json"),
    }


def truncated_prompts(usages: Iterable[ActorUsage], prompts: int) -> dict[str, int]:
    """Model -> prompts that are longer than it reads; models that read all of them are left out.

    Counted as they are drawn or scored, so a block that a kill repeated counts again: never above all `prompts`.
    """
    found: dict[str, int] = {}
    for usage in usages:
        if usage.truncated:
            found[usage.model] = min(found.get(usage.model, 0) + usage.truncated, prompts)
    return found


def usd_for_prompts(
    totals: dict[str, Any], images_per_prompt: int, prompts: int = PAPER_PROMPTS
) -> float | None:
    """What `prompts` prompts would cost at this job's rate; None where it made no image."""
    per_1000: float | None = totals["usd_per_1000_images"]
    return None if per_1000 is None else per_1000 / 1000 * images_per_prompt * prompts


def _per(amount: float, count: int) -> float | None:
    return amount / count if count else None
