"""Options in, configuration out; refusals."""

from pathlib import Path

import pytest

from rankray import cli
from rankray.config import ConfigError

SHAPES = str(Path(__file__).parents[2] / "jobs" / "synpic-shapes.toml")


def test_every_kind_of_option_reaches_its_field() -> None:
    argv = [
        "--config",
        SHAPES,
        "--output",
        "/o",
        "--seed",
        "7",
        "--prompts.path",
        "2024",
        "--prompts.limit=3",
    ]
    argv += [
        "--execution.rows_per_block",
        "2",
        "--rewards",
        '[{model="pickscore"}]',
        "--images.format",
        "webp",
    ]
    settings = cli.parse_synpic(argv)
    assert (settings.output, settings.seed, settings.prompts.path, settings.prompts.limit) == (
        "/o",
        7,
        "2024",
        3,
    )
    assert (settings.execution.rows_per_block, settings.images.format) == (2, "webp")
    assert [reward.model for reward in settings.rewards] == ["pickscore"]
    assert len(settings.generators) == 4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prompts.pth", "x"], r"unknown option '--prompts\.pth' \(did you mean 'prompts\.path'\?\)"),
        (["--seed"], "expected one argument"),
        (["--config", "/nowhere.toml"], "no configuration file at /nowhere.toml"),
        (["--seed", "x"], "seed = 'x'"),
        (["stray"], "unknown option 'stray'"),
    ],
)
def test_refusals(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cli.parse_synpic(argv)


def test_a_refusal_exits_2_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_synpic(["--sede", "1"]) == cli.USAGE_EXIT
    assert (
        capsys.readouterr().err
        == "synpic: unknown option '--sede' (did you mean 'seed'?); --help lists all\n"
    )


def test_help_lists_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run_synpic(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(
        f"--{key}" in text for key in ("prompts.column", "execution.tolerance", "prices.gpu_usd_per_hour")
    )
