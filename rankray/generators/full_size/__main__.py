"""Prints each component's parameters and the memory of each model's weights."""

from rankray.generators import GENERATORS
from rankray.generators.full_size import MODELS, components, weights_gb

if __name__ == "__main__":
    print("| model | component | parameters |\n|---|---|---|")
    for model in MODELS:
        for part in components(model):
            print(f"| {model} | {part.name} | {part.parameters:,} |")
    print("\n| model | dtype | weights, GB | planned for an actor, GB |\n|---|---|---|---|")
    for model in MODELS:
        row = GENERATORS[model]
        print(f"| {model} | {row.dtype} | {weights_gb(model, row.dtype):.1f} | {row.gpu_memory_gb:g} |")
