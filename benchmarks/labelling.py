"""Does scoring in a Ray Data pipeline keep up with a bare loop? The three shapes rewards, two cores.

    python benchmarks/labelling.py [--rows 2000] [--rounds 3] [--json FILE]

The loop scores pictures that lie decoded in memory; the pipeline decodes each for every reward, and moves it.
"""

from __future__ import annotations

import time

import steady
from trivial import Rendered

from rankray import shapes
from rankray.config import RewardChoice
from rankray.models import rewards
from rankray.models.targets import load

MODELS = ("shapes-pickscore", "shapes-clipscore", "shapes-mps")
SAMPLES = 4


def bare_loop(batch: int) -> steady.Loop:
    """All three rewards in this process, with the threads that torch takes by itself."""
    loaded = {name: load(rewards.resolve(RewardChoice(model=name)), "cpu") for name in MODELS}
    prompts = shapes.prompts("validation")[:batch]
    images = Rendered("cpu").generate(prompts, range(batch))

    def loop(seconds: float) -> dict[str, float]:
        spent_s, items = dict.fromkeys(MODELS, 0.0), 0
        while sum(spent_s.values()) < seconds:
            for name, model in loaded.items():
                begin_s = time.perf_counter()
                model.score(images, prompts)
                spent_s[name] += time.perf_counter() - begin_s
            items += batch
        return {name: spent / items for name, spent in spent_s.items()}

    return loop


def main() -> None:
    """Measures, prints, and writes JSON."""
    arguments = steady.arguments(__doc__, rows=2000)
    settings = {
        "prompts": {"path": "shapes:train", "limit": arguments.rows},
        "generators": [{"model": "trivial:Rendered", "samples": SAMPLES, "pool": {"num_cpus": 0.05}}],
        "rewards": [{"model": name} for name in MODELS],
        "execution": {"rows_per_block": 64, "report_interval_s": 1000},
    }
    steady.show(
        steady.measure(settings, bare_loop(batch=64), arguments.rounds, arguments.loop_s), arguments.json
    )


if __name__ == "__main__":
    main()
