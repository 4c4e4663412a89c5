"""The whole job on a user's own models: rows, layouts, kills, faults and refusals, on pools that claim GPUs."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow.fs as pafs
import pytest
from conftest import (
    BAD,
    ODD,
    PLAIN,
    RED,
    SEED,
    Ended,
    Toys,
    finish,
    here,
    model,
    nothing_left,
    rows,
    start,
    toy_options,
    wait_for,
)
from ray.cluster_utils import Cluster

from rankray import store
from rankray.data import place
from rankray.schema import candidate_seed, prompt_id

pytestmark = pytest.mark.ray

Job = Callable[..., Ended]


@pytest.fixture(scope="module")
def undisturbed(toys: Toys) -> dict[str, object]:
    """The rows that the toys' prompts make, whatever the delays and the logs."""
    found = rows(toys.output)
    assert len(found) == 40
    return found


def test_rows_are_what_algorithm_1_makes_of_the_scores(toys: Toys) -> None:
    assert "44 lines read" in toys.ended.text
    assert "40 prompts, 1 duplicates, 2 empty, 1 not UTF-8" in toys.ended.text
    assert "streaming: all 4 pools fit" in toys.ended.text
    found = rows(toys.output)
    assert set(found) == {prompt_id(prompt) for prompt in (*PLAIN, *ODD, *BAD)}
    for prompt in (*PLAIN, *ODD):
        row = found[prompt_id(prompt)]
        candidates = row["candidates"]
        assert [c["generator"] for c in candidates] == ["noise", "noise", "coarse"]
        expected = [
            candidate_seed(SEED, row["prompt_id"], name, i)
            for name, i in (("noise", 0), ("noise", 1), ("coarse", 0))
        ]
        assert [c["seed"] for c in candidates] == expected
        scores = np.array([c["scores"] for c in candidates], np.float32)
        wins = [sum(int(scores[i, n] > scores[j, n]) for j in range(3) for n in range(2)) for i in range(3)]
        phi = np.array([w / (2 * 2) for w in wins], np.float32)
        assert [c["win_probability"] for c in candidates] == phi.tolist()
        order = sorted(range(3), key=lambda i: (-phi[i], i))
        assert [c["rank"] for c in candidates] == [order.index(i) + 1 for i in range(3)]
        assert all(c["error"] is None for c in candidates)
    assert store.validate(str(toys.output)).rows == 40
    assert (toys.output / "report.html").stat().st_size > 10_000
    assert not (toys.output / "_work").exists()


OURS = r"""Ray: joined the one at .*|\d+ lines read from .*|40 prompts x 3 candidates x 2 rewards; .*|output: .*
  (draws|ranks|made|failed|won|took|dataset|report|next) +.*
  \[rankray \d+:\d\d\] +done +of +share +a second +failed +left
  (noise|coarse|red|green) +\d+ +\d+ (images|scores) +\d+% .*
\d+ images and \d+ scores in \d+:\d\d .*
synpic: (red|green) failed 6 times, more than execution\.tolerance.*"""


def test_a_job_prints_its_own_lines_and_nothing_else(toys: Toys) -> None:
    """What Ray, its workers and libraries have to say is in the log."""
    for line in toys.ended.text.splitlines():
        assert any(re.fullmatch(known, line) for known in OURS.splitlines()), toys.ended.text
    (log,) = (toys.output / "logs").iterdir()
    assert "Connecting to existing Ray cluster" in log.read_text()


def test_bad_items_cost_themselves_and_the_exit_code(toys: Toys) -> None:
    """Every row is there, and the process says that more failed than the tolerance allows."""
    assert toys.ended.code == 3
    assert "more than execution.tolerance = 0.01 allows" in toys.ended.text
    assert "Traceback" not in toys.ended.text
    found = {row["prompt"]: row["candidates"] for row in rows(toys.output).values()}
    for candidate in found["unpaintable thing"]:
        assert candidate["error"] == "ValueError: cannot paint that"
        assert (candidate["image"], candidate["rank"], candidate["win_probability"]) == (None, 0, "nan")
    for candidate in found["unjudgeable thing"]:
        assert candidate["image"] is not None
        assert candidate["scores"] == ["nan", "nan"]
        assert candidate["error"].startswith("red: ValueError: a score is nan; green: ")
    assert "0 results" not in found["miscounted thing"][0]["error"]
    assert "one number an image is due" in found["miscounted thing"][0]["error"]
    info = store.read(str(toys.output)).info
    assert info["failures"]["by_model"] == {"noise": 2, "coarse": 1, "red": 6, "green": 6}
    assert "<script>alert(1)" not in (toys.output / "report.html").read_text()
    more = here(
        "synpic", "--output", str(toys.output), *toy_options(toys.prompts), "--execution.tolerance", "0.2"
    )
    assert more.code == 0, more.text


def test_pools_claim_gpus_and_parts_of_them(toys: Toys) -> None:
    """Else these tests would say nothing of GPU pools, as 2,214 of them once did."""
    bill = {row["model"]: row for row in store.read(str(toys.output)).info["cost"]["models"]}
    claimed = {name: round(3600 * row["gpu_hours"] / row["alive_s"], 6) for name, row in bill.items()}
    assert claimed == {"noise": 1.0, "coarse": 1.0, "red": 0.25, "green": 0.5}


def test_too_few_gpus_make_phases_and_a_bucket_changes_no_row(
    job: Job, toys: Toys, undisturbed: dict[str, object], bucket: str
) -> None:
    """Prompts, rows, and pictures beside them on an S3 server, under a key that an URI escapes: the toys' on a local
    disk, inline, streamed."""
    there = f"s3://{bucket}/{quote('toys, ü 100%+#')}"
    fs, key = store.filesystem(there)
    pafs.copy_files(str(toys.prompts), f"{key}/prompts.txt", pafs.LocalFileSystem(), fs)
    options = toy_options(Path("unused"), "--images.store", "files", pool="num_gpus=4")
    prompts = ("--prompts.path", f"{there}/prompts.txt")
    ended = job("synpic", "--output", f"{there}/o", *options, *prompts)
    assert ended.code == 3, ended.text
    assert "phases: 2, because all pools together need 8.75 GPU of 8" in ended.text
    assert rows(f"{there}/o") == undisturbed
    assert store.validate(f"{there}/o").rows == 40
    found = [info.path.removeprefix(f"{key}/o/") for info in fs.get_file_info(pafs.FileSelector(f"{key}/o"))]
    assert sorted(found) == ["config.toml", "data", "dataset.json", "images", "logs", "report.html"]
    pictures = [info.extension for info in fs.get_file_info(pafs.FileSelector(f"{key}/o/images"))]
    assert pictures == ["png"] * (3 * 39)
    assert all(
        candidate["image"] is None or candidate["image"]["bytes"] is None
        for row in store.read(f"{there}/o").rows(images=True)
        for candidate in row["candidates"]
    )


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("mode", "address"),
    [
        ("streaming", ""),  # its Ray lives on
        pytest.param("phases", "local", marks=pytest.mark.slow),  # its Ray is killed with it: a lost machine
    ],
)
def test_a_killed_driver_costs_only_blocks_in_flight(
    job: Job,
    toys: Toys,
    undisturbed: dict[str, object],
    cluster: Cluster,
    tmp_path: Path,
    mode: str,
    address: str,
) -> None:
    log, output = tmp_path / "log", tmp_path / "killed"
    way = toy_options(toys.prompts, "--execution.mode", mode, delay_s=0.1, log=str(log))
    process = start(address or cluster.address, "synpic", "--output", str(output), *way)
    wait_for(lambda: len(lines(log)) >= 40, process)
    wait_for(lambda: any(output.rglob("checkpoint-*/*.parquet")), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished = sum(1 for _ in output.rglob("checkpoint-*/*.parquet"))
    assert finished > 0
    ended = job("synpic", "--output", str(output), *way)
    assert ended.code == 3, ended.text
    assert "resuming: " in ended.text
    assert rows(output) == undisturbed
    drawn = collections.Counter(lines(log))
    assert len(drawn) == 78
    again = sum(count - 1 for count in drawn.values())
    # The block with the prompt that cannot be drawn holds 6 pictures.
    assert again <= 78 - (8 * finished - 2), (
        f"{again} images were drawn again although {finished} blocks of 8 were finished"
    )
    speed = store.read(str(output)).info["throughput"]
    left = (
        40 - 4 * finished
    )  # rows of the two samples of one model; those of the other are a phase of their own
    due = 2 * left + (left if mode == "streaming" else 40)
    assert round(speed["images_per_s"] * speed["wall_s"]) <= due < 120, "what this start drew, and no more"


def test_what_a_power_cut_took_of_finished_phases_is_drawn_again(
    job: Job, toys: Toys, undisturbed: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phases of a model each: what the third one read, and lost, is gone by then, so it comes of the prompts; nothing
    else is drawn again."""
    log, output = tmp_path / "log", tmp_path / "cut"
    way = toy_options(toys.prompts, "--execution.mode", "phases", log=str(log))

    def killed(*_: object) -> int:
        raise RuntimeError("the power fails")

    with monkeypatch.context() as patch:
        patch.setattr(place, "require_rows", killed)
        with contextlib.suppress(RuntimeError):
            job("synpic", "--output", str(output), *way)
    for finished in (output / "data", output / "_work" / "checkpoint-data"):
        shutil.rmtree(finished)
    assert not list((output / "_work").glob("upto-2")), "the source of the last phase but one is removed"
    cut = sorted((output / "_work" / "upto-3").glob("*.parquet"))
    os.truncate(cut[0], cut[0].stat().st_size - 5)
    cut[1].unlink()
    assert len(cut) == 10
    ended = job("synpic", "--output", str(output), *way)
    assert ended.code == 3, ended.text
    assert "8 of 40 prompts were lost of what was finished: they are made again" in ended.text
    assert rows(output) == undisturbed
    again = sum(count - 1 for count in collections.Counter(lines(log)).values())
    assert 0 < again <= 2 * 8, f"{again} images were drawn again, of 8 prompts lost"


def test_a_killed_actor_is_replaced_and_pools_of_two_and_other_blocks_change_no_row(
    toys: Toys, undisturbed: dict[str, object], cluster: Cluster, tmp_path: Path
) -> None:
    """And each model's start is told: nobody waits for the slowest to load."""
    log, output, load_s = tmp_path / "log", tmp_path / "o", 4.0
    two = "num_gpus=0.5, min_size=2, max_size=2"
    slow = f"[{RED}, {model('Brightness', 'green', 'num_gpus=0.5', channel=1, load_s=load_s)}]"
    settings = ("--execution.tolerance", "0.2", "--execution.rows_per_block", "7", "--rewards", slow)
    way = toy_options(toys.prompts, *settings, delay_s=0.15, log=str(log), pool=two)
    process = start(cluster.address, "synpic", "--output", str(output), *way)
    wait_for(lambda: len(lines(log)) >= 16, process)
    actors = list(tmp_path.glob("pid-*"))
    assert len(actors) == 2
    os.kill(int(actors[0].name.removeprefix("pid-")), signal.SIGKILL)
    ended = finish(process)
    assert ended.code == 0, ended.text
    assert rows(output) == undisturbed
    assert len(list(tmp_path.glob("pid-*"))) > 2
    bill = {row["model"]: row for row in store.read(str(output)).info["cost"]["models"]}
    assert {name: bill[name]["actors"] for name in ("coarse", "red", "green")} == {
        "coarse": 2,
        "red": 1,
        "green": 1,
    }
    told = store.read(str(output)).info["throughput"]["start"]["models"]
    assert (
        told["green"]["load_s"] >= load_s > max(told[name]["load_s"] for name in ("noise", "coarse", "red"))
    )
    assert all(row["start_s"] > row["load_s"] for row in told.values()), "processes and imports too"


def test_an_actor_that_does_not_load_is_replaced_and_a_long_block_is_waited_for(
    cluster: Cluster, toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One node's fault, at any hour, is not all others'; and what hangs is ours to tell, not Ray Data's clock."""
    monkeypatch.setenv("RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S", "1")
    late = model("Late", "late", "num_gpus=1", mark=str(tmp_path / "mark"))
    slow = model("Noise", "slow", "num_gpus=1", delay_s=1.0)
    way = [*toy_options(toys.prompts, "--prompts.limit", "4"), "--generators", f"[{slow}, {late}]"]
    ended = finish(start(cluster.address, "synpic", "--output", str(tmp_path / "o"), *way))
    assert ended.code in (0, 3), ended.text  # the toys' prompts are not all paintable
    why = "OSError: the weights could not be fetched"
    assert f"warning: an actor of 'late' did not load its model: {why}\n" in ended.text
    assert (tmp_path / "mark").exists()
    assert len(rows(tmp_path / "o")) == 4


def test_an_actor_that_is_lost_and_does_not_load_again_is_started_until_it_does(
    cluster: Cluster, toys: Toys, tmp_path: Path
) -> None:
    """Ray takes one whose start raises for dead for ever, and its blocks with it."""
    marks = tmp_path / "marks"
    marks.mkdir()
    lost = model("Lost", "lost", "num_gpus=1", 2, marks=str(marks))
    way = [*toy_options(toys.prompts, "--prompts.limit", "4"), "--generators", f"[{lost}]"]
    ended = finish(start(cluster.address, "synpic", "--output", str(tmp_path / "o"), *way))
    assert ended.code in (0, 3), ended.text  # the toys' prompts are not all paintable
    assert len(list(marks.glob("start-*"))) == 4
    assert len(rows(tmp_path / "o")) == 4


def test_a_broken_gpu_does_not_end_the_work_of_others(cluster: Cluster, toys: Toys, tmp_path: Path) -> None:
    """A pool of two, one a node: it is the second's GPU that is free, and gets every replacement."""
    marks, failures = tmp_path / "marks", 4
    marks.mkdir()
    node = cluster.add_node(num_cpus=2, num_gpus=7)
    try:
        bad = {"bad": node.node_id, "marks": str(marks), "times": failures}
        two = model("Rooted", "rooted", "num_gpus=5, min_size=2, max_size=2", 2, **bad)
        # More blocks than one actor takes at once: a pool that has its last ones asks for no other.
        blocks = ("--prompts.limit", "12", "--execution.rows_per_block", "1")
        way = [*toy_options(toys.prompts, *blocks), "--generators", f"[{two}]"]
        ended = finish(start(cluster.address, "synpic", "--output", str(tmp_path / "o"), *way))
    finally:
        cluster.remove_node(node)
    assert ended.code == 0, ended.text
    assert len(rows(tmp_path / "o")) == 12
    assert len(list(marks.iterdir())) == failures
    assert "'rooted' did not load its model: OSError: the driver does not answer\n" in ended.text
    assert "warning: 4 actors of 'rooted' in a row did not; it goes on with 1 actor, " in ended.text


def test_a_model_that_always_fails_stops_the_job_and_loses_nothing(
    cluster: Cluster, toys: Toys, tmp_path: Path
) -> None:
    """As a process: Ray Data keeps an actor of a failed pool for as long as its driver lives."""
    models = f"[{model('Noise', 'noise', 'num_gpus=1')}, {model('Broken', 'broken', 'num_gpus=1')}]"
    way = [*toy_options(toys.prompts), "--generators", models, "--execution.rows_per_block", "8"]
    ended = finish(start(cluster.address, "synpic", "--output", str(tmp_path / "o"), *way))
    nothing_left()
    assert ended.code == 1
    # Some blocks are in an actor at once: the error that Ray shows may be a later one's.
    assert re.search(r"generator 'broken' failed for each of its first (8|16|24|32|40) items", ended.text), (
        ended.text
    )
    assert "RuntimeError: no prompt is good enough" in ended.text
    assert re.search(
        r"^Ray: joined the one at \S+ \(1 node, .* CPUs, 8 GPUs\); it stays", ended.text, re.M
    ), ended.text
    assert "Traceback" not in ended.text
    (log,) = (tmp_path / "o" / "logs").iterdir()
    assert ended.text.endswith(f"; what libraries printed is in {log}\n")
    assert (
        "Connecting to existing Ray cluster" in log.read_text()
    )  # a library's words, and none of them above
    assert not (tmp_path / "o" / "dataset.json").exists()
    assert not list((tmp_path / "o" / "data").glob("*.parquet")), (
        "a row that a broken model failed is kept for good"
    )


def test_finished_and_foreign_outputs(toys: Toys, tmp_path: Path) -> None:
    """None of them asks for a Ray."""
    output = tmp_path / "o"
    shutil.copytree(toys.output, output)
    way = ("--output", str(output), *toy_options(toys.prompts, "--execution.tolerance", "0.2"))

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}

    before = state()
    again = here("synpic", *way)
    assert again.code == 0
    assert "is complete already; nothing to do" in again.text
    assert state() == before
    other = here("synpic", *way, "--seed", "1")
    assert other.code == 2
    assert "was begun with another configuration" in other.text
    assert f"seed: {SEED} there, 1 here" in other.text
    kept = toys.prompts.read_bytes()
    try:
        toys.prompts.write_bytes(kept + b"one prompt more\n")
        more = here("synpic", *way)
    finally:
        toys.prompts.write_bytes(kept)
    assert more.code == 2
    assert "is complete with 40 prompts" in more.text
    assert state() == before


def refusal(*words: str) -> str:
    """What a job says of something that it refuses with exit code 2."""
    ended = here("synpic", *words)
    assert ended.code == 2, ended.text
    assert "Traceback" not in ended.text
    return ended.text


def test_refusals_are_one_line_and_leave_nothing(toys: Toys, tmp_path: Path) -> None:
    base = ["--output", str(tmp_path / "o"), *toy_options(toys.prompts)]
    assert "did you mean 'sdxl'?" in refusal(*base, "--generators", '[{model="sdlx", samples=2}]')
    assert "did you mean 'pickscore'?" in refusal(*base, "--rewards", '[{model="pikscore"}]')
    assert str(tmp_path / "no.txt") in refusal(*base, "--prompts.path", str(tmp_path / "no.txt"))
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    assert "empty" in refusal(*base, "--prompts.path", str(empty))
    assert "cannot be written" in refusal(*base, "--output", "/proc/nothing/here")
    assert not list((tmp_path / "o").rglob("*.parquet"))


def test_a_process_that_is_refused_says_so_in_one_line(toys: Toys, tmp_path: Path) -> None:
    """No Ray starts: there is none at that address."""
    words = ["--output", str(tmp_path / "o"), *toy_options(toys.prompts), "--sede", "1"]
    ended = finish(start("127.0.0.1:1", "synpic", *words))
    assert ended.code == 2
    assert ended.text == "synpic: unknown option '--sede' (did you mean 'seed'?); --help-all lists all\n"
    assert not (tmp_path / "o").exists()


def test_of_three_who_want_one_output_two_are_told_who_has_it(
    toys: Toys, undisturbed: dict[str, object], cluster: Cluster, tmp_path: Path
) -> None:
    """Two submit to one Ray, the third has one of its own; the dataset is the undisturbed one."""
    output = tmp_path / "o"
    words = ("synpic", "--output", str(output), *toy_options(toys.prompts, delay_s=0.1))
    ended = [
        finish(one)
        for one in [start(address, *words) for address in (cluster.address, cluster.address, "local")]
    ]
    assert sorted(one.code for one in ended) == [2, 2, 3], [one.text for one in ended]
    for told in (one.text.splitlines()[-1] for one in ended if one.code == 2):
        assert re.match(
            rf"synpic: another job is at work on {output}: synpic on \S+, pid \d+, since 2.* UTC; ", told
        )
    assert "Traceback" not in "".join(one.text for one in ended)
    assert rows(output) == undisturbed
    assert not list(output.glob("_*"))
