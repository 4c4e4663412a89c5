"""How much does batching give a reward? Ours against each package's own scoring call, on the same small random weights.

    python benchmarks/rewards.py [--prompts 16] [--turns 5] [--json FILE]

A user of the package calls its `score` a picture at a time; that loop and ours take turns in one process of the
reward's own environment, on one thread and the same pictures of 512 pixels. Small weights make this a measure of
everything but the model's arithmetic: reading the checkpoint, preprocessing, tokens, launches. With real weights on a
GPU a picture alone leaves most of it idle, which no CPU shows.

Four pictures share a prompt, as candidates do. What is counted is the process's own processor time, user and system:
other work on the machine moves the clock on the wall and not this one, and both sides run on one thread and never wait.
The last line sets all rewards over the same pictures against the sum of the packages' loops.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rankray.models import environments
from rankray.models.rewards import REWARDS, RewardSpec
from rankray.models.targets import Target, load
from recipes.random_weights.rewards import REWARDS_MADE, T5_MODULE, sizes

NAMES = ("hpsv2.1", "pickscore", "imagereward", "vqascore")
SIZE = 512
SAMPLES = 4
"""Pictures of a prompt."""
One = Callable[[Image.Image, str, str], float]
"""(picture, the file it is in, prompt) -> the package's score."""


def hpsv2(spec: RewardSpec) -> One:
    """`hpsv2.score(picture, prompt, hps_version="v2.1")`: its model is kept, the checkpoint read at each call."""
    factory = importlib.import_module("hpsv2.src.open_clip")
    package = importlib.import_module("hpsv2.img_score")
    factory.add_model_config(Path(spec.options["architecture"]))
    model, _, preprocess = factory.create_model_and_transforms(
        "small", None, precision="amp", device="cpu", light_augmentation=True, aug_cfg={}, output_dict=True
    )
    package.model_dict.update({"model": model, "preprocess_val": preprocess})
    file = str(Path(spec.source) / spec.options["file"])
    return lambda picture, _, prompt: float(package.score(picture, prompt, cp=file, hps_version="v2.1")[0])


def pickscore(spec: RewardSpec) -> One:
    """The model card's few lines, with transformers."""
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(spec.source).eval()
    processor = CLIPProcessor.from_pretrained(spec.source)

    def one(picture: Image.Image, _: str, prompt: str) -> float:
        seen = processor(images=picture, return_tensors="pt")
        read = processor(text=prompt, padding=True, truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            return float(model(**seen, **read).logits_per_image)

    return one


def imagereward(spec: RewardSpec) -> One:
    """`ImageReward.score(prompt, picture)`."""
    from rankray.models.rewards.imagereward import bare_model

    model = bare_model(spec).eval()
    model.load_state_dict(torch.load(Path(spec.source) / spec.options["file"], weights_only=True))

    def one(picture: Image.Image, _: str, prompt: str) -> float:
        with torch.no_grad():
            return float(model.score(prompt, picture))

    return one


def vqascore(spec: RewardSpec) -> One:
    """What `t2v_metrics.VQAScore()(images, texts)` does for each picture; its `batch_forward` is faster."""
    from rankray.models.rewards.submodule import import_alone

    module = import_alone(T5_MODULE)
    row = module.CLIP_T5_MODELS[spec.options["model"]]
    row["model"]["path"], row["tokenizer"]["path"] = spec.source, spec.options["tokenizer"]
    with tempfile.TemporaryDirectory() as cache:
        model = module.CLIPT5Model(model_name=spec.options["model"], device="cpu", cache_dir=cache)
    model.model.float()
    return lambda _, file, prompt: float(model.forward([file], [prompt])[0])


PACKAGES: dict[str, Callable[[RewardSpec], One]] = {
    "hpsv2.1": hpsv2,
    "pickscore": pickscore,
    "imagereward": imagereward,
    "vqascore": vqascore,
}


def here(name: str, directory: Path, distinct: int, turns: int) -> dict[str, Any]:
    """One reward in this process: pictures a second of either side's processor time, turn by turn."""
    count = SAMPLES * distinct
    torch.set_num_threads(1)
    torch.manual_seed(0)
    REWARDS_MADE[name][0](directory)
    options = {**REWARDS[name].options, **sizes(name, directory)}
    source = directory / "model" if name == "vqascore" else directory
    spec = replace(REWARDS[name], source=str(source), batch_size=32, options=options, dtype="float32")
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(count)]
    files = [str(directory / f"{n}.png") for n in range(count)]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file, compress_level=1)
    prompts = [f"{n // SAMPLES} red circles" for n in range(count)]
    theirs = PACKAGES[name](spec)
    ours = load(Target(name, spec.target, {"spec": spec}), "cpu")

    def loop() -> Sequence[float]:
        return [theirs(*item) for item in zip(pictures, files, prompts, strict=True)]

    difference = float(np.abs(np.array(loop()) - ours.score(pictures, prompts)).max())  # warm, too
    rates: list[tuple[float, float]] = []
    for _ in range(turns):
        begin_s = time.process_time()
        ours.score(pictures, prompts)
        middle_s = time.process_time()
        loop()
        rates.append((count / (middle_s - begin_s), count / (time.process_time() - middle_s)))
    ratios = sorted(ours_ / theirs_ for ours_, theirs_ in rates)
    medians = [statistics.median(pair[n] for pair in rates) for n in (0, 1)]
    return {
        "images_per_s": medians[0],
        "package_images_per_s": medians[1],
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "difference": difference,
    }


def main() -> None:
    """All rewards, each in its environment; prints a table and writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here is not None:
        with tempfile.TemporaryDirectory() as directory:
            print(json.dumps(here(options.here, Path(directory), options.prompts, options.turns)))
        return
    found = {}
    print(
        "| reward | ours, images/s | package, images/s | times | max abs difference |\n|---|---|---|---|---|"
    )
    for name in NAMES:
        overlay = REWARDS[name].environment
        python = (
            environments.build(overlay, environments.spec_of(overlay)).python if overlay else sys.executable
        )
        counts = ["--prompts", str(options.prompts), "--turns", str(options.turns)]
        ended = subprocess.run(
            [python, __file__, "--here", name, *counts], capture_output=True, text=True, check=False
        )
        if ended.returncode:
            sys.exit(ended.stderr)
        found[name] = row = json.loads(ended.stdout.splitlines()[-1])
        print(
            f"| {name} | {row['images_per_s']:.1f} | {row['package_images_per_s']:.1f} | {row['ratio']:.1f} "
            f"({row['ratios'][0]:.1f} to {row['ratios'][-1]:.1f}) | {row['difference']:.1g} |",
            flush=True,
        )
    each = [sum(1 / row[key] for row in found.values()) for key in ("images_per_s", "package_images_per_s")]
    print(f"| all four | {1 / each[0]:.1f} | {1 / each[1]:.1f} | {each[1] / each[0]:.1f} | |", flush=True)
    if options.json is not None:
        import steady

        found["all"] = {
            "images_per_s": 1 / each[0],
            "package_images_per_s": 1 / each[1],
            "ratio": each[1] / each[0],
        }
        options.json.write_text(json.dumps({"rewards": found, **steady.provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
