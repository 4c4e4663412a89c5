"""Prints each component's parameters, and what a picture of each model takes."""

from rankray.config import GeneratorChoice
from rankray.models import demand
from rankray.models.components import Component
from rankray.models.generators import GENERATORS, resolve
from rankray.models.generators.full_size import MODELS, components


def _line(model: str, part: Component) -> str:
    return f"| {model} | {part.name} | {part.parameters:,} | {part.flops_at(1.0) / 1e12:.3f} |"


if __name__ == "__main__":
    print("| model | component | parameters | TFLOP a call at 1024 x 1024 |\n|---|---|---|---|")
    for model in MODELS:
        for part in components(model):
            print(_line(model, part))
    print("\n| model | dtype | weights, GB | batch | needs, GB | needs for one, GB | TFLOP a picture |")
    print("|---|---|---|---|---|---|---|")
    for name, row in GENERATORS.items():
        if row.full_size is not None:
            found = demand.footprint(resolve(GeneratorChoice(model=name), look_up=False))
            memory = f"{row.batch_size} | {found.memory_gb(row.batch_size):.1f} | {found.memory_gb(1):.1f}"
            print(f"| {name} | {row.dtype} | {found.weights_gb:.1f} | {memory} | {found.flops / 1e12:,.0f} |")
