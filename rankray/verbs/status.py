"""`rankray status OUTPUT`: how far a job is, read from what it leaves in its output; no Ray is asked.

So it answers from any terminal or machine that sees the output, an object store's too, and of a job that was killed.
A job runs while its mark says so (`data.owner`), however long an item or a step takes. The price: of another machine's
process, or one that is stopped, that is known by a file's date alone, `QUIET_S` late and by the place's clock.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.fs as pafs

from rankray import store, words
from rankray.config import ConfigError, PricesConfig, parse_toml
from rankray.data import cost, place, running
from rankray.data import owner as owners
from rankray.data.place import MARKERS, Output
from rankray.verbs import Answer, painted, parser_of, say

PARTS = ("evaluation/*", "round-*/synpic", "round-*/rankdpo", "sets/*/*", "synpic", "trials/*")
"""Jobs within a job: of alignments, evaluations, ablations."""

CONFIGURED = {"dataset": "training", "objectives": "ablation", "evals": "evaluation"}
"""What an unfinished output is, by a key that its configuration alone has."""

UNFINISHED = (
    ("trials", "ablation"),
    ("sets", "evaluation"),
    ("round-1", "alignment"),
    ("evaluation", "alignment"),
)
"""What one without a configuration is, by a folder in it."""

QUIET_S = 60.0
WATCH_S = 5.0
DAY_S = 86400.0
RECENT_STEPS = 20
GREEN, YELLOW = 32, 33


def run(verb: str, argv: Sequence[str]) -> Answer:
    """Prints how far the job is, again and again with `--watch` until it is finished.

    Raises:
        ConfigError: nothing of ours is there, or the place cannot be read; or no time between two looks.
    """
    options = parser(verb).parse_args(argv)
    if not 0 < options.every <= DAY_S:
        raise ConfigError(f"--every {options.every:g}: give seconds, above 0 and at most {DAY_S:g}")
    found: dict[str, Any] = {}
    try:
        while True:
            with place.as_written(store.absolute(options.output)):
                found = status(options.output)
                lines = list(_lines(found))
            if options.watch and sys.stdout.isatty():
                print("\033[2J\033[H", end="")
            for line in lines:
                say(line)
            if not options.watch or found["state"] == "finished":
                return Answer(found=found)
            time.sleep(options.every)
    except KeyboardInterrupt as stopped:
        if not options.watch or stopped.args:  # by SIGTERM, whose exit code is its own (`endings.Stopped`)
            raise
        say("\nno longer looking; the job itself is not touched")
        return Answer(found=found)


def parser(verb: str) -> argparse.ArgumentParser:
    """The options of the verb."""
    found = parser_of(
        verb,
        "s3://bucket/synpic --watch",
        description="How far the job of an output is: done of total, rates, failures, time left, dollars so far.",
    )
    found.add_argument("output", metavar="OUTPUT", help="the directory or URI that the job was given")
    found.add_argument("--watch", action="store_true", help="look again until the job is finished")
    found.add_argument(
        "--every", type=float, default=WATCH_S, metavar="X", help=f"seconds between; {WATCH_S:g}"
    )
    return found


def status(uri: str) -> dict[str, Any]:
    """What is known of an output, JSON-ready.

    Returns:
        `output`, `kind`, `state` ("finished", "running", "quiet": nobody is at work on it), `usd` (of all parts, None
        where nothing tells), `last_word_s` (seconds since the job wrote), `owner`, and what `_part` finds; `parts` of a
        job of several jobs.

    Raises:
        ConfigError: nothing of ours is there, or it cannot be read.
    """
    try:
        output = place.open_output(uri, in_job=False)
        found = _part(output)
        parts = {name: _part(part) for name, part in _parts(output)}
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{store.absolute(uri)} cannot be read ({error}); give a job's output") from None
    kind = found["kind"] or next((kind for name, kind in UNFINISHED if output.exists(name)), None)
    if kind is None:
        raise ConfigError(f"{output.uri}: no job's output is there, finished or begun")
    if parts:
        spent = [part["usd"] for part in parts.values() if part["usd"] is not None]
        words_s = [part["last_word_s"] for part in parts.values() if part["last_word_s"] is not None]
        own = sum(spent) if spent else None
        found = {**found, "usd": own, "last_word_s": min(words_s, default=None), "parts": parts}
    return {"output": output.uri, **found, "kind": kind, "owner": owner(output)}


def owner(output: Output) -> dict[str, Any] | None:
    """Who is at work on the output, and the command that ends it; None where no mark says so."""
    holder = owners.of(output)
    return None if holder is None else {"who": str(holder), "stop": holder.remedy, "alive": holder.alive()}


def _parts(output: Output) -> Iterator[tuple[str, Output]]:
    for pattern in PARTS:
        names = [""]
        for word in pattern.split("/"):
            names = [
                f"{name}/{leaf}".strip("/")
                for name in names
                for leaf in _folders(output, name)
                if leaf == word or (word.endswith("*") and leaf.startswith(word[:-1]))
            ]
        for name in names:
            part = Output(output.uri_of(name), output.fs, output.at(name))
            if any(part.exists(known) for known in (*MARKERS, "_work", "metrics.jsonl")):
                yield name, part


def _folders(output: Output, name: str) -> list[str]:
    selector = pafs.FileSelector(output.at(name).rstrip("/"), allow_not_found=True)
    infos = output.fs.get_file_info(selector)
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


def _part(output: Output) -> dict[str, Any]:
    """One job: kind (None: unknown), state, usd, failures; while it runs `models`, or `step` and `steps`."""
    marker = next((name for name in MARKERS if output.exists(name)), None)
    if marker is not None:
        info = store.read_json(output.at(marker), output.fs)
        # Somebody at work there measures further models into it, or trains further rounds.
        if info.get("complete", True) and not owners.lives(output, QUIET_S):
            return {"kind": MARKERS[marker], "state": "finished", "last_word_s": None, **_finished(info)}
    settings = _settings(output)
    if output.exists("metrics.jsonl"):
        return _training(output, settings)
    kind = _begun(output, settings) if marker is None else MARKERS[marker]
    found: dict[str, Any] = {"kind": kind, "prompts": None, "models": []}
    if output.exists("_work", "staged.json"):
        found["prompts"] = store.read_json(output.at("_work", "staged.json"), output.fs)["rows"]
    seen = running.progress(output)
    last_s = None if seen is None else max(0.0, time.time() - seen["at"])
    for model in seen["models"] if seen else ():
        left = model["total"] - model["done"]
        left_s = 0.0 if left <= 0 else left / model["rate_per_s"] if model["rate_per_s"] > 0 else None
        found["models"].append({**model, "left_s": left_s})
    usage, _ = running.all_usage(output)
    usd = cost.ledger(usage, PricesConfig(**settings.get("prices", {})))["totals"]["usd"] if usage else None
    failures = sum(model["failures"] for model in found["models"])
    return {**found, "state": _state(output), "last_word_s": last_s, "usd": usd, "failures": failures}


def _begun(output: Output, settings: dict[str, Any]) -> str | None:
    """The kind of a job that is not finished; None where nothing at this level tells."""
    known = next((kind for key, kind in CONFIGURED.items() if key in settings), None)
    return known or ("dataset" if output.exists("_work") else None)


def _state(output: Output) -> str:
    return "running" if owners.lives(output, QUIET_S) else "quiet"


def _finished(info: dict[str, Any]) -> dict[str, Any]:
    """The counts of a finished job that its marker has."""
    bill = info.get("cost", {})
    usd = bill.get("usd", bill.get("totals", {}).get("usd"))
    failures = info["failures"]["total"] if isinstance(info.get("failures"), dict) else 0
    named = {key: info.get(key) for key in ("rows", "images", "steps")}
    counts = {
        key: count for key, count in named.items() if isinstance(count, int)
    }  # an ablation's rows are a table's
    return {**counts, "usd": usd, "failures": failures}


def _settings(output: Output) -> dict[str, Any]:
    """The resolved configuration; empty where it is not written yet."""
    if not output.exists("config.toml"):
        return {}
    with output.fs.open_input_stream(output.at("config.toml")) as stream:
        return parse_toml(stream.read(), output.uri_of("config.toml"))


def _training(output: Output, settings: dict[str, Any]) -> dict[str, Any]:
    """A training by its `metrics.jsonl`, which is written every ten seconds."""
    lines = store.read_json_lines(output.at("metrics.jsonl"), output.fs)
    written = output.fs.get_file_info(output.at("metrics.jsonl")).mtime
    last_s = None if written is None else max(0.0, time.time() - written.timestamp())
    line, steps = lines[-1] if lines else {}, settings.get("steps")
    recent = [found["step_s"] for found in lines[-RECENT_STEPS:] if "step_s" in found]
    left_s = (steps - line.get("step", 0)) * sum(recent) / len(recent) if recent and steps else None
    return {
        "kind": "training",
        "state": _state(output),
        "last_word_s": last_s,
        "step": line.get("step", 0),
        "steps": steps,
        "left_s": left_s,
        "failures": line.get("skipped_steps", 0),
        **{key: line.get(key) for key in ("loss", "implicit_accuracy", "prompts_per_s", "usd")},
    }


def _lines(found: dict[str, Any]) -> Iterator[str]:
    """The status as it is printed."""
    yield f"{found['kind']} {found['output']}: {_sentence(found)}"
    if found["owner"]:
        gone = "which is gone" if found["owner"]["alive"] is False else "which gives no sign of life"
        then = f", {gone}" if found["state"] == "quiet" else f"; {found['owner']['stop']} stops it"
        yield f"held by {found['owner']['who']}{then}"
    yield from _models(found)
    width = max(map(len, found.get("parts", ())), default=0)
    for name, part in found.get("parts", {}).items():
        yield f"  {name:<{width}}  {part['kind'] or 'begun'}: {_sentence(part)}"
        yield from _models(part)
    if found["state"] == "quiet":
        yield "nobody is at work on it; the same command goes on from here"


def _sentence(part: dict[str, Any]) -> str:
    """State, counts and dollars of one job in a line."""
    colour = GREEN if part["state"] == "finished" else YELLOW
    last = "" if part["last_word_s"] is None else f", last word {words.seconds(part['last_word_s'])} ago"
    said = [painted(part["state"], colour) + last]
    if part.get("step") is not None:
        said.append(f"step {part['step']:,} of {words.number(part['steps'])}")
        said.append(f"loss {words.compact(part['loss'])}")
        said.append(f"{words.number(part['prompts_per_s'], 1)} prompts/s")
        said += [] if part["left_s"] is None else [f"{words.seconds(part['left_s'])} left"]
    said += [words.count(part["prompts"], "prompt")] if part.get("prompts") else []
    said += [f"{part[key]:,} {noun}" for key, noun in _COUNTS if part["state"] == "finished" and key in part]
    said += [f"{part['failures']:,} failed"] if part.get("failures") else []
    said += [words.money(part["usd"])] if part["usd"] is not None else []
    return ", ".join(said)


_COUNTS = (("rows", "prompts"), ("images", "images"), ("steps", "steps"))


def _models(part: dict[str, Any]) -> Iterator[str]:
    for model in part.get("models", ()):
        unit = "images" if model["kind"] == "generator" else "scores"
        left = (
            "done"
            if model["left_s"] == 0
            else f"{words.seconds(model['left_s'])} left"
            if model["left_s"]
            else "left ?"
        )
        yield (
            f"    {model['model']:<18} {model['done']:>8,}/{model['total']:,} {unit}  "
            f"{model['rate_per_s']:.1f}/s  {model['failures']:,} failed  {left}"
        )
