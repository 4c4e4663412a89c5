"""The life of a job on Ray: found complete, or joined to Ray, checked, claimed, locked, worked, published.

    complete already?  another configuration's output is refused before Ray is joined
    prepare            what needs Ray and may still refuse: nodes, environments; nothing is written yet
    claim              the output becomes this configuration's
    lock               a second job of this Ray on the same output is one line
    work               what the job is about; a kill costs what the work itself says
    publish            the report, and last of all the marker, whose presence means that all is there

Syn-Pic, RankDPO, evaluations and ablations live so; what needs no Ray (`data.rerank` and its like) takes the same
steps of `data.place` without the lock. The lock is an actor's name, so two Rays do not see each other's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import ray

from rankray.cluster.progress import start_meter
from rankray.config import ConfigError
from rankray.data import place
from rankray.data.place import JobConfig, Output, Publish

Say = Callable[[str], None]
Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class Result:
    """What a job leaves: its place, its summary (the marker's contents), and the worst model's share of failures."""

    path: str
    info: dict[str, Any]
    failed_share: float = 0.0


@dataclass(frozen=True)
class Job:
    """One job on one output.

    Attributes:
        kind: "synpic", "rankdpo" and so on: part of the lock's name.
        marker: the file that is written last.
        identity: what tells its output from another's (`place.identity_of`).
    """

    kind: str
    config: JobConfig
    output: Output
    marker: str
    identity: Mapping[str, Any]
    say: Say

    def complete(self, check: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any] | None:
        """The summary of a finished output, None where something is left.

        Raises:
            ConfigError: another configuration's results are there, or `check` refuses the summary.
        """
        return place.complete(self.output, self.marker, self.identity, self.say, check)

    def run(
        self,
        prepare: Callable[[], Prepared],
        work: Callable[[Prepared, Any], dict[str, Any]],
        report: Publish | None = None,
    ) -> dict[str, Any]:
        """Does what is left; returns the summary.

        Args:
            prepare: may refuse; what it returns is `work`'s.
            work: (prepared, the job's meter) -> the summary.
            report: writes the page.

        Raises:
            ConfigError: `prepare` refuses, the output is another's, or another job is writing there.
        """
        connect()
        prepared = prepare()
        place.claim(self.output, self.marker, self.identity, self.config)
        self.say(f"output: {self.output.uri}")
        with exclusive(self.kind, self.output.uri) as meter:
            info = work(prepared, meter)
        return place.publish(self.output, self.marker, info, report)


def open_output(uri: str) -> Output:
    """The output directory of this process's job; nothing is written yet.

    Raises:
        ConfigError: as `place.open_output`.
    """
    return place.open_output(uri, in_job=in_submitted_job())


def connect() -> None:
    """Joins the Ray that runs (a job's, RAY_ADDRESS's, or this machine's), or starts one for this job alone."""
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS") != "local":
        try:
            ray.init(address="auto")
        except ConnectionError:
            pass
        else:
            return
    ray.init(address="local", include_dashboard=False)


def in_submitted_job() -> bool:
    """Whether this is the driver of a `ray job submit`, whose working directory is a copy that Ray deletes."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextmanager
def exclusive(kind: str, uri: str, wait_s: float = 30.0) -> Iterator[Any]:
    """The job's meter, whose name keeps a second job of this Ray off the same output.

    A job that was killed holds it for the seconds until Ray notices: `wait_s` is how long to wait.

    Raises:
        ConfigError: another job is writing there.
    """
    try:
        meter = start_meter(f"{kind} {uri}", wait_s)
    except ValueError:
        raise ConfigError(f"another job is writing to {uri}; wait for it, or stop it") from None
    try:
        yield meter
    finally:
        ray.kill(meter)
