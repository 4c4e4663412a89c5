"""What a user is spared of Ray Data's warnings, and what not; where a pool's actors go."""

import logging
import traceback
from types import SimpleNamespace
from typing import Any

import pytest
from ray.data._internal.execution.operators.map_operator import _canonicalize_ray_remote_args
from ray.exceptions import ActorDiedError, RayTaskError

from rankray.cluster import streaming
from rankray.cluster.actors import Actors


def test_a_pool_that_claims_cpus_and_gpus_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("ray.data._internal.execution.operators.map_operator")
    with caplog.at_level(logging.WARNING, logger=logger.name):
        logger.addHandler(caplog.handler)
        try:
            _canonicalize_ray_remote_args({"num_cpus": 1, "num_gpus": 1})
            assert "is experimental" in caplog.text, "Ray Data still says so"
            caplog.clear()
            streaming.hush()
            _canonicalize_ray_remote_args({"num_cpus": 1, "num_gpus": 1})
            logger.warning("a worker is lost")
        finally:
            logger.removeHandler(caplog.handler)
            logger.removeFilter(streaming._of_use)
    assert "is experimental" not in caplog.text
    assert "a worker is lost" in caplog.text


def test_actors_with_gpus_are_packed_and_others_spread() -> None:
    """As plans reckon: two halves of a GPU, spread over two nodes, would leave a whole one nowhere."""
    asked: list[dict[str, Any]] = []
    dataset: Any = SimpleNamespace(map_batches_internal=lambda actor, **options: asked.append(options))
    for gpus in (0.5, 1.0, 0.0):
        streaming.pooled(dataset, object, {}, Actors(1, 1, 1.0, gpus))
    assert [options["scheduling_strategy"] for options in asked] == ["DEFAULT", "DEFAULT", "SPREAD"]


def died_of(error: OSError) -> ActorDiedError:
    """As Ray tells it: behind words of its own and a traceback."""
    try:
        raise error
    except OSError:
        told = traceback.format_exc()
    return ActorDiedError(RayTaskError("MapWorker.__init__", told, error, pid=1, ip="x"))


def test_an_actor_that_is_replaced_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("ray.data._internal.execution.operators.actor_pool_map_operator")
    streaming.hush()
    with caplog.at_level(logging.WARNING, logger=logger.name):
        logger.addHandler(caplog.handler)
        try:
            for error in (
                died_of(OSError("no such weights\nand much more, with https://me:secret@x.org/")),
                died_of(OSError("no weights at https://me:secret@x.org/")),
                OSError("no such weights"),
            ):
                logger.warning("An actor died during initialization and will be replaced.", exc_info=error)
        finally:
            logger.removeHandler(caplog.handler)
            logger.removeFilter(streaming._of_use)
    # Each comes twice, by its logger and by the root's.
    assert list(dict.fromkeys(line.partition("be replaced. ")[2] for line in caplog.messages)) == [
        "OSError: no such weights",
        "OSError: no weights at https://***@x.org/",
        "no such weights",
    ]
    assert "Traceback" not in caplog.text
