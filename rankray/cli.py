"""The jobs of the command line: TOML plus dotted options in, a job's answer and exit code out (`verbs.EXIT_CODES`).

Help is made from the configuration models: a dozen keys by default, since all of them are 30 to 150 lines.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train

from rankray import align, config, secret
from rankray.ablate import job as ablation
from rankray.cluster import terminal
from rankray.cluster.job import Result
from rankray.cluster.terminal import say
from rankray.config import Config, ConfigError, DrawingJob, Strict, SynPicConfig, nearest
from rankray.config.ablate import AblationConfig
from rankray.config.evaluate import EvaluateConfig
from rankray.config.rankdpo import AlignConfig, RankDPOConfig
from rankray.endings import FAULT_EXIT, full_or_closed
from rankray.evals import job as evaluate
from rankray.evals import options as evaluate_options
from rankray.plan import dry_run
from rankray.rankdpo import job as rankdpo
from rankray.report import summary
from rankray.report.ablation import write_ablation_report
from rankray.report.align import write_align_report
from rankray.report.dataset import write_report
from rankray.report.evaluation import write_evaluation_report
from rankray.report.run import write_run_report
from rankray.store import DatasetError
from rankray.synpic import job as synpic
from rankray.verbs import (
    EXIT_CODES,
    TOLERANCE_EXIT,
    Answer,
    Parser,
    answered,
    json_option,
    submit,
)

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

_OWN_ERROR = re.compile(r"(?:BrokenModelError|ConfigError|DatasetError): (.+)")
"""What our own errors said in an actor: across processes only Ray's text of the traceback arrives."""


def parse(
    prog: str, model: type[Config], argv: Sequence[str], beside: Sequence[argparse.ArgumentParser] = ()
) -> Config:
    """The configuration that `--config FILE` and the dotted options make together; options win.

    Options of the parsers `beside` are known, and read elsewhere.

    Raises:
        ConfigError: an unknown option (nearest named), or a configuration that does not validate.
    """
    return config.build(model, _tables(prog, model, argv, beside))


def _tables(
    prog: str, model: type[Config], argv: Sequence[str], beside: Sequence[argparse.ArgumentParser] = ()
) -> dict[str, Any]:
    found = _parser(prog, model, beside)
    known, unknown = found.parse_known_args(list(argv))
    keys = {option.key for option in config.options(model)}
    if unknown:
        name = unknown[0].removeprefix("--").split("=")[0]
        if not unknown[0].startswith("-"):
            raise ConfigError(f"'{name}' is not expected there; a configuration is given by --config FILE")
        allowed = ["config", *keys, *(key.replace("_", "-") for key in vars(known) if key not in keys)]
        raise ConfigError(f"unknown option '{unknown[0]}'{nearest(name, allowed)}; --help-all lists all")
    options: dict[str, Any] = {key: value for key, value in vars(known).items() if key in keys}
    path = known.config
    values = {key: config.parse_value(text) for key, text in options.items() if text is not None}
    for key in PATHS:  # a path that looks like a number or a date is still a path
        if options.get(key) is not None:
            values[key] = options[key]
    return config.with_options(config.read_toml(path) if path else {}, values)


def _parser(
    prog: str,
    model: type[Config],
    beside: Sequence[argparse.ArgumentParser] = (),
    only: Sequence[str] | None = None,
    epilog: str = "",
) -> Parser:
    """The options of a job: `--config`, and a group a table of its configuration, or those keys `only`."""
    found = argparse.ArgumentParser(add_help=False)
    found.add_argument(
        "--config", metavar="FILE", help="a TOML file; `rankray init shapes .` writes some to begin from"
    )
    groups: dict[str, Any] = {}
    for option in config.options(model):
        if only is not None and option.key not in only:
            continue
        table = "keys that are often set" if only is not None else option.key.rpartition(".")[0]
        title = table if " " in table else f"[{table}]" if table else "keys of the whole"
        if title not in groups:
            groups[title] = found.add_argument_group(title)
        groups[title].add_argument(
            f"--{option.key}", dest=option.key, metavar=option.value, help=option.told.replace("%", "%%")
        )
    return Parser(
        prog=prog,
        usage=f"rankray {prog} --config FILE [--KEY VALUE ...] [--submit [ADDRESS]]",
        description=textwrap.dedent(model.__doc__ or "").strip(),
        epilog=epilog,
        add_help=False,
        parents=[found, *beside],
    )


def parse_evaluate(argv: Sequence[str]) -> EvaluateConfig:
    """An evaluation's configuration: models, evals and prompt lists have short words beside the dotted options."""
    own, rest = evaluate_options.split(argv)
    given = any(word.partition("=")[0] == "--metrics" for word in rest)
    tables = _tables("evaluate", EvaluateConfig, rest)
    return config.build(EvaluateConfig, evaluate_options.applied(tables, own, given))


def parse_synpic(argv: Sequence[str]) -> SynPicConfig:
    """Syn-Pic's configuration."""
    return parse("synpic", SynPicConfig, argv, [dry_run.options()])


def parse_extend(argv: Sequence[str]) -> SynPicConfig:
    """Syn-Pic's configuration, with the dataset that it goes on from.

    Raises:
        ConfigError: none is named.
    """
    settings = parse("extend", SynPicConfig, argv, [dry_run.options()])
    if settings.reuse is None:
        raise ConfigError("name the finished dataset: --reuse DATASET")
    return settings


def _guarded(prog: str, work: Callable[[], Answer]) -> Answer:
    """`work()`; a fault that says what it is becomes one line, whatever else goes wrong its traceback."""
    try:
        return work()
    except (ConfigError, DatasetError):
        raise
    except rankdpo.TrainingError as error:
        message = str(error)
    except Exception as error:
        known = isinstance(error, ray.exceptions.RayError | ray.train.TrainingFailedError)
        told = _OWN_ERROR.findall(str(error)) if known else []
        if not told:
            if full_or_closed(error) is None:
                unexpected = "a fault that was not expected, its traceback follows"
                print(f"{prog}: {unexpected}{terminal.log_named()}", file=sys.stderr, flush=True)
            raise
        message = secret.masked(told[-1])
    print(f"{prog}: {message}{terminal.log_named()}", file=sys.stderr, flush=True)
    return Answer(FAULT_EXIT, {"error": message})


def _answer(result: Result, code: int = 0) -> Answer:
    found = {"output": result.path, "report": f"{result.path}/report.html", "info": result.info}
    return Answer(code, found)


def _ended(prog: str, run: Callable[[], Result], told: Callable[[Any, str, float], list[str]]) -> Result:
    """What `run` leaves; the terminal is the job's while it runs, and at the end has what it came to."""
    begin_s = time.monotonic()
    with terminal.of_job(prog):
        result = run()
        say("\n".join(told(result.info, result.path, time.monotonic() - begin_s)))
    return result


def _rankdpo(settings: RankDPOConfig) -> Answer:
    return _answer(_ended("rankdpo", lambda: rankdpo.run(settings, say, write_run_report), summary.run))


def _align(settings: AlignConfig) -> Answer:
    publishers = align.Publishers(write_report, write_run_report, write_align_report)
    result = _ended("align", lambda: align.run(settings, say, publishers), summary.aligned)
    return _tolerated(result, settings, *_failed_parts("align", result, "align.json"))


def _ablate(settings: AblationConfig) -> Answer:
    publishers = write_report, write_ablation_report
    result = _ended("ablate", lambda: ablation.run(settings, say, *publishers), summary.ablated)
    return _tolerated(result, settings, *_failed_parts("ablate", result, "ablation.json"))


def _failed_parts(prog: str, result: Result, marker: str) -> tuple[str, str]:
    """What failed of a job that is made of others, and where it is counted."""
    return f"{prog}: {result.failed_share:.1%} of a model's items failed", f"{marker} counts them by part"


def _evaluate(settings: EvaluateConfig) -> Answer:
    work = functools.partial(evaluate.run, settings, say, write_evaluation_report)
    result = _ended("evaluate", work, summary.measured)
    failed = f"evaluate: {result.failed_share:.1%} of a stage's items failed"
    return _tolerated(result, settings, failed, "results.md counts them by model and stage")


def _synpic(settings: SynPicConfig) -> Answer:
    prog = "extend" if settings.reuse is not None else "synpic"
    result = _ended(prog, lambda: synpic.run(settings, say, write_report), summary.dataset)
    worst = max(result.info["failures"]["by_model"].items(), key=lambda item: item[1], default=("none", 0))
    failed = f"{prog}: {worst[0]} failed {worst[1]:,} times"
    return _tolerated(
        result, settings, failed, "failed items are marked in the rows and listed in the report"
    )


def _tolerated(result: Result, settings: DrawingJob, failed: str, where: str) -> Answer:
    """The job's answer, with a code of its own and what `failed` where that is more than may."""
    allowed = settings.execution.tolerance
    if result.failed_share <= allowed:
        return _answer(result)
    line = f"{failed}, more than execution.tolerance = {allowed:g} allows; {where}"
    print(line, file=sys.stderr, flush=True)
    return _answer(result, TOLERANCE_EXIT)


@dataclass(frozen=True)
class Job:
    """A job's verb: its configuration, how it is read from options, what is done, and what its short help shows."""

    model: type[Strict]
    parse: Callable[[Sequence[str]], Any]
    work: Callable[[Any], Answer]
    often: tuple[str, ...]
    examples: tuple[str, ...]
    plans: bool = False
    more: str = ""


_DATA = ("output", "prompts.path", "prompts.column", "prompts.limit", "generators", "rewards", "seed")
_TRAINED = (
    "steps",
    "batch_size",
    "objective.name",
    "objective.beta",
    "optimizer.learning_rate",
    "tuned.train",
)
JOBS: dict[str, Job] = {
    "synpic": Job(
        SynPicConfig,
        parse_synpic,
        _synpic,
        (*_DATA, "execution.tolerance"),
        (
            "--config synpic.toml --prompts.path my.txt --output /data/my",
            "--config synpic.toml --dry-run",
        ),
        plans=True,
    ),
    "extend": Job(
        SynPicConfig,
        parse_extend,
        _synpic,
        ("reuse", *_DATA),
        ("--config larger.toml --reuse /data/my --output /data/larger",),
        plans=True,
    ),
    "rankdpo": Job(
        RankDPOConfig,
        functools.partial(parse, "rankdpo", RankDPOConfig),
        _rankdpo,
        ("dataset", "output", "model.model", *_TRAINED, "workers.count", "workers.num_gpus", "seed"),
        (
            "--config rankdpo.toml --dataset /data/my --output /data/run",
            "--config rankdpo.toml --tuned.train lora",
        ),
    ),
    "align": Job(
        AlignConfig,
        functools.partial(parse, "align", AlignConfig),
        _align,
        ("rounds", "model.model", *_DATA, *(f"training.{key}" for key in _TRAINED), "held_out.prompts.path"),
        (
            "--config align.toml",
            "--config align.toml --prompts.path my.txt --rounds 2",
        ),
    ),
    "evaluate": Job(
        EvaluateConfig,
        parse_evaluate,
        _evaluate,
        ("output", "baseline", "follow", "metrics", "seed", "changed"),
        ("--config evaluate.toml --baseline sdxl --model /data/run",),
        more=evaluate_options.__doc__ or "",
    ),
    "ablate": Job(
        AblationConfig,
        functools.partial(parse, "ablate", AblationConfig),
        _ablate,
        ("output", "metric", "seeds", "trials", "parallel", "prompts.limit", "tuning.trainings"),
        ("--config ablate.toml --seeds 3",),
    ),
}


def run(verb: str, argv: Sequence[str]) -> Answer:
    """Runs a job as `argv` says, here or, with `--submit`, on a Ray that runs.

    Raises:
        ConfigError: something that the user wrote cannot be used.
    """
    job = JOBS[verb]
    for n, word in enumerate(argv):
        if word in ("-h", "--help", "--help-all", "--help=all"):
            every = "all" in word or [*argv, ""][n + 1] == "all"
            print(parser(verb, every).format_help(), end="")
            return Answer()
    asked, rest = submit.split(argv)
    if set(rest) <= {"--dry-run"}:
        raise ConfigError(
            f"give --config FILE; `rankray init shapes .` writes some to begin from, rankray {verb} --help says more"
        )
    settings = job.parse(rest)
    ask = dry_run.asked(rest) if job.plans else None
    if ask is not None:
        dry_run.run(settings, ask, say)
        return Answer()
    if asked is not None:
        return submit.run(verb, settings, rest, asked)
    return _guarded(verb, lambda: job.work(settings))


def parser(verb: str, every: bool = True) -> argparse.ArgumentParser:
    """What `--help` shows: a dozen keys, or `every` one."""
    job = JOBS[verb]
    examples = "\n".join(f"  rankray {verb} {words}" for words in job.examples)
    count = sum(1 for _ in config.options(job.model))
    rest = f"{count} keys in all, with defaults and units: rankray {verb} --help-all"
    epilog = "\n\n".join(
        filter(None, [job.more.strip(), f"examples:\n{examples}", EXIT_CODES, "" if every else rest])
    )
    beside = [submit.options(), *([dry_run.options()] if job.plans else [])]
    found = _parser(verb, job.model, beside, None if every else job.often, epilog)
    found.add_argument(
        "-h", "--help", action="store_true", help="what is often used; --help-all for every key"
    )
    json_option(found)
    return found


def _called(verb: str, argv: Sequence[str]) -> int:
    return answered(verb, argv, functools.partial(run, verb))


run_synpic = functools.partial(_called, "synpic")
run_extend = functools.partial(_called, "extend")
run_rankdpo = functools.partial(_called, "rankdpo")
run_align = functools.partial(_called, "align")
run_evaluate = functools.partial(_called, "evaluate")
run_ablate = functools.partial(_called, "ablate")
"""What `jobs/*.py` call: `argv -> exit code`."""
