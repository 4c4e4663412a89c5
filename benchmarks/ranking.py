"""Is the ranking right? A ranked dataset of the shapes world against its exact checker, which no reward has seen.

python jobs/synpic.py --config jobs/synpic-shapes.toml --prompts.limit 485 --output /data/heldout
python benchmarks/ranking.py /data/heldout [--json FILE]

Among prompts of which some candidates pass the checker and some fail, the first-ranked should pass more often than a
candidate drawn at random. Everything is read from the dataset: nothing is drawn or scored again, 0.7 ms a picture.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import steady
from PIL import Image

from rankray import store
from rankray.shapes import category, check
from recipes.shapes.rewards_evaluation import agreement, table


def read(path: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows in the order of their ids, without those that have a failed candidate or score; names of the rewards."""
    dataset = store.read(path)
    whole = [row for row in dataset.rows(images=True) if all(c["error"] is None for c in row["candidates"])]
    names = [reward["name"] for reward in dataset.info["rewards"]]
    return sorted(whole, key=lambda row: row["prompt_id"]), names


def passes(row: dict[str, Any]) -> list[bool]:
    """Which candidates show the prompt."""
    pictures = [Image.open(io.BytesIO(c["image"]["bytes"])).convert("RGB") for c in row["candidates"]]
    return [check(np.asarray(picture), row["prompt"]) for picture in pictures]


def by_generator(rows: list[dict[str, Any]], passed: np.ndarray) -> dict[str, dict[str, float]]:
    """For each generator the share of its pictures that pass, its mean win probability, and first places."""
    names = [c["generator"] for c in rows[0]["candidates"]]
    phi = np.array([[c["win_probability"] for c in row["candidates"]] for row in rows])
    first = np.array([[c["rank"] == 1 for c in row["candidates"]] for row in rows])
    found = {}
    for name in dict.fromkeys(names):
        own = [i for i, other in enumerate(names) if other == name]
        found[name] = {
            "passes": float(passed[:, own].mean()),
            "win_probability": float(phi[:, own].mean()),
            "first": float(first[:, own].any(axis=1).mean()),
        }
    return found


def gain_over_chance(rows: list[dict[str, Any]], passed: np.ndarray) -> tuple[float, float, int]:
    """How much more often the first-ranked passes than a random candidate of the same prompt; its standard error."""
    mixed = passed.any(axis=1) & ~passed.all(axis=1)
    first = np.array([[c["rank"] for c in row["candidates"]] for row in rows]).argmin(axis=1)
    difference = passed[np.arange(len(rows)), first].astype(float) - passed.mean(axis=1)
    part = difference[mixed]
    return float(part.mean()), float(part.std(ddof=1) / len(part) ** 0.5), int(mixed.sum())


def main() -> None:
    """Reads, checks, prints, and writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="what jobs/synpic.py wrote for shapes prompts")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    rows, names = read(options.dataset)
    passed = np.array([passes(row) for row in rows])
    scores = np.array([[c["scores"] for c in row["candidates"]] for row in rows])
    found = agreement(
        {name: scores[..., i] for i, name in enumerate(names)},
        passed,
        [category(row["prompt"]) for row in rows],
    )
    generators = by_generator(rows, passed)
    gain, error, mixed = gain_over_chance(rows, passed)
    print("| generator | passes | mean win probability | ranked first |\n|---|---|---|---|")
    for name, row in generators.items():
        print(f"| {name} | {row['passes']:.1%} | {row['win_probability']:.3f} | {row['first']:.1%} |")
    print(f"\n{table(found, {name: row['passes'] for name, row in generators.items()})}\n")
    print(
        f"{len(rows)} prompts, {mixed} of them mixed: the first-ranked passes {100 * gain:+.1f} ± {100 * error:.1f}"
    )
    print("points more often than a random candidate")
    if options.json is not None:
        result = {"gain": gain, "standard_error": error, "mixed": mixed, "prompts": len(rows)}
        full = {**result, "generators": generators, "pairwise": found.pairwise, "first": found.first}
        options.json.write_text(json.dumps({**full, **steady.provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
