"""`rankray`: what is done without a cluster and without a model, to finished work and to this machine.

    rankray validate DATASET
    rankray rerank DATASET --output O [--rewards a,b] [--weights a=2,b=0.5] [--aggregation borda] [--votes FILE...]
    rankray export DATASET --output O --to pairs|all-pairs|pickapic|folders|webdataset
    rankray export DATASET|RUN --output OWNER/NAME --to hub [--private]
    rankray report PATH [--open]
    rankray browse PATH [--port N] [--votes FILE] [--voter NAME] [--open]
    rankray import INPUT... --output O [--ties half] [--pairs one]
    rankray envs build [NAME...]
    rankray envs check
    rankray convert-mps FILE --output DIR

Ray is not started, and neither it nor torch is imported, so an answer comes in a second.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from rankray import ranking, store
from rankray.config import ConfigError, nearest
from rankray.data import convert, hub, importing, pickapic, rerank
from rankray.data.place import as_written
from rankray.models import environments
from rankray.report import browse, card
from rankray.report.ablation import write_ablation_report
from rankray.report.align import write_align_report
from rankray.report.dataset import write_report
from rankray.report.evaluation import write_evaluation_report
from rankray.report.run import write_run_report
from rankray.verbs import Answer, Parser, main, parser_of, say

HUB = "hub"
READ = ("dataset", "path", "inputs")
"""Options that name finished work."""
REPORTS: dict[str, tuple[str, Callable[[str, dict[str, Any]], None]]] = {
    "dataset.json": ("dataset", write_report),
    "run.json": ("run", write_run_report),
    "align.json": ("alignment", write_align_report),
    "results.json": ("evaluation", write_evaluation_report),
    "ablation.json": ("ablation", write_ablation_report),
}
"""What a directory is, by the file that its job writes last, and who writes its page from that file's contents."""


def run(verb: str, argv: Sequence[str]) -> Answer:
    """Runs one verb on what follows it.

    Raises:
        ConfigError, store.DatasetError: one line for what cannot be done.
    """
    options = parser(verb).parse_args(argv)
    read = next((vars(options)[name] for name in READ if name in options), None)
    with contextlib.nullcontext() if read is None else as_written(*_named(read)):
        answer: Answer = options.run(options)
    return answer


def _named(read: str | list[str]) -> list[str]:
    return list(map(store.absolute, [read] if isinstance(read, str) else read))


def parser(verb: str) -> argparse.ArgumentParser:
    """The options of one verb."""
    examples, add_options = OPTIONS[verb]
    found = parser_of(verb, *examples)
    add_options(found)
    return found


def _validate_options(found: argparse.ArgumentParser) -> None:
    found.add_argument("dataset", help="a finished dataset")
    found.set_defaults(run=_validate)


def _rerank_options(found: argparse.ArgumentParser) -> None:
    found.add_argument("dataset", help="a finished dataset")
    found.add_argument("--output", required=True, help="where the new dataset goes")
    found.add_argument("--rewards", help="those that stay, as in a,b; all by default")
    found.add_argument("--weights", default="", help="as in a=2,b=0.5; 1 for the others")
    names = ", ".join(ranking.AGGREGATIONS)
    found.add_argument("--aggregation", default="win_probability", help=f"{names}; the paper's by default")
    found.add_argument(
        "--votes",
        nargs="+",
        default=[],
        metavar="FILE",
        help="what browse kept; they become the reward human",
    )
    found.set_defaults(run=_rerank)


def _export_options(found: argparse.ArgumentParser) -> None:
    found.add_argument("dataset", help="a finished dataset; to the hub also a run")
    found.add_argument("--output", required=True, help="where it goes; on the hub OWNER/NAME")
    found.add_argument("--to", required=True, help=", ".join([*convert.FORMATS, HUB]))
    found.add_argument("--private", action="store_true", help="nobody else may read the hub's repository")
    found.set_defaults(run=_export)


def _report_options(found: argparse.ArgumentParser) -> None:
    found.add_argument(
        "path", help="a dataset, a run (finished or not), an alignment, an evaluation, an ablation"
    )
    found.add_argument("--open", action="store_true", help="show it in this machine's browser")
    found.set_defaults(run=_report)


def _browse_options(found: argparse.ArgumentParser) -> None:
    found.add_argument("path", help="a dataset, or an evaluation")
    found.add_argument("--port", type=int, default=8642, help="8642 by default; 0 takes a free one")
    found.add_argument("--votes", metavar="FILE", help="where votes are kept; PATH.votes.jsonl by default")
    found.add_argument("--voter", metavar="NAME", help="whose votes these are; yours by default")
    found.add_argument("--open", action="store_true", help="show it in this machine's browser")
    found.set_defaults(run=_browse)


def _import_options(found: argparse.ArgumentParser) -> None:
    found.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="Parquet of Pick-a-Pic; JSON of HPDv2 or ImageReward; .csv of prompt, image, scores; shards; datasets",
    )
    found.add_argument("--output", required=True, help="where the dataset goes")
    found.add_argument(
        "--ties", default="drop", help=f"{', '.join(pickapic.TIES)}; half a win for each, or dropped"
    )
    found.add_argument("--pairs", default="all", help="all, a row each; or one a caption, the first")
    found.set_defaults(run=_import)


def _mps_options(found: argparse.ArgumentParser) -> None:
    found.add_argument("file", help="MPS_overall_checkpoint.pth, as its authors publish it")
    found.add_argument(
        "--output", default="~/.cache/rankray/mps", help="a new directory; where the reward looks by default"
    )
    found.set_defaults(run=_convert_mps)


def _envs_options(found: argparse.ArgumentParser) -> None:
    actions = found.add_subparsers(dest="action", required=True, metavar="build|check", parser_class=Parser)
    action = actions.add_parser("build", help="install what is missing on this machine")
    action.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(environments.ENVIRONMENTS)}; all by default"
    )
    action.set_defaults(run=_build)
    action = actions.add_parser("check", help="say what is there; exit code 1 where something is missing")
    action.set_defaults(run=_check)


OPTIONS: dict[str, tuple[tuple[str, ...], Callable[[argparse.ArgumentParser], None]]] = {
    "validate": (("/data/my",), _validate_options),
    "rerank": (
        (
            "/data/my --output /data/again --rewards pickscore,hpsv2.1",
            "/data/my --output /data/voted --votes /data/my.votes.jsonl",
        ),
        _rerank_options,
    ),
    "export": (
        ("/data/my --to pickapic --output /data/pairs", "/data/my --to hub --output OWNER/NAME --private"),
        _export_options,
    ),
    "convert": (("/data/my --to pickapic --output /data/pairs",), _export_options),
    "import": (
        ("/data/pickapic/*.parquet --output /data/human", "/data/my /data/human --output /data/both"),
        _import_options,
    ),
    "browse": (("/data/my --open",), _browse_options),
    "report": (("/data/my --open",), _report_options),
    "envs": (("build vqascore", "check"), _envs_options),
    "convert-mps": (("MPS_overall_checkpoint.pth",), _mps_options),
}
"""Verb -> (words of examples, what adds its options)."""


def _build(options: argparse.Namespace) -> Answer:
    specs = {name: environments.spec_of(name) for name in options.names or environments.ENVIRONMENTS}
    found = {}
    for name, spec in specs.items():
        found[name] = str(environments.build(name, spec, say).place)
        say(f"{name}: ready at {found[name]}")
    return Answer(found={"environments": found})


def _check(options: argparse.Namespace) -> Answer:
    found = [environments.check(name, spec) for name, spec in environments.ENVIRONMENTS.items()]
    for status in found:
        say(f"{status.name}: {status.fault or 'ready'} ({status.place})")
    rows = {one.name: {"place": str(one.place), "fault": one.fault} for one in found}
    return Answer(int(any(status.fault for status in found)), {"environments": rows})


def _validate(options: argparse.Namespace) -> Answer:
    found = store.validate(options.dataset)
    say(
        f"{store.absolute(options.dataset)} is valid: {found.rows:,} rows, {found.candidates:,} candidates, "
        f"{found.images:,} images, {found.failures:,} failures"
    )
    return Answer(found={"dataset": store.absolute(options.dataset), **asdict(found)})


def _rerank(options: argparse.Namespace) -> Answer:
    how = rerank.Reranking(
        rewards=None if options.rewards is None else [word.strip() for word in options.rewards.split(",")],
        weights=_weights(options.weights),
        aggregation=options.aggregation,
        votes=options.votes,
    )
    info = rerank.run(options.dataset, options.output, how, say, write_report)
    place = store.absolute(options.output)
    say(f"{info['rows']:,} rows ranked by {how.aggregation} of {len(info['rewards'])} rewards")
    say(f"dataset: {place}\nreport:  {place}/report.html")
    return _made(place, info)


def _browse(options: argparse.Namespace) -> Answer:
    browse.serve(options.path, options.port, options.votes, options.voter, say, options.open)
    return Answer()


def _report(options: argparse.Namespace) -> Answer:
    place = store.absolute(options.path).rstrip("/")
    kind, write, info = _what_is_at(place)
    try:
        write(place, info)
    except PermissionError as error:
        raise ConfigError(
            f"the report of {place} cannot be written ({error}); take a copy of it, which you can write to"
        ) from None
    say(f"{kind}: {place}\nreport: {place}/report.html")
    if options.open and not ("://" not in place and webbrowser.open(Path(place, "report.html").as_uri())):
        say("no browser here, or the report is not on this machine; open it by hand")
    return Answer(found={"kind": kind, "output": place, "report": f"{place}/report.html"})


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
            return "unfinished run", write_run_report, {}
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


def _export(options: argparse.Namespace) -> Answer:
    if options.to == HUB:
        return _to_hub(options)
    if options.private:
        raise ConfigError("--private is of --to hub alone")
    if options.to not in convert.FORMATS:
        allowed = [*convert.FORMATS, HUB]
        raise ConfigError(
            f"format '{options.to}'{nearest(options.to, allowed)}; allowed: {', '.join(allowed)}"
        )
    info = convert.run(options.dataset, options.output, options.to, say)
    place = store.absolute(options.output)
    made = f"{info['pairs']:,} pairs" if "pairs" in info else f"{len(info['shards']):,} shards"
    say(f"{made} of {info['prompts']:,} prompts: {place}")
    return _made(place, info)


def _to_hub(options: argparse.Namespace) -> Answer:
    place = store.absolute(options.dataset).rstrip("/")
    kind, _, info = _what_is_at(place)
    if kind == "dataset":
        dataset = store.read(place)
        store.require_whole(dataset)
        text, pictures = card.dataset_card(dataset, options.output)
        files = {"README.md": text.encode(), **pictures, **hub.dataset_files(dataset, hub.public(info))}
    elif kind == "run":
        due = card.due_on_hub(info)
        if info.get("lora_rank") and due == "pipeline":
            say(
                f"the merged pipeline goes to the hub: the adapters are of {info['model']['source']}, tuned here"
            )
        files = hub.model_files(place, due == "adapters")
        if (own := card.public_card(place, info)) is not None:
            files["README.md"] = own.encode()
    else:
        raise ConfigError(f"{place} is an {kind}; a dataset or a run goes to the hub")
    address = hub.upload(
        options.output, "dataset" if kind == "dataset" else "model", files, options.private, say
    )
    say(f"{kind}: {address}")
    return _made(address, info)


def _import(options: argparse.Namespace) -> Answer:
    how = pickapic.Importing(ties=options.ties, pairs=options.pairs)
    info = importing.run(options.inputs, options.output, how, say, write_report)
    place = store.absolute(options.output)
    if imported := info.get("imported"):
        counts, things = imported["counts"], "pairs" if imported["format"] == "pickapic" else "rankings"
        say(
            f"{info['rows']:,} of {counts['read']:,} {things}; left out: {pickapic.left_out(counts, how.ties)}"
        )
    else:
        say(f"{info['rows']:,} rows")
    say(f"dataset: {place}\nreport:  {place}/report.html")
    return _made(place, info)


def _convert_mps(options: argparse.Namespace) -> Answer:
    from rankray.models.rewards import mps_convert

    digest = mps_convert.convert(options.file, options.output)
    say(f"{options.output}: converted from {options.file}, sha256 {digest}")
    return Answer(found={"output": options.output, "sha256": digest})


def _made(place: str, info: dict[str, Any]) -> Answer:
    return Answer(found={"output": place, "info": info})


if __name__ == "__main__":
    sys.exit(main())
