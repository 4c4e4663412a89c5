"""Does generating in a Ray Data pipeline keep up with a bare loop? The four shapes generators, two cores.

python benchmarks/generation.py [--rows 400] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import time

import steady

from rankray import shapes
from rankray.config import GeneratorChoice
from rankray.models import generators
from rankray.models.targets import load

MODELS = ("shapes-sdxl", "shapes-sd3", "shapes-pixart", "shapes-cascade")


def bare_loop(batch: int) -> steady.Loop:
    """All four models in this process, with the threads that torch takes by itself."""
    loaded = {name: load(generators.resolve(GeneratorChoice(model=name)), "cpu") for name in MODELS}
    prompts = shapes.prompts("validation")

    def loop(seconds: float) -> dict[str, float]:
        spent_s, items = dict.fromkeys(MODELS, 0.0), 0
        while sum(spent_s.values()) < seconds:
            chosen = [prompts[(items + i) % len(prompts)] for i in range(batch)]
            for name, model in loaded.items():
                begin_s = time.perf_counter()
                model.generate(chosen, list(range(items, items + batch)))
                spent_s[name] += time.perf_counter() - begin_s
            items += batch
        return {name: spent / items for name, spent in spent_s.items()}

    return loop


def main() -> None:
    """Measures, prints, and writes JSON."""
    arguments = steady.arguments(__doc__, rows=400)
    settings = {
        "prompts": {"path": "shapes:train", "limit": arguments.rows},
        "generators": [{"model": name} for name in MODELS],
        "rewards": [{"model": "trivial:Zero", "pool": {"num_cpus": 0.05}}],
        "execution": {"rows_per_block": 16, "report_interval_s": 1000},
    }
    loop = bare_loop(batch=16)
    steady.show(steady.measure(settings, loop, arguments.rounds, arguments.loop_s), arguments.json)


if __name__ == "__main__":
    main()
