"""The whole job on a user's own models: rows, layouts, kills, faults and refusals, through the job script."""

from __future__ import annotations

import collections
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Ended, command, environment, rows

from rankray import store
from rankray.schema import candidate_seed, prompt_id
from rankray.seats import RESERVED_CPUS

pytestmark = pytest.mark.ray

Job = Callable[..., Ended]
REWARDS = (
    "--rewards",
    '[{model="toy_models:Brightness", name="red", pool={num_cpus=0.1}}, '
    '{model="toy_models:Brightness", name="green", options={channel=1}, pool={num_cpus=0.1}}]',
)


def generators(delay_s: float = 0.0, log: str = "", pool: str = "{num_cpus=0.1}") -> tuple[str, str]:
    noise = 'model="toy_models:Noise"'
    options = f'options={{delay_s={delay_s}, log="{log}"}}'
    return (
        "--generators",
        f'[{{{noise}, name="noise", samples=2, {options}, pool={pool}}}, '
        f'{{{noise}, name="coarse", options={{size=4}}, pool={pool}}}]',
    )


def options(prompts: Path, *more: str, **named: object) -> list[str]:
    block = ("--execution.rows_per_block", "4")
    return ["--prompts.path", str(prompts), *generators(**named), *REWARDS, *block, *more]  # type: ignore[arg-type]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return written(tmp_path)


def written(directory: Path) -> Path:
    path = directory / "prompts.txt"
    path.write_text("".join(f"prompt number {i}\n" for i in range(40)))
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The rows that those prompts make, whatever the delays and the logs."""
    place = tmp_path_factory.mktemp("undisturbed")
    made = subprocess.run(
        command(place / "o", *options(written(place))),
        env=environment(),
        cwd=place,
        text=True,
        capture_output=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return rows(place / "o")


def test_rows_are_what_algorithm_1_makes_of_the_scores(job: Job, prompts: Path, tmp_path: Path) -> None:
    with prompts.open("ab") as file:
        file.write(b"prompt number 3\n\n  \nprompt \xff broken\n")
    ended = job(tmp_path / "o", *options(prompts, "--seed", "5"))
    assert ended.code == 0, ended.text
    assert "44 lines read" in ended.text
    assert "40 prompts, 1 duplicates, 2 empty, 1 not UTF-8" in ended.text
    assert "streaming: all 4 pools fit" in ended.text
    found = rows(tmp_path / "o")
    assert set(found) == {prompt_id(f"prompt number {i}") for i in range(40)}
    for row in found.values():
        candidates = row["candidates"]
        assert [c["generator"] for c in candidates] == ["noise", "noise", "coarse"]
        expected = [
            candidate_seed(5, row["prompt_id"], name, i)
            for name, i in (("noise", 0), ("noise", 1), ("coarse", 0))
        ]
        assert [c["seed"] for c in candidates] == expected
        scores = np.array([c["scores"] for c in candidates], np.float32)
        wins = [sum(int(scores[i, n] > scores[j, n]) for j in range(3) for n in range(2)) for i in range(3)]
        phi = np.array([w / (2 * 2) for w in wins], np.float32)
        assert [c["win_probability"] for c in candidates] == phi.tolist()
        order = sorted(range(3), key=lambda i: (-phi[i], i))
        assert [c["rank"] for c in candidates] == [order.index(i) + 1 for i in range(3)]
    assert store.validate(str(tmp_path / "o")).rows == 40
    assert (tmp_path / "o" / "report.html").stat().st_size > 10_000
    assert not (tmp_path / "o" / "_work").exists()


def test_layout_pools_and_blocks_change_no_row(
    job: Job, prompts: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    ways = {
        # Two such generators and two rewards are just too many for this machine, whatever its size.
        "packed": options(prompts, pool=f"{{num_cpus={(os.cpu_count() - RESERVED_CPUS) / 2}}}"),
        "other": options(
            prompts, "--execution.rows_per_block", "7", pool="{num_cpus=0.1, min_size=2, max_size=2}"
        ),
    }
    said = {}
    for name, way in ways.items():
        ended = job(tmp_path / name, *way)
        assert ended.code == 0, ended.text
        said[name] = ended.text
    assert "phases: 2, because all pools together need" in said["packed"]
    assert len(undisturbed) == 40
    for name in ways:
        assert rows(tmp_path / name) == undisturbed, name


def wait_for(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.1)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("mode", ["streaming", pytest.param("phases", marks=pytest.mark.slow)])
def test_a_killed_driver_costs_only_blocks_in_flight(
    job: Job, prompts: Path, undisturbed: dict[str, Any], tmp_path: Path, mode: str
) -> None:
    log, output = tmp_path / "log", tmp_path / "killed"
    way = options(prompts, "--execution.mode", mode, delay_s=0.15, log=str(log))
    process = subprocess.Popen(
        command(output, *way),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: len(lines(log)) >= 40)
    wait_for(lambda: any(output.rglob("checkpoint-*/*.parquet")))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    os.killpg(process.pid, signal.SIGKILL)  # the Ray that the driver had started: a machine that is lost
    finished = sum(1 for _ in output.rglob("checkpoint-*/*.parquet"))
    assert finished > 0
    ended = job(output, *way)
    assert ended.code == 0, ended.text
    assert "resuming: " in ended.text
    assert rows(output) == undisturbed
    drawn = collections.Counter(lines(log))
    assert len(drawn) == 80
    again = sum(count - 1 for count in drawn.values())
    assert again <= 80 - 8 * finished, (
        f"{again} images were drawn again although {finished} blocks of 8 were finished"
    )


def test_a_killed_actor_is_replaced(prompts: Path, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    log, output = tmp_path / "log", tmp_path / "o"
    way = options(prompts, delay_s=0.15, log=str(log))
    process = subprocess.Popen(
        command(output, *way), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(lambda: len(lines(log)) >= 16)
    actor = next(iter(tmp_path.glob("pid-*")))
    os.kill(int(actor.name.removeprefix("pid-")), signal.SIGKILL)
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 0, text
    assert rows(output) == undisturbed
    assert len(list(tmp_path.glob("pid-*"))) == 2


def test_bad_items_cost_themselves(job: Job, tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    odd = ["<b>&amp;</b><script>alert(1)</script>", "🦊 émoji", "nul \0 inside", "long " * 2000]
    bad = ["unpaintable thing", "unjudgeable thing", "miscounted thing"]
    prompts.write_text("\n".join([*odd, *bad, *(f"plain {i}" for i in range(13))]))
    ended = job(tmp_path / "o", *options(prompts, "--execution.tolerance", "0.2"))
    assert ended.code == 0, ended.text
    found = {row["prompt"]: row["candidates"] for row in rows(tmp_path / "o").values()}
    assert len(found) == 20
    for candidate in found["unpaintable thing"]:
        assert candidate["error"] == "ValueError: cannot paint that"
        assert (candidate["image"], candidate["rank"], candidate["win_probability"]) == (None, 0, "nan")
    for candidate in found["unjudgeable thing"]:
        assert candidate["image"] is not None
        assert candidate["scores"] == ["nan", "nan"]
        assert candidate["error"].startswith("red: ValueError: a score is nan; green: ")
    assert "0 results" not in found["miscounted thing"][0]["error"]
    assert "one number an image is due" in found["miscounted thing"][0]["error"]
    clean = [c for prompt, row in found.items() if prompt not in bad for c in row]
    assert all(c["error"] is None and c["rank"] in (1, 2, 3) for c in clean)
    info = store.read(str(tmp_path / "o")).info
    assert info["failures"]["by_model"] == {"noise": 2, "coarse": 1, "red": 6, "green": 6}
    assert "<script>alert(1)" not in (tmp_path / "o" / "report.html").read_text()

    refused = job(tmp_path / "strict", *options(prompts))
    assert refused.code == 3
    assert "more than execution.tolerance = 0.01 allows" in refused.text
    assert rows(tmp_path / "strict") == rows(tmp_path / "o")


def test_a_model_that_always_fails_stops_the_job_and_loses_nothing(
    job: Job, prompts: Path, tmp_path: Path
) -> None:
    broken = '[{model="toy_models:Noise", name="noise"}, {model="toy_models:Broken", name="broken"}]'
    way = [*options(prompts), "--generators", broken, "--execution.rows_per_block", "8"]
    ended = job(tmp_path / "o", *way)
    assert ended.code == 1
    # Some blocks are in an actor at once: the error that Ray shows may be a later one's.
    assert re.search(r"generator 'broken' failed for each of its first (8|16|24|32|40) items", ended.text), (
        ended.text
    )
    assert "RuntimeError: no prompt is good enough" in ended.text
    assert not (tmp_path / "o" / "dataset.json").exists()
    assert not list((tmp_path / "o" / "data").glob("*.parquet")), (
        "a row that a broken model failed is kept for good"
    )


def test_finished_and_foreign_outputs(job: Job, prompts: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "o", tmp_path / "log"
    way = options(prompts, log=str(log))
    assert job(output, *way).code == 0
    drawn, before = len(lines(log)), (output / "dataset.json").read_bytes()
    again = job(output, *way)
    assert again.code == 0
    assert "is complete already; nothing to do" in again.text
    assert (len(lines(log)), (output / "dataset.json").read_bytes()) == (drawn, before)
    other = job(output, *way, "--seed", "1")
    assert other.code == 2
    assert "was begun with another configuration" in other.text
    assert "seed: 0 there, 1 here" in other.text
    with prompts.open("a") as file:
        file.write("one prompt more\n")
    longer = job(output, *way)
    assert longer.code == 2
    assert "is complete with 40 prompts" in longer.text


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "images",
    [
        ("png", "files"),
        pytest.param(("webp", "inline"), marks=SLOW),
        pytest.param(("jpeg", "files"), marks=SLOW),
    ],
)
def test_image_formats_and_places(job: Job, prompts: Path, tmp_path: Path, images: tuple[str, str]) -> None:
    way = options(prompts, "--prompts.limit", "6", "--images.format", images[0], "--images.store", images[1])
    ended = job(tmp_path / "o", *way)
    assert ended.code == 0, ended.text
    assert store.validate(str(tmp_path / "o")).rows == 6
    candidate = next(iter(rows(tmp_path / "o").values()))["candidates"][0]
    if images[1] == "files":
        assert Path(candidate["image"]["path"]).suffix == f".{images[0]}"
        assert candidate["image"]["bytes"] is None
        assert len(list((tmp_path / "o" / "images").iterdir())) == 18
    else:
        assert candidate["image"]["bytes"][8:12] == b"WEBP"


def refusal(argv: list[str]) -> str:
    """What the command line says, without a Ray, for something that it refuses with exit code 2."""
    ended = subprocess.run(
        [*command(Path("/nowhere"))[:2], *argv],
        env=environment(),
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_refusals_are_one_line_and_leave_nothing(prompts: Path, tmp_path: Path) -> None:
    base = ["--output", str(tmp_path / "o"), *options(prompts)]
    assert "unknown option '--sede' (did you mean 'seed'?)" in refusal([*base, "--sede", "1"])
    assert "did you mean 'sdxl'?" in refusal([*base, "--generators", '[{model="sdlx", samples=2}]'])
    assert "did you mean 'pickscore'?" in refusal([*base, "--rewards", '[{model="pikscore"}]'])
    assert str(tmp_path / "no.txt") in refusal([*base, "--prompts.path", str(tmp_path / "no.txt")])
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    assert "empty" in refusal([*base, "--prompts.path", str(empty)])
    assert "cannot be written" in refusal([*base, "--output", "/proc/nothing/here"])
    assert not list((tmp_path / "o").rglob("*.parquet"))
