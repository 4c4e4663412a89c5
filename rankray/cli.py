"""The command line: TOML plus dotted options in, a job's exit code out.

Exit codes: 0 done; 1 a fault in a model (one line) or an unexpected one (its traceback); 2 something the user
wrote cannot be used (one line, nothing begun); 3 done, but more items failed than `execution.tolerance` allows.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import ray
import ray.train

from rankray import align, config
from rankray.ablate import job as ablation
from rankray.config import Config, ConfigError, SynPicConfig, nearest
from rankray.config.ablate import AblationConfig
from rankray.config.evaluate import EvaluateConfig
from rankray.config.rankdpo import AlignConfig, RankDPOConfig
from rankray.evals import job as evaluate
from rankray.evals import options as evaluate_options
from rankray.plan import dry_run
from rankray.rankdpo import job as rankdpo
from rankray.report import (
    ablation as ablation_report,
)
from rankray.report import (
    align as align_report,
)
from rankray.report import (
    dataset as report,
)
from rankray.report import (
    evaluation as evaluation_report,
)
from rankray.report import (
    run as run_report,
)
from rankray.synpic import job as synpic

FAULT_EXIT = 1
USAGE_EXIT = 2
TOLERANCE_EXIT = 3

PATHS = (
    "output",
    "reuse",
    "baseline",
    "follow",
    "prompts.path",
    "held_out.prompts.path",
    "validation.prompts.path",
    "dataset",
    "model.source",
    "encoding.place",
)

_OWN_ERROR = re.compile(r"(?:BrokenModelError|ConfigError): (.+)")
"""What our own errors said in an actor: across processes only Ray's text of the traceback arrives."""


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors as ConfigError, so that every bad input reads alike."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parse(
    prog: str, model: type[Config], argv: Sequence[str], beside: Sequence[argparse.ArgumentParser] = ()
) -> Config:
    """The configuration that `--config FILE` and the dotted options make together; options win.

    Options of the parsers `beside` are known, and read elsewhere.

    Raises:
        ConfigError: an unknown option (nearest named), or a configuration that does not validate.
    """
    return config.build(model, _tables(prog, model, argv, beside=beside))


def _tables(
    prog: str,
    model: type[Config],
    argv: Sequence[str],
    epilog: str = "",
    beside: Sequence[argparse.ArgumentParser] = (),
) -> dict[str, Any]:
    parser = _Parser(
        prog=prog, description=model.__doc__, allow_abbrev=False, epilog=epilog, parents=list(beside)
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", metavar="FILE", help=f"a TOML file; see jobs/{prog}-shapes.toml")
    keys = dict(config.option_keys(model))
    for key, description in keys.items():
        parser.add_argument(f"--{key}", dest=key, metavar="VALUE", help=description.replace("%", "%%"))
    known, unknown = parser.parse_known_args(list(argv))
    if unknown:
        name = unknown[0].removeprefix("--").split("=")[0]
        allowed = ["config", *keys, *(key.replace("_", "-") for key in vars(known) if key not in keys)]
        raise ConfigError(f"unknown option '{unknown[0]}'{nearest(name, allowed)}; --help lists all")
    options: dict[str, Any] = {key: value for key, value in vars(known).items() if key in keys}
    path = known.config
    values = {key: config.parse_value(text) for key, text in options.items() if text is not None}
    for key in PATHS:  # a path that looks like a number or a date is still a path
        if options.get(key) is not None:
            values[key] = options[key]
    return config.with_options(config.read_toml(path) if path else {}, values)


def parse_evaluate(argv: Sequence[str]) -> EvaluateConfig:
    """An evaluation's configuration: models, evals and prompt lists have short words beside the dotted options."""
    own, rest = evaluate_options.split(argv)
    given = any(word.partition("=")[0] == "--metrics" for word in rest)
    tables = _tables("evaluate", EvaluateConfig, rest, evaluate_options.__doc__ or "")
    return config.build(EvaluateConfig, evaluate_options.applied(tables, own, given))


def parse_synpic(argv: Sequence[str]) -> SynPicConfig:
    """Syn-Pic's configuration."""
    return parse("synpic", SynPicConfig, argv, [dry_run.options()])


def _guarded(prog: str, work: Callable[[], int]) -> int:
    """`work()`'s exit code; what the user can mend is one line, whatever else goes wrong its traceback."""
    try:
        return work()
    except ConfigError as error:
        print(f"{prog}: {error}", file=sys.stderr, flush=True)
        return USAGE_EXIT
    except rankdpo.TrainingError as error:
        print(f"{prog}: {error}", file=sys.stderr, flush=True)
        return FAULT_EXIT
    except (ray.exceptions.RayError, ray.train.TrainingFailedError) as error:
        told = _OWN_ERROR.findall(str(error))
        if not told:
            raise
        print(f"{prog}: {told[-1]}", file=sys.stderr, flush=True)
        return FAULT_EXIT


def run_rankdpo(argv: Sequence[str]) -> int:
    """Runs RankDPO as `argv` says; returns the exit code."""

    def work() -> int:
        settings = parse("rankdpo", RankDPOConfig, argv)
        result = rankdpo.run(settings, say=_say, publish=run_report.write_run_report)
        info = result.info
        _say(
            f"{info['steps']:,} steps, {info['throughput']['prompts_per_s']:.1f} prompts/s, "
            f"{info['throughput']['data_wait_share']:.1%} of the time waiting for data, "
            f"{info['skipped_steps']} steps skipped"
        )
        _say(f"model:  {result.path}/pipeline\nreport: {result.path}/report.html")
        return 0

    return _guarded("rankdpo", work)


def run_align(argv: Sequence[str]) -> int:
    """Runs Algorithm 3 as `argv` says; returns the exit code."""

    def work() -> int:
        settings = parse("align", AlignConfig, argv)
        publishers = align.Publishers(
            report.write_report, run_report.write_run_report, align_report.write_align_report
        )
        result = align.run(settings, _say, publishers)
        _say(f"model:  {result.info['pipeline']}")
        _say(f"report: {result.path}/report.html")
        return 0

    return _guarded("align", work)


def run_ablate(argv: Sequence[str]) -> int:
    """Runs an ablation as `argv` says; returns the exit code."""

    def work() -> int:
        settings = parse("ablate", AblationConfig, argv)
        result = ablation.run(settings, _say, report.write_report, ablation_report.write_ablation_report)
        _say(f"tables: {result.path}/tables.md\nreport: {result.path}/report.html")
        return 0

    return _guarded("ablate", work)


def run_synpic(argv: Sequence[str]) -> int:
    """Runs Syn-Pic as `argv` says; returns the exit code."""
    return _guarded("synpic", lambda: _synpic("synpic", parse_synpic(argv), dry_run.asked(argv)))


def run_extend(argv: Sequence[str]) -> int:
    """Runs Syn-Pic on what a finished dataset lacks of a larger job; returns the exit code."""

    def work() -> int:
        settings = parse("extend", SynPicConfig, argv, [dry_run.options()])
        if settings.reuse is None:
            raise ConfigError("name the finished dataset: --reuse DATASET")
        return _synpic("extend", settings, dry_run.asked(argv))

    return _guarded("extend", work)


def run_evaluate(argv: Sequence[str]) -> int:
    """Runs an evaluation as `argv` says; returns the exit code."""

    def work() -> int:
        settings = parse_evaluate(argv)
        result = evaluate.run(settings, _say, evaluation_report.write_evaluation_report)
        info = result.info
        made = sum(found["images_made"] for found in info["sets"])
        _say(f"{len(info['models'])} models, {made:,} images, {info['failures']['total']:,} failures")
        _say(f"results: {result.path}/results.md\nreport:  {result.path}/report.html")
        if result.failed_share > settings.execution.tolerance:
            print(
                f"evaluate: {result.failed_share:.1%} of a stage's items failed, more than execution.tolerance = "
                f"{settings.execution.tolerance:g} allows; results.md counts them by model and stage",
                file=sys.stderr,
                flush=True,
            )
            return TOLERANCE_EXIT
        return 0

    return _guarded("evaluate", work)


def _synpic(prog: str, settings: SynPicConfig, ask: dry_run.DryRun | None) -> int:
    if ask is not None:
        dry_run.run(settings, ask, _say)
        return 0
    result = synpic.run(settings, say=_say, publish=report.write_report)
    info = result.info
    _say(
        f"{info['rows']:,} rows, {info['images']:,} images, {info['failures']['total']:,} failures, "
        f"{info['throughput']['images_per_s']:.1f} images/s"
    )
    _say(f"dataset: {result.path}\nreport:  {result.path}/report.html")
    if result.failed_share > settings.execution.tolerance:
        worst = max(info["failures"]["by_model"].items(), key=lambda item: item[1])
        print(
            f"{prog}: {worst[0]} failed {worst[1]:,} times, more than execution.tolerance = "
            f"{settings.execution.tolerance:g} allows; failed items are marked in the rows and "
            "listed in the report",
            file=sys.stderr,
            flush=True,
        )
        return TOLERANCE_EXIT
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
