"""One model in one actor: drawn or scored block by block, item-safe, with its time and failures metered.

A model sees a block as one call and cuts it into batches of its own. What it raises is narrowed down to the
items that cause it, and what does not fit in memory is computed in smaller batches: `item_safe.py`.

Two blocks are in an actor at once: pictures of one are encoded or decoded (78 ms a 1024x1024 PNG on one core)
while the model works on the other.

Columns in flight (B prompts, K candidates):
    prompt_id, prompt
    generated:{name}  list<struct<seed, image, path, width, height, error>>   one entry a sample
    scored:{name}     list<struct<score, error>>                              K entries, in candidate order
    detailed:{name}   list<string>                                            K entries, a judge's details as JSON
A column that is there already holds what an earlier dataset knew; only the rest of it is made.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.data

from rankray import schema
from rankray.cluster import lost_calls
from rankray.cluster.item_safe import (
    FEWEST_TO_ABORT,
    BrokenModelError,
    ItemSafe,
    describe,
    each_alone,
    of_each,
)
from rankray.cluster.lost_calls import Watched
from rankray.cluster.progress import Block
from rankray.config import ImagesConfig
from rankray.data.cost import ActorUsage
from rankray.data.pictures import decode, encode_image, encoded, image_key, picture_of, stored
from rankray.models import environments
from rankray.models.targets import Judgement, Target, load

if TYPE_CHECKING:
    from PIL import Image


Item = TypeVar("Item")
Result = TypeVar("Result")

HEARTBEAT_S = 2.0
"""How often an idle actor says that it is alive, and so how exactly its lifetime is known for the bill."""

RELOAD_S = 30.0
"""How long an actor that was lost, and whose model did not load where it came up again, waits for another start."""
RELOADS = 20
"""So many starts in a row of an actor that was lost may fail to load; one more ends it, and the job by the blocks that
wait for it: ten minutes of a hub that is away, and an end to the bill where a GPU broke."""

REPORT_S = 10.0
"""How long a finished block waits at most for the meter, which answers in a millisecond or two."""

BLOCKS_SENT = 100
"""Of its last blocks an actor tells the meter again with each report, should that have restarted."""


GENERATED_TYPE = pa.list_(
    pa.struct(
        [
            pa.field("seed", pa.int64()),
            pa.field("image", pa.binary()),
            pa.field("path", pa.string()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("error", pa.string()),
        ]
    )
)
SCORED_TYPE = pa.list_(pa.struct([pa.field("score", pa.float32()), pa.field("error", pa.string())]))


@dataclass(frozen=True)
class Actors:
    """The pool that runs one model: how many actors, and what each takes of a node."""

    min_size: int
    max_size: int
    num_cpus: float
    num_gpus: float
    memory_bytes: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"


@dataclass(frozen=True)
class Stage:
    """One model of the pipeline with its pool. `kind` is "generator" or "reward"."""

    kind: str
    target: Target
    actors: Actors
    samples: int = 1

    @property
    def column(self) -> str:
        return f"{'generated' if self.kind == 'generator' else 'scored'}:{self.target.name}"


@dataclass(frozen=True)
class JobContext:
    """What every actor of a job needs to know beside its own model."""

    seed: int
    images: ImagesConfig
    output: str
    generators: tuple[tuple[str, int], ...]
    """(label, samples) in candidate order."""
    rewards: tuple[str, ...]
    abort_after: int
    meter: Any
    judges: tuple[str, ...] = ()
    """Those of `rewards` that are benchmarks' judges: their details are kept."""
    least: Mapping[str, float] = field(default_factory=dict)
    """Of some of `rewards`, below which a candidate is left out of the ranking."""
    item_timeout_s: float = 300.0


def count_truncated(model: Any, prompts: Sequence[str]) -> int:
    """How many prompts are longer than the model reads, by its own `truncated(prompts) -> bool for each`.

    A model without that method says nothing; a prompt for which it raises is not counted, and fails where it is used.
    """
    ask = getattr(model, "truncated", None)
    return 0 if ask is None else sum(answer is True for answer in each_alone(ask, prompts))


class _Metered:
    """One model in one actor: loads it, runs it item-safe, and reports busy time, items and failures.

    Two blocks are in an actor at once, so that pictures of one are encoded or decoded (78 ms a 1024x1024 PNG)
    while the model works on the other; the model itself sees one at a time.
    """

    def __init__(self, stage: Stage, context: JobContext) -> None:
        self._started_s, self._load_s = time.perf_counter(), math.nan  # until the model is there
        os.environ.setdefault("TQDM_DISABLE", "1")  # loading bars of eight models in one log
        _limit_threads(stage.actors.num_cpus)
        self.stage, self.context = stage, context
        self._busy_s, self._items, self._failures, self._skipped, self._truncated = 0.0, 0, 0, 0, 0
        self._lock = threading.Lock()
        self._blocks: deque[Block] = deque(maxlen=BLOCKS_SENT)
        self._actor_id = f"{stage.target.name}-{uuid.uuid4().hex[:12]}"
        self._watched = Watched(context.meter, self._actor_id, context.item_timeout_s)
        # First of all, as minutes of loading are paid for too, whether or not they come to a model.
        threading.Thread(target=self._beat, name="rankray-heartbeat", daemon=True).start()
        try:
            environments.require_pins()
            self.model = load(stage.target, stage.actors.device)
        except Exception as error:
            _start_anew(stage.target.name, error, context.meter)
            raise
        if (own := _restarted()) is not None:
            context.meter.loaded.remote(own)
        self._safe = ItemSafe(self.model, stage.target.name)
        self._load_s = time.perf_counter() - self._started_s
        self._report()

    def run(
        self,
        call: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        items: Sequence[Item],
        texts: Iterable[str],
        block: str,
        skipped: int = 0,
    ) -> list[Result | Exception]:
        """The results of `items`; `skipped` counts those that this model never sees, as they failed before.

        `texts` are their prompts, each once: those that are longer than the model reads are counted. `block` names the
        block, so that one that is repeated after a loss counts once in progress.
        """
        with self._lock:
            _limit_threads(self.stage.actors.num_cpus)
            begin_s = time.perf_counter()
            key = f"{self.stage.kind} {self.stage.target.name} {block}"
            results = self._watched.run(self._safe.run, call, items, key)
            truncated = count_truncated(self.model, list(dict.fromkeys(texts)))
            self._busy_s += time.perf_counter() - begin_s
            failed = [result for result in results if isinstance(result, Exception)]
            self._items += len(items)
            self._failures += len(failed)
            self._skipped += skipped
            self._truncated += truncated
            self._blocks.append(Block(block, len(items) + skipped, len(failed), truncated))
        self._report(list(self._blocks), wait_s=REPORT_S)
        enough = min(self.context.abort_after, max(FEWEST_TO_ABORT, len(items)))
        if failed and self._failures == self._items >= enough:
            raise BrokenModelError(
                f"{self.stage.kind} '{self.stage.target.name}' failed for each of its first {self._items} items, "
                f"the last with {describe(failed[-1])}. Mend it and run the same command again; "
                "finished prompts are kept."
            )
        return results

    def _beat(self) -> None:
        """Reports while the actor lives, loading, busy or not: waiting is paid for too.

        A dying actor's thread can outlive its connection, and a call would then start a Ray of its own.
        """
        while ray.is_initialized():
            self._report()
            time.sleep(HEARTBEAT_S)

    def _report(self, blocks: Sequence[Block] = (), wait_s: float = 0.0) -> None:
        """Tells the meter. What is told of a block arrives before the block does: its actor may be ended at once after
        it, and the driver counts when it has the last one. Four of 120 pictures were missing in a bill so.

        While the model is loaded its GPU is not asked for: that would import torch in two threads at once.
        """
        alive_s, load_s = time.perf_counter() - self._started_s, self._load_s
        loaded = not math.isnan(load_s)
        usage = ActorUsage(
            model=self.stage.target.name,
            kind=self.stage.kind,
            actor_id=self._actor_id,
            busy_s=self._busy_s,
            load_s=load_s if loaded else alive_s,
            alive_s=alive_s,
            items=self._items,
            failures=self._failures,
            skipped=self._skipped,
            num_gpus=self.stage.actors.num_gpus,
            num_cpus=self.stage.actors.num_cpus,
            truncated=self._truncated,
            fits=self._safe.fits if loaded else 0,
            **(_gpu() if loaded and self.stage.actors.device.startswith("cuda") else {}),
        )
        told = self.context.meter.report.remote(asdict(usage), blocks)
        if wait_s and isinstance(told, ray.ObjectRef):
            with contextlib.suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                ray.get(told, timeout=wait_s)  # one that restarts has it with the next report


class GenerateActor:
    """Appends `generated:{name}`: one image a sample, each from its own seed (Algorithm 1, line 3)."""

    def __init__(self, stage: Stage, context: JobContext) -> None:
        self._metered = _Metered(stage, context)
        self._encoders = ThreadPoolExecutor(max(1, int(stage.actors.num_cpus)))

    def __call__(self, table: pa.Table) -> pa.Table:
        stage, context = self._metered.stage, self._metered.context
        name, row_ids, texts = stage.target.name, table["prompt_id"].to_pylist(), table["prompt"].to_pylist()
        rows = _known(table, stage.column) or [[] for _ in row_ids]
        due = [(b, sample) for b, row in enumerate(rows) for sample in range(len(row), stage.samples)]
        seed_name = stage.target.seed_name or name
        seeds = [schema.candidate_seed(context.seed, row_ids[b], seed_name, sample) for b, sample in due]

        def generate(items: Sequence[tuple[str, int]]) -> list[Image.Image | Exception]:
            images = self._metered.model.generate(
                [prompt for prompt, _ in items], [seed for _, seed in items]
            )
            return of_each(picture_of, images)

        results = self._metered.run(
            generate,
            [(texts[b], seed) for (b, _), seed in zip(due, seeds, strict=True)],
            [texts[b] for b, _ in due],
            row_ids[0] if row_ids else "",
        )
        keys = [image_key(row_ids[b], name, sample) for b, sample in due]
        for (b, _), entry in zip(due, self._encoders.map(self._entry, results, seeds, keys), strict=True):
            rows[b].append(entry)
        return _with_column(table, stage.column, pa.array(rows, GENERATED_TYPE))

    def _entry(self, result: Any, seed: int, key: str) -> dict[str, Any]:
        if isinstance(result, Exception):
            return {"seed": seed, "error": describe(result)}
        context = self._metered.context
        data = encode_image(result, context.images)
        return {
            "seed": seed,
            "width": result.width,
            "height": result.height,
            **stored(data, key, context.images, context.output),
        }


class ScoreActor:
    """Appends `scored:{name}`: this reward's score of every candidate (Algorithm 1, line 4); a judge's details too."""

    def __init__(self, stage: Stage, context: JobContext) -> None:
        self._metered = _Metered(stage, context)
        self._decoders = ThreadPoolExecutor(max(1, int(stage.actors.num_cpus)))

    def __call__(self, table: pa.Table) -> pa.Table:
        candidates = candidates_of(table, self._metered.context)
        prompts = table["prompt"].to_pylist()
        rows = _known(table, self._metered.stage.column) or [[None] * len(row) for row in candidates]
        due = [(b, k) for b, row in enumerate(rows) for k, known in enumerate(row) if known is None]
        there = [(b, k) for b, k in due if candidates[b][k]["error"] is None]
        pictures = self._decoders.map(self._opened, [candidates[b][k] for b, k in there])
        shown = list(zip(pictures, [prompts[b] for b, _ in there], strict=True))

        details: list[list[str | None]] = [[None] * len(row) for row in candidates]
        for b, k in due:
            rows[b][k] = {"score": float("nan")}
        prompts_shown = [prompt for _, prompt in shown]
        (first,) = table["prompt_id"].slice(0, 1).to_pylist() or [""]
        results = self._metered.run(self._score, shown, prompts_shown, first, len(due) - len(shown))
        for (b, k), result in zip(there, results, strict=True):
            if isinstance(result, Exception):
                rows[b][k]["error"] = describe(result)
            else:
                rows[b][k], details[b][k] = {"score": result[0]}, result[1]
        scored = _with_column(table, self._metered.stage.column, pa.array(rows, SCORED_TYPE))
        name = self._metered.stage.target.name
        if name not in self._metered.context.judges:
            return scored
        return _with_column(scored, f"detailed:{name}", pa.array(details, schema.DETAILS_TYPE))

    def _opened(self, entry: dict[str, Any]) -> Image.Image | Exception:
        """The picture, or why it cannot be decoded; a place that is away is no fault of the picture, and raises."""
        (found,) = of_each(decode, [encoded(entry, self._metered.context.output)])
        return found

    def _score(
        self, items: Sequence[tuple[Image.Image | Exception, str]]
    ) -> list[tuple[float, str | None] | Exception]:
        """(score, details as JSON) of each picture; of one that could not be decoded the reason."""
        there = [(image, prompt) for image, prompt in items if not isinstance(image, Exception)]
        found = self._scores(there) if there else []
        if len(found) != len(there):
            raise ValueError(f"{len(found)} results for {len(there)} items")
        scores = iter(found)
        return [image if isinstance(image, Exception) else next(scores) for image, _ in items]

    def _scores(self, items: Sequence[tuple[Image.Image, str]]) -> list[tuple[float, str | None] | Exception]:
        """(score, details as JSON) of each picture; a reward gives none."""
        model = self._metered.model
        images, prompts = [image for image, _ in items], [prompt for _, prompt in items]
        if hasattr(model, "judge"):
            return of_each(_judged, model.judge(images, prompts))
        found = model.score(images, prompts)
        if isinstance(found, list) and any(isinstance(score, Exception) for score in found):
            return of_each(lambda score: (_finite(score), None), found)
        scores = np.asarray(found, np.float64)
        if scores.shape != (len(items),):
            raise ValueError(
                f"scores of shape {scores.shape} for {len(items)} images; one number an image is due"
            )
        return of_each(lambda score: (_finite(score), None), scores)


def _judged(judgement: Judgement) -> tuple[float, str | None]:
    return _finite(judgement.score), json.dumps(dict(judgement.detail), allow_nan=False)


def _finite(score: float) -> float:
    if not np.isfinite(score):
        raise ValueError(f"a score is {float(score)}")
    return float(score)


def _known(table: pa.Table, column: str) -> list[list[Any]] | None:
    """The column as far as an earlier dataset has it (`rankray.synpic.reuse`), None where it starts from nothing."""
    return table[column].to_pylist() if column in table.column_names else None


def _with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """`table` with a column added, or put in the place of the one of that name."""
    kept = table.drop_columns([name]) if name in table.column_names else table
    return kept.append_column(name, values)


def candidates_of(table: pa.Table, context: JobContext) -> list[list[dict[str, Any]]]:
    """[B][K] generated entries in candidate order, each with its generator's label."""
    rows: list[list[dict[str, Any]]] = [[] for _ in range(table.num_rows)]
    for name, _ in context.generators:
        for row, entries in zip(rows, table[f"generated:{name}"].to_pylist(), strict=True):
            row.extend({**entry, "generator": name} for entry in entries)
    return rows


def _start_anew(name: str, error: Exception, meter: Any) -> None:
    """Ends this process where its actor was lost before, so that Ray starts the actor again, wherever there is room.

    By the error that is raised otherwise Ray takes it for dead for ever, and the blocks that wait for it with it; an
    actor's first start may fail so, as it has no blocks, and `Balance` decides.
    """
    own = _restarted()
    if own is None or (lost_calls.answered(meter.not_loaded.remote(own)) or 0) > RELOADS:
        return
    what = f"'{name}' was lost, and did not load where it came up again"
    print(f"rankray: {what} ({describe(error)}); it tries again", file=sys.stderr, flush=True)
    time.sleep(RELOAD_S)
    os._exit(1)


def _restarted() -> str | None:
    """Ray's name of this actor if it has started it again, None in its first process."""
    if not ray.is_initialized():  # asked for its context, Ray would start one
        return None
    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:
        return None
    own = context.get_actor_id()
    known = ray.state.actors(actor_id=own)  # as `was_current_actor_reconstructed` asks
    return own if known and int(known["NumRestarts"]) else None


def _gpu() -> dict[str, Any]:
    """This process's GPU: its name, its memory, and the most of it that torch had reserved, in 1e9 bytes."""
    import torch

    if not torch.cuda.is_initialized():
        return {}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    peak_gb = torch.cuda.max_memory_reserved() / 1e9
    return {"gpu": properties.name, "gpu_gb": properties.total_memory / 1e9, "peak_gpu_gb": peak_gb}


def _limit_threads(num_cpus: float) -> None:
    """One torch thread for each CPU that the actor was given: more of them than cores are 3 to 5 times slower.

    Before torch is imported its own variable says so: a model without torch is spared the 2 s of importing it.
    """
    threads = max(1, min(int(num_cpus), os.cpu_count() or 1))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
