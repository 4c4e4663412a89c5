"""Syn-Pic (paper section 3.2, Algorithm 1): prompts -> k generators -> n rewards -> ranked preference dataset.

A job is a chain of map stages over prompts staged as Parquet (`stages`), laid out on the cluster all at once
or in phases (`layout`), resumed by Ray Data's own row checkpoint, and finished in one directory (`output`).
The checkpoint is written a block at a time, so a SIGKILL costs the blocks in flight: two or three an actor
and those between stages, 16 to 80 of 200 prompts a model where it was measured (16 rows a block).
"""

from __future__ import annotations

import datetime
import functools
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.data

import rankray
from rankray import schema, store
from rankray.cluster import layout, progress, seats
from rankray.cluster.actors import JobContext, Stage
from rankray.cluster.balance import Balance
from rankray.cluster.overlays import prepare
from rankray.cluster.progress import Laps, Reporter, start_line
from rankray.cluster.ray_session import connect, exclusive, in_submitted_job
from rankray.cluster.streaming import stream
from rankray.config import GeneratorChoice, ModelChoice, SynPicConfig
from rankray.data import cost
from rankray.data import place as outputs
from rankray.data.place import Output
from rankray.data.prompts import PromptsRead, read_prompts
from rankray.models.targets import Target, require_resolved
from rankray.synpic import forecast, phases, stages
from rankray.synpic import reuse as reused
from rankray.synpic.phases import Phase
from rankray.synpic.pools import overlays, stages_of
from rankray.synpic.reuse import Reuse


@dataclass(frozen=True)
class Given:
    """What an evaluation hands over because names cannot say it: a benchmark's prompts, judges that know its items.

    Attributes:
        prompts: in place of what the configuration's path holds.
        judges: label -> target, of those scorers of the configuration that are no rewards.
    """

    prompts: PromptsRead
    judges: Mapping[str, Target]


@dataclass(frozen=True)
class Result:
    """What a job leaves: the dataset's place and its summary (the contents of `dataset.json`)."""

    path: str
    info: dict[str, Any]

    @property
    def failed_share(self) -> float:
        """The worst model's failures as a share of what it was given."""
        failures: dict[str, int] = self.info["failures"]["by_model"]
        given = {item["name"]: self.info["rows"] * item["samples"] for item in self.info["generators"]}
        given.update({item["name"]: self.info["candidates"] for item in self.info["rewards"]})
        return max((count / given[name] for name, count in failures.items()), default=0.0)


def run(
    config: SynPicConfig,
    say: Callable[[str], None] = print,
    publish: Callable[[str, dict[str, Any]], None] | None = None,
    given: Given | None = None,
) -> Result:
    """Makes the dataset of `config`, or what is left of it, or nothing where it is complete.

    `publish` gets the output and its summary before `dataset.json` is written: the surface's report goes there.

    Raises:
        ConfigError: the configuration, the prompts, the output or the cluster do not fit; nothing was begun.
        BrokenModelError: (inside Ray's task error) a model failed for everything; finished rows are kept.
    """
    plan = stages_of(config, given.judges if given else {})
    revisions = _revisions(plan)
    output = outputs.open_output(config.output, in_job=in_submitted_job())
    given = given or Given(read_prompts(config.prompts), {})
    prompts = given.prompts
    say(_prompts_line(prompts))
    laps = Laps()
    if output.exists("dataset.json"):
        outputs.claim(output, config, revisions)
        info = outputs.complete_already(output, prompts)
        say(f"{output.uri} is complete already; nothing to do")
        return Result(output.uri, info)

    require_resolved(stage.target for stage in plan)
    held = None
    if config.reuse is not None:
        held = reused.find(config, revisions, prompts.rows, config.reuse)
        say(held.explanation)
    connect()
    laps.lap("Ray")
    try:
        info = _make(config, plan, held, output, given, laps, say, publish)
    finally:
        layout.release_nodes(config.execution.wait_for_nodes_s)
    return Result(output.uri, info)


def _make(
    config: SynPicConfig,
    models: list[Stage],
    held: Reuse | None,
    output: Output,
    given: Given,
    laps: Laps,
    say: Callable[[str], None],
    publish: Callable[[str, dict[str, Any]], None] | None,
) -> dict[str, Any]:
    """Plans, runs and checks what is left of the dataset; returns its summary, which it writes last."""
    prompts = given.prompts
    wanted = [schema.prompt_id(prompt) for prompt in prompts.rows]
    lack = (held or Reuse.nothing()).missing
    plan = [stage for stage in models if lack(stage, config.k, wanted)]
    done = phases.stages_done(output, plan)
    work_of, cluster, chosen = phases.laid_out(config, models, plan, done, output, len(wanted), say)
    for warning in forecast.memory_warnings(forecast.models_of(config, models, {}), cluster):
        say(f"warning: {warning}")
    laps.lap("nodes and plan")
    prepare(overlays(config, models, plan), config.execution.build_environments, say)
    outputs.claim(output, config, _revisions(models))
    taken = held.staged(prompts.rows) if held else ()
    ids = outputs.stage_prompts(output, prompts, config.execution.rows_per_block, *taken)
    laps.lap("environments and prompts")
    say(f"output: {output.uri}")
    say(f"{len(ids):,} prompts x {config.k} candidates x {len(config.scorers)} rewards; {chosen.explanation}")

    left = sorted(set(ids) - set(outputs.finished_ids(output, "_work", "checkpoint-data")))
    drawn = sum(lack(stage, config.k, left) for stage in models if stage.kind == "generator")
    begin_s = time.perf_counter()
    with exclusive("synpic", output.uri) as meter:
        work = _Work(config, held, output, _context(config, given, output, meter), uuid.uuid4().hex[:12], say)
        layout_name = "phases" if len(chosen.phases[0]) < len(plan) else "streaming"
        while done < len(plan):
            stages_, sizes = chosen.phases[0], chosen.sizes[0]
            phase = Phase(stages_, sizes, work_of(stages_, cluster), done, done + len(stages_) == len(plan))
            _run_phase(phase, work, ids)
            done += len(stages_)
            if rest := plan[done:]:  # nodes may have joined or gone
                layout.release_nodes(config.execution.wait_for_nodes_s)
                cluster = seats.alive_nodes()
                chosen = layout.again(rest, cluster, config.execution.mode, work_of(rest, cluster), chosen)
        started = laps.report(meter)
    wall_s = time.perf_counter() - begin_s
    say(start_line(started))
    _check(output, prompts, say)
    info = _summary(config, models, output, prompts, layout_name)
    info["throughput"] = {  # of this run
        "wall_s": wall_s,
        "images_per_s": drawn / wall_s,
        "rows_per_s": len(left) / wall_s,
        "start": started,
    }
    _finish(output, info, held, publish, say)
    return info


def _finish(
    output: Output,
    info: dict[str, Any],
    held: Reuse | None,
    publish: Callable[[str, dict[str, Any]], None] | None,
    say: Callable[[str], None],
) -> None:
    """Writes the summary, last of all, and clears away what only making the dataset needed."""
    if info["truncated_prompts"]:
        say(_truncated_line(info["truncated_prompts"], info["rows"]))
    if info["smaller_batches"]:
        say(_smaller_line(info["smaller_batches"]))
    if held is not None:
        info["reused"] = held.described()
    if publish is not None:
        publish(output.uri, info)
    store.write_json(output.at("dataset.json"), info, output.fs)
    output.remove("_work")


@dataclass(frozen=True)
class _Work:
    """What all phases of a run share."""

    config: SynPicConfig
    held: Reuse | None
    output: Output
    context: JobContext
    run_id: str
    say: Callable[[str], None]


def _revisions(plan: Sequence[Stage]) -> dict[str, str]:
    return {stage.target.name: stage.target.revision for stage in plan}


def _context(config: SynPicConfig, given: Given, output: Output, meter: Any) -> JobContext:
    if config.images.store == "files":
        output.make("images")
    return JobContext(
        seed=config.seed,
        images=config.images,
        image_dir=f"{output.uri.rstrip('/')}/images",
        generators=tuple((choice.label, choice.samples) for choice in config.generators),
        rewards=tuple(choice.label for choice in config.scorers),
        abort_after=config.execution.abort_after,
        meter=meter,
        judges=tuple(given.judges),
    )


def _run_phase(phase: Phase, work: _Work, ids: Sequence[str]) -> None:
    """Runs a phase over the prompts that it has not finished, and marks it done."""
    config, output, say = work.config, work.output, work.say
    output.make(*phase.sink)
    output.make(*phase.checkpoint)
    finished = set(outputs.finished_ids(output, *phase.checkpoint))
    left = [row_id for row_id in ids if row_id not in finished]
    if finished:
        say(f"resuming: {len(finished):,} of {len(ids):,} prompts are finished, {len(left):,} remain")
    if phase.before or not phase.last:
        say(f"phase: {', '.join(stage.target.name for stage in phase.stages)}")
    held = work.held or Reuse.nothing()
    totals = {(stage.kind, stage.target.name): held.missing(stage, config.k, left) for stage in phase.stages}
    keep = functools.partial(progress.keep_usage, output, work.run_id)
    with Reporter(work.context.meter, totals, config.execution.report_interval_s, keep):
        if left:
            _stream(phase, work, len(left))
    if phase.last:
        return
    output.write_text(f"_work/done-{phase.name}", "\n".join(stage.target.name for stage in phase.stages))
    if phase.before:
        output.remove(*phase.source)


def _stream(phase: Phase, work: _Work, rows: int) -> None:
    """One Ray Data pipeline: read -> the phase's stages -> write, checkpointed by row."""
    context, output = work.context, work.output
    final = _final_schema(work.config, context, output) if phase.last else None

    def build(dataset: ray.data.Dataset) -> ray.data.Dataset:
        if work.held is not None and not phase.before:
            dataset = stages.reuse_stage(dataset, work.held.without_places(), context)
        for stage, size in zip(phase.stages, phase.sizes, strict=True):
            dataset = stages.model_stage(dataset, stage, context, size)
        return stages.rank_stage(dataset, context, final) if final is not None else dataset

    source = output.files(*phase.source)
    arrow_args = {} if final is None else {"schema": final}
    balanced = functools.partial(Balance, phase.stages, replace(phase.work, rows=rows), context.meter)
    stream(source, output.fs, output, phase.sink, phase.checkpoint, build, arrow_args, balanced)


def _final_schema(config: SynPicConfig, context: JobContext, output: Output) -> pa.Schema:
    identity = store.read_json(output.at("_work/identity.json"), output.fs)["identity"]
    return schema.ranked_schema(
        {name: identity[f"revision.{name}"] for name, _ in context.generators},
        {name: identity[f"revision.{name}"] for name in context.rewards},
        details=bool(context.judges),
    )


def _check(output: Output, prompts: PromptsRead, say: Callable[[str], None]) -> None:
    """Every prompt has its row, and one only.

    Raises:
        RuntimeError: rows are missing although Ray Data says that it wrote them.
    """
    repeats = outputs.drop_repeats(output, "data")
    if repeats:
        say(f"{repeats} rows were written twice around a kill; one of each was kept")
    missing = len(prompts.rows) - len(outputs.finished_ids(output, "data"))
    if missing:
        raise RuntimeError(
            f"{missing} of {len(prompts.rows)} rows are missing in {output.uri}/data; run the command again"
        )


def _summary(
    config: SynPicConfig, plan: list[Stage], output: Output, prompts: PromptsRead, layout_name: str
) -> dict[str, Any]:
    """The contents of `dataset.json`."""
    usage, runs = progress.all_usage(output)
    by_model, examples = outputs.count_failures(output, [choice.label for choice in config.scorers])
    rows = len(prompts.rows)
    stages_ = {stage.target.name: stage for stage in plan}
    made = sum(item.items for item in usage if item.kind == "generator")
    failed_images = sum(by_model.get(choice.label, 0) for choice in config.generators)
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "rankray_version": rankray.__version__,
        "complete": True,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seed": config.seed,
        "identity": store.read_json(output.at("_work/identity.json"), output.fs)["identity"],
        "prompts": {
            "source": prompts.source,
            "read": prompts.read,
            "empty": prompts.empty,
            "duplicates": prompts.duplicates,
            "undecodable": prompts.undecodable,
            "rows": rows,
            "sha256": outputs.prompts_digest(prompts.rows),
        },
        "generators": [
            _described(choice, stages_[choice.label]) | _drawn(choice) for choice in config.generators
        ],
        "rewards": [_described(choice, stages_[choice.label]) for choice in config.scorers],
        "rows": rows,
        "candidates": rows * config.k,
        "images": rows * config.k - failed_images,
        "images_made": made,
        "failures": {
            "total": sum(by_model.values()),
            "by_model": by_model,
            "tolerance": config.execution.tolerance,
            "examples": examples,
        },
        "truncated_prompts": cost.truncated_prompts(usage, rows),
        "smaller_batches": cost.smaller_batches(usage),
        "layout": layout_name,
        "runs": runs,
        "cost": cost.ledger(usage, config.prices),
    }


def _described(choice: ModelChoice, stage: Stage) -> dict[str, Any]:
    """A model for `dataset.json`; an overlay's interpreter is named by its pins."""
    python = stage.actors.runtime_env.get("py_executable")
    found = {"name": choice.label, "model": choice.model, "revision": stage.target.revision}
    return found if python is None else {**found, "environment": python}


def _drawn(choice: GeneratorChoice) -> dict[str, Any]:
    """How many samples, and from whose seeds where these are not its own."""
    own = {} if choice.seed_name is None else {"seed_name": choice.seed_name}
    return {"samples": choice.samples, **own}


def _truncated_line(truncated: dict[str, int], rows: int) -> str:
    counts = ", ".join(f"{name} {count:,}" for name, count in sorted(truncated.items()))
    return f"prompts longer than a model reads, of {rows:,}, of which it saw the beginning alone: {counts}"


def _smaller_line(smaller: dict[str, int]) -> str:
    sizes = ", ".join(f"{name} {size}" for name, size in sorted(smaller.items()))
    return (
        f"more did not fit in a device's memory, so this was computed at once (`batch_size` sets it): {sizes}"
    )


def _prompts_line(prompts: PromptsRead) -> str:
    """`200 lines read from F: 197 prompts, 2 duplicates, 1 empty, 0 not UTF-8`."""
    cut = "; the rest is left out, as prompts.limit asks" if prompts.cut else ""
    return (
        f"{prompts.read:,} lines read from {prompts.source}: {len(prompts.rows):,} prompts, "
        f"{prompts.duplicates:,} duplicates, {prompts.empty:,} empty, {prompts.undecodable:,} not UTF-8{cut}"
    )
