"""The command line: TOML plus dotted options in, a job's exit code out.

Exit codes: 0 done; 1 a fault in a model (one line) or an unexpected one (its traceback); 2 something the user
wrote cannot be used (one line, nothing begun); 3 done, but more items failed than `execution.tolerance` allows.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import ray

from rankray import config, report, synpic
from rankray.config import ConfigError, SynPicConfig, nearest

FAULT_EXIT = 1
USAGE_EXIT = 2
TOLERANCE_EXIT = 3

_OWN_ERROR = re.compile(r"(?:BrokenModelError|ConfigError): (.+)")
"""What our own errors said in an actor: across processes only Ray's text of the traceback arrives."""


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors as ConfigError, so that every bad input reads alike."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parse_synpic(argv: Sequence[str]) -> SynPicConfig:
    """The configuration that `--config FILE` and the dotted options make together; options win.

    Raises:
        ConfigError: an unknown option (nearest named), or a configuration that does not validate.
    """
    parser = _Parser(prog="synpic", description=SynPicConfig.__doc__, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="a TOML file; see jobs/synpic.toml")
    keys = dict(config.option_keys(SynPicConfig))
    for key, description in keys.items():
        parser.add_argument(f"--{key}", dest=key, metavar="VALUE", help=description.replace("%", "%%"))
    known, unknown = parser.parse_known_args(list(argv))
    if unknown:
        name = unknown[0].removeprefix("--").split("=")[0]
        allowed = ["config", *keys]
        raise ConfigError(f"unknown option '{unknown[0]}'{nearest(name, allowed)}; --help lists all")
    options: dict[str, Any] = vars(known)
    path = options.pop("config")
    values = {key: config.parse_value(text) for key, text in options.items() if text is not None}
    for key in ("output", "prompts.path"):  # a path that looks like a number or a date is still a path
        if options[key] is not None:
            values[key] = options[key]
    return config.build(SynPicConfig, config.with_options(config.read_toml(path) if path else {}, values))


def run_synpic(argv: Sequence[str]) -> int:
    """Runs Syn-Pic as `argv` says; returns the exit code."""
    try:
        settings = parse_synpic(argv)
        result = synpic.run(settings, say=_say, publish=report.write_report)
    except ConfigError as error:
        print(f"synpic: {error}", file=sys.stderr, flush=True)
        return USAGE_EXIT
    except ray.exceptions.RayError as error:
        told = _OWN_ERROR.findall(str(error))
        if not told:
            raise
        print(f"synpic: {told[-1]}", file=sys.stderr, flush=True)
        return FAULT_EXIT
    info = result.info
    _say(
        f"{info['rows']:,} rows, {info['images']:,} images, {info['failures']['total']:,} failures, "
        f"{info['throughput']['images_per_s']:.1f} images/s"
    )
    _say(f"dataset: {result.path}\nreport:  {result.path}/report.html")
    if result.failed_share > settings.execution.tolerance:
        worst = max(info["failures"]["by_model"].items(), key=lambda item: item[1])
        print(
            f"synpic: {worst[0]} failed {worst[1]:,} times, more than execution.tolerance = "
            f"{settings.execution.tolerance:g} allows; failed items are marked in the rows and listed in the report",
            file=sys.stderr,
            flush=True,
        )
        return TOLERANCE_EXIT
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
