"""Is the tuned model better? Held-out prompts of the shapes world, two fixed seeds each, against the exact checker.

python jobs/synpic.py --config jobs/synpic-shapes-train.toml --output /data/train
python jobs/rankdpo.py --config jobs/rankdpo-shapes.toml --dataset /data/train --output /data/run
python benchmarks/alignment.py --work /data/evaluation /data/run [/data/another ...] [--json FILE]

Every model draws the same prompts from the same seeds, so the difference is paired; intervals are bootstrapped over
prompts. Neither rewards nor training have seen the checker or these prompts. 970 pictures a model take a minute.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import ray
import steady

from rankray import config
from rankray.config import SynPicConfig
from rankray.evals import scores as evaluation
from rankray.synpic import job as synpic

CONFIG = Path(__file__).parents[1] / "jobs" / "synpic-shapes.toml"
SEED = 1


def draw(place: Path, model: str, source: str | None) -> str:
    """Pictures of all held-out prompts, two each; the dataset's place."""
    tables = config.read_toml(CONFIG)
    choice: dict[str, Any] = {"model": model, "name": "model", "samples": 2}
    if source is not None:
        choice["source"] = source
    changes = {
        "output": str(place),
        "seed": SEED,
        "generators": [choice],
        "prompts": {"path": "shapes:heldout"},
    }
    settings = config.build(SynPicConfig, {**tables, **changes})
    return synpic.run(settings, say=lambda line: None).path


def main() -> None:
    """Draws, compares, prints, and writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="what jobs/rankdpo.py wrote")
    parser.add_argument("--work", type=Path, required=True, help="where pictures are kept")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    found = {}
    for run in options.runs:
        info = json.loads((run / "run.json").read_text())
        model = info["identity"]["model.model"]
        before = draw(options.work / f"before-{model}", model, info["identity"]["model.source"])
        after = draw(options.work / f"after-{run.name}", model, str(run / "pipeline"))
        gain = evaluation.difference(before, after)
        found[run.name] = {
            "model": model,
            "gain": gain,
            "cpu_minutes": info["throughput"]["cpu_minutes"],
            "settings": {key: info[key] for key in ("loss", "beta", "steps", "zero_stage", "lora_rank")},
        }
        print(
            f"\n{run.name} ({model}, {found[run.name]['cpu_minutes']:.1f} CPU minutes)\n{evaluation.table(gain)}"
        )
    if options.json is not None:
        options.json.write_text(json.dumps({"runs": found, **steady.provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
