"""What do the paper's models take at full size on a GPU? Images/s and memory of one model a call, then Syn-Pic's total.

    python benchmarks/full_size.py sdxl --weights /fast/disk            # and sd3-medium, pixart-sigma, stable-cascade
    python benchmarks/full_size.py pickscore --weights /fast/disk       # and hpsv2.1
    python benchmarks/full_size.py --total

Weights are random and of the published sizes, written on the first call (a minute or two); bfloat16, 1024 x 1024 and
the published steps, each through the class that a job's actors have. A call of one model ends within ten minutes and
writes its figures into one file; what is there is not measured again. `--tiny --device cpu` runs the same code on small
weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import steady
import torch
from PIL import Image

from rankray import environments
from rankray.cost import PAPER_PROMPTS
from rankray.generators import GENERATORS
from rankray.random_weights.__main__ import FULL
from rankray.random_weights.__main__ import GENERATORS as MADE
from rankray.random_weights.__main__ import main as write_weights
from rankray.random_weights.rewards import sizes
from rankray.rewards import REWARDS
from rankray.targets import Target, load

PAPER_GPU_DAYS, PAPER_USD = 10.0, 205.60
"""A100-days and dollars of the paper's 58,000 prompts, with labels (its Table 8)."""
RESULTS = Path(__file__).parent / "results" / "full-size.json"
PROMPT = "an old mill by a river, two red kites above it, late light"
# What small pipelines need beside their weights, as in jobs/synpic-tiny.toml.
SMALL: dict[str, dict[str, Any]] = {
    "pixart-sigma": {"call": {**GENERATORS["pixart-sigma"].call, "use_resolution_binning": False}},
    "stable-cascade": {
        "after_load": {
            "prior_pipe": {"resolution_multiple": 8.0},
            "decoder_pipe": {"latent_dim_scale": 2.0},
        }
    },
}


def model_of(name: str, options: argparse.Namespace) -> tuple[Any, Any, float]:
    """(its row as it is run, the model, seconds that loading took)."""
    place = options.weights / name
    changes: dict[str, Any] = {"source": str(place), "dtype": options.dtype}
    if options.batch_size:
        changes["batch_size"] = options.batch_size
    if name in MADE:
        row = replace(GENERATORS[name], variant=None, **changes)
        if options.tiny:
            row = replace(row, height=64, width=64, **SMALL.get(name, {}))
    else:
        row = replace(REWARDS[name], **changes)
        paths = {"processor": str(place)} if "processor" in row.options else {}
        row = replace(row, options={**row.options, **(sizes(name, place) if options.tiny else paths)})
    begin_s = time.perf_counter()
    model = load(Target(name, row.target, {"spec": row}), options.device)
    return row, model, time.perf_counter() - begin_s


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One model in this process: rate of whole batches after one for warming up, and peak memory."""
    row, model, load_s = model_of(name, options)
    done = 0

    def batch() -> None:
        nonlocal done
        if name in MADE:
            model.generate([PROMPT] * row.batch_size, range(done, done + row.batch_size))
        else:
            model.score(pictures, [PROMPT] * row.batch_size)
        done += row.batch_size

    rng = np.random.default_rng(0)
    side = 64 if options.tiny else 1024
    shown = rng.integers(0, 255, (row.batch_size, side, side, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels) for pixels in shown]
    on_gpu = options.device.startswith("cuda")
    first_s = _timed(batch, on_gpu)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    batches_s: list[float] = []
    while len(batches_s) < options.batches and (not batches_s or sum(batches_s) + first_s < options.seconds):
        batches_s.append(_timed(batch, on_gpu))
    return {
        "kind": "generator" if name in MADE else "reward",
        "images_per_s": row.batch_size * len(batches_s) / sum(batches_s),
        "batches_s": batches_s,
        "first_batch_s": first_s,
        "load_s": load_s,
        "batch_size": row.batch_size,
        "dtype": row.dtype,
        "size": "tiny" if options.tiny else "full",
        "steps": getattr(row, "steps", None),
        "pixels": side,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
    }


def _timed(work: Callable[[], None], on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    begin_s = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - begin_s


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """`measure` in the environment that has the model's package; its weights are there first."""
    arguments = [str(options.weights), name, "--size", "tiny" if options.tiny else "full"]
    with contextlib.redirect_stdout(sys.stderr):
        if write_weights(arguments):
            sys.exit(f"the weights of {name} cannot be written")
    overlay = None if name in MADE else REWARDS[name].environment
    if overlay is None:
        return measure(name, options)
    python = environments.build(overlay, environments.spec_of(overlay), lambda line: None).python
    command = [python, __file__, name, "--here", *(["--tiny"] if options.tiny else [])]
    for key in ("weights", "device", "dtype", "batches", "seconds"):
        command += [f"--{key}", str(getattr(options, key))]
    command += ["--batch-size", str(options.batch_size)] if options.batch_size else []
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        sys.exit(ended.returncode)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def total(found: dict[str, dict[str, Any]], usd_per_hour: float) -> list[str]:
    """Lines: GPU-days and dollars of the paper's dataset at the rates that were measured, and what is not in them."""
    small = [name for name, row in found.items() if row["size"] == "tiny"]
    if small:
        return [f"small weights of {', '.join(small)}: whether the code runs, and no figures to add up"]
    days: dict[str, float] = {}
    for name, row in found.items():
        images = PAPER_PROMPTS * (1 if row["kind"] == "generator" else len(MADE))
        days[name] = images / row["images_per_s"] / 86_400
    lines = [f"{name}: {value:.2f} GPU-days" for name, value in days.items()]
    usd = sum(days.values()) * 24 * usd_per_hour
    lines.append(
        f"{PAPER_PROMPTS:,} prompts x {len(MADE)}: {sum(days.values()):.2f} GPU-days, ${usd:,.2f} at "
        f"${usd_per_hour:g} an hour; the paper: {PAPER_GPU_DAYS:g} A100-days, ${PAPER_USD:.2f}"
    )
    missing = [
        name
        for name in (*MADE, "hpsv2.1", "pickscore", "imagereward", "mps", "vqascore")
        if name not in found
    ]
    if missing:
        lines.append(f"not measured, and not in the sum: {', '.join(missing)}")
    return lines


def arguments() -> argparse.Namespace:
    """Options; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(FULL))
    parser.add_argument("--full", action="store_true", help=argparse.SUPPRESS)  # as generation.py is called
    parser.add_argument(
        "--weights", type=Path, default=Path("~/rankray/full"), help="where checkpoints are kept"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--tiny", action="store_true", help="small weights: whether the code runs, and no figures"
    )
    parser.add_argument("--batch-size", type=int, help="the model's row's by default")
    parser.add_argument("--batches", type=int, default=5, help="at most, after one for warming up")
    parser.add_argument("--seconds", type=float, default=240.0, help="no batch begins that would end later")
    parser.add_argument("--usd-per-hour", type=float, default=1.79, help="of one GPU")
    parser.add_argument("--total", action="store_true", help="add up what was measured")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where figures are kept, model by model")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    found = parser.parse_args()
    found.weights = found.weights.expanduser().absolute()
    for name in found.models:
        if name not in FULL:
            parser.error(f"unknown model '{name}'; known: {', '.join(FULL)}")
    if found.device.startswith("cuda") and found.models and not torch.cuda.is_available():
        parser.error("there is no CUDA here; --tiny --device cpu shows whether the code runs")
    if not found.models and not found.total:
        parser.error("name a model, or ask for the --total")
    return found


def main() -> None:
    """Measures what is named and is not there yet; writes after each model."""
    options = arguments()
    if options.here:
        print(json.dumps(measure(options.models[0], options)))
        return
    held = json.loads(options.json.read_text()) if options.json.exists() else {"models": {}}
    for name in options.models:
        if name in held["models"] and not options.again:
            print(f"{name}: measured already", flush=True)
            continue
        row = measured(name, options) | steady.provenance()
        held["models"][name] = row
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(held, indent=1) + "\n")
        memory = "" if row["peak_memory_gb"] is None else f", {row['peak_memory_gb']:.1f} GB at most"
        print(f"{name}: {row['images_per_s']:.3g} images/s at batch {row['batch_size']}{memory}", flush=True)
    if options.total:
        print("\n".join(total(held["models"], options.usd_per_hour)))


if __name__ == "__main__":
    main()
