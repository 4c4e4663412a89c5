"""`rankray`: what is done without a cluster and without a model, to finished work and to this machine.

    rankray validate DATASET
    rankray rerank DATASET --output O [--rewards a,b] [--weights a=2,b=0.5] [--aggregation borda]
    rankray convert DATASET --output O --to pairs|all-pairs|pickapic
    rankray report PATH [--open]
    rankray import FILE... --output O [--ties half] [--pairs one]     Pick-a-Pic v2's human choices
    rankray envs build [NAME...]
    rankray envs check
    rankray convert-mps FILE --output DIR

Exit codes are the jobs': 0 done, 2 something the user wrote, or named, cannot be used (one line). Ray is not started,
so an answer comes in a second or two.
"""

from __future__ import annotations

import argparse
import sys
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pyarrow.fs as pafs

from rankray import ranking, store
from rankray.config import ConfigError
from rankray.data import convert, pickapic, rerank
from rankray.models import environments
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

USAGE_EXIT = 2
REPORTS: dict[str, tuple[str, Callable[[str, dict[str, Any]], None]]] = {
    "dataset.json": ("dataset", report.write_report),
    "run.json": ("run", run_report.write_run_report),
    "align.json": ("alignment", align_report.write_align_report),
    "results.json": ("evaluation", evaluation_report.write_evaluation_report),
    "ablation.json": ("ablation", ablation_report.write_ablation_report),
}
"""What a directory is, by the file that its job writes last, and who writes its page from that file's contents."""


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors as ConfigError, so that every bad input reads alike."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code."""
    try:
        options = _parser().parse_args(argv)
        return int(options.run(options))
    except (ConfigError, store.DatasetError) as error:
        print(f"rankray: {error}", file=sys.stderr, flush=True)
        return USAGE_EXIT


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rankray",
        description="a finished ranked dataset: check it, rank it anew, convert it; environments of rewards",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _of_datasets(commands)
    _of_others_files(commands)
    _of_environments(commands)
    return parser


def _of_datasets(commands: Any) -> None:
    """What is done to what a job left."""
    found = commands.add_parser("validate", help="check everything that a dataset claims of itself")
    found.add_argument("dataset", help="what jobs/synpic.py wrote")
    found.set_defaults(run=_validate)

    found = commands.add_parser("rerank", help="another ranking from the stored scores; no model runs")
    found.add_argument("dataset", help="what jobs/synpic.py wrote")
    found.add_argument("--output", required=True, help="where the new dataset goes")
    found.add_argument("--rewards", help="those that stay, as in a,b; all by default")
    found.add_argument("--weights", default="", help="as in a=2,b=0.5; 1 for the others")
    names = ", ".join(ranking.AGGREGATIONS)
    found.add_argument("--aggregation", default="win_probability", help=f"{names}; the paper's by default")
    found.set_defaults(run=_rerank)

    found = commands.add_parser("convert", help="preference pairs for trainers that know pairs alone")
    found.add_argument("dataset", help="what jobs/synpic.py wrote")
    found.add_argument("--output", required=True, help="where the pairs go")
    found.add_argument("--to", required=True, help=", ".join(convert.FORMATS))
    found.set_defaults(run=_convert)

    found = commands.add_parser("report", help="write report.html again, from what a job left")
    found.add_argument(
        "path", help="a dataset, a run (finished or not), an alignment, an evaluation, an ablation"
    )
    found.add_argument("--open", action="store_true", help="show it in this machine's browser")
    found.set_defaults(run=_report)


def _of_others_files(commands: Any) -> None:
    """What makes files of others into ours."""
    found = commands.add_parser(
        "import", help="human choices under Pick-a-Pic v2's columns, as a ranked dataset"
    )
    found.add_argument("inputs", nargs="+", metavar="FILE", help="Parquet files, or directories of them")
    found.add_argument("--output", required=True, help="where the dataset goes")
    found.add_argument(
        "--ties", default="drop", help=f"{', '.join(pickapic.TIES)}; half a win for each, or dropped"
    )
    found.add_argument("--pairs", default="all", help="all, a row each; or one a caption, the first")
    found.set_defaults(run=_import)

    found = commands.add_parser(
        "convert-mps", help="the published MPS checkpoint, a pickle, as safetensors; none of its code runs"
    )
    found.add_argument("file", help="MPS_overall_checkpoint.pth, as its authors publish it")
    found.add_argument(
        "--output", default="~/.cache/rankray/mps", help="a new directory; where the reward looks by default"
    )
    found.set_defaults(run=_convert_mps)


def _of_environments(commands: Any) -> None:
    found = commands.add_parser(
        "envs", help="environments of rewards whose packages cannot live with the others"
    )
    actions = found.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=_Parser)
    action = actions.add_parser("build", help="install what is missing on this machine")
    action.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(environments.ENVIRONMENTS)}; all by default"
    )
    action.set_defaults(run=_build)
    action = actions.add_parser("check", help="say what is there; exit code 1 where something is missing")
    action.set_defaults(run=_check)


def _build(options: argparse.Namespace) -> int:
    specs = {name: environments.spec_of(name) for name in options.names or environments.ENVIRONMENTS}
    for name, spec in specs.items():
        _say(f"{name}: ready at {environments.build(name, spec, _say).place}")
    return 0


def _check(options: argparse.Namespace) -> int:
    found = [environments.check(name, spec) for name, spec in environments.ENVIRONMENTS.items()]
    for status in found:
        _say(f"{status.name}: {status.fault or 'ready'} ({status.place})")
    return int(any(status.fault for status in found))


def _validate(options: argparse.Namespace) -> int:
    found = store.validate(options.dataset)
    _say(
        f"{store.absolute(options.dataset)} is valid: {found.rows:,} rows, {found.candidates:,} candidates, "
        f"{found.images:,} images, {found.failures:,} failures"
    )
    return 0


def _rerank(options: argparse.Namespace) -> int:
    how = rerank.Reranking(
        rewards=None if options.rewards is None else [word.strip() for word in options.rewards.split(",")],
        weights=_weights(options.weights),
        aggregation=options.aggregation,
    )
    info = rerank.run(options.dataset, options.output, how, _say, report.write_report)
    place = store.absolute(options.output)
    _say(f"{info['rows']:,} rows ranked by {how.aggregation} of {len(info['rewards'])} rewards")
    _say(f"dataset: {place}\nreport:  {place}/report.html")
    return 0


def _report(options: argparse.Namespace) -> int:
    place = store.absolute(options.path).rstrip("/")
    kind, write, info = _what_is_at(place)
    try:
        write(place, info)
    except PermissionError as error:
        raise ConfigError(
            f"{place}/report.html cannot be written ({error}); give a place that can be"
        ) from None
    _say(f"{kind}: {place}\nreport: {place}/report.html")
    if options.open and not ("://" not in place and webbrowser.open(Path(place, "report.html").as_uri())):
        _say("no browser here, or the report is not on this machine; open it by hand")
    return 0


def _what_is_at(place: str) -> tuple[str, Callable[[str, dict[str, Any]], None], dict[str, Any]]:
    """Kind of work, who writes its page, and what is known of it: nothing, of a run that was cut short.

    Raises:
        ConfigError: nothing of ours is there, or it cannot be read.
    """
    try:
        fs, path = store.filesystem(place)
        for marker, (kind, write) in REPORTS.items():
            if fs.get_file_info(f"{path}/{marker}").type == pafs.FileType.File:
                info = store.read_json(f"{path}/{marker}", fs)
                if "rankray_version" not in info:
                    raise ConfigError(
                        f"{place}/{marker} is not a file that rankray wrote; give a job's output"
                    )
                return kind, write, info
        if fs.get_file_info(f"{path}/metrics.jsonl").type == pafs.FileType.File:
            return "unfinished run", run_report.write_run_report, {}
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{place} cannot be read ({error}); give a job's output") from None
    raise ConfigError(f"{place}: none of {', '.join(REPORTS)} is there; give the output of a finished job")


def _weights(text: str) -> dict[str, float]:
    found = {}
    for word in filter(None, text.split(",")):
        name, _, value = word.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise ConfigError(f"--weights '{word}' is no NAME=NUMBER; write a=2,b=0.5") from None
    return found


def _convert(options: argparse.Namespace) -> int:
    info = convert.run(options.dataset, options.output, options.to, _say)
    _say(f"{info['pairs']:,} pairs of {info['prompts']:,} prompts: {store.absolute(options.output)}")
    return 0


def _import(options: argparse.Namespace) -> int:
    how = pickapic.Importing(ties=options.ties, pairs=options.pairs)
    info = pickapic.run(options.inputs, options.output, how, _say, report.write_report)
    counts, place = info["imported"]["counts"], store.absolute(options.output)
    _say(f"{info['rows']:,} of {counts['read']:,} pairs; left out: {pickapic.left_out(counts, how.ties)}")
    _say(f"dataset: {place}\nreport:  {place}/report.html")
    return 0


def _convert_mps(options: argparse.Namespace) -> int:
    from rankray.models.rewards import mps_convert

    digest = mps_convert.convert(options.file, options.output)
    _say(f"{options.output}: converted from {options.file}, sha256 {digest}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
