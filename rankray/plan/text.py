"""A forecast as a person reads it in a terminal of 120 columns: memory, clusters, pools, what was assumed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from rankray import words
from rankray.cluster import layout
from rankray.config import ConfigError, SynPicConfig
from rankray.data import cost
from rankray.models import hardware
from rankray.models.hardware import GPU_TYPES, GpuType
from rankray.synpic import forecast
from rankray.synpic.forecast import Allotment, Forecast, Model

HOURS_A_DAY = 24

PAPER_GENERATORS = {"sdxl", "sd3-medium", "pixart-sigma", "stable-cascade"}
PAPER_REWARDS = {"hpsv2.1", "mps", "pickscore", "vqascore", "imagereward"}


def on_gpus(
    config: SynPicConfig, models: Sequence[Model], prompts: int, gpu: GpuType, count: int, chosen: bool
) -> list[str]:
    """The plan of a job with GPUs: in full on `count` of `gpu`, and beside the other types unless it was `chosen`."""
    types = [gpu] if chosen else list(GPU_TYPES.values())
    mode, block = config.execution.mode, config.execution.rows_per_block
    found = {kind: forecast.forecast(models, kind, count, prompts, mode, block) for kind in types}
    own_price = chosen and config.prices.gpu_usd_per_hour > 0
    prices = {kind: config.prices.gpu_usd_per_hour if own_price else kind.usd_per_hour for kind in types}
    lines = ["", "GPU memory of one actor in GB, and which GPU holds it", *_memory(models, types)]
    lines += _warnings(models, gpu)
    if not (chosen and found[gpu].fault):
        lines += ["", f"On {words.count(count, 'GPU')}, with pools changed as above where they have to be"]
        lines += _clusters(list(found.values()), config, prompts, prices)
    lines += ["", *_detail(found[gpu], prompts)]
    if _is_papers(config) and found[gpu].hours is not None:
        lines += ["", *_beside_the_paper(found[gpu], prices[gpu])]
    return [*lines, "", *_assumptions(models, types, own_price)]


def _memory(models: Sequence[Model], types: Sequence[GpuType]) -> list[str]:
    header = [
        "model",
        "actors",
        "num_gpus",
        "dtype",
        "batch",
        "weights",
        "needs",
        *(gpu.name for gpu in types),
    ]
    rows = []
    for model in models:
        needs = model.needs_gb()
        spec = model.stage.target.kwargs.get("spec")
        rows.append(
            [
                model.name,
                _size(model),
                f"{model.stage.actors.num_gpus:g}",
                {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}.get(
                    getattr(spec, "dtype", ""), "?"
                ),
                str(model.batch or "?"),
                f"{model.footprint.weights_gb:.1f}" if model.footprint.parts else "?",
                "none" if not model.share else "?" if needs is None else f"{needs:.1f}",
                *(_cell(model, gpu) for gpu in types),
            ]
        )
    return words.table(header, rows)


def _size(model: Model) -> str:
    """Actors of a pool: `1..16`, or `4`."""
    least, most = model.stage.actors.min_size, model.stage.actors.max_size
    return f"{least}..{most}" if most > least else f"{least}"


def _cell(model: Model, gpu: GpuType) -> str:
    if not model.share:
        return "-"
    found = forecast.fit(model, gpu)
    if found.fault:
        return "no bf16" if "bfloat16" in found.fault else "no"
    if found.needs_gb is None:
        return "?"
    return found.change.replace("batch ", "b").replace(" share ", ",g").replace("share ", "g") or "fits"


def _warnings(models: Sequence[Model], gpu: GpuType) -> list[str]:
    lines = [
        "  fits: as configured; b4: with batch_size = 4; g0.5: with pool.num_gpus = 0.5; no: not even one at once"
    ]
    for model in models:
        found = forecast.fit(model, gpu)
        needs = model.needs_gb(gpu=gpu)
        if found.fault and "bfloat16" in found.fault:
            lines.append(f"  warning: '{model.name}' {found.fault}")
        elif (found.fault or found.change) and needs is not None:
            lines.append(f"  warning: {forecast.too_little(model, needs, gpu)}")
    return lines


def _clusters(
    found: Sequence[Forecast], config: SynPicConfig, prompts: int, prices: Mapping[GpuType, float]
) -> list[str]:
    header = ["GPU", "layout", "pictures/s", "hours", "GPU-hours", "busy", "$/GPU-hour", "dollars"]
    rows, lines = [], []
    for item in found:
        if item.fault:
            lines.append(f"  {item.gpu.name}: {item.fault}")
            continue
        phases = len(item.phases)
        figures = ["?", "?", "?", "?", f"{prices[item.gpu]:.2f}", "?"]
        if item.hours:
            paid = item.hours * item.count
            busy = sum(item.busy_hours(kind, prompts) for kind in ("generator", "reward")) / paid
            pictures = prompts * config.k / item.hours / 3600
            usd = paid * prices[item.gpu]
            figures = [
                f"{pictures:.2f}",
                f"{item.hours:,.1f}",
                f"{paid:,.0f}",
                f"{busy:.0%}",
                f"{prices[item.gpu]:.2f}",
                f"{usd:,.0f}",
            ]
        rows.append([item.gpu.name, "streaming" if phases == 1 else f"{phases} phases", *figures])
    return [*(words.table(header, rows, left=2) if rows else []), *lines]


def _detail(found: Forecast, prompts: int) -> list[str]:
    if found.fault:
        return [f"{found.count} x {found.gpu.name}: cannot run: {found.fault}"]
    lines = [f"{found.count} x {found.gpu.name}: {found.explanation}"]
    header = [
        "phase",
        "model",
        "actors",
        "num_gpus",
        "batch",
        "GB",
        "of GB",
        "s/item",
        "items/s",
        "GPU-hours",
        "speed is",
    ]
    rows = [_row(allotment, found.gpu, prompts) for allotment in found.allotments]
    return [*lines, *words.table(header, rows, left=2)]


def _row(found: Allotment, gpu: GpuType, prompts: int) -> list[str]:
    fit, seconds = found.fit, found.seconds
    rate = "?" if not seconds else f"{found.actors / seconds:.2f}"
    return [
        str(found.phase + 1),
        found.model.name,
        str(found.actors),
        f"{fit.share:g}" if found.model.share < 1 else f"{found.model.stage.actors.num_gpus:g}",
        str(fit.batch or "?"),
        "-" if not found.model.share else "?" if fit.needs_gb is None else f"{fit.needs_gb:.1f}",
        f"{fit.share * gpu.usable_gb:.3g}" if found.model.share else "-",
        "?" if seconds is None else f"{seconds:.3f}",
        rate,
        f"{found.gpu_seconds * prompts / 3600:,.1f}" if seconds is not None else "?",
        found.model.source(gpu) if found.model.share else "unknown",
    ]


def _is_papers(config: SynPicConfig) -> bool:
    return {choice.model for choice in config.generators} == PAPER_GENERATORS and {
        choice.model for choice in config.rewards
    } == PAPER_REWARDS


def _beside_the_paper(found: Forecast, price: float) -> list[str]:
    """Both for the paper's 58,000 prompts; dollars of work alone, as its Table 8 counts."""
    scale = cost.PAPER_PROMPTS
    drawing, labels = (found.busy_hours(kind, scale) for kind in ("generator", "reward"))
    days = (drawing + labels) / HOURS_A_DAY
    paper_price = hardware.PAPER_USD / hardware.PAPER_A100_DAYS / HOURS_A_DAY
    rows = [
        [
            "the paper",
            f"{hardware.PAPER_A100_DAYS:.1f} A100-days",
            f"{paper_price:.2f}",
            f"{hardware.PAPER_USD:.2f}",
            f"{hardware.PAPER_USD_GENERATION:.2f}",
            f"under {hardware.PAPER_USD - hardware.PAPER_USD_GENERATION:.0f}",
        ]
    ]
    for rent in dict.fromkeys((price, round(paper_price, 4))):
        rows.append(
            [
                "here",
                f"{days:.1f} {found.gpu.name}-days",
                f"{rent:.2f}",
                f"{(drawing + labels) * rent:.2f}",
                f"{drawing * rent:.2f}",
                f"{labels * rent:.2f}",
            ]
        )
    header = [f"{scale:,} prompts", "work", "$/GPU-hour", "dollars", "pictures", "labels"]
    return ["Beside the paper, work alone, without GPUs that wait", *words.table(header, rows, left=2)]


def _assumptions(models: Sequence[Model], types: Sequence[GpuType], own_price: bool) -> list[str]:
    sources = {gpu.reached_by: [g.name for g in types if g.reached_by == gpu.reached_by] for gpu in types}
    measured = [model.name for model in models if model.measured is not None]
    lines = [
        "Assumed"
        + (f", but for what was measured of {', '.join(measured)}" if measured else ", nothing measured"),
        f"  memory: weights, + {hardware.WORKSPACE:g} x the largest activations of one part at that batch (counted on "
        f"the meta device), + {hardware.CONTEXT_GB:g} GB",
        f"          {hardware.USABLE:.0%} of what a GPU is sold with is usable",
        "  speed:  FLOPs (counted on the meta device) over this share of the GPU's dense peak:",
    ]
    for reached_by, names in sources.items():
        lines.append(f"          {', '.join(names)} {GPU_TYPES[names[0]].reached:.0%}: {reached_by}")
    lines.append(
        f"          part of a GPU has that part of its speed; a PNG takes a core {hardware.ENCODE_S * 1000:.0f} ms to "
        f"write, {hardware.DECODE_S * 1000:.0f} ms to read"
    )
    if own_price:
        lines.append("  price:  prices.gpu_usd_per_hour of the configuration, for all GPUs, busy or not")
    else:
        lines.append(f"  price:  {hardware.PRICES_BY}")
        lines.append("          with --gpu-type, prices.gpu_usd_per_hour of the configuration is taken")
    lines.append(
        f"  phases: {layout.START_S:g} s to start one; a node copies {layout.COPY_BYTES_PER_S / 1e6:g} MB/s of "
        "pictures between them, beside the work"
    )
    lines.append(
        "  --measured DATASET puts what a finished dataset measured in the place of speed and memory"
    )
    return lines


def on_cpus(config: SynPicConfig, models: Sequence[Model], prompts: int) -> list[str]:
    """A job without GPUs: its pools, its layout on this machine, and hours where a dataset measured them."""
    cores = os.cpu_count() or 1
    lines = ["", "No pool takes a GPU: models run on CPUs, and there is no GPU memory to fill.", ""]
    header = ["model", "actors", "num_cpus", "batch", "weights, MB", "CPU-s/item", "CPU-hours"]
    rows, total_s = [], 0.0
    for model in models:
        measured = model.measured
        item_s = None if measured is None or measured.gpu is not None else measured.seconds
        total_s += (item_s or 0.0) * model.items * prompts
        rows.append(
            [
                model.name,
                _size(model),
                f"{model.stage.actors.num_cpus:g}",
                str(model.batch or "?"),
                f"{model.footprint.weights_gb * 1000:,.1f}" if model.footprint.parts else "?",
                "?" if item_s is None else f"{item_s:.4f}",
                "?" if item_s is None else f"{item_s * model.items * prompts / 3600:,.2f}",
            ]
        )
    lines += words.table(header, rows)
    stages = [model.stage for model in models]
    try:
        plan = layout.plan(stages, [forecast.ample_node(cores, 0, stages)], config.execution.mode)
        lines.append(f"on one machine of {cores} cores, as this one: {plan.explanation}")
    except ConfigError as error:
        lines.append(f"on one machine of {cores} cores, as this one: cannot run: {error}")
    if total_s and all(model.measured is not None and model.measured.gpu is None for model in models):
        hours = total_s / 3600 / cores
        usd = total_s / 3600 * config.prices.cpu_usd_per_hour
        lines.append(
            f"measured: {total_s / 3600:,.2f} CPU-hours, so {hours:,.2f} hours at best on {cores} cores, "
            f"{prompts * config.k / hours / 3600:,.1f} pictures/s, ${usd:,.2f}"
        )
    else:
        lines.append(
            "how long: nobody has said; --measured DATASET takes it from a finished dataset of these models"
        )
    return lines
