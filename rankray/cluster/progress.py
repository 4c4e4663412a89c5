"""What the actors are doing: a meter that they report to, and a line a model every few seconds.

Actors send their running totals after every block without waiting for an answer (0.2 ms against the seconds
that a block takes). Totals are kept by actor, so a report that is lost or a meter that restarts loses nothing
that the next report does not bring back; the driver's copy keeps what a dead actor had reported, for an honest bill.

Work that a lost node has to repeat is paid twice and done once: progress counts blocks, each by its first prompt. An
actor sends its last 100 of them along (4 KB), so a meter that restarts has them again.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import ray

from rankray import store
from rankray.data.cost import ActorUsage
from rankray.data.place import Output


@dataclass(frozen=True)
class ModelProgress:
    """Where one model stands in this run. `total` is what this run has to do, in images or scores."""

    kind: str
    model: str
    done: int
    failures: int
    total: int
    rate_per_s: float
    truncated: int = 0

    def line(self) -> str:
        unit = "images" if self.kind == "generator" else "scores"
        share = f"{self.done:>{len(f'{self.total:,}')},}/{self.total:,} {unit}"
        left_s = (self.total - self.done) / self.rate_per_s if self.rate_per_s > 0 else None
        left = "done" if self.done >= self.total else "left ?" if left_s is None else f"left {clock(left_s)}"
        cut = f"  {self.truncated:,} prompts cut" if self.truncated else ""
        rate = f"{self.rate_per_s:7.1f} {unit}/s"
        return f"  {self.model:<18} {share}  {rate}  {self.failures} failed{cut}  {left}"


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, whole_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole_s:02}" if hours else f"{minutes}:{whole_s:02}"


@dataclass(frozen=True)
class Block:
    """What came of one block at one model: `items` done or skipped, of which `failures`; `truncated` prompts."""

    key: str
    items: int
    failures: int
    truncated: int


class Meter:
    """Latest totals of every actor of a job. Run as a Ray actor; its name keeps two jobs off one output."""

    def __init__(self) -> None:
        self._life = uuid.uuid4().hex
        self._usage: dict[str, dict[str, Any]] = {}
        self._done: dict[tuple[str, str, str], Block] = {}
        self._first_at: dict[tuple[str, str], float] = {}
        self._starts: dict[tuple[str, str], list[float]] = {}

    def report(self, usage: dict[str, Any], blocks: Sequence[Block] = ()) -> None:
        self._usage[usage["actor_id"]] = usage
        for block in blocks:
            self._done.setdefault((usage["kind"], usage["model"], block.key), block)
            self._first_at.setdefault((usage["kind"], usage["model"]), time.time())

    def started(self, kind: str, model: str, seconds: float) -> None:
        """An actor is ready, so many seconds after it was asked for."""
        self._starts.setdefault((kind, model), []).append(seconds)

    def starts(self) -> dict[tuple[str, str], tuple[list[float], float | None]]:
        """(seconds of each actor's start, when its first block was done) of each (kind, model)."""
        return {key: (found, self._first_at.get(key)) for key, found in self._starts.items()}

    def snapshot(self) -> list[dict[str, Any]]:
        return list(self._usage.values())

    def done(self, life: str = "", known: int = 0) -> tuple[str, list[tuple[str, str, Block]]]:
        """This meter's own name, and (kind, model, block) of all blocks but the first `known` if it is called so."""
        found = [(kind, model, block) for (kind, model, _), block in self._done.items()]
        return self._life, found[known if life == self._life else 0 :]

    def busy(self) -> dict[tuple[str, str], float]:
        """Seconds that the actors of each (kind, model) spent in their model."""
        found: dict[tuple[str, str], float] = {}
        for usage in self._usage.values():
            key = (usage["kind"], usage["model"])
            found[key] = found.get(key, 0.0) + usage["busy_s"]
        return found


def start_meter(name: str, wait_s: float = 30.0) -> Any:
    """The meter actor of the job that owns `name`.

    A job that was killed leaves its meter for the seconds until Ray notices; we wait that long.

    Raises:
        ValueError: another job that uses `name` is still alive after `wait_s`.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return (
                ray.remote(Meter)
                .options(name=name, namespace="rankray", num_cpus=0, max_restarts=-1)
                .remote()
            )
        except ValueError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


class Laps:
    """Seconds of a job's steps before its first block, each since the one before."""

    def __init__(self) -> None:
        self.begun_at = self._last_at = time.time()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """`name` is done."""
        now = time.time()
        self.seconds[name], self._last_at = now - self._last_at, now

    def report(self, meter: Any) -> dict[str, Any]:
        """How a run started: `steps`, `first_block` (both in seconds), and by model its actors' mean start and loading.

        Starting is from asking Ray for an actor until its model is loaded; what of it is not loading is the process and
        its imports. `first_block` is of the generator that was first, from the run's begin; None where none was drawn.
        """
        try:
            starts, usage = ray.get([meter.starts.remote(), meter.snapshot.remote()], timeout=30)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return {"steps": self.seconds, "first_block": None, "models": {}}
        firsts = [at for (kind, _), (_, at) in starts.items() if kind == "generator" and at is not None]
        models = {}
        for (kind, model), (seconds, _) in starts.items():
            loads = [item["load_s"] for item in usage if (item["kind"], item["model"]) == (kind, model)]
            models[model] = {
                "actors": len(seconds),
                "start_s": sum(seconds) / len(seconds),
                "load_s": sum(loads) / max(1, len(loads)),
            }
        first_s = min(firsts) - self.begun_at if firsts else None
        return {"steps": self.seconds, "first_block": first_s, "models": models}


def start_line(report: Mapping[str, Any]) -> str:
    """`first block after 48 s: Ray 6.1, nodes and plan 2.0, ...; an actor started in 30.0 s, of which loading 20.0`."""
    steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report["steps"].items())
    slowest = max(report["models"].values(), key=lambda row: row["start_s"], default=None)
    first = (
        "no block drawn"
        if report["first_block"] is None
        else f"first block after {report['first_block']:.1f} s"
    )
    if slowest is None:
        return f"{first}: {steps}"
    return (
        f"{first}: {steps}; the slowest model's actors started in {slowest['start_s']:.1f} s, "
        f"of which loading {slowest['load_s']:.1f}"
    )


class Reporter:
    """Prints a line a model every `interval_s`, and hands every snapshot to `keep` (context manager)."""

    def __init__(
        self,
        meter: Any,
        totals: Mapping[tuple[str, str], int],
        interval_s: float,
        keep: Callable[[list[ActorUsage]], None],
    ) -> None:
        self._meter, self._totals, self._interval_s, self._keep = meter, totals, interval_s, keep
        self._usage: dict[str, ActorUsage] = {}
        self._done: dict[tuple[str, str, str], Block] = {}
        self._life, self._known = "", 0
        self._previous: dict[tuple[str, str], int] = {}
        self._before: dict[tuple[str, str], tuple[int, int, int]] = {}
        self._printed_at = self._started_at = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rankray-progress", daemon=True)

    def __enter__(self) -> Reporter:
        self._poll()
        self._before = self._counts()
        self._previous = {key: done for key, (done, _, _) in self._before.items()}
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._poll()
        self._print()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._poll()
            self._print()

    def _poll(self) -> None:
        try:
            asked = [self._meter.snapshot.remote(), self._meter.done.remote(self._life, self._known)]
            snapshot, (life, blocks) = ray.get(asked, timeout=max(5.0, self._interval_s))
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return  # it restarts; totals come back with the next reports
        self._usage.update({item["actor_id"]: ActorUsage(**item) for item in snapshot})
        for kind, model, block in blocks:
            self._done.setdefault((kind, model, block.key), block)
        self._known = len(blocks) + (self._known if life == self._life else 0)
        self._life = life
        self._keep(list(self._usage.values()))

    def _counts(self) -> dict[tuple[str, str], tuple[int, int, int]]:
        """(done, failures, truncated) by kind and model, each block once."""
        counts: dict[tuple[str, str], tuple[int, int, int]] = {}
        for (kind, model, _), block in self._done.items():
            done, failures, truncated = counts.get((kind, model), (0, 0, 0))
            counts[kind, model] = (
                done + block.items,
                failures + block.failures,
                truncated + block.truncated,
            )
        return counts

    def _print(self) -> None:
        now, counts = time.monotonic(), self._counts()
        interval_s = max(now - self._printed_at, 1e-6)
        lines = []
        for (kind, model), total in self._totals.items():
            done, failures, cut = counts.get((kind, model), (0, 0, 0))
            before, failed_before, cut_before = self._before.get((kind, model), (0, 0, 0))
            rate = (done - self._previous.get((kind, model), before)) / interval_s
            self._previous[kind, model] = done
            lines.append(
                ModelProgress(
                    kind, model, done - before, failures - failed_before, total, rate, cut - cut_before
                ).line()
            )
        self._printed_at = now
        print(f"[rankray {clock(now - self._started_at)}]", *lines, sep="\n", flush=True)


def as_dicts(usage: Iterable[ActorUsage]) -> list[dict[str, Any]]:
    """JSON-ready totals."""
    return [asdict(item) for item in usage]


def keep_usage(output: Output, run_id: str, usage: Iterable[ActorUsage]) -> None:
    """Writes this run's usage, so that the bill of a job that is killed is not lost."""
    store.write_json(output.at(f"_work/usage-{run_id}.json"), {"usage": as_dicts(usage)}, output.fs)


def all_usage(output: Output) -> tuple[list[ActorUsage], int]:
    """The usage of every run on this output, and how many runs there were."""
    files = [path for path in output.files("_work") if "/usage-" in path and path.endswith(".json")]
    usage = [ActorUsage(**item) for path in files for item in store.read_json(path, output.fs)["usage"]]
    return usage, len(files)
