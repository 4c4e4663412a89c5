"""What a training asks of the nodes, and the one line where they have not got it."""

from __future__ import annotations

import pytest

from rankray.cluster import seats
from rankray.cluster.seats import Node
from rankray.config import ConfigError
from rankray.config.rankdpo import EncodingConfig, WorkersConfig
from rankray.rankdpo import nodes as training_nodes


def nodes(*each: tuple[float, int]) -> list[Node]:
    return [Node(cpus, 1e12, gpus, {}) for cpus, gpus in each]


def test_more_than_the_cluster_has() -> None:
    four = training_nodes.workers(WorkersConfig(count=4, num_gpus=1))
    assert training_nodes.shortage(four, nodes((16, 2))) == "4 workers need 4 GPU, and the cluster has 2"
    wide = training_nodes.workers(WorkersConfig(count=4, num_cpus=8))
    assert training_nodes.shortage(wide, nodes((16, 2))) == "4 workers need 32 CPU, and the cluster has 16"
    assert training_nodes.shortage(four, nodes((16, 2), (16, 2))) == ""


def test_enough_in_pieces_that_do_not_fit() -> None:
    """Two nodes of 12 CPUs have the 24 of three workers, and room for two of 8."""
    three = training_nodes.workers(WorkersConfig(count=3, num_cpus=8))
    found = training_nodes.shortage(three, nodes((12, 0), (12, 0)))
    assert found == "3 workers need 8 CPU each, and beside the rest the nodes hold 2 such"


def test_encoders_stand_beside_reading_and_writing() -> None:
    wanted = training_nodes.encoders(EncodingConfig(num_gpus=1, num_cpus=2))
    assert training_nodes.shortage(wanted, nodes((4, 0))) == "1 encoders need 1 GPU, and the cluster has 0"
    assert "reading and writing" in training_nodes.shortage(wanted, nodes((3, 1)))
    assert training_nodes.shortage(wanted, nodes((3.5, 1))) == ""


def test_it_waits_for_no_longer_than_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = training_nodes.workers(WorkersConfig(count=2, num_gpus=1))
    seen = iter([nodes((8, 0)), nodes((8, 0)), nodes((8, 2))])
    wanted: list[list[dict[str, float]]] = []
    monkeypatch.setattr(seats, "alive_nodes", lambda: next(seen))

    def ask(bundles: list[dict[str, float]]) -> None:
        wanted.append(bundles)

    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", ask)
    monkeypatch.setattr(seats, "answer", lambda bundles: seats.Answer(refused=False, coming=False))
    monkeypatch.setattr(training_nodes, "ASK_EVERY_S", 0.01)
    said: list[str] = []
    training_nodes.require(asked, 60.0, said.append)
    assert said == ["waiting up to 60 s for nodes: 2 workers need 2 GPU, and the cluster has 0"]
    two = [{"GPU": 1.0, "CPU": 1.0}] * 2
    assert wanted == [two, two, []], (
        "asked in every turn, as another's request takes its place, and withdrawn"
    )
    monkeypatch.setattr(seats, "alive_nodes", lambda: nodes((8, 0)))
    with pytest.raises(
        ConfigError, match="2 workers need 2 GPU, and the cluster has 0; lower workers"
    ) as caught:
        training_nodes.require(asked, 0.05, said.append)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(seats, "answer", lambda bundles: seats.Answer(refused=True, coming=False))
    with pytest.raises(ConfigError):
        training_nodes.require(asked, 3600.0, said.append)  # the autoscaler can never bring it: at once


def test_a_job_that_is_stopped_while_it_waits_asks_for_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_seconds: float) -> None:
        raise KeyboardInterrupt

    wanted: list[list[dict[str, float]]] = []
    monkeypatch.setattr(seats, "alive_nodes", lambda: nodes((8, 0)))
    monkeypatch.setattr(seats, "ask_for", wanted.append)
    monkeypatch.setattr(seats, "answer", lambda bundles: seats.Answer(refused=False, coming=False))
    monkeypatch.setattr(training_nodes.time, "sleep", stopped)
    with pytest.raises(KeyboardInterrupt):
        training_nodes.require(
            training_nodes.workers(WorkersConfig(count=1, num_gpus=1)), 60.0, lambda line: None
        )
    assert wanted == [[{"GPU": 1.0, "CPU": 1.0}], []]
