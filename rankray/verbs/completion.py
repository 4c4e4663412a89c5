"""`rankray completion SHELL`: a script by which a shell completes verbs and options.

Written once, by shtab, from every verb's options: a press of the tab key then starts no Python. It has to be written
again after an upgrade.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

import shtab

from rankray.verbs import VERBS, Answer, parser_of

EXAMPLES = (
    "bash > ~/.local/share/bash-completion/completions/rankray",
    "zsh > ~/.zfunc/_rankray  # with fpath=(~/.zfunc $fpath) before compinit in ~/.zshrc",
)


def run(verb: str, argv: Sequence[str]) -> Answer:
    """Prints the script."""
    options = parser(verb).parse_args(argv)
    script = shtab.complete(_everything(), options.shell)
    print(script)
    return Answer(found={"shell": options.shell, "script": script})


def parser(verb: str) -> argparse.ArgumentParser:
    """The options of the verb."""
    found = parser_of(verb, *EXAMPLES)
    found.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="which shell")
    return found


def _everything() -> argparse.ArgumentParser:
    """One parser of all verbs, as no other verb needs."""
    whole = argparse.ArgumentParser(prog="rankray")
    verbs = whole.add_subparsers(dest="verb")
    for name, row in VERBS.items():
        own = importlib.import_module(row.module).parser(name)
        verbs.add_parser(name, help=row.summary, parents=[own], add_help=False, conflict_handler="resolve")
    return whole
