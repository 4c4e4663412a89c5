"""`python -m rankray.random_weights DIRECTORY [NAME...]`: checkpoints of random weights."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rankray import environments
from rankray.config import ConfigError, nearest

GENERATORS = ("sdxl", "sd3-medium", "pixart-sigma", "stable-cascade")
REWARDS = ("hpsv2.1", "mps", "pickscore", "vqascore", "imagereward", "qalign-quality")
JUDGES = ("geneval", "dpg", "compbench")
MARKER = ".complete"
USAGE_EXIT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Writes what is missing; the exit code."""
    names = (*GENERATORS, *REWARDS, *JUDGES)
    parser = argparse.ArgumentParser(prog="python -m rankray.random_weights", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names)}; all by default")
    parser.add_argument(
        "--here", action="store_true", help=argparse.SUPPRESS
    )  # within the package's environment
    options = parser.parse_args(argv)
    for name in options.names or names:
        if name not in names:
            print(f"unknown model '{name}'{nearest(name, names)}; known: {', '.join(names)}", file=sys.stderr)
            return USAGE_EXIT
        place = options.directory.expanduser().absolute() / name
        try:
            made = _made(name, place, options.here)
        except ConfigError as error:
            print(error, file=sys.stderr)
            return USAGE_EXIT
        print(f"{name}: {place}{'' if made else ' is there already'}", flush=True)
    return 0


def _made(name: str, place: Path, here: bool) -> bool:
    """Writes the checkpoint; False where it is there. One without its marker is what a kill left, and made anew."""
    from rankray.random_weights.rewards import REWARDS_MADE

    if (place / MARKER).exists():
        return False
    overlay = None if here or name not in REWARDS_MADE else REWARDS_MADE[name][1]
    if overlay is not None:
        python = environments.build(overlay, environments.spec_of(overlay)).python
        command = [python, "-m", "rankray.random_weights", str(place.parent), name, "--here"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr}")
        return True
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    _write(name, place)
    (place / MARKER).touch()
    return True


def _write(name: str, place: Path) -> None:
    import torch

    torch.manual_seed(0)
    if name in GENERATORS:
        from rankray.random_weights.pipelines import PIPELINES, awaken

        pipe = PIPELINES[name]()
        awaken(pipe)
        pipe.save_pretrained(place)
        return
    if name in JUDGES:
        from rankray.random_weights.judges import make

        make(name, place)
        return
    from rankray.random_weights.rewards import REWARDS_MADE

    REWARDS_MADE[name][0](place)


if __name__ == "__main__":
    sys.exit(main())
