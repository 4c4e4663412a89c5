"""Each large model at full size on a fake CUDA device, by its own class: what it makes, and bytes beside the plan's.

The tests hold what these find, `python benchmarks/memory_plan` prints it. `plant` is given the loaded model before it
runs: a test's fault. What is guessed (`fake_cuda`): pixels, scores and latents are zeros; every mask of a detector
holds something, every class is that of number 0, and every answer the token of number 0, so that the ways through
boxes, masks and colours are all taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hollow
import stand_ins
from fake_cuda import DOUBLES, fake_cuda
from PIL import Image

from rankray.evals import EVALS
from rankray.models.footprint import footprint
from rankray.models.generators import GENERATORS
from rankray.models.hardware import CONTEXT_GB
from rankray.models.rewards import REWARDS
from rankray.models.targets import Target, load

Plant = Callable[[Any], None]
ANGLES = {
    "FluxPipeline": 300_000,
    "ChromaPipeline": 300_000,
    "Flux2KleinPipeline": 150_000,
    "Lumina2Pipeline": 10**9,
}
"""diffusers computes the angles of these rotary embeddings in float64: Flux's are 4,608 tokens of 56, Flux.2's 4,096
of 32 on each axis, and Lumina's are multiplied with queries and keys so."""
PROMPTS = ("a red kite over an old mill", "two blue birds", "a red kite over an old mill")


@dataclass(frozen=True)
class Run:
    """What a model made, and the tensors that were alive on the device, in GB of 1e9 bytes.

    Attributes:
        loading, weights, peak: at most while it loaded, once it had, and at most while it ran.
        planned_weights, planned: by `--dry-run`, of tensors alone.
        room: what it asks of a GPU in all.
    """

    name: str
    dtype: str
    batch: int
    made: Any
    loading: float
    weights: float
    peak: float
    planned_weights: float
    planned: float
    room: float

    @property
    def off(self) -> float:
        """Peak over plan."""
        return self.peak / self.planned


def run(target: Target, call: Callable[[Any], Any], plant: Plant | None, **faked: Any) -> Run:
    """One batch of a generator or a reward on the fake device."""
    spec = target.kwargs["spec"]
    with fake_cuda(**faked) as device:
        if spec.target == REWARDS["vqascore"].target:
            model: Any = stand_ins.vqascore(spec)
        else:
            model = load(target, "cuda")
        loading, weights = device.peak, device.now
        device.peak = device.now
        if plant is not None:
            plant(model)
        made = call(model)
        peak = device.peak
    plan = footprint(target)
    bytes_alive = (loading / 1e9, weights / 1e9, peak / 1e9)
    planned = plan.weights_gb, plan.allocated_gb(spec.batch_size), plan.memory_gb(spec.batch_size)
    return Run(target.name, spec.dtype, spec.batch_size, made, *bytes_alive, *planned)


UNSEEN = {"ernie-image"}
"""Whose pipeline asks the device how long its texts are, which a fake one does not know."""


def generator(name: str, place: Path, plant: Plant | None = None) -> Run:
    """A generator's row draws three prompts in two steps: a step takes what all take."""
    row = GENERATORS[name]
    hollow.generator(str(row.full_size), place)
    call = {key: 2 if key == "num_inference_steps" else value for key, value in row.call.items()}
    spec = replace(row, source=str(place), variant=None, steps=min(row.steps, 2), call=call)
    target = Target(name, spec.target, {"spec": spec})
    faked = {"answer": True, "doubles": ANGLES.get(row.pipeline, DOUBLES)}
    return run(target, lambda model: model.generate(list(PROMPTS), [1, 2, 3]), plant, **faked)


REWARD_NAMES = (*hollow.REWARDS, "hpsv2.1", "imagereward", "vqascore")


def reward(
    name: str, place: Path, plant: Plant | None = None, dtype: str | None = None, **options: Any
) -> Run:
    """A reward's row, with other `options` where they are given, scores three pictures, padded to its batch."""
    row = REWARDS[name]
    made = {"hpsv2.1": stand_ins.hpsv2, "imagereward": stand_ins.imagereward, "vqascore": lambda _: options}
    found = (hollow.REWARDS | made)[name](place)
    spec = replace(row, source=str(place), dtype=dtype or row.dtype, options={**row.options, **found})
    pictures = [Image.new("RGB", (1024, 1024 - 128 * n), "red") for n in range(3)]
    with stand_ins.packages():
        target = Target(name, spec.target, {"spec": spec})
        return run(target, lambda model: model.score(pictures, list(PROMPTS)), plant)


ITEMS: dict[str, Any] = {
    "geneval": {
        "tag": "colors",
        "include": [{"class": "person", "count": 1, "color": "red"}],
        "exclude": [],
        "prompt": "a photo of a red person",
    },
    "dpg": {
        "item_id": "1",
        "questions": {
            "1": {"text": "Is there a bicycle?", "category": "entity - whole", "parents": [0]},
            "2": {"text": "Is it red?", "category": "attribute - color", "parents": [1]},
        },
    },
    "compbench": {
        "category": "complex",
        "kind": "both",
        "phrases": ["a red bicycle", "a blue bird"],
        "spatial": ["bicycle", "on the left of", "bird"],
        "action": "a red bicycle on the left of a blue bird",
    },
}
"""By benchmark, an item that takes the longest way through its judge."""


def judge(name: str, place: Path, plant: Plant | None = None) -> Run:
    """A benchmark's judge looks at two pictures, padded to its batch. Its plan is what its row states, less CUDA's."""
    spec = replace(EVALS[name], models=hollow.judge(name, place))
    pictures = [Image.new("RGB", (1024, 1024), "red")] * 2
    with fake_cuda(answer=True) as device:
        target = Target(name, spec.target, {"spec": spec, "items": {"p": ITEMS[name]}})
        model: Any = load(target, "cuda")
        weights = device.now
        if plant is not None:
            plant(model)
        made = model.judge(pictures, ["p"] * 2)
        peak = device.peak
    alive = (weights / 1e9, weights / 1e9, peak / 1e9)
    stated = spec.gpu_memory_gb
    return Run(name, spec.dtype, spec.batch_size, made, *alive, weights / 1e9, stated - CONTEXT_GB, stated)
