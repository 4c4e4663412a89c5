"""Syn-Pic (paper section 3.2, Algorithm 1): prompts -> k generators -> n rewards -> ranked preference dataset.

A job is a chain of map stages over prompts staged as Parquet (`stages`), laid out on the cluster all at once
or in phases (`layout`, `phases`), resumed by Ray Data's own row checkpoint, finished in one directory (`place`).
The checkpoint is written a block at a time, so a SIGKILL costs the blocks in flight: two or three an actor
and those between stages, 16 to 80 of 200 prompts a model where it was measured (16 rows a block).
"""

from __future__ import annotations

import collections
import functools
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.parquet as pq
import ray
import ray.data

from rankray import schema, store, words
from rankray.cluster import layout, overlays, seats, terminal
from rankray.cluster.actors import JobContext, Stage
from rankray.cluster.balance import Balance
from rankray.cluster.job import Failed, Job, Result, connect, open_output
from rankray.cluster.progress import Laps, Reporter, start_line
from rankray.cluster.streaming import stream
from rankray.config import Faults, GeneratorChoice, ModelChoice, SynPicConfig
from rankray.data import cost, place, running
from rankray.data.place import Output, Publish
from rankray.data.prompts import PromptsRead, read_prompts
from rankray.models.targets import Target, require_resolved
from rankray.synpic import forecast, phases, reuse, stages
from rankray.synpic.phases import Phase
from rankray.synpic.reuse import Reuse
from rankray.synpic.stages import overlays_of, stages_of
from rankray.words import Say

BLOCKED_NAMED = 100
"""Prompts that a block-list left out, of which `dataset.json` has the text."""


@dataclass(frozen=True)
class PromptsAndJudges:
    """What an evaluation hands over because names cannot say it: a benchmark's prompts, judges that know its items.

    Attributes:
        prompts: in place of what the configuration's path holds.
        judges: label -> target, of those scorers of the configuration that are no rewards.
    """

    prompts: PromptsRead
    judges: Mapping[str, Target]


def run(
    config: SynPicConfig,
    say: Say = print,
    publish: Publish | None = None,
    given: PromptsAndJudges | None = None,
) -> Result:
    """Makes the dataset of `config`, or what is left of it, or nothing where it is complete.

    `publish` gets the output and its summary before `dataset.json` is written: the surface's report goes there.

    Raises:
        ConfigError: the configuration, the prompts, the output or the cluster do not fit; nothing was begun.
        BrokenModelError: (inside Ray's task error) a model failed for everything; finished rows are kept.
    """
    faults = Faults()
    with faults.kept():
        models = stages_of(config, given.judges if given else {})
    with faults.kept():
        given = given or PromptsAndJudges(read_prompts(config.prompts), {})
    faults.raise_any()
    identity = stages.identity_of(config, models)
    output = open_output(config.output)
    say(_prompts_line(given.prompts))
    laps = Laps()
    job = Job("synpic", config, output, "dataset.json", identity, say)
    found = functools.partial(job.complete, functools.partial(place.require_prompts, output, given.prompts))

    def prepare() -> tuple[_Making, _Laid]:
        forecast.of_actors(config.execution.measured, ())  # a finished output needs it no more
        require_resolved(stage.target for stage in models)
        held = Reuse.nothing()
        if config.reuse is not None:
            held = reuse.find(config, identity, given.prompts.rows, config.reuse)
            say(held.explanation)
        connect()
        laps.lap("Ray")
        making = _Making(config, models, held, output, given, laps, say)
        return making, making.prepare()

    def work(prepared: tuple[_Making, _Laid], meter: Any) -> dict[str, Any]:
        making, laid = prepared
        return making.make(laid, meter)

    try:
        info = job.run(prepare, work, publish, found)
    finally:
        if ray.is_initialized():
            layout.release_nodes(config.execution.wait_for_nodes_s)
    return Result(output.uri, info, failed_share(info))


def failed_share(info: Mapping[str, Any]) -> float:
    """The worst model's failures as a share of what it was given, by the contents of `dataset.json`."""
    given = {item["name"]: info["rows"] * item["samples"] for item in info["generators"]}
    given.update({item["name"]: info["candidates"] for item in info["rewards"]})
    return max((count / given[name] for name, count in info["failures"]["by_model"].items()), default=0.0)


def failed(made: Result) -> Failed:
    """How often each model of a finished dataset failed, and the worst one's share."""
    return made.info["failures"]["by_model"], made.failed_share


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
    given: PromptsAndJudges
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
        reused, more = self.held.staged(prompts.rows) if self.held.path else (None, None)
        size = config.execution.rows_per_block
        ids = place.stage_prompts(output, prompts, size, reused, more, recut=not laid.done)
        self.laps.lap("environments and prompts")
        say(_opening(config, len(ids), laid))
        begin_s = time.perf_counter()
        drawn, ranked = self._run_phases(laid, _context(config, self.given, output, meter), ids)
        started = self.laps.report(meter)
        wall_s = time.perf_counter() - begin_s
        terminal.note(start_line(started))
        if repeats := place.require_rows(output, len(prompts.rows)):
            say(f"{repeats} rows were written twice around a kill; one of each was kept")
        info = _summary(config, self.models, output, prompts)
        info["layout"] = "phases" if len(laid.chosen.phases[0]) < len(laid.plan) else "streaming"
        info["throughput"] = {  # of this run
            "wall_s": wall_s,
            "images_per_s": drawn / wall_s,
            "rows_per_s": ranked / wall_s,
            "start": started,
        }
        for what, counts in _remarkable(info):
            say(f"{what}: {', '.join(f'{name} {count:,}' for name, count in sorted(counts.items()))}")
        return info | ({"reused": self.held.described()} if self.held.path else {})

    def _run_phases(self, laid: _Laid, context: JobContext, ids: Sequence[str]) -> tuple[int, int]:
        """Runs what is left of the plan, and first what a power cut took of what was finished: that from the prompts,
        as phases remove what they read.

        How many pictures and finished rows this run was due to make.
        """
        execution, run_id = self.config.execution, uuid.uuid4().hex[:12]
        drawn_again = 0
        if lost := phases.lost(self.output, laid.done, ids):
            self.say(
                f"{len(lost):,} of {len(ids):,} prompts were lost of what was finished: they are made again"
            )
            place.stage_again(self.output, lost)
            part = laid.plan[: laid.done]
            chosen = layout.plan(part, laid.nodes, execution.mode, laid.work_of(part, laid.nodes))
            begun = replace(laid, plan=part, done=0, chosen=chosen)
            drawn_again, _ = self._run_rest(begun, context, run_id, lost, again=laid.done)
            self.output.remove("_work", "again")
            layout.release_nodes(execution.wait_for_nodes_s)
        drawn, ranked = self._run_rest(laid, context, run_id, ids)
        return drawn_again + drawn, ranked

    def _run_rest(
        self, laid: _Laid, context: JobContext, run_id: str, ids: Sequence[str], again: int = 0
    ) -> tuple[int, int]:
        """Runs the plan from where it is, laid out anew after each phase, as nodes may have joined or gone."""
        execution = self.config.execution
        done, nodes, chosen = laid.done, laid.nodes, laid.chosen
        drawn = ranked = 0
        while rest := laid.plan[done:]:
            if done > laid.done:
                layout.release_nodes(execution.wait_for_nodes_s)
                nodes = seats.alive_nodes()
                if not chosen.phases[1:]:  # one that was begun before: nothing was planned behind it
                    nodes = layout.wait_for_nodes(rest, execution.wait_for_nodes_s, self.say)
                chosen = layout.again(rest, nodes, execution.mode, laid.work_of(rest, nodes), chosen)
            stages_, sizes = chosen.phases[0], chosen.sizes[0]
            last = not again and len(stages_) == len(rest)
            phase = Phase(stages_, sizes, laid.work_of(stages_, nodes), done, last, again)
            images, rows = self._run_phase(phase, context, run_id, ids)
            drawn, ranked, done = drawn + images, rows, phase.end
        return drawn, ranked

    def _run_phase(
        self, phase: Phase, context: JobContext, run_id: str, ids: Sequence[str]
    ) -> tuple[int, int]:
        """Runs a phase over the prompts that it has not finished, and marks it done; how many pictures and rows."""
        config, output, say = self.config, self.output, self.say
        output.make(*phase.sink)
        output.make(*phase.checkpoint)
        finished = set(place.mended_ids(output, phase.sink, phase.checkpoint))
        left = [row_id for row_id in ids if row_id not in finished]
        if finished:
            say(f"resuming: {len(finished):,} of {len(ids):,} prompts are finished, {len(left):,} remain")
        if phase.before or not phase.last:
            say(f"phase: {', '.join(stage.target.name for stage in phase.stages)}")
        totals = {
            (stage.kind, stage.target.name): self.held.missing(stage, config.k, left)
            for stage in phase.stages
        }
        keep = functools.partial(running.keep_usage, output, run_id)
        note = functools.partial(running.keep_progress, output)
        every_s = config.execution.report_interval_s
        before = running.kept_usage(output, run_id)
        with Reporter(context.meter, output.uri, totals, every_s, config.prices, keep, before, note):
            if left:
                self._stream(phase, context, left)
        if not phase.last and not phase.again:
            output.write_text(f"_work/done-{phase.name}", "\n".join(one.target.name for one in phase.stages))
        if phase.before and not phase.last:
            output.remove(*phase.source)
        return sum(count for (kind, _), count in totals.items() if kind == "generator"), len(left)

    def _stream(self, phase: Phase, context: JobContext, left: Sequence[str]) -> None:
        """One Ray Data pipeline: read -> the phase's stages -> write, checkpointed by row; files of which nothing is
        `left` to do are not read, as Ray Data would read them, pictures and all, to leave their rows out."""
        output = self.output
        final = None
        if phase.last:
            made = place.claimed(output)
            names = ([name for name, _ in context.generators], context.rewards)
            labels = [{name: made[f"revision.{name}"] for name in each} for each in names]
            final = schema.ranked_schema(labels[0], labels[1], details=bool(context.judges))

        def build(dataset: ray.data.Dataset) -> ray.data.Dataset:
            if self.held.path and not phase.before:
                dataset = stages.reuse_stage(dataset, self.held.without_places(), context)
            for stage, size in zip(phase.stages, phase.sizes, strict=True):
                dataset = stages.model_stage(dataset, stage, context, size)
            return stages.rank_stage(dataset, context, final) if final is not None else dataset

        source = place.files_with(output, left, *phase.source)
        arrow_args = {} if final is None else {"schema": final}
        balanced = functools.partial(
            Balance, phase.stages, replace(phase.work, rows=len(left)), context.meter
        )
        stream(source, output.fs, output, phase.sink, phase.checkpoint, build, arrow_args, balanced)


def _opening(config: SynPicConfig, prompts: int, laid: _Laid) -> str:
    """What a job is about to do, for how much as far as that is known: all nodes for all of the expected time."""
    drawn = ", ".join(
        f"{one.label} x {one.samples}" if one.samples > 1 else one.label for one in config.generators
    )
    rewards = [one.label for one in config.scorers]
    lines = [
        f"{prompts:,} prompts x {config.k} candidates x {len(rewards)} rewards; {laid.chosen.explanation}",
        f"  draws     {drawn}",
        f"  ranks     {', '.join(rewards) or 'nothing'}",
    ]
    hourly = sum(node.gpus for node in laid.nodes) * config.prices.gpu_usd_per_hour
    hourly = hourly or sum(node.cpus for node in laid.nodes) * config.prices.cpu_usd_per_hour
    if laid.chosen.seconds is not None and hourly:
        usd = hourly * laid.chosen.seconds / 3600
        lines.append(f"  expects   {words.hours(laid.chosen.seconds)}, {words.money(usd)} for all nodes")
    return "\n".join(lines)


def _context(config: SynPicConfig, given: PromptsAndJudges, output: Output, meter: Any) -> JobContext:
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
        least=_least(config),
        judges=tuple(given.judges),
        item_timeout_s=config.execution.item_timeout_s,
    )


def _least(config: SynPicConfig) -> dict[str, float]:
    """The thresholds of those scorers that have one."""
    given = {choice.label: getattr(choice, "least", None) for choice in config.scorers}
    return {name: least for name, least in given.items() if least is not None}


def _summary(config: SynPicConfig, plan: list[Stage], output: Output, prompts: PromptsRead) -> dict[str, Any]:
    """The contents of `dataset.json`, but for what this run alone knows."""
    usage, runs = running.all_usage(output)
    failures = place.count_failures(output, [choice.label for choice in config.scorers])
    rows, told = len(prompts.rows), ("source", "read", "empty", "duplicates", "undecodable")
    stages_ = {stage.target.name: stage for stage in plan}
    made = sum(item.items for item in usage if item.kind == "generator")
    failed_images = sum(failures["by_model"].get(choice.label, 0) for choice in config.generators)
    return {
        **place.head(output, config.seed),
        "versions": place.note_versions(output),
        "prompts": {
            **{key: getattr(prompts, key) for key in told},
            "control": len(prompts.with_control),
            **({} if config.prompts.block is None else {"blocked": _blocked(prompts)}),
            "rows": rows,
            "sha256": place.prompts_digest(prompts.rows),
        },
        "generators": [_described(choice, stages_[choice.label]) for choice in config.generators],
        "rewards": [_described(choice, stages_[choice.label]) for choice in config.scorers],
        "rows": rows,
        "candidates": rows * config.k,
        "images": rows * config.k - failed_images,
        "images_made": made,
        "failures": {**failures, "tolerance": config.execution.tolerance},
        "truncated_prompts": cost.truncated_prompts(usage, rows),
        "smaller_batches": cost.smaller_batches(usage),
        "runs": runs,
        "cost": cost.ledger(usage, config.prices),
        **_withheld(config, output),
    }


def _withheld(config: SynPicConfig, output: Output) -> dict[str, Any]:
    """How candidates were left out by rewards' thresholds, and how many by each; nothing where none has one."""
    names, least = [choice.label for choice in config.scorers], _least(config)
    if not least:
        return {}
    counts = dict.fromkeys(least, 0)
    for file in output.tables("data"):
        table = pq.ParquetFile(file, filesystem=output.fs).read(
            [f"candidates.list.element.{leaf}" for leaf in ("width", "scores")]
        )
        for row in table["candidates"].to_pylist():
            for candidate in row:
                if candidate["width"] is None:
                    continue
                for name, value in least.items():
                    counts[name] += not candidate["scores"][names.index(name)] >= value
    how = {"aggregation": "win_probability", "weights": {}, "least": least}
    return {"ranking": how, "withheld": counts}


def _blocked(prompts: PromptsRead) -> dict[str, Any]:
    """How many prompts the block-list left out, by which of its words, and the first hundred of them."""
    by = collections.Counter(phrase for _, phrase in prompts.blocked)
    named = [{"prompt": prompt, "by": phrase} for prompt, phrase in prompts.blocked[:BLOCKED_NAMED]]
    return {"count": len(prompts.blocked), "by": dict(by.most_common()), "prompts": named}


def _described(choice: ModelChoice, stage: Stage) -> dict[str, Any]:
    """A model for `dataset.json`, with what is stated of its weights' licence and what it was run with; an overlay's
    interpreter is named by its pins. Of a generator also how many samples, and from whose seeds where these are not its
    own."""
    python = stage.actors.runtime_env.get("py_executable")
    found: dict[str, Any] = {"name": choice.label, "model": choice.model, "revision": stage.target.revision}
    found |= {"licence": getattr(stage.target.kwargs.get("spec"), "licence", None)}
    found |= {} if python is None else {"environment": python}
    found |= {"run_with": stage.target.run_with} if stage.target.run_with else {}
    if isinstance(choice, GeneratorChoice):
        found |= {"samples": choice.samples}
        found |= {} if choice.seed_name is None else {"seed_name": choice.seed_name}
    return found


def _remarkable(info: dict[str, Any]) -> Iterator[tuple[str, dict[str, int]]]:
    """(what, of which models how many) of what a user should know of the rows beside their failures."""
    least = "candidates left out of the ranking by a reward's `least`"
    long = "prompts longer than a model reads"
    small = "more did not fit in a device's memory, so this was computed at once (`batch_size` sets it)"
    if "withheld" in info:
        yield f"{least}, of {info['candidates']:,}", info["withheld"]
    if info["truncated_prompts"]:
        yield f"{long}, of {info['rows']:,}, of which it saw the beginning alone", info["truncated_prompts"]
    if info["smaller_batches"]:
        yield small, info["smaller_batches"]


def _prompts_line(prompts: PromptsRead) -> str:
    """`200 lines read from F: 197 prompts, 2 duplicates, 1 empty, 0 not UTF-8`."""
    cut = "; the rest is left out, as prompts.limit asks" if prompts.cut else ""
    control = prompts.with_control
    odd = f", {len(control):,} with control characters, as {control[0][:60]!r} is" if control else ""
    if prompts.blocked:
        first, phrase = prompts.blocked[0]
        odd += f", {len(prompts.blocked):,} left out by prompts.block, as {first[:60]!r} is for '{phrase}'"
    return (
        f"{prompts.read:,} lines read from {prompts.source}: {len(prompts.rows):,} prompts, "
        f"{prompts.duplicates:,} duplicates, {prompts.empty:,} empty, {prompts.undecodable:,} not UTF-8{odd}{cut}"
    )
