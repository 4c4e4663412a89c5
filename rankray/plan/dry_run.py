"""`--dry-run`: what a Syn-Pic job would need, and how long and for how much it would run, before anything is started.

    rankray synpic --config synpic.toml --dry-run [--gpu-type H100 --gpus 16] [--measured DATASET]

Nothing is started: no Ray, no weights, no network. Figures are as good as their sources, so each says whether it was
measured or assumed, and the assumptions stand at the end; a factor of two either way is what to expect of assumed ones.
"""

from __future__ import annotations

import argparse
import glob
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankray import store, words
from rankray.cluster import layout
from rankray.config import ConfigError, SynPicConfig
from rankray.data import cost
from rankray.data.place import as_written
from rankray.data.prompts import HUB, SHAPES, read_prompts
from rankray.models import hardware
from rankray.models.hardware import GPU_TYPES, GpuType
from rankray.plan.forecast import Allotment, Forecast, ample_node, forecast
from rankray.plan.measured import read_measured
from rankray.synpic.forecast import NOTHING_HELD, Held, Model, fit, models_of, too_little
from rankray.synpic.stages import stages_of
from rankray.words import Say

DEFAULT_TYPE, DEFAULT_GPUS = "A100-80", 8
COLUMNS = 120
HOURS_A_DAY = 24
PAPER_GENERATORS = {"sdxl", "sd3-medium", "pixart-sigma", "stable-cascade"}
PAPER_REWARDS = {"hpsv2.1", "mps", "pickscore", "vqascore", "imagereward"}


@dataclass(frozen=True)
class DryRun:
    """What the options of a dry run ask: for a cluster of `gpus` of one type, with figures of a finished dataset."""

    gpu_type: str | None
    gpus: int
    measured: str | None


def options() -> argparse.ArgumentParser:
    """The options of a dry run, to stand beside those of a job."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("planning, without starting anything")
    group.add_argument(
        "--dry-run", action="store_true", help="print pools, memory, layout, hours and dollars"
    )
    types = ", ".join(GPU_TYPES)
    group.add_argument("--gpu-type", metavar="TYPE", help=f"of a dry run: {types}")
    group.add_argument("--gpus", metavar="N", help=f"of a dry run: how many; {DEFAULT_GPUS} by default")
    group.add_argument(
        "--measured",
        metavar="DATASET",
        help="of a dry run: a finished dataset, or what benchmarks/full_size.py wrote, to replace assumed figures",
    )
    return parser


def asked(argv: Sequence[str]) -> DryRun | None:
    """The dry run that the options ask for, None where they ask for a job.

    Raises:
        ConfigError: options of a dry run without `--dry-run`, or a number of GPUs that is none.
    """
    found, _ = options().parse_known_args(list(argv))
    if not found.dry_run:
        for name in ("gpu_type", "gpus", "measured"):
            if getattr(found, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} is of a dry run; add --dry-run")
        return None
    gpus = DEFAULT_GPUS if found.gpus is None else found.gpus
    if not str(gpus).isdecimal() or int(gpus) < 1:
        raise ConfigError(f"--gpus {gpus} is no number of GPUs; give 1 or more")
    return DryRun(found.gpu_type, int(gpus), found.measured)


def run(config: SynPicConfig, ask: DryRun, say: Say) -> None:
    """Prints the plan of `config`.

    Raises:
        ConfigError: an unknown model, option or GPU type, prompts that are there and cannot be read, or a dataset that
            measured nothing of these models.
    """
    gpu = hardware.gpu_type(ask.gpu_type or DEFAULT_TYPE)
    measured, remarks = read_measured(ask.measured, config) if ask.measured else ({}, [])
    stages = stages_of(config, look_up=False)
    prompts, origin = prompt_count(config)
    held = _held(config, prompts)
    models = models_of(config, stages, measured, held)
    say("dry run: nothing is started, loaded or written")
    say(f"{prompts:,} prompts ({origin})")
    say(
        f"x {config.k} candidates = {prompts * config.k:,} pictures, "
        f"x {len(config.rewards)} rewards = {prompts * config.k * len(config.rewards):,} scores"
    )
    if config.reuse:
        taken = [*held.samples, *sorted(held.rewards)]
        remarks.append(
            f"of {held.share:.0%} of the prompts {config.reuse} has {', '.join(taken)}; planned is the rest"
        )
    lines = [f"note: {remark}" for remark in remarks]
    if not models:
        lines.append("nothing is left to make")
    elif any(model.share for model in models):
        lines += on_gpus(config, models, prompts, gpu, ask.gpus, ask.gpu_type is not None)
    else:
        lines += on_cpus(config, models, prompts)
    for line in lines:
        say(textwrap.fill(line, COLUMNS, subsequent_indent="    ") if len(line) > COLUMNS else line)


def prompt_count(config: SynPicConfig) -> tuple[int, str]:
    """(prompts, where the number is from): counted where files are here, else the limit, else the paper's."""
    place = config.prompts
    unseen = "the source is not looked at"
    if "://" not in place.path and not place.path.startswith(HUB):
        if place.path.startswith(SHAPES) or _is_here(os.path.expanduser(place.path)):
            return len(read_prompts(place).rows), f"counted in {place.path}"
        unseen = f"nothing is at {place.path} on this machine"
    if place.limit is not None:
        return place.limit, f"prompts.limit; {unseen}"
    return cost.PAPER_PROMPTS, f"the paper's number; {unseen}, and there is no prompts.limit"


def _is_here(path: str) -> bool:
    """Whether a file, a directory or files of a pattern are on this machine."""
    return os.path.exists(path) or next(glob.iglob(path), None) is not None


def _held(config: SynPicConfig, prompts: int) -> Held:
    """What `reuse` has of the job, its prompts taken for the job's; whether settings agree is the job's to check."""
    if config.reuse is None:
        return NOTHING_HELD
    asked = {choice.label for choice in (*config.generators, *config.rewards)}
    try:
        with as_written(store.absolute(config.reuse)):
            info = store.read(config.reuse).info
            samples = {item["name"]: item["samples"] for item in info["generators"] if item["name"] in asked}
            rewards = frozenset(item["name"] for item in info["rewards"] if item["name"] in asked)
            return Held(samples, rewards, min(1.0, info["rows"] / prompts))
    except store.DatasetError as error:
        raise ConfigError(f"nothing to reuse: {error}") from None


def on_gpus(
    config: SynPicConfig, models: Sequence[Model], prompts: int, gpu: GpuType, count: int, chosen: bool
) -> list[str]:
    """The plan of a job with GPUs: in full on `count` of `gpu`, and beside the other types unless it was `chosen`."""
    types = [gpu] if chosen else list(GPU_TYPES.values())
    mode, block = config.execution.mode, config.execution.rows_per_block
    found = {kind: forecast(models, kind, count, prompts, mode, block) for kind in types}
    own_price = chosen and config.prices.gpu_usd_per_hour > 0
    prices = {kind: config.prices.gpu_usd_per_hour if own_price else kind.usd_per_hour for kind in types}
    lines = ["", "GPU memory of one actor in GB, and which GPU holds it", *_memory(models, types)]
    lines += _warnings(models, gpu)
    if not (chosen and found[gpu].fault):
        lines += ["", f"On {words.count(count, 'GPU')}, with pools changed as above where they have to be"]
        lines += _clusters(list(found.values()), config, prompts, prices)
    lines += ["", *_detail(found[gpu], prompts)]
    named = [{choice.model for choice in choices} for choices in (config.generators, config.rewards)]
    if named == [PAPER_GENERATORS, PAPER_REWARDS] and found[gpu].hours is not None:
        lines += ["", *_beside_the_paper(found[gpu], prices[gpu])]
    return [*lines, "", *_assumptions(config, models, types, own_price)]


def _memory(models: Sequence[Model], types: Sequence[GpuType]) -> list[str]:
    header = [
        *["model", "actors", "num_gpus", "dtype", "batch", "weights", "needs"],
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
    found = fit(model, gpu)
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
        found = fit(model, gpu)
        needs = model.needs_gb(gpu=gpu)
        if found.fault and "bfloat16" in found.fault:
            lines.append(f"  warning: '{model.name}' {found.fault}")
        elif (found.fault or found.change) and needs is not None:
            lines.append(f"  warning: {too_little(model, needs, gpu)}")
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
        price = prices[item.gpu]
        figures = ["?", "?", "?", "?", f"{price:.2f}", "?"]
        if item.hours:
            paid = item.hours * item.count
            busy = sum(item.busy_hours(kind, prompts) for kind in ("generator", "reward")) / paid
            figures = [f"{prompts * config.k / item.hours / 3600:.2f}", f"{item.hours:,.1f}"]
            figures += [f"{paid:,.0f}", f"{busy:.0%}", f"{price:.2f}", f"{paid * price:,.0f}"]
        rows.append([item.gpu.name, "streaming" if item.phases == 1 else f"{item.phases} phases", *figures])
    return [*(words.table(header, rows, left=2) if rows else []), *lines]


def _detail(found: Forecast, prompts: int) -> list[str]:
    cluster = f"{found.count} x {found.gpu.name}"
    if found.fault:
        return [f"{cluster}: cannot run: {found.fault}"]
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
    ]
    header.append("speed is")
    rows = [_pool(allotment, found.gpu, prompts) for allotment in found.allotments]
    return [f"{cluster}: {found.explanation}", *words.table(header, rows, left=2)]


def _pool(found: Allotment, gpu: GpuType, prompts: int) -> list[str]:
    fit, model, seconds = found.fit, found.model, found.seconds
    return [
        str(found.phase + 1),
        model.name,
        str(found.actors),
        f"{fit.share if model.share < 1 else model.stage.actors.num_gpus:g}",
        str(fit.batch or "?"),
        "-" if not model.share else "?" if fit.needs_gb is None else f"{fit.needs_gb:.1f}",
        f"{fit.share * gpu.usable_gb:.3g}" if model.share else "-",
        "?" if seconds is None else f"{seconds:.3f}",
        "?" if not seconds else f"{found.actors / seconds:.2f}",
        f"{found.gpu_seconds * prompts / 3600:,.1f}" if seconds is not None else "?",
        model.source(gpu) if model.share else "unknown",
    ]


def _beside_the_paper(found: Forecast, price: float) -> list[str]:
    """Both for the paper's 58,000 prompts; dollars of work alone, as its Table 8 counts."""
    scale = cost.PAPER_PROMPTS
    drawing, labels = (found.busy_hours(kind, scale) for kind in ("generator", "reward"))
    days, usd, drawn = hardware.PAPER_A100_DAYS, hardware.PAPER_USD, hardware.PAPER_USD_GENERATION
    paper_price = usd / days / HOURS_A_DAY
    dollars = [f"{usd:.2f}", f"{drawn:.2f}", f"under {usd - drawn:.0f}"]
    rows = [["the paper", f"{days:.1f} A100-days", f"{paper_price:.2f}", *dollars]]
    work = f"{(drawing + labels) / HOURS_A_DAY:.1f} {found.gpu.name}-days"
    for rent in dict.fromkeys((price, round(paper_price, 4))):
        dollars = [f"{hours * rent:.2f}" for hours in (drawing + labels, drawing, labels)]
        rows.append(["here", work, f"{rent:.2f}", *dollars])
    header = [f"{scale:,} prompts", "work", "$/GPU-hour", "dollars", "pictures", "labels"]
    return ["Beside the paper, work alone, without GPUs that wait", *words.table(header, rows, left=2)]


def _assumptions(
    config: SynPicConfig, models: Sequence[Model], types: Sequence[GpuType], own_price: bool
) -> list[str]:
    sources = {gpu.reached_by: [g.name for g in types if g.reached_by == gpu.reached_by] for gpu in types}
    # What a CPU took says nothing of a GPU, and is in no figure here.
    measured = [
        model.name for model in models if model.measured is not None and model.measured.gpu is not None
    ]
    kind = config.images.format
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
        f"          part of a GPU has that part of its speed; a {kind.upper()} takes a core "
        f"{hardware.ENCODE_S[kind] * 1000:.0f} ms to write, {hardware.DECODE_S * 1000:.0f} ms to read"
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
        plan = layout.plan(stages, [ample_node(cores, 0, stages)], config.execution.mode)
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
