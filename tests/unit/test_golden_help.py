"""`--help` of every verb, short and, of jobs, with every key, as tests/golden/help has it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from rankray import verbs

JOBS = ("synpic", "extend", "rankdpo", "align", "evaluate", "ablate")
WORDS = [
    [],
    *([verb] for verb in verbs.VERBS if verb not in JOBS),
    ["envs", "build"],
    ["envs", "check"],
]
HELPS = {
    **{" ".join(["rankray", *words]): [*words, "--help"] for words in WORDS},
    **{verb: [verb, "--help"] for verb in JOBS},
    **{f"{verb} all": [verb, "--help-all"] for verb in JOBS},
}


@pytest.fixture
def help_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str, int], str]:
    def printed(name: str, columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        try:
            code = verbs.main(HELPS[name])
        except SystemExit as ended:
            code = ended.code
        assert code == 0
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize("name", HELPS)
def test_help(golden: Callable[..., None], help_of: Callable[[str, int], str], name: str) -> None:
    golden(f"help/{name.replace(' ', '-')}.txt", help_of(name, 100))


@pytest.mark.parametrize("name", HELPS)
def test_help_fits_a_terminal_of_80_columns(help_of: Callable[[str, int], str], name: str) -> None:
    """But for an option whose choices are a line by themselves."""
    lines = help_of(name, 80).splitlines()
    assert [line for line in lines if len(line) > 80 and not line.startswith("  --")] == []


@pytest.mark.parametrize("name", [name for name in HELPS if not name.startswith("rankray envs ")])
def test_help_says_what_a_verb_does_and_shows_it(help_of: Callable[[str, int], str], name: str) -> None:
    told = help_of(name, 100)
    verb = name.removeprefix("rankray").removesuffix(" all").strip()
    assert re.search(rf"^examples?:\n  rankray {verb}", told, re.M)
    assert re.search(r"^[A-Z][^\n]+(\n[^\n]+)?\.$", told, re.M), "a sentence"
