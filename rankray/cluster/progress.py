"""What the actors are doing: a meter that they report to, and a table of the models that is shown every few seconds.

Actors send their running totals after every block, and wait until they are there (a millisecond or two against the
seconds that a block takes). Totals are kept by actor, so a report that is lost or a meter that restarts loses nothing
that the next report does not bring back; the driver's copy keeps what a dead actor had reported, for an honest bill.

Work that a lost node has to repeat is paid twice and done once: progress counts blocks, each by its first prompt. An
actor sends its last 100 of them along (4 KB), so a meter that restarts has them again.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rankray import words
from rankray.cluster import metrics, terminal
from rankray.cluster.lost_calls import Calls
from rankray.config import PricesConfig
from rankray.data import cost
from rankray.data.cost import ActorUsage

UNITS = {"generator": "images", "reward": "scores", "blocks": "blocks"}


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

    @property
    def left(self) -> str:
        """Time left at this rate, `?` while nothing moves."""
        if self.done >= self.total:
            return "done"
        return clock((self.total - self.done) / self.rate_per_s) if self.rate_per_s > 0 else "?"


NAME_COLUMNS = 12
DROPPED = ("cut", "a second", "of", "failed", "done")
"""Columns of the table that are left out where it is narrow, in this order, before a name is shortened below 12."""


def table(rows: Sequence[ModelProgress], elapsed_s: float, columns: int) -> list[str]:
    """A line a model under a header, no wider than `columns` if 30 are there: less is told, and figures stay whole."""
    told: dict[str, list[str]] = {
        "done": [f"{row.done:,}" for row in rows],
        "of": [f"{row.total:,} {UNITS[row.kind]}" for row in rows],
        "share": [words.MISSING if not row.total else f"{row.done / row.total:.0%}" for row in rows],
        "a second": [f"{row.rate_per_s:,.1f}" for row in rows],
        "failed": [f"{row.failures:,}" for row in rows],
        "cut": [f"{row.truncated:,}" for row in rows],
        "left": [row.left for row in rows],
    }
    if not any(row.truncated for row in rows):
        del told["cut"]
    header = f"[rankray {clock(elapsed_s)}]"
    least = max(len(header), NAME_COLUMNS)

    def room() -> int:
        """Columns for the names beside the others, each of which has two blanks before it, as the names have."""
        return columns - 2 - sum(2 + max(map(len, (name, *cells))) for name, cells in told.items())

    for name in DROPPED:
        if room() < least:
            told.pop(name, None)
    names = [words.short(row.model, max(room(), least) - 1) for row in rows]
    return words.table((header, *told), zip(names, *told.values(), strict=True))


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


class Meter(Calls):
    """Latest totals of every actor of a job, and what each is about (`Calls`). Run as a Ray actor."""

    def __init__(self) -> None:
        super().__init__()
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
    """The meter actor called `name`.

    A job that was killed leaves its meter, and what else of it may still write, for the seconds until Ray notices; we
    wait that long.

    Raises:
        ValueError: another job that uses `name` is still alive after `wait_s`.
    """
    deadline = time.monotonic() + wait_s
    # A worker's node may be taken away, and with it what actors that are gone had told.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    while True:
        try:
            return (
                ray.remote(Meter)
                .options(
                    name=name, namespace="rankray", num_cpus=0, max_restarts=-1, scheduling_strategy=here
                )
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
        first_s = min(firsts) - self.begun_at if firsts else None
        models = mean_starts({key: seconds for key, (seconds, _) in starts.items()}, usage)
        return {"steps": self.seconds, "first_block": first_s, "models": models}


def mean_starts(
    starts: Mapping[tuple[str, str], Sequence[float]], usage: Iterable[Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """By model how many actors started, and the means of their start and of the loading within it, in seconds.

    Args:
        starts: seconds of each actor's start, of (kind, model).
        usage: of all actors; those that had not loaded when they said their last are left out.
    """
    loads: dict[tuple[str, str], list[float]] = {}
    for item in usage:
        if item["load_s"] < item["alive_s"]:
            loads.setdefault((item["kind"], item["model"]), []).append(item["load_s"])
    return {
        key[1]: {
            "actors": len(seconds),
            "start_s": sum(seconds) / len(seconds),
            "load_s": sum(loads.get(key, ())) / max(1, len(loads.get(key, ()))),
        }
        for key, seconds in starts.items()
    }


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


LOG_SHARE, LOG_MOST_S = 0.1, 300.0
"""A log's table is this share of the time since the start after the one before, and no more than that many seconds: of
a day 400 tables, where one every 10 s would be 9,000."""


def _show_until(stop: threading.Event, interval_s: float, rows: Callable[[], list[ModelProgress]]) -> None:
    """Shows `rows()` until `stop`: drawn anew every `interval_s` on a terminal, ever more rarely in a log."""
    begun_s, shown_s = time.monotonic(), 0.0
    if terminal.redraws():  # before models are loaded, which may take minutes
        terminal.show(functools.partial(table, rows(), 0.0))
    while not stop.wait(interval_s):
        found, elapsed_s = rows(), time.monotonic() - begun_s
        if terminal.redraws() or elapsed_s - shown_s >= min(LOG_SHARE * elapsed_s, LOG_MOST_S):
            terminal.show(functools.partial(table, found, elapsed_s))
            shown_s = elapsed_s


@contextlib.contextmanager
def counted(
    output: str, name: str, done: Callable[[], int], total: int, interval_s: float = 10.0
) -> Iterator[None]:
    """Shows within how many blocks are done of a stage without a meter, and then how long it took.

    Of a place that does not answer the last count is shown.
    """
    before, begun_s, stop = done(), time.monotonic(), threading.Event()
    count = before

    def rows() -> list[ModelProgress]:
        nonlocal count
        with contextlib.suppress(OSError):
            count = done()
        rate = (count - before) / max(time.monotonic() - begun_s, 1e-6)
        metrics.tell((output, "blocks", name), {"items": count - before}, {"left": total - count})
        return [ModelProgress("blocks", name, count, 0, total, rate)]

    thread = threading.Thread(target=_show_until, args=(stop, interval_s, rows), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        terminal.clear()
    terminal.say(f"{name}: {total:,} blocks in {clock(time.monotonic() - begun_s)}")


class Reporter:
    """Shows the models' progress every `interval_s`, and tells Ray's metrics, `keep` and `note` (context manager).

    `keep` gets each snapshot of what the actors used, those of `before` included, which an earlier phase kept; `note`
    how far each model is (`as_json`). A place that does not answer does not end the work: the next poll writes again.
    On a terminal the table is drawn anew in its place, and gives way to a line when all is done; in a log a new one
    follows ever more rarely.
    """

    def __init__(
        self,
        meter: Any,
        output: str,
        totals: Mapping[tuple[str, str], int],
        interval_s: float,
        prices: PricesConfig,
        keep: Callable[[list[ActorUsage]], None],
        before: Iterable[ActorUsage] = (),
        note: Callable[[list[dict[str, Any]]], None] = lambda models: None,
    ) -> None:
        self._meter, self._totals, self._interval_s, self._keep = meter, totals, interval_s, keep
        self._output, self._prices, self._note = output, prices, note
        self._usage = {usage.actor_id: usage for usage in before}
        self._done: dict[tuple[str, str, str], Block] = {}
        self._life, self._known = "", 0
        self._began_at: dict[tuple[str, str], float] = {}
        self._before: dict[tuple[str, str], tuple[int, int, int]] = {}
        self._started_at = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rankray-progress", daemon=True)

    def __enter__(self) -> Reporter:
        self._poll()
        self._before = self._counts()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        rows, elapsed_s = self._latest(), time.monotonic() - self._started_at
        terminal.clear()
        if error is not None:
            terminal.say("\n".join(table(rows, elapsed_s, terminal.LOG_COLUMNS)))
        elif any(row.total for row in rows):
            terminal.say(done_line(rows, elapsed_s))

    def _run(self) -> None:
        _show_until(self._stop, self._interval_s, self._latest)

    def _latest(self) -> list[ModelProgress]:
        self._poll()
        rows = self._rows()
        with contextlib.suppress(OSError):
            self._note(as_json(rows))
        self._tell(rows)
        return rows

    def _tell(self, rows: Sequence[ModelProgress]) -> None:
        bills = cost.ledger(self._usage.values(), self._prices)["models"]
        for key, totals, now in figures(rows, self._done, bills):
            metrics.tell((self._output, *key), totals, now)

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
        with contextlib.suppress(OSError):
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

    def _rows(self) -> list[ModelProgress]:
        """Where each model stands, and its rate since its first block of this phase began."""
        now, counts = time.monotonic(), self._counts()
        rows = []
        for (kind, model), total in self._totals.items():
            done, failures, cut = counts.get((kind, model), (0, 0, 0))
            before, failed_before, cut_before = self._before.get((kind, model), (0, 0, 0))
            if done == before:
                self._began_at[kind, model] = now
            rate = (done - before) / max(now - self._began_at.get((kind, model), self._started_at), 1e-6)
            rows.append(
                ModelProgress(
                    kind, model, done - before, failures - failed_before, total, rate, cut - cut_before
                )
            )
        return rows


def figures(
    rows: Sequence[ModelProgress],
    done: Mapping[tuple[str, str, str], Block],
    bills: Iterable[Mapping[str, Any]],
) -> Iterator[tuple[tuple[str, str], dict[str, float], dict[str, float | None]]]:
    """((kind, model), totals, what is so now) of each model, as `metrics.tell` takes them.

    Args:
        rows: in the order of the pipeline.
        done: blocks by kind, model and name.
        bills: the models of a ledger (`data.cost`).
    """
    blocks: dict[tuple[str, str], dict[str, Block]] = {}
    for (kind, model, name), block in done.items():
        blocks.setdefault((kind, model), {})[name] = block
    paid = {(bill["kind"], bill["model"]): bill for bill in bills}
    before: Iterable[str] | None = None
    for row in rows:
        key = (row.kind, row.model)
        own, bill = blocks.get(key, {}), paid.get(key, {})
        totals = {
            "items": sum(block.items for block in own.values()),
            "failures": sum(block.failures for block in own.values()),
            "busy_seconds": bill.get("busy_s", 0.0),
            "alive_seconds": bill.get("alive_s", 0.0),
            "usd": bill.get("usd", 0.0),
        }
        queue = None if before is None else len(set(before) - set(own))
        yield key, totals, {"left": row.total - row.done, "queue": queue}
        before = own


def done_line(rows: Sequence[ModelProgress], elapsed_s: float) -> str:
    """`800 images and 2,400 scores in 0:41 (19.5 images/s), 1 failed`."""
    made = {unit: sum(row.done for row in rows if row.kind == kind) for kind, unit in UNITS.items()}
    what = " and ".join(f"{count:,} {unit}" for unit, count in made.items() if count) or "nothing"
    unit, count = next(((unit, count) for unit, count in made.items() if count), ("items", 0))
    failed = sum(row.failures for row in rows)
    return f"{what} in {clock(elapsed_s)} ({count / max(elapsed_s, 1e-6):,.1f} {unit}/s), {failed:,} failed"


def as_json(rows: Sequence[ModelProgress]) -> list[dict[str, Any]]:
    """How far each model is, as others read it while the job runs (`data.running`)."""
    return [asdict(row) for row in rows]
