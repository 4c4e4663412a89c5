"""Where a job that was killed goes on: the phase that it was in, if that still fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankray import config
from rankray.cluster.actors import Actors, Stage
from rankray.config import ConfigError, SynPicConfig
from rankray.data import place as outputs
from rankray.models.targets import Target
from rankray.synpic import job, phases
from rankray.synpic.phases import Phase


def stage(name: str) -> Stage:
    return Stage("generator", Target(name, f"x:{name}"), Actors(1, 1, 0.1, 1.0, None, {}, {}, "cpu"))


def test_a_phase_is_named_by_what_it_has_behind_it() -> None:
    three = (stage("a"), stage("b"), stage("c"))
    first = Phase(three[:2], (1, 1), None, 0, False)
    last = Phase(three[2:], (1,), None, 2, True)
    assert (first.source, first.sink) == (("_work", "prompts"), ("_work", "upto-2"))
    assert (last.source, last.sink, last.checkpoint) == (
        ("_work", "upto-2"),
        ("data",),
        ("_work", "checkpoint-data"),
    )


def test_what_is_drawn_again_stands_apart_until_it_joins_the_finished_rows() -> None:
    two = (stage("a"), stage("b"))
    first, second = Phase(two[:1], (1,), None, 0, False, 2), Phase(two[1:], (1,), None, 1, False, 2)
    apart = ("_work", "again")
    assert (first.source, first.sink) == ((*apart, "prompts"), (*apart, "upto-1"))
    assert first.checkpoint == (*apart, "checkpoint-upto-1")
    assert (second.source, second.sink) == ((*apart, "upto-1"), ("_work", "upto-2"))
    assert second.checkpoint == ("_work", "checkpoint-upto-2")


@pytest.mark.parametrize(
    ("begun", "done", "end"),
    [
        ([], 0, None),
        (["checkpoint-upto-2"], 0, 2),
        (["checkpoint-upto-2"], 2, None),
        (["checkpoint-data"], 2, 4),
    ],
)
def test_the_phase_that_was_begun(tmp_path: Path, begun: list[str], done: int, end: int | None) -> None:
    output = outputs.open_output(str(tmp_path), in_job=False)
    for name in begun:
        (tmp_path / "_work" / name).mkdir(parents=True)
        assert phases.begun(output, 4, done) is None, "an empty checkpoint has nothing to lose"
        (tmp_path / "_work" / name / "0.parquet").touch()
    assert phases.begun(output, 4, done) == end


def test_speeds_that_are_not_there_are_told_before_nodes_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def waited(*_given: object) -> None:
        raise AssertionError("nodes, which cost")

    monkeypatch.setattr(phases.layout, "wait_for_nodes", waited)
    monkeypatch.setattr(job, "connect", waited)
    (tmp_path / "p.txt").write_text("a red circle\n")
    tables = {
        "prompts": {"path": str(tmp_path / "p.txt")},
        "generators": [{"model": "shapes-sdxl", "samples": 2}],
        "rewards": [{"model": "shapes-mps"}],
        "output": str(tmp_path / "o"),
        "execution": {"measured": str(tmp_path / "speeds")},
    }
    settings = config.build(SynPicConfig, tables)
    output = outputs.open_output(settings.output, in_job=False)
    with pytest.raises(ConfigError, match=r"nothing measured: .*speeds"):
        phases.laid_out(settings, [stage("a")], [stage("a")], 0, output, 4, print)
    with pytest.raises(ConfigError, match=r"nothing measured: .*speeds"):
        job.run(settings)
    assert not (tmp_path / "o" / "dataset.json").exists()
