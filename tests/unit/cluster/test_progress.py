"""The line that a person reads in a log."""

import pytest

from rankray.cluster.progress import Block, Meter, ModelProgress, clock


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_line_says_how_far_how_fast_how_long() -> None:
    line = ModelProgress("generator", "sdxl", 1000, 3, 58000, 4.0).line()
    assert line == "  sdxl                1,000/58,000 images      4.0 images/s  3 failed  left 3:57:30"


def test_a_line_of_a_model_that_waits_and_of_one_that_is_done() -> None:
    assert ModelProgress("reward", "mps", 0, 0, 10, 0.0).line().endswith("0.0 scores/s  0 failed  left ?")
    assert ModelProgress("reward", "mps", 10, 0, 10, 0.0).line().endswith("done")


def test_prompts_that_are_cut_are_said() -> None:
    line = ModelProgress("reward", "mps", 10, 0, 20, 5.0, 1234).line()
    assert line.endswith("5.0 scores/s  0 failed  1,234 prompts cut  left 0:02")


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
