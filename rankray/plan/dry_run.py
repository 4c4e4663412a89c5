"""`--dry-run`: what a Syn-Pic job would need, and how long and for how much it would run, before anything is started.

    python jobs/synpic.py --config jobs/synpic.toml --dry-run [--gpu-type H100 --gpus 16] [--measured DATASET]

Nothing is started: no Ray, no weights, no network. Figures are as good as their sources, so each says whether it was
measured or assumed, and the assumptions stand at the end; a factor of two either way is what to expect of assumed ones.
"""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rankray import store
from rankray.config import ConfigError, SynPicConfig
from rankray.data import cost
from rankray.data.prompts import HUB, read_prompts
from rankray.models import hardware
from rankray.models.hardware import GPU_TYPES
from rankray.plan import text as forecast_text
from rankray.synpic import forecast, pools
from rankray.synpic.forecast import Held
from rankray.synpic.measured import read_measured

DEFAULT_TYPE, DEFAULT_GPUS = "A100-80", 8
COLUMNS = 120


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


def run(config: SynPicConfig, ask: DryRun, say: Callable[[str], None]) -> None:
    """Prints the plan of `config`.

    Raises:
        ConfigError: an unknown model, option or GPU type, prompts that are there and cannot be read, or a dataset that
            measured nothing of these models.
    """
    gpu = hardware.gpu_type(ask.gpu_type or DEFAULT_TYPE)
    measured, remarks = read_measured(ask.measured, config) if ask.measured else ({}, [])
    stages = pools.stages_of(config, look_up=False)
    prompts, origin = prompt_count(config)
    held = _held(config, prompts)
    models = forecast.models_of(config, stages, measured, held)
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
        lines += forecast_text.on_gpus(config, models, prompts, gpu, ask.gpus, ask.gpu_type is not None)
    else:
        lines += forecast_text.on_cpus(config, models, prompts)
    for line in lines:
        say(textwrap.fill(line, COLUMNS, subsequent_indent="    ") if len(line) > COLUMNS else line)


def prompt_count(config: SynPicConfig) -> tuple[int, str]:
    """(prompts, where the number is from): counted where the file is here, else the limit, else the paper's."""
    place = config.prompts
    if "://" not in place.path and not place.path.startswith(HUB):
        found = os.path.exists(os.path.expanduser(place.path)) or place.path.startswith("shapes:")
        if found:
            return len(read_prompts(place).rows), f"counted in {place.path}"
    if place.limit is not None:
        return place.limit, "prompts.limit; the source is not looked at"
    return (
        cost.PAPER_PROMPTS,
        "the paper's number; the source is not looked at, and there is no prompts.limit",
    )


def _held(config: SynPicConfig, prompts: int) -> Held:
    """What `reuse` has of the job, its prompts taken for the job's; whether settings agree is the job's to check."""
    if config.reuse is None:
        return forecast.NOTHING_HELD
    try:
        info = store.read(config.reuse).info
    except store.DatasetError as error:
        raise ConfigError(f"nothing to reuse: {error}") from None
    asked = {choice.label for choice in (*config.generators, *config.rewards)}
    samples = {item["name"]: item["samples"] for item in info["generators"] if item["name"] in asked}
    rewards = frozenset(item["name"] for item in info["rewards"] if item["name"] in asked)
    return Held(samples, rewards, min(1.0, info["rows"] / prompts))
