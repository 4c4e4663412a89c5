"""The life of a job on Ray: found complete, or owned, joined to Ray, checked, claimed, worked, published.

    complete already?  another configuration's output is refused before anything is written
    own                a second process at work on the output is one line (`data.owner`); complete meanwhile?
    prepare            what needs Ray and may still refuse: nodes, environments
    claim              the output becomes this configuration's
    work               what the job is about; a kill costs what the work itself says
    publish            the report, and last of all the marker, whose presence means that all is there

Syn-Pic, RankDPO, evaluations and ablations live so; what needs no Ray (`data.rerank` and its like) takes the same
steps by `owner.once` alone.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray._private import services
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

from rankray import words
from rankray.cluster import terminal
from rankray.cluster.progress import start_meter
from rankray.config import ConfigError
from rankray.data import owner, place
from rankray.data.place import JobConfig, Output, Publish
from rankray.words import Say, first_line

Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class Result:
    """What a job leaves: its place, its summary (the marker's contents), and the worst model's share of failures."""

    path: str
    info: dict[str, Any]
    failed_share: float = 0.0


Failed = tuple[Mapping[str, int], float]
"""How often each model failed, and the worst one's share of what it was given."""


def failures(parts: Mapping[str, Failed], tolerance: float) -> dict[str, Any]:
    """`failures` of a job that is made of others: total, by_part (of those that have some, by model), worst_share (of
    any part), tolerance.

    Args:
        parts: by their place in the output.
        tolerance: `execution.tolerance`, the share that may fail.
    """
    by_part = {name: dict(counts) for name, (counts, _) in parts.items() if counts}
    return {
        "total": sum(sum(counts.values()) for counts in by_part.values()),
        "by_part": by_part,
        "worst_share": max((share for _, share in parts.values()), default=0.0),
        "tolerance": tolerance,
    }


@dataclass(frozen=True)
class Job:
    """One job on one output.

    Attributes:
        kind: "synpic", "rankdpo" and so on: what others are told of who is at work.
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
        found: Callable[[], dict[str, Any] | None] | None = None,
        wait: Say | None = None,
    ) -> dict[str, Any]:
        """The summary of what is finished, or of what is made now.

        Args:
            prepare: joins Ray, and may refuse; what it returns is `work`'s.
            work: (prepared, the job's meter) -> the summary.
            report: writes the page.
            found: the summary where nothing is left to do; `complete` unless it is given.
            wait: is told of another at work on the output, who is waited for; without it that is an error.

        Raises:
            ConfigError: `prepare` refuses, the output is another's, or another job is at work there.
        """

        def make() -> dict[str, Any]:
            prepared = prepare()
            place.claim(self.output, self.marker, self.identity, self.config)
            terminal.place_log(self.output)
            self.say(f"output: {self.output.uri}")
            for name, noted in place.note_versions(self.output).items():
                if ", " in noted:
                    self.say(f"warning: begun and gone on with by other versions of {name}: {noted}")
            with _metered(self.kind, self.output.uri) as meter:
                return work(prepared, meter)

        return owner.once(self.output, self.kind, self.marker, found or self.complete, make, report, wait)


def open_output(uri: str) -> Output:
    """The output directory of this process's job; nothing is written yet.

    Raises:
        ConfigError: as `place.open_output`.
    """
    return place.open_output(uri, in_job=in_submitted_job())


ANSWER_S = 5.0
"""Ray itself asks an address that nobody answers for two minutes, and then ends the process with 15."""


SLOW_START = "timed out during startup"
"""What Ray says of it, by an Exception of no other kind."""


def connect() -> None:
    """Joins the Ray that RAY_ADDRESS names, or else this machine's (`running`); where neither is there, starts one.

    Raises:
        ConfigError: RAY_ADDRESS is no address, nobody answers there, or it does not let this process in; or a Ray of
            this job's own did not come up.
    """
    if ray.is_initialized():
        return
    named = os.environ.get("RAY_ADDRESS", "").strip()
    before = signal.getsignal(signal.SIGTERM)
    try:
        if named not in ("", "auto", "local"):
            _require_answer(named)
            ray.init(address=named)
        elif named != "local" and (found := running(named)):
            # As Ray does where it finds one itself: `ray start` wants the token that any earlier job has left here.
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
            ray.init(address=found)
        else:
            _start()
            terminal.say(f"Ray: started one on this machine ({_resources()}); it ends with this job")
            return
        address = ray.get_runtime_context().gcs_address
        terminal.say(f"Ray: joined the one at {address} ({_resources()}); it stays when this job ends")
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        raise ConfigError(
            f"RAY_ADDRESS {named or 'unset'}: {first_line(error)}; where it wants its token, export "
            "RAY_AUTH_MODE=token, and have the token in ~/.ray/auth_token or RAY_AUTH_TOKEN; or set RAY_ADDRESS=local "
            "to start one for this job alone"
        ) from None
    finally:
        # Ray's own ends this process with 15, as if that were its answer.
        if callable(before) and signal.getsignal(signal.SIGTERM) is not before:
            signal.signal(signal.SIGTERM, before)


def _start() -> None:
    """A Ray of this job's own.

    Raises:
        ConfigError: it was not up within the 30 seconds that Ray gives itself.
    """
    try:
        ray.init(address="local", include_dashboard=False)
    except Exception as error:  # Ray raises nothing narrower
        if SLOW_START not in str(error):
            raise
        raise ConfigError(
            "Ray was not up within 30 seconds, as other work keeps this machine busy; run the same command again, or "
            "join a Ray that runs: RAY_ADDRESS=HOST:PORT"
        ) from None


def running(named: str = "") -> str:
    """The address of the Ray of this machine that a job joins; empty where there is none.

    That is the last that `ray start` started, by the note that it left; a note outlives a Ray that was killed. The
    Ray of another job or of `make demo` leaves none here: it ends with that one, and may let nobody else in. Only
    `RAY_ADDRESS=auto` looks for processes of any.
    """
    try:
        if named == "auto":
            address = services.canonicalize_bootstrap_address_or_die("auto")
        else:
            address = services.find_bootstrap_address(None) or ""
        if address:
            _require_answer(address)
    except (ConnectionError, ConfigError):
        return ""
    return str(address)


def _require_answer(address: str) -> None:
    """Whether anybody listens there, by one TCP connection.

    Raises:
        ConfigError: nobody does, or it is no address of a Ray.
    """
    host, _, port = address.removeprefix("ray://").rstrip("/").rpartition(":")
    known = (
        "give HOST:PORT of its head as `ray start` prints it, ray://HOST:PORT, auto, or local to start one"
    )
    if not host or not port.isdecimal() or "://" in host:
        also = (
            "; http:// is for RAY_API_SERVER_ADDRESS, which `ray job submit` reads" if "http" in host else ""
        )
        raise ConfigError(f"RAY_ADDRESS '{address}' is no address of a Ray{also}; {known}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"no Ray answers at RAY_ADDRESS '{address}' ({error}); {known}") from None


def _resources() -> str:
    found = ray.cluster_resources()
    nodes = words.count(len([node for node in ray.nodes() if node["Alive"]]), "node")
    return f"{nodes}, {found.get('CPU', 0):g} CPUs, {found.get('GPU', 0):g} GPUs"


def in_submitted_job() -> bool:
    """Whether this is the driver of a `ray job submit`, whose working directory is a copy that Ray deletes."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextmanager
def _metered(kind: str, uri: str) -> Iterator[Any]:
    """The job's meter, by whose name others find it.

    A driver that was killed keeps it, and all its actors, for the seconds until Ray notices; one that is stopped, for
    as long as it is.

    Raises:
        ConfigError: the actors of a job that owned the output before are still there.
    """
    try:
        meter = start_meter(f"{kind} {uri}")
    except ValueError:
        raise ConfigError(
            f"the job that was at work on {uri} before gives no sign of life, but its actors are still on this Ray; "
            "end it (`ray list actors --detail` tells its pid), and run this again"
        ) from None
    try:
        yield meter
    finally:
        ray.kill(meter)
