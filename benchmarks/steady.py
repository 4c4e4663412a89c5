"""Steady state of a pipeline against a bare loop of the same models, interleaved in one run.

A pipeline has no moment at which "all rows so far" is a fair count: some prompts are still between stages.
So work is counted where it is done: each model's items between two moments, times the seconds that an item of
that model takes in the bare loop. The ratio is bare-loop seconds of work done in a second of the pipeline: 1.0
means that the pipeline, with its copying, encoding and scheduling, keeps up with a `for` loop in one process.

The machine's other load changes by the minute, so loop and pipeline take turns, and the loop's cost of an item
is the mean of the turns before and after each pipeline. Start-up (imports, loading) is reported apart.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from provenance import provenance

from rankray import config
from rankray.config import SynPicConfig
from rankray.synpic import job as synpic

Loop = Callable[[float], dict[str, float]]
"""Runs the models in turn for so many seconds; returns seconds an item, by model."""


@dataclass
class Samples:
    """The meter's totals through one pipeline: (seconds, model -> totals of its actors)."""

    at: list[tuple[float, dict[str, dict[str, float]]]] = field(default_factory=list)

    def window(self, models: set[str]) -> tuple[int, int]:
        """First sample at which every model has done something, and last before any has done all."""
        last = {model: self.at[-1][1][model]["items"] for model in models}
        started = next(
            i for i, (_, now) in enumerate(self.at) if all(now.get(m, {}).get("items") for m in models)
        )
        ended = next(
            i
            for i, (_, now) in enumerate(self.at)
            if any(now.get(m, {}).get("items") == last[m] for m in models)
        )
        return started, max(ended - 1, started)


def measure(settings: Mapping[str, Any], loop: Loop, rounds: int, loop_s: float) -> dict[str, Any]:
    """`rounds` pipelines between `rounds + 1` turns of the loop; the result, ready for JSON."""
    turns, pipelines = [loop(loop_s)], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as output:
            pipelines.append(_pipeline(config.build(SynPicConfig, {**settings, "output": output})))
        turns.append(loop(loop_s))
    results = [_compare(run, turns[i], turns[i + 1]) for i, run in enumerate(pipelines)]
    ratios = sorted(result["ratio"] for result in results)
    return {
        "ratio": ratios[len(ratios) // 2],
        "rounds": results,
        "loop_items_per_s": {model: 1 / cost_s for model, cost_s in turns[-1].items()},
        **provenance(),
    }


def _pipeline(settings: SynPicConfig) -> tuple[Samples, float]:
    """Runs one pipeline; its samples every 0.25 s, and the seconds until every model had loaded."""
    samples, stop, begin_s = Samples(), threading.Event(), time.perf_counter()

    def watch() -> None:
        meter = None
        while not stop.wait(0.25):
            try:
                meter = meter or ray.get_actor(f"synpic {settings.output}", namespace="rankray")
                snapshot = ray.get(meter.snapshot.remote(), timeout=5)
            except (ValueError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                continue
            now: dict[str, dict[str, float]] = {}
            for usage in snapshot:
                totals = now.setdefault(usage["model"], {"items": 0.0, "busy_s": 0.0, "load_s": 0.0})
                for key in totals:
                    totals[key] += usage[key]
            samples.at.append((time.perf_counter(), now))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    synpic.run(settings)
    stop.set()
    thread.join()
    models = {choice.label for choice in (*settings.generators, *settings.rewards)}
    loaded_s = next(at for at, now in samples.at if models <= set(now)) - begin_s
    return samples, loaded_s


def _compare(run: tuple[Samples, float], before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    samples, loaded_s = run
    cost_s = {model: (before[model] + after[model]) / 2 for model in before}
    first, last = samples.window(set(cost_s))
    (from_s, then), (to_s, now) = samples.at[first], samples.at[last]
    window_s = max(to_s - from_s, 1e-9)
    done = {model: now[model]["items"] - then[model]["items"] for model in cost_s}
    return {
        "ratio": sum(done[model] * cost_s[model] for model in done) / window_s,
        "window_s": window_s,
        "start_up_s": loaded_s,
        "items": done,
        "busy_share": {model: (now[model]["busy_s"] - then[model]["busy_s"]) / window_s for model in cost_s},
    }


def arguments(description: str | None, rows: int) -> argparse.Namespace:
    """The options of both benchmarks; also starts a Ray of two CPUs that sees the models beside this file."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=rows, help="prompts of a pipeline")
    parser.add_argument(
        "--rounds", type=int, default=3, help="pipelines; the loop runs before and after each"
    )
    parser.add_argument("--loop-s", type=float, default=20.0, help="seconds of a turn of the bare loop")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parsed = parser.parse_args()
    paths = os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parents[1])))
    environment = {"env_vars": {"PYTHONPATH": paths}}
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment
    )
    return parsed


def show(result: dict[str, Any], path: Path | None) -> None:
    """Prints the result as a person reads it, and writes it as JSON."""
    for number, row in enumerate(result["rounds"], 1):
        print(
            f"round {number}: ratio {row['ratio']:.3f} over {row['window_s']:.1f} s; start-up {row['start_up_s']:.1f} s"
        )
        for model, share in row["busy_share"].items():
            print(
                f"  {model:<18} {row['items'][model]:6.0f} items, busy {100 * share:5.1f} % of one actor's time"
            )
    print(f"median ratio {result['ratio']:.3f}  (1.0: as fast as a bare loop in one process)")
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {path}")
