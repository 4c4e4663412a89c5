"""`rankray VERB`: one table of verbs, each loaded when it is used, and what all of them have in common.

A verb is one row of `VERBS`: its module has `run(verb, argv) -> Answer` and `parser(verb)`. Modules are named by
string, so `rankray --help` answers in 0.3 s where importing every verb would take 2; a typing error there is seen by
the test that loads each row.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import rankray
from rankray import secret
from rankray.config import ConfigError, nearest
from rankray.endings import USAGE_EXIT, ended
from rankray.store import DatasetError

LINE, LAST = 2000, 400
"""Characters of a line on stderr, and how many of them are its end, where the remedy stands."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
TOLERANCE_EXIT = 3

EXIT_CODES = """exit codes:
  0              done
  1              a fault: of a model or a full disk (one line), or another (its traceback)
  2              what was given cannot be used: an option, an input, a place (one line)
  3              done, but more items failed than `execution.tolerance` allows
  129, 130, 143  stopped by SIGHUP, Ctrl-C, SIGTERM (one line): the same command goes on"""


@dataclass(frozen=True)
class Answer:
    """What a verb came to: its exit code, and what `--json` prints of it."""

    code: int = 0
    found: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verb:
    """A row of the table: where it stands in the help, the module that has it, what it does."""

    group: str
    module: str
    summary: str


_JOBS, _DONE, _HERE = "jobs", "finished work", "this machine"
VERBS: dict[str, Verb] = {
    "synpic": Verb(_JOBS, "rankray.cli", "prompts to pictures, scores and a ranked dataset (Algorithm 1)"),
    "extend": Verb(_JOBS, "rankray.cli", "what a finished dataset lacks of a larger job"),
    "rankdpo": Verb(_JOBS, "rankray.cli", "a ranked dataset to a better model (Algorithm 2)"),
    "align": Verb(_JOBS, "rankray.cli", "both in rounds, and before against after (Algorithm 3)"),
    "evaluate": Verb(_JOBS, "rankray.cli", "models measured by benchmarks and metrics"),
    "ablate": Verb(_JOBS, "rankray.cli", "which labels, objective, candidates: compared fairly"),
    "status": Verb(_DONE, "rankray.verbs.status", "how far the job of an output is, while it runs or after"),
    "validate": Verb(_DONE, "rankray.commands", "check everything that a dataset claims of itself"),
    "rerank": Verb(_DONE, "rankray.commands", "another ranking from the stored scores; no model runs"),
    "export": Verb(_DONE, "rankray.commands", "pairs for other trainers, WebDataset shards, the hub"),
    "convert": Verb(_DONE, "rankray.commands", "the name that export had"),
    "import": Verb(_DONE, "rankray.commands", "rankings and choices of others, or datasets, as one dataset"),
    "browse": Verb(_DONE, "rankray.commands", "pictures and scores in a browser, and a blind vote"),
    "report": Verb(_DONE, "rankray.commands", "write report.html again, from what a job left"),
    "init": Verb(_HERE, "rankray.verbs.init", "write configurations to begin from"),
    "doctor": Verb(_HERE, "rankray.verbs.doctor", "what this machine lacks for a configuration"),
    "envs": Verb(_HERE, "rankray.commands", "environments of rewards that cannot live with the others"),
    "convert-mps": Verb(_HERE, "rankray.commands", "the published MPS checkpoint as safetensors"),
    "completion": Verb(_HERE, "rankray.verbs.completion", "completion of verbs and options in your shell"),
}

EXAMPLES = """examples:
  rankray init shapes .              configurations of small embedded models
  rankray align --config align.toml  a dataset, a better model, their reports
  rankray align --config align.toml --submit http://HEAD:8265
  rankray status ~/rankray/align-demo --watch"""


def wrapped(text: str, width: int) -> str:
    """`text`, its lines kept; what is too long for one goes on under its second column."""
    lines = []
    for line in text.split("\n"):
        column = re.match(r" *(?:\S+(?: \S+)*? {2,})?", line)
        under = " " * (len(column[0]) if column else 0)
        lines += textwrap.wrap(line, width, subsequent_indent=under, break_on_hyphens=False) or [""]
    return "\n".join(lines)


class _Lines(argparse.HelpFormatter):
    """Help whose descriptions and examples keep their lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return wrapped(text, width)


class Parser(argparse.ArgumentParser):
    """argparse, with its errors as ConfigError, so that every bad input reads alike."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.formatter_class = _Lines

    def error(self, message: str) -> NoReturn:
        if (unknown := re.fullmatch(r"unrecognized arguments: (-\S*?)(?:=.*)?(?: .*)?", message)) is not None:
            own = [option for action in self._actions for option in action.option_strings]
            message = f"unknown option '{unknown[1]}'{nearest(unknown[1], own)}; --help lists all"
        elif (chosen := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)) is not None:
            allowed = [word.strip().strip("'") for word in chosen[2].split(",")]
            message = (
                f"invalid choice: '{chosen[1]}'{nearest(chosen[1], allowed)}; allowed: {', '.join(allowed)}"
            )
        elif (stray := re.fullmatch(r"unrecognized arguments: (.*)", message)) is not None:
            message = f"'{stray[1]}' is not expected there; {' '.join(self.format_usage().split())}"
        elif message.startswith("the following arguments are required: "):
            message += f"; {' '.join(self.format_usage().split())}"
        raise ConfigError(message)


def parser_of(verb: str, *examples: str, description: str = "", more: str = "") -> Parser:
    """A verb's parser, without its options: what it does, words of examples, what else is to know."""
    what = VERBS[verb].summary
    shown = [f"  rankray {verb} {words}" for words in examples]
    shown.insert(0, "example:" if len(examples) == 1 else "examples:")
    found = Parser(
        prog=f"rankray {verb}",
        description=description or f"{what[0].upper()}{what[1:]}.",
        epilog="\n\n".join(filter(None, [more, "\n".join(shown)])),
    )
    json_option(found)
    return found


def json_option(parser: argparse.ArgumentParser) -> None:
    """`--json`, which every verb has and `answered` takes off."""
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on stdout, and messages on stderr"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else "--help"
    if name == "help" and words[1:]:
        name, words = words[1], [words[1], "--help"]
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name in ("-V", "--version"):
        print(f"rankray {rankray.__version__}")
        return 0

    def work(rest: Sequence[str]) -> Answer:
        if name not in VERBS:
            raise ConfigError(f"no verb '{name}'{nearest(name, VERBS)}; there are: {', '.join(VERBS)}")
        here = os.getcwd()
        if here not in sys.path:  # as `python -m rankray` has it: a user's own models stand beside the job
            sys.path.insert(0, here)
        found: Answer = importlib.import_module(VERBS[name].module).run(name, rest)
        return found

    return answered("rankray", words[1:], work)


def answered(prog: str, argv: Sequence[str], work: Callable[[Sequence[str]], Answer]) -> int:
    """The exit code of `work(argv)`; what the user can mend is one line on stderr.

    `--json` anywhere before `--` is taken off; stdout is then one object and nothing else: the verb's own, with
    `exit_code`, or `error`.
    """
    asked = "--json" in argv
    rest = [word for word in argv if word != "--json"]
    with _elsewhere() if asked else contextlib.nullcontext(sys.stdout) as stdout:
        answer = ended(
            prog, lambda: _in_one_line(prog, rest, work), lambda code, line: Answer(code, {"error": line})
        )
        if asked:
            told = _finite({**answer.found, "exit_code": answer.code})
            print(json.dumps(told, allow_nan=False), file=stdout, flush=True)
    return answer.code


def _finite(value: Any) -> Any:
    """The value with null for numbers that JSON has not: infinite ones, and NaN."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _in_one_line(prog: str, argv: Sequence[str], work: Callable[[Sequence[str]], Answer]) -> Answer:
    try:
        return work(argv)
    except (ConfigError, DatasetError) as error:
        told = printable(str(error))
        print(f"{prog}: {told}", file=sys.stderr, flush=True)
        return Answer(USAGE_EXIT, {"error": told})


def printable(text: str) -> str:
    """A refusal for a terminal: it quotes no secret and moves no cursor; a line has `LINE` characters at most."""
    lines = []
    for line in secret.masked(text).split("\n"):
        seen = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), line)
        cut = f" ... {len(seen) - LINE:,} characters ... "
        lines.append(seen if len(seen) <= LINE else seen[: LINE - LAST] + cut + seen[-LAST:])
    return "\n".join(lines)


@contextlib.contextmanager
def _elsewhere() -> Iterator[Any]:
    """Sends what this process and its children print to stderr; yields the stdout that was."""
    old = sys.stdout
    if sys.stdout is not sys.__stdout__:
        with contextlib.redirect_stdout(sys.stderr):
            yield old
        return
    old.flush()
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a child's print, such as pip's, knows the descriptor alone
    try:
        yield stdout
    finally:
        stdout.flush()
        old.flush()
        os.dup2(stdout.fileno(), 1)
        stdout.close()


def say(line: str) -> None:
    """A line for whoever looks on; what is no text, as JSON can spell it, is spelled."""
    print(line.encode("utf-8", "backslashreplace").decode("utf-8"), flush=True)


def painted(text: str, colour: int) -> str:
    """`text` in an ANSI colour on a terminal; plain in a log, a pipe, or where NO_COLOR is set."""
    if "NO_COLOR" in os.environ or not sys.stdout.isatty():
        return text
    return f"\033[{colour}m{text}\033[0m"


def _help() -> str:
    lines = ["usage: rankray VERB ...    rankray VERB --help    rankray --version", ""]
    lines += [
        "Prompts to a ranked preference dataset, by many diffusion models and rewards, and from it a better model."
    ]
    for group in dict.fromkeys(verb.group for verb in VERBS.values()):
        rows = [f"  {name:<13}{verb.summary}" for name, verb in VERBS.items() if verb.group == group]
        lines += ["", f"{group}:", *rows]
    return wrapped("\n".join([*lines, "", EXAMPLES, "", EXIT_CODES]), shutil.get_terminal_size().columns - 2)
