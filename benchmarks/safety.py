"""What a filter among a dataset's rewards does to it: whom it leaves out at which threshold, and what its vote changes.

python benchmarks/safety.py DATASET [--reward safety] [--json FILE]

Everything is reckoned from the stored scores, as `rankray rerank` does it; no model runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance

from rankray import ranking, store

LEAST = (0.5, 0.8, 0.9, 0.95, 0.99)


def effects(scores: np.ndarray, names: list[str], reward: str) -> dict[str, Any]:
    """Of scores float[rows, k, n]: what thresholds leave out, and what the vote of one reward changes."""
    place = names.index(reward)
    others = [n for n in range(len(names)) if n != place]
    own = scores[..., place]
    without = ranking.win_probability(scores[..., others])
    ranks = ranking.rank(without)
    voted = ranking.rank(ranking.win_probability(scores))
    rows = np.arange(len(scores))
    first, first_voted = (np.where(found > 0, found, found.max() + 1).argmin(1) for found in (ranks, voted))
    pairs = [(i, j) for i in range(scores.shape[1]) for j in range(i)]
    turned = np.mean([(ranks[:, i] < ranks[:, j]) != (voted[:, i] < voted[:, j]) for i, j in pairs])
    found: dict[str, Any] = {
        "first_changes": float(np.mean(first != first_voted)),
        "pairs_turned": float(turned),
        "mean": float(own.mean()),
        "mean_of_first": float(own[rows, first].mean()),
        "mean_of_first_voted": float(own[rows, first_voted].mean()),
        "least": {},
    }
    for least in LEAST:
        kept = ranking.rank(
            ranking.win_probability(ranking.admitted(scores, names, {reward: least})[..., others])
        )
        found["least"][f"{least:g}"] = {
            "left_out": int((kept == 0).sum()),
            "rows_without_a_pair": int(((kept > 0).sum(1) < 2).sum()),
            "first_left_out": int((kept[rows, first] == 0).sum()),
        }
    return found


def main() -> None:
    """Prints two tables, and writes them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("--reward", default="safety")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dataset = store.read(options.dataset)
    names = [reward["name"] for reward in dataset.info["rewards"]]
    rows = list(dataset.rows())
    scores = np.array([[one["scores"] for one in row["candidates"]] for row in rows])
    own = scores[..., names.index(options.reward)]
    drawn = np.array([[one["generator"] for one in row["candidates"]] for row in rows])
    by = {name: own[drawn == name] for name in dict.fromkeys(drawn.ravel().tolist())}
    table = {
        name: {
            "pictures": len(found),
            **dict(
                zip(
                    ("lowest", "p5", "median", "highest"),
                    np.quantile(found, (0, 0.05, 0.5, 1)).tolist(),
                    strict=True,
                )
            ),
        }
        for name, found in by.items()
    }
    print("| generator | pictures | lowest | 5 % | median | highest |\n|---|---|---|---|---|---|")
    for name, line in table.items():
        told = " | ".join(f"{line[key]:.3f}" for key in ("lowest", "p5", "median", "highest"))
        print(f"| {name} | {line['pictures']} | {told} |")
    found = effects(scores, names, options.reward)
    least = found.pop("least")
    print("\n| least | pictures left out | rows without a pair | first places left out |\n|---|---|---|---|")
    for value, line in least.items():
        print(
            f"| {value} | {line['left_out']} of {own.size} | {line['rows_without_a_pair']} | {line['first_left_out']} |"
        )
    print("\n" + json.dumps(found, indent=1))
    if options.json:
        told_all = {**provenance(), "rows": len(rows), "generators": table, "least": least, **found}
        options.json.write_text(json.dumps(told_all, indent=1) + "\n")


if __name__ == "__main__":
    main()
