"""Is the memory plan of `--dry-run` right? Planned bytes beside those alive at once, model by model, on a fake device.

    python benchmarks/memory_plan [NAME...]     # no GPU, no weights: 10 to 60 s of a core for each

Each model loads and runs by its own class at full size, at its row's size, dtype and batch (two denoising steps, as a
step takes what all take); trainings are one step of RankDPO, k = 4, in bfloat16. Counted are the tensors on the device
as eager PyTorch makes and drops them: `planned` is the plan's part of that, without the share for workspaces and
fragments and without CUDA's own memory, of which only a GPU tells. Off by more than a quarter is a fault of one of
them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import runs
import trainings

from rankray.models.generators import GENERATORS
from rankray.words import table

HEADER = ["model", "dtype", "batch", "weights", "planned", "peak", "planned", "peak / planned"]


def known() -> dict[str, Callable[[Path], runs.Run]]:
    """What runs each name."""
    found: dict[str, Callable[[Path], runs.Run]] = {}
    for name, row in GENERATORS.items():
        if row.full_size and name not in runs.UNSEEN:
            found[name] = lambda place, name=name: runs.generator(name, place)
    for name in runs.REWARD_NAMES:
        found[name] = lambda place, name=name: runs.reward(name, place)
    for name in runs.ITEMS:
        found[name] = lambda place, name=name: runs.judge(name, place)
    for name in trainings.CASES:
        found[name] = lambda place, name=name: trainings.step(name, place)
    return found


def line(name: str, run: runs.Run) -> list[str]:
    """A line of the table."""
    figures = (run.weights, run.planned_weights, run.peak, run.planned)
    return [name, run.dtype, str(run.batch), *(f"{figure:.2f}" for figure in figures), f"{run.off:.2f}"]


def main() -> None:
    """Prints each line as it is known, and then the table."""
    models = known()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*models, []], metavar="NAME", help="; ".join(models))
    found = []
    for name in parser.parse_args().names or models:
        with tempfile.TemporaryDirectory() as place:
            found.append(line(name, models[name](Path(place))))
        print(*found[-1], flush=True)
    print("\nGB of 1e9 bytes", *table(HEADER, found), sep="\n")


if __name__ == "__main__":
    main()
