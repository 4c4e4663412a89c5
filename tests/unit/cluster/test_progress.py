"""The table that a person reads on a terminal or in a log, and what it is made of."""

import time
from types import SimpleNamespace

import pytest

from rankray.cluster.progress import (
    Block,
    Meter,
    ModelProgress,
    Reporter,
    clock,
    counted,
    done_line,
    figures,
    mean_starts,
    table,
)
from rankray.config import PricesConfig
from rankray.data import cost


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


ROWS = [
    ModelProgress("generator", "stable-diffusion-3.5-large", 1000, 3, 58000, 4.0),
    ModelProgress("generator", "sdxl", 58000, 0, 58000, 0.0),
    ModelProgress("reward", "mps", 0, 0, 232000, 0.0),
    ModelProgress("reward", "hpsv2.1", 120000, 12, 232000, 51.26),
]

WIDE = """\
  [rankray 1:02:03]              done              of  share  a second  failed     left
  stable-diffusion-3.5-large    1,000   58,000 images     2%       4.0       3  3:57:30
  sdxl                         58,000   58,000 images   100%       0.0       0     done
  mps                               0  232,000 scores     0%       0.0       0        ?
  hpsv2.1                     120,000  232,000 scores    52%      51.3      12    36:25"""

NARROW = """\
  [rankray 1:02:03]         done  share  failed     left
  stable-diffusion-3.5…    1,000     2%       3  3:57:30
  sdxl                    58,000   100%       0     done
  mps                          0     0%       0        ?
  hpsv2.1                120,000    52%      12    36:25"""

TELEPHONE = """\
  [rankray 1:02:03]  share     left
  stable-diffusion…     2%  3:57:30
  sdxl                100%     done
  mps                   0%        ?
  hpsv2.1              52%    36:25"""


@pytest.mark.parametrize(("columns", "due"), [(200, WIDE), (100, WIDE), (56, NARROW), (35, TELEPHONE)])
def test_a_table_says_how_far_how_fast_how_long(columns: int, due: str) -> None:
    lines = table(ROWS, 3723.0, columns)
    assert "\n".join(lines) == due
    assert max(map(len, lines)) <= columns


def test_an_actor_that_still_loads_is_no_measure_of_loading() -> None:
    usage = [
        {"kind": "reward", "model": model, "load_s": load_s, "alive_s": alive_s}
        for model, load_s, alive_s in (("mps", 20.0, 60.0), ("mps", 30.0, 31.0), ("mps", 4.0, 4.0))
    ]
    found = mean_starts({("reward", "mps"): [26.0, 36.0], ("reward", "clip"): [9.0]}, usage)
    assert found == {
        "mps": {"actors": 2, "start_s": 31.0, "load_s": 25.0},
        "clip": {"actors": 1, "start_s": 9.0, "load_s": 0.0},
    }


def test_prompts_that_are_cut_are_said() -> None:
    header, line = table([ModelProgress("reward", "mps", 10, 0, 20, 5.0, 1234)], 1.0, 100)
    assert header.split()[-3:] == ["failed", "cut", "left"]
    assert line.split()[-3:] == ["0", "1,234", "0:02"]


def test_what_a_phase_came_to_is_one_line() -> None:
    line = "59,000 images and 120,000 scores in 1:01:00 (16.1 images/s), 15 failed"
    assert done_line(ROWS, 3660.0) == line
    assert done_line(ROWS[3:], 100.0) == "120,000 scores in 1:40 (1,200.0 scores/s), 12 failed"


def usage(actor: str, model: str = "m", busy_s: float = 1.0) -> dict[str, object]:
    return {"actor_id": actor, "kind": "generator", "model": model, "busy_s": busy_s}


def test_a_block_that_a_lost_node_repeats_is_done_once() -> None:
    meter = Meter()
    meter.report(usage("dead", busy_s=4.0), [Block("p1", 4, 0, 1), Block("p2", 4, 1, 0)])
    meter.report(usage("other", busy_s=2.0), [Block("p2", 4, 1, 0)])
    meter.report(usage("other", busy_s=2.0))  # a heartbeat
    life, blocks = meter.done()
    assert [(kind, model, block.key) for kind, model, block in blocks] == [
        ("generator", "m", "p1"),
        ("generator", "m", "p2"),
    ]
    assert sum(block.items for *_, block in blocks) == 8
    assert meter.busy() == {("generator", "m"): 6.0}, "paid twice all the same"
    assert meter.done(life, 1) == (life, blocks[1:])


def test_of_a_meter_that_restarted_everything_is_asked_again() -> None:
    before, after = Meter(), Meter()
    before.report(usage("a"), [Block("p1", 4, 0, 0)])
    life, _ = before.done()
    after.report(usage("a"), [Block("p1", 4, 0, 0), Block("p2", 4, 0, 0)])
    assert [block.key for *_, block in after.done(life, 1)[1]] == ["p1", "p2"]


def test_a_stage_without_a_meter_counts_its_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    left = iter(range(3, 100))
    with counted("/o", "encoding", lambda: next(left), 8, interval_s=0.02):
        deadline = time.monotonic() + 30
        while "done" not in (said := capsys.readouterr().out) and time.monotonic() < deadline:
            time.sleep(0.05)
    header, line = said.splitlines()[:2]
    assert header.split()[2:] == ["done", "of", "share", "a", "second", "failed", "left"]
    assert line.split()[:4] == ["encoding", "4", "8", "blocks"]


def test_a_listing_that_fails_once_ends_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """The place of an encoded set is a bucket, which may not answer for a minute."""
    asked = iter(range(100))

    def done() -> int:
        if (count := next(asked)) == 1:
            raise OSError("When listing objects: AWS Error NETWORK_CONNECTION")
        return count

    said = ""
    with counted("/o", "encoding", done, 8, interval_s=0.02):
        deadline = time.monotonic() + 30
        while said.count("done") < 2 and time.monotonic() < deadline:
            said += capsys.readouterr().out
            time.sleep(0.02)
    lines = [line.split() for line in said.splitlines()]
    assert [line[1] for line in lines if line[0] == "encoding"][:2] == ["0", "2"]


def test_what_metrics_are_told_of_a_phase() -> None:
    """Two generators and a reward, which has one of the two blocks that the second has finished."""
    rows = [
        ModelProgress("generator", "a", 8, 1, 8, 2.0),
        ModelProgress("generator", "b", 8, 0, 8, 2.0),
        ModelProgress("reward", "r", 12, 0, 24, 1.0),
    ]
    done = {("generator", "a", block): Block(block, 4, block == "p2", 0) for block in ("p1", "p2")}
    done |= {("generator", "b", block): Block(block, 4, 0, 0) for block in ("p1", "p2")}
    done |= {
        ("reward", "r", "p2"): Block("p2", 12, 0, 0),
        ("reward", "of another phase", "p1"): Block("p1", 12, 3, 0),
    }
    used = [cost.ActorUsage("a", "generator", actor, 30.0, 5.0, 60.0, 4, 0, 0, 0.5, 1.0) for actor in "12"]
    bills = cost.ledger(used, PricesConfig(gpu_usd_per_hour=6.0))["models"]
    found = list(figures(rows, done, bills))
    assert [(key, now) for key, _, now in found] == [
        (("generator", "a"), {"left": 0, "queue": None}),
        (("generator", "b"), {"left": 0, "queue": 0}),
        (("reward", "r"), {"left": 12, "queue": 1}),
    ]
    # Two actors for a minute on half a GPU each, at 6 dollars an hour.
    spent = {"busy_seconds": 60.0, "alive_seconds": 120.0, "usd": pytest.approx(0.1)}
    assert found[0][1] == {"items": 8, "failures": 1, **spent}
    assert found[2][1] == {"items": 12, "failures": 0, "busy_seconds": 0.0, "alive_seconds": 0.0, "usd": 0.0}


def test_a_reporter_goes_on_from_what_an_earlier_phase_kept_and_outlives_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The meter may have been lost with what it knew, and a bucket be away for a minute: neither costs the bill."""
    monkeypatch.setattr("ray.get", lambda asked, timeout: asked)
    kept: list[list[str]] = []

    def keep(usage: list[cost.ActorUsage]) -> None:
        kept.append([one.actor_id for one in usage])
        raise OSError("the store does not answer")

    told = {"model": "m", "kind": "generator", "num_gpus": 1.0, "num_cpus": 1.0}
    told |= dict.fromkeys(("busy_s", "load_s", "alive_s"), 1.0) | dict.fromkeys(
        ("items", "failures", "skipped"), 0
    )
    before = cost.ActorUsage(**{**told, "actor_id": "sdxl-1"})
    meter = SimpleNamespace(
        snapshot=SimpleNamespace(remote=lambda: [{**told, "actor_id": "mps-1"}]),
        done=SimpleNamespace(remote=lambda life, known: ("a new life", [])),
    )
    with Reporter(meter, "/o", {}, 60.0, PricesConfig(), keep, [before]):
        pass
    assert kept
    assert all(names == ["sdxl-1", "mps-1"] for names in kept)
