"""`python -m recipes.random_weights DIRECTORY [NAME...] [--size full]`: checkpoints of random weights."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rankray.config import ConfigError, nearest
from rankray.models import environments

GENERATORS = ("sdxl", "sd3-medium", "pixart-sigma", "stable-cascade")
REWARDS = ("hpsv2.1", "mps", "pickscore", "vqascore", "imagereward", "qalign-quality")
JUDGES = ("geneval", "dpg", "compbench")
FULL = (*GENERATORS, "hpsv2.1", "pickscore")
"""What can be had at its published size; VQAScore's 11 billion parameters cannot."""
MARKER = ".complete"
USAGE_EXIT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Writes what is missing; the exit code."""
    names: tuple[str, ...] = (*GENERATORS, *REWARDS, *JUDGES)
    parser = argparse.ArgumentParser(prog="python -m recipes.random_weights", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names)}; all by default")
    parser.add_argument(
        "--size", choices=("tiny", "full"), default="tiny", help="full: 2 to 16 GB each; name them"
    )
    parser.add_argument(
        "--here", action="store_true", help=argparse.SUPPRESS
    )  # within the package's environment
    options = parser.parse_args(argv)
    if options.size == "full":
        names = FULL
        if not options.names:
            print(f"--size full: name the models, of {', '.join(FULL)}", file=sys.stderr)
            return USAGE_EXIT
    for name in options.names or names:
        if name not in names:
            print(f"unknown model '{name}'{nearest(name, names)}; known: {', '.join(names)}", file=sys.stderr)
            return USAGE_EXIT
        place = options.directory.expanduser().absolute() / name
        try:
            made = _made(name, place, options.size, options.here)
        except ConfigError as error:
            print(error, file=sys.stderr)
            return USAGE_EXIT
        print(f"{name}: {place}{'' if made else ' is there already'}", flush=True)
    return 0


def _made(name: str, place: Path, size: str, here: bool) -> bool:
    """Writes the checkpoint; False where it is there. One without its marker is what a kill left, and made anew.

    Raises:
        ConfigError: one of another size is there, or the disk has no room for it.
    """
    from recipes.random_weights.rewards import REWARDS_MADE

    if (place / MARKER).exists():
        held = (place / MARKER).read_text() or "tiny"
        if held != size:
            raise ConfigError(f"{place} holds a {held} checkpoint, not a {size} one; take another directory")
        return False
    if size == "full":
        _look_for_room(name, place)
    overlay = None if here or name not in REWARDS_MADE else REWARDS_MADE[name][1]
    if overlay is not None:
        python = environments.build(overlay, environments.spec_of(overlay)).python
        command = [python, "-m", "recipes.random_weights", str(place.parent), name, "--size", size, "--here"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr}")
        return True
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    _write(name, place, size)
    (place / MARKER).write_text("" if size == "tiny" else size)
    return True


def _look_for_room(name: str, place: Path) -> None:
    from recipes.random_weights import full_size

    place.parent.mkdir(parents=True, exist_ok=True)
    due, free = full_size.bytes_of(name), shutil.disk_usage(place.parent).free
    if due > free:
        raise ConfigError(
            f"{name} takes {due / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB free; take another disk"
        )


def _write(name: str, place: Path, size: str) -> None:
    import torch

    torch.manual_seed(0)
    if size == "full":
        from recipes.random_weights import full_size

        if name in GENERATORS:
            full_size.generator(name, place)
        else:
            full_size.REWARDS_FULL[name][0](place)
        return
    if name in GENERATORS:
        from recipes.random_weights.pipelines import PIPELINES, awaken

        pipe = PIPELINES[name]()
        awaken(pipe)
        pipe.save_pretrained(place)
        return
    if name in JUDGES:
        from recipes.random_weights.judges import make

        make(name, place)
        return
    from recipes.random_weights.rewards import REWARDS_MADE

    REWARDS_MADE[name][0](place)


if __name__ == "__main__":
    sys.exit(main())
