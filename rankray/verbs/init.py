"""`rankray init SET DIR`: configurations to begin from, as they are shipped and tested.

They are the files of the repository's `jobs/`, which the wheel carries as `rankray/jobs`: there is no second copy to
drift. The price is that a comment in one may name another by the name that it has there.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import rankray
from rankray.config import ConfigError, nearest
from rankray.verbs import Answer, parser_of, say

SETS: dict[str, tuple[str, dict[str, str]]] = {
    "shapes": (
        "small embedded models, nothing to download: minutes on two cores",
        {
            "align.toml": "align-demo.toml",
            "synpic.toml": "synpic-shapes-train.toml",
            "rankdpo.toml": "rankdpo-shapes.toml",
            "evaluate.toml": "evaluate-shapes.toml",
            "ablate.toml": "ablate-shapes.toml",
        },
    ),
    "one-gpu": (
        "public models and LoRA on one GPU of 24 GB",
        {"align.toml": "align-one-gpu.toml", "synpic.toml": "synpic-one-gpu.toml"},
    ),
    "paper": (
        "the paper's four generators, five rewards, SDXL and SD3-Medium, on A100s of 80 GB",
        {
            "synpic.toml": "synpic.toml",
            "rankdpo-sdxl.toml": "rankdpo-sdxl.toml",
            "rankdpo-sd3.toml": "rankdpo-sd3.toml",
            "evaluate.toml": "evaluate.toml",
        },
    ),
}
"""Name -> (what it is for, file to write -> file of `jobs/`)."""


def run(verb: str, argv: Sequence[str]) -> Answer:
    """Writes a set.

    Raises:
        ConfigError: no such set (nearest named), files of these names are there, or the place cannot be written.
    """
    options = parser(verb).parse_args(argv)
    if options.set not in SETS:
        raise ConfigError(f"no set '{options.set}'{nearest(options.set, SETS)}; there are: {', '.join(SETS)}")
    files, folder = SETS[options.set][1], Path(options.directory).expanduser()
    there = [name for name in files if (folder / name).exists()]
    if there:
        raise ConfigError(
            f"{folder.absolute()} has {', '.join(there)} already; nothing was written, take another place"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, source in files.items():
            (folder / name).write_text(shipped(source), "utf-8")
    except OSError as error:
        raise ConfigError(
            f"{folder.absolute()} cannot be written ({error.strerror}); take another place"
        ) from None
    say(f"{folder.absolute()}: {', '.join(files)}")
    first = next(iter(files))
    shown = os.path.relpath(folder / first)
    job = first.partition(".")[0].partition("-")[0]
    say(f"next: rankray doctor --config {shown}\n      rankray {job} --config {shown}")
    return Answer(found={"directory": str(folder.absolute()), "files": list(files)})


def parser(verb: str) -> argparse.ArgumentParser:
    """The options of the verb."""
    sets = "\n".join(f"  {name:<9}{what}: {', '.join(files)}" for name, (what, files) in SETS.items())
    found = parser_of(
        verb,
        "shapes . && rankray align --config align.toml",
        description="Writes commented configurations, ready to run. What is there is not overwritten.",
        more=f"sets:\n{sets}",
    )
    found.add_argument("set", metavar="SET", help=", ".join(SETS))
    found.add_argument("directory", metavar="DIR", nargs="?", default=".", help="where to; here by default")
    return found


def shipped(name: str) -> str:
    """The text of a file of `jobs/`: of the wheel's, or of the checkout's."""
    package = Path(rankray.__file__).parent
    places = (package / "jobs" / name, package.parent / "jobs" / name)
    return next(place for place in places if place.is_file()).read_text("utf-8")
