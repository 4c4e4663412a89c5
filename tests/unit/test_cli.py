"""Options in, configuration out; refusals."""

import contextlib
from pathlib import Path

import pytest

from rankray import cli
from rankray.cluster.job import Result
from rankray.config import ConfigError
from rankray.config.rankdpo import RankDPOConfig
from rankray.rankdpo.job import TrainingError
from rankray.verbs import Answer

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
        (["stray"], "'stray' is not expected there; a configuration is given by --config FILE"),
        (
            ["--generators", "sdxl"],
            r"generators = 'sdxl': give a list of tables, such as \[\{model = '...'\}\]",
        ),
        (["--output", "/o"], r"'prompts\.path' is missing; give it in the TOML file or as --prompts\.path"),
    ],
)
def test_refusals(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cli.parse_synpic(argv)


def test_a_key_of_several_kinds_is_one_line() -> None:
    argv = ["--dataset", "/d", "--output", "/o", "--model.model", "sdxl", "--tuned.train", "Lora"]
    with pytest.raises(ConfigError) as refused:
        cli.parse("rankdpo", RankDPOConfig, argv)
    assert str(refused.value) == (
        "tuned.train = 'Lora' (did you mean 'lora'?): input should be 'full' or 'lora', or a list"
    )


def test_a_refusal_exits_2_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_synpic(["--sede", "1"]) == 2
    assert (
        capsys.readouterr().err
        == "synpic: unknown option '--sede' (did you mean 'seed'?); --help-all lists all\n"
    )


@pytest.mark.parametrize("argv", [[], ["--dry-run"]])
def test_a_job_without_a_word_says_how_to_begin(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_synpic(argv) == 2
    assert capsys.readouterr().err.startswith(
        "synpic: give --config FILE; `rankray init shapes .` writes some"
    )


def test_help_all_lists_every_field_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_synpic(["--help-all"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"--{key}" in text for key in ("prompts.column", "prices.gpu_usd_per_hour"))
    assert "share of candidates or scores that may fail [0 to 1; default 0.01]" in text
    assert "[US dollars an hour; 0 or more; default 0]" in text
    assert cli.run_synpic(["--seed", "1", "--help", "all"]) == 0
    assert " ".join(capsys.readouterr().out.split()) == text


def test_help_is_short_unless_all_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_align(["--help"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) < 80
    assert "--prompts.path" in short
    assert "--training.noise.std" not in short


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TrainingError("it diverged"), "it diverged"),
        (KeyError("k"), "a fault that was not expected, its traceback follows"),
    ],
)
def test_a_job_that_fails_names_its_log(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the user can mend is a line; any other fault is raised, for Python to print in full."""

    def fails() -> Result:
        print("a library's last words")
        raise error

    def work() -> Answer:
        cli._ended("synpic", fails, lambda *of: [])
        return Answer()

    known = isinstance(error, TrainingError)
    with contextlib.nullcontext() if known else pytest.raises(type(error)):
        assert cli._guarded("synpic", work).code == cli.FAULT_EXIT
    printed = capsys.readouterr()
    begin, _, log = printed.err.rstrip("\n").partition("; what libraries printed is in ")
    assert (printed.out, begin) == ("", f"synpic: {said}")
    assert Path(log).read_text() == "a library's last words\n"
    Path(log).unlink()
