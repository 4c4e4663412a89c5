"""`--help` of every job and of every `rankray` command, as tests/golden/help has it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rankray import cli, commands

JOBS = {
    "synpic": cli.run_synpic,
    "extend": cli.run_extend,
    "rankdpo": cli.run_rankdpo,
    "align": cli.run_align,
    "evaluate": cli.run_evaluate,
    "ablate": cli.run_ablate,
}
VERBS = (
    "",
    *("validate", "rerank", "convert", "report", "import", "convert-mps"),
    *("envs", "envs build", "envs check"),
)
HELPS = {
    **{name: (run, []) for name, run in JOBS.items()},
    **{f"rankray {verb}".strip(): (commands.main, verb.split()) for verb in VERBS},
}


@pytest.mark.parametrize("name", HELPS)
def test_help(
    golden: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    run, words = HELPS[name]
    with pytest.raises(SystemExit, match=r"^0$"):
        run([*words, "--help"])
    golden(f"help/{name.replace(' ', '-')}.txt", capsys.readouterr().out)
