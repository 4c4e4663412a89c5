"""Is the memory plan of `--dry-run` right? Planned bytes beside those alive at once, model by model, on a fake device.

    python benchmarks/memory_plan.py [MODEL...]     # no GPU, no weights: half a minute of a core for a generator

Each model loads and runs by its own class at full size, at its row's size, dtype and batch (two denoising steps, as a
step takes what all take). Counted are the tensors on the device as eager PyTorch makes and drops them: `planned` is
the plan's part of that, without the share for workspaces and fragments and without CUDA's own memory, of which only a
GPU tells. Off by more than a quarter is a fault of one of them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from rankray import demand
from rankray.fake_cuda import fake_cuda
from rankray.forecast_text import table
from rankray.generators import GENERATORS
from rankray.random_weights import full_size
from rankray.rewards import REWARDS
from rankray.targets import Target, load

HEADER = ["model", "dtype", "batch", "weights", "planned", "peak", "planned", "peak / planned"]


def generator(name: str, place: Path) -> list[str]:
    """A generator's line of the table, from a hollow checkpoint in `place`."""
    row = GENERATORS[name]
    full_size.generator(str(row.full_size), place, hollow=True)
    call = {key: 2 if key == "num_inference_steps" else value for key, value in row.call.items()}
    spec = replace(row, source=str(place), variant=None, steps=min(row.steps, 2), call=call)
    with fake_cuda(answer=True) as device:
        model = load(Target(name, spec.target, {"spec": spec}), "cuda")
        weights = device.now
        model.generate(["a red kite over an old mill"], [1])
    return measured(name, spec, weights, device.peak)


def reward(name: str, place: Path) -> list[str]:
    """A reward's line."""
    row = REWARDS[name]
    spec = replace(row, source=str(place), options={**row.options, **full_size.HOLLOW_REWARDS[name](place)})
    with fake_cuda() as device:
        model = load(Target(name, spec.target, {"spec": spec}), "cuda")
        weights = device.now
        prompts = [f"prompt {n}" for n in range(spec.batch_size)]
        model.score([Image.new("RGB", (1024, 1024))] * spec.batch_size, prompts)
    return measured(name, spec, weights, device.peak)


def measured(name: str, spec: Any, weights: int, peak: int) -> list[str]:
    """Bytes alive beside bytes planned, in GB."""
    plan = demand.footprint(Target(name, spec.target, {"spec": spec}))
    due = plan.allocated_gb(spec.batch_size)
    figures = (weights / 1e9, plan.weights_gb, peak / 1e9, due)
    return [
        name,
        spec.dtype,
        str(spec.batch_size),
        *(f"{figure:.2f}" for figure in figures),
        f"{peak / 1e9 / due:.2f}",
    ]


def rows(names: list[str]) -> Iterator[list[str]]:
    """Model by model."""
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            yield (generator if name in GENERATORS else reward)(name, Path(place))


def main() -> None:
    """Prints each line as it is known, and then the table."""
    known = [*(name for name, row in GENERATORS.items() if row.full_size), *full_size.HOLLOW_REWARDS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*known, []], metavar="MODEL", help=", ".join(known))
    found = []
    for row in rows(parser.parse_args().names or known):
        found.append(row)
        print(*row, flush=True)
    print("\nGB of 1e9 bytes", *table(HEADER, found), sep="\n")


if __name__ == "__main__":
    main()
