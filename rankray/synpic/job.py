"""Syn-Pic (paper section 3.2, Algorithm 1): prompts -> k generators -> n rewards -> ranked preference dataset.

A job is a chain of map stages over prompts staged as Parquet (`stages`), laid out on the cluster all at once
or in phases (`layout`, `phases`), resumed by Ray Data's own row checkpoint, finished in one directory (`place`).
The checkpoint is written a block at a time, so a SIGKILL costs the blocks in flight: two or three an actor
and those between stages, 16 to 80 of 200 prompts a model where it was measured (16 rows a block).
"""

from __future__ import annotations

import datetime
import functools
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.data

import rankray
from rankray import schema, store
from rankray.cluster import layout, overlays, progress, seats
from rankray.cluster.actors import JobContext, Stage
from rankray.cluster.balance import Balance
from rankray.cluster.job import Job, Result, Say, connect, open_output
from rankray.cluster.progress import Laps, Reporter, start_line
from rankray.cluster.streaming import stream
from rankray.config import GeneratorChoice, ModelChoice, SynPicConfig
from rankray.data import cost, place
from rankray.data.place import Output, Publish
from rankray.data.prompts import PromptsRead, read_prompts
from rankray.models.targets import Target, require_resolved
from rankray.synpic import forecast, phases, reuse, stages
from rankray.synpic.phases import Phase
from rankray.synpic.reuse import Reuse
from rankray.synpic.stages import overlays_of, stages_of


@dataclass(frozen=True)
class Given:
    """What an evaluation hands over because names cannot say it: a benchmark's prompts, judges that know its items.

    Attributes:
        prompts: in place of what the configuration's path holds.
        judges: label -> target, of those scorers of the configuration that are no rewards.
    """

    prompts: PromptsRead
    judges: Mapping[str, Target]


def run(
    config: SynPicConfig, say: Say = print, publish: Publish | None = None, given: Given | None = None
) -> Result:
    """Makes the dataset of `config`, or what is left of it, or nothing where it is complete.

    `publish` gets the output and its summary before `dataset.json` is written: the surface's report goes there.

    Raises:
        ConfigError: the configuration, the prompts, the output or the cluster do not fit; nothing was begun.
        BrokenModelError: (inside Ray's task error) a model failed for everything; finished rows are kept.
    """
    models = stages_of(config, given.judges if given else {})
    revisions = {stage.target.name: stage.target.revision for stage in models}
    output = open_output(config.output)
    given = given or Given(read_prompts(config.prompts), {})
    say(_prompts_line(given.prompts))
    laps = Laps()
    job = Job("synpic", config, output, "dataset.json", place.identity_of(config, revisions), say)
    info = job.complete(functools.partial(place.require_prompts, output, given.prompts))
    if info is None:
        require_resolved(stage.target for stage in models)
        held = Reuse.nothing()
        if config.reuse is not None:
            held = reuse.find(config, revisions, given.prompts.rows, config.reuse)
            say(held.explanation)
        connect()
        laps.lap("Ray")
        making = _Making(config, models, held, output, given, laps, say)
        try:
            info = job.run(making.prepare, making.make, publish)
        finally:
            layout.release_nodes(config.execution.wait_for_nodes_s)
    return Result(output.uri, info, failed_share(info))


def failed_share(info: Mapping[str, Any]) -> float:
    """The worst model's failures as a share of what it was given, by the contents of `dataset.json`."""
    given = {item["name"]: info["rows"] * item["samples"] for item in info["generators"]}
    given.update({item["name"]: info["candidates"] for item in info["rewards"]})
    return max((count / given[name] for name, count in info["failures"]["by_model"].items()), default=0.0)


@dataclass(frozen=True)
class _Laid:
    """What is left to run, and how: its stages, how many are finished, nodes, what is known of the work, the layout."""

    plan: list[Stage]
    done: int
    nodes: list[seats.Node]
    work_of: phases.WorkOf
    chosen: layout.Layout


@dataclass(frozen=True)
class _Making:
    """The work of one job, from its plan to the summary that is written last."""

    config: SynPicConfig
    models: list[Stage]
    held: Reuse
    output: Output
    given: Given
    laps: Laps
    say: Say

    def prepare(self) -> _Laid:
        """Waits for nodes, lays out what is left, and has overlay environments ready; nothing is written yet."""
        config, models, wanted = self.config, self.models, self._ids()
        plan = [stage for stage in models if self.held.missing(stage, config.k, wanted)]
        done = phases.stages_done(self.output, plan)
        work_of, nodes, chosen = phases.laid_out(
            config, models, plan, done, self.output, len(wanted), self.say
        )
        for warning in forecast.memory_warnings(forecast.models_of(config, models, {}), nodes):
            self.say(f"warning: {warning}")
        self.laps.lap("nodes and plan")
        overlays.prepare(overlays_of(config, models, plan), config.execution.build_environments, self.say)
        return _Laid(plan, done, nodes, work_of, chosen)

    def _ids(self) -> list[str]:
        return [schema.prompt_id(prompt) for prompt in self.given.prompts.rows]

    def make(self, laid: _Laid, meter: Any) -> dict[str, Any]:
        """Stages the prompts, runs the phases that are left and checks the rows; the contents of `dataset.json`."""
        config, output, prompts, say = self.config, self.output, self.given.prompts, self.say
        staged = self.held.staged(prompts.rows) if self.held.path else ()
        ids = place.stage_prompts(output, prompts, config.execution.rows_per_block, *staged)
        self.laps.lap("environments and prompts")
        rewards = len(config.scorers)
        say(f"{len(ids):,} prompts x {config.k} candidates x {rewards} rewards; {laid.chosen.explanation}")
        left = sorted(set(ids) - set(place.finished_ids(output, "_work", "checkpoint-data")))
        drawn = sum(
            self.held.missing(stage, config.k, left) for stage in self.models if stage.kind == "generator"
        )
        begin_s = time.perf_counter()
        self._run_phases(laid, _context(config, self.given, output, meter), ids)
        started = self.laps.report(meter)
        wall_s = time.perf_counter() - begin_s
        say(start_line(started))
        if repeats := place.require_rows(output, len(prompts.rows)):
            say(f"{repeats} rows were written twice around a kill; one of each was kept")
        info = _summary(config, self.models, output, prompts)
        info["layout"] = "phases" if len(laid.chosen.phases[0]) < len(laid.plan) else "streaming"
        info["throughput"] = {  # of this run
            "wall_s": wall_s,
            "images_per_s": drawn / wall_s,
            "rows_per_s": len(left) / wall_s,
            "start": started,
        }
        if info["truncated_prompts"]:
            say(_truncated_line(info["truncated_prompts"], info["rows"]))
        if info["smaller_batches"]:
            say(_smaller_line(info["smaller_batches"]))
        return info | ({"reused": self.held.described()} if self.held.path else {})

    def _run_phases(self, laid: _Laid, context: JobContext, ids: Sequence[str]) -> None:
        """Runs what is left of the plan, laid out anew after each phase, as nodes may have joined or gone."""
        execution, run_id = self.config.execution, uuid.uuid4().hex[:12]
        done, nodes, chosen = laid.done, laid.nodes, laid.chosen
        while rest := laid.plan[done:]:
            if done > laid.done:
                layout.release_nodes(execution.wait_for_nodes_s)
                nodes = seats.alive_nodes()
                chosen = layout.again(rest, nodes, execution.mode, laid.work_of(rest, nodes), chosen)
            stages_, sizes = chosen.phases[0], chosen.sizes[0]
            phase = Phase(stages_, sizes, laid.work_of(stages_, nodes), done, len(stages_) == len(rest))
            self._run_phase(phase, context, run_id, ids)
            done += len(stages_)

    def _run_phase(self, phase: Phase, context: JobContext, run_id: str, ids: Sequence[str]) -> None:
        """Runs a phase over the prompts that it has not finished, and marks it done."""
        config, output, say = self.config, self.output, self.say
        output.make(*phase.sink)
        output.make(*phase.checkpoint)
        finished = set(place.finished_ids(output, *phase.checkpoint))
        left = [row_id for row_id in ids if row_id not in finished]
        if finished:
            say(f"resuming: {len(finished):,} of {len(ids):,} prompts are finished, {len(left):,} remain")
        if phase.before or not phase.last:
            say(f"phase: {', '.join(stage.target.name for stage in phase.stages)}")
        totals = {
            (stage.kind, stage.target.name): self.held.missing(stage, config.k, left)
            for stage in phase.stages
        }
        keep = functools.partial(progress.keep_usage, output, run_id)
        with Reporter(context.meter, totals, config.execution.report_interval_s, keep):
            if left:
                self._stream(phase, context, len(left))
        if phase.last:
            return
        output.write_text(f"_work/done-{phase.name}", "\n".join(stage.target.name for stage in phase.stages))
        if phase.before:
            output.remove(*phase.source)

    def _stream(self, phase: Phase, context: JobContext, rows: int) -> None:
        """One Ray Data pipeline: read -> the phase's stages -> write, checkpointed by row."""
        output = self.output
        final = _final_schema(context, output) if phase.last else None

        def build(dataset: ray.data.Dataset) -> ray.data.Dataset:
            if self.held.path and not phase.before:
                dataset = stages.reuse_stage(dataset, self.held.without_places(), context)
            for stage, size in zip(phase.stages, phase.sizes, strict=True):
                dataset = stages.model_stage(dataset, stage, context, size)
            return stages.rank_stage(dataset, context, final) if final is not None else dataset

        source = output.files(*phase.source)
        arrow_args = {} if final is None else {"schema": final}
        balanced = functools.partial(Balance, phase.stages, replace(phase.work, rows=rows), context.meter)
        stream(source, output.fs, output, phase.sink, phase.checkpoint, build, arrow_args, balanced)


def _context(config: SynPicConfig, given: Given, output: Output, meter: Any) -> JobContext:
    if config.images.store == "files":
        output.make(store.IMAGES)
    return JobContext(
        seed=config.seed,
        images=config.images,
        output=output.uri.rstrip("/"),
        generators=tuple((choice.label, choice.samples) for choice in config.generators),
        rewards=tuple(choice.label for choice in config.scorers),
        abort_after=config.execution.abort_after,
        meter=meter,
        judges=tuple(given.judges),
    )


def _final_schema(context: JobContext, output: Output) -> pa.Schema:
    identity = place.claimed(output)
    return schema.ranked_schema(
        {name: identity[f"revision.{name}"] for name, _ in context.generators},
        {name: identity[f"revision.{name}"] for name in context.rewards},
        details=bool(context.judges),
    )


def _summary(config: SynPicConfig, plan: list[Stage], output: Output, prompts: PromptsRead) -> dict[str, Any]:
    """The contents of `dataset.json`, but for what this run alone knows."""
    usage, runs = progress.all_usage(output)
    by_model, examples = place.count_failures(output, [choice.label for choice in config.scorers])
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
        "identity": place.claimed(output),
        "prompts": {
            "source": prompts.source,
            "read": prompts.read,
            "empty": prompts.empty,
            "duplicates": prompts.duplicates,
            "undecodable": prompts.undecodable,
            "control": len(prompts.with_control),
            "rows": rows,
            "sha256": place.prompts_digest(prompts.rows),
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
    control = prompts.with_control
    odd = f", {len(control):,} with control characters, as {control[0][:60]!r} is" if control else ""
    return (
        f"{prompts.read:,} lines read from {prompts.source}: {len(prompts.rows):,} prompts, "
        f"{prompts.duplicates:,} duplicates, {prompts.empty:,} empty, {prompts.undecodable:,} not UTF-8{odd}{cut}"
    )
