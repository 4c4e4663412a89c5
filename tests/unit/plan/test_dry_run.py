"""`--dry-run`: what it prints for the jobs that the repository has, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rankray import cli
from rankray.config import ConfigError, PricesConfig
from rankray.data import cost
from rankray.models import hardware
from rankray.plan import dry_run

JOBS = Path(__file__).parents[3] / "jobs"
SYNPIC, TINY, SHAPES = (str(JOBS / f"{name}.toml") for name in ("synpic", "synpic-tiny", "synpic-shapes"))


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    assert cli.run_synpic([*argv, "--dry-run"]) == 0
    return capsys.readouterr().out.splitlines()


def cells(lines: list[str], first: str) -> list[str]:
    """Of the first line whose first column says so."""
    return next(line.split() for line in lines if line.split()[:1] == [first])


@pytest.mark.parametrize("job", [SYNPIC, TINY, SHAPES])
def test_it_is_read_in_a_terminal_of_120_columns(capsys: pytest.CaptureFixture[str], job: str) -> None:
    lines = printed(capsys, "--config", job)
    assert max(map(len, lines)) <= 120
    assert lines[0] == "dry run: nothing is started, loaded or written"


def test_the_paper_s_job(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "--config", SYNPIC)
    text = "\n".join(lines)
    here = "nothing is at /mnt/cluster_storage/prompts.parquet on this machine"
    assert f"58,000 prompts (prompts.limit; {here})\nx 4 candidates = 232,000 pictures" in text
    assert "x 5 rewards = 1,160,000 scores" in text
    memory = next(line for line in lines if line.startswith("  model "))
    assert memory.split()[-7:] == list(hardware.GPU_TYPES)
    row = cells(lines, "vqascore")
    assert row[1:5] == ["1..8", "0.5", "bf16", "8"]
    assert row[5] == "22.9", "11.46 billion parameters of two bytes"
    assert row[-2:] == ["no", "bf16"]
    assert "8 x A100-80: phases: 4, expected in 30.5 h; streaming is expected in 45.1 h" in text
    assert cells(lines, "A100-80")[2:6] == ["phases", "2.11", "30.5", "244"]
    assert "nothing measured" in text
    assert cells(lines, "the")[:5] == ["the", "paper", "10.0", "A100-days", "0.86"]
    assert "205.60" in text
    assert "185.60" in text


def test_the_documentation_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = (JOBS.parent / "docs" / "synpic.md").read_text("utf-8")
    shown = text.partition("```text\ndry run: ")[2].partition("```")[0]
    lines = printed(capsys, "--config", SYNPIC)
    assert f"dry run: {shown}".splitlines() == lines[: lines.index("Assumed, nothing measured") - 1]


def test_what_a_cpu_took_is_not_among_what_was_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """No figure of a plan for GPUs is of it."""
    import small_dataset

    argv = ["--config", SYNPIC, "--gpu-type", "A100-80"]
    path = small_dataset.write(tmp_path / "old")
    info = json.loads((tmp_path / "old" / "dataset.json").read_text())
    usage = [cost.ActorUsage("sdxl", "generator", "1", 60.0, 1.0, 90.0, 6, 0, 0, 0.0, 1.0)]
    info |= {"identity": cli.parse_synpic(["--config", SYNPIC]).identity()}
    info |= {"cost": cost.ledger(usage, PricesConfig())}
    (tmp_path / "old" / "dataset.json").write_text(json.dumps(info))
    assert "Assumed, nothing measured" in printed(capsys, *argv, "--measured", path)


def test_one_gpu_of_one_type(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "--config", SYNPIC, "--gpu-type", "h100", "--gpus", "1")
    text = "\n".join(lines)
    assert (
        "1 x H100: phases: 9, expected in 135.7 h; all pools together need 5.5 GPU of 1 that the cl" in text
    )
    assert "1.79" in text, "the configuration's price, as its user named a cluster"
    assert "A100-40" not in text


def test_what_a_type_does_not_hold_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(printed(capsys, "--config", SYNPIC, "--gpu-type", "T4"))
    assert "warning: 'stable-cascade' computes in bfloat16, T4 does not" in text
    assert "8 x T4: cannot run: " in text


def test_a_job_without_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "--config", SHAPES)
    text = "\n".join(lines)
    assert "200 prompts (counted in shapes:heldout)\nx 4 candidates = 800 pictures" in text
    assert "No pool takes a GPU: models run on CPUs" in text
    assert "as this one: streaming: all 7 pools fit the cluster together" in text
    assert "how long: nobody has said" in text


def test_cores_of_an_actor_are_all_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """An actor of four that never waited: what is planned for its work is what the ledger has of it."""
    import small_dataset

    prices = PricesConfig(cpu_usd_per_hour=1.0)
    argv = ["--config", SHAPES, "--prices.cpu_usd_per_hour", "1", "--prompts.limit", "100"]
    settings = cli.parse_synpic(argv)
    choices = [
        *(("generator", one) for one in settings.generators),
        *(("reward", one) for one in settings.rewards),
    ]
    usage = [
        cost.ActorUsage(one.label, kind, one.label, 3600.0, 0.0, 3600.0, 100 * items, 0, 0, 0.0, 4.0)
        for kind, one in choices
        for items in [getattr(one, "samples", settings.k)]
    ]
    path = small_dataset.write(tmp_path / "old")
    info = json.loads((tmp_path / "old" / "dataset.json").read_text())
    bill = cost.ledger(usage, prices)
    info |= {"identity": settings.identity(), "cost": bill}
    (tmp_path / "old" / "dataset.json").write_text(json.dumps(info))
    text = "\n".join(printed(capsys, *argv, "--measured", path))
    assert f"${bill['totals']['usd']:,.2f}" in text
    assert f"measured: {bill['totals']['cpu_hours']:,.2f} CPU-hours" in text


def test_prompts_of_a_file_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place = tmp_path / "prompts.txt"
    place.write_text("a red circle\na blue star\n\na red circle\n")
    lines = printed(capsys, "--config", SHAPES, "--prompts.path", str(place))
    assert lines[1] == f"2 prompts (counted in {place})"
    (tmp_path / "more.txt").write_text("a green square\n")
    place.write_text("a red circle\n")
    pattern = f"{tmp_path}/*.txt"
    lines = printed(capsys, "--config", SHAPES, "--prompts.path", pattern)
    assert lines[1] == f"2 prompts (counted in {pattern})"
    lines = printed(capsys, "--config", SHAPES, "--prompts.path", "promts.txt", "--prompts.limit", "9")
    assert lines[1] == "9 prompts (prompts.limit; nothing is at promts.txt on this machine)"
    lines = printed(capsys, "--config", SHAPES, "--prompts.path", "hub:owner/name", "--prompts.limit", "7")
    assert lines[1] == "7 prompts (prompts.limit; the source is not looked at)"


def test_the_paper_s_number_stands_in_for_an_unknown_one() -> None:
    settings = cli.parse_synpic(["--config", SHAPES, "--prompts.path", "s3://bucket/p.txt"])
    unlimited = settings.model_copy(update={"prompts": settings.prompts.model_copy(update={"limit": None})})
    assert dry_run.prompt_count(unlimited)[0] == cost.PAPER_PROMPTS


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dry-run", "--gpu-type", "A100-88"], r"unknown GPU type 'A100-88' \(did you mean 'A100-80'\?\)"),
        (["--dry-run", "--gpus", "0"], "--gpus 0 is no number of GPUs; give 1 or more"),
        (["--dry-run", "--gpus", "two"], "--gpus two is no number of GPUs"),
        (["--gpu-type", "H100"], "--gpu-type is of a dry run; add --dry-run"),
        (["--dry-run", "--measured", "/nowhere"], "nothing measured: "),
        (["--dryrun"], r"unknown option '--dryrun' \(did you mean 'dry-run'\?\)"),
        (["--dry-run", "--generators", '[{model="sdxxl", samples=2}]'], "unknown generator 'sdxxl'"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert cli.run_synpic(["--config", SYNPIC, *argv]) == 2
    said = capsys.readouterr().err
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(said)
    assert said.count("\n") == 1


def test_extend_plans_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import small_dataset

    path = small_dataset.write(tmp_path / "old")
    argv = [
        "--config",
        SHAPES,
        "--reuse",
        path,
        "--dry-run",
        "--generators",
        '[{model="shapes-sdxl", name="one", samples=2}]',
    ]
    assert cli.run_extend(argv) == 0
    text = capsys.readouterr().out
    assert "has one; planned is the rest" in " ".join(text.split())  # lines are wrapped around a long path


def test_it_starts_no_ray_and_imports_no_model() -> None:
    code = (
        "import sys, ray; from rankray import cli; "
        f"code = cli.run_synpic(['--config', {SYNPIC!r}, '--dry-run']); "
        "print(code, ray.is_initialized(), {'torch', 'diffusers', 'transformers'} & set(sys.modules) or 'none')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "0 False none"
