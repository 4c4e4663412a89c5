"""Small models of a user's own, as `"toy_models:Class"`: real code on the path that users' models take.

What a candidate looks like is a function of prompt and seed alone, so two datasets can be compared byte for byte.
Words in a prompt make them fail in the ways that models fail.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import ray
from PIL import Image

from rankray.cluster import actors


class Noise:
    """Draws noise whose brightness depends on the prompt; logs each image that it draws to `log`."""

    def __init__(self, device: str, size: int = 8, delay_s: float = 0.0, log: str = "") -> None:
        self.size, self.delay_s, self.log = size, delay_s, log
        if log:
            (Path(log).parent / f"pid-{os.getpid()}").touch()

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        if any("unpaintable" in prompt for prompt in prompts):
            raise ValueError("cannot paint that")
        time.sleep(self.delay_s * len(prompts))
        images = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            rng = np.random.default_rng([seed, zlib.crc32(prompt.encode("utf-8", "surrogatepass"))])
            images.append(Image.fromarray(rng.integers(0, 255, (self.size, self.size, 3), dtype=np.uint8)))
        if self.log:
            with open(self.log, "a") as file:
                file.write("".join(f"{seed}\n" for seed in seeds))
        return images


class Late(Noise):
    """As on a node whose first load fails: the first actor of all ends before it has its model."""

    def __init__(self, device: str, mark: str) -> None:
        super().__init__(device)
        try:
            Path(mark).touch(exist_ok=False)
        except FileExistsError:
            return
        raise OSError("the weights could not be fetched")


class Lost(Noise):
    """Its process ends within its first picture, and where it comes up again it does not load, twice."""

    def __init__(self, device: str, marks: str) -> None:
        super().__init__(device)
        actors.RELOAD_S = 0.1
        self.marks = Path(marks)
        before = len(list(self.marks.glob("start-*")))
        (self.marks / f"start-{time.time_ns()}").touch()
        if 0 < before < 3:
            raise OSError("the hub does not answer")

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        if not (self.marks / "lost").exists():
            (self.marks / "lost").touch()
            os._exit(1)
        return super().generate(prompts, seeds)


class Rooted(Noise):
    """As on a cluster with a broken GPU: on the node `bad` it does not load, once it has loaded elsewhere; there it
    draws nothing before it has failed `times` times. Each failure leaves a file in `marks`."""

    def __init__(self, device: str, bad: str, marks: str, times: int) -> None:
        super().__init__(device, delay_s=0.2)
        self.marks, self.times = Path(marks), times
        up = self.marks.parent / "up"
        if ray.get_runtime_context().get_node_id() != bad:
            up.touch()
            return
        self.wait(up.exists)
        time.sleep(2.0)  # until the job knows it
        (self.marks / f"{time.time_ns()}").touch()
        raise OSError("the driver does not answer")

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        self.wait(lambda: len(list(self.marks.iterdir())) >= self.times)
        return super().generate(prompts, seeds)

    @staticmethod
    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.1)


class Broken:
    """Fails for every prompt."""

    def __init__(self, device: str) -> None:
        pass

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        raise RuntimeError("no prompt is good enough")


class Brightness:
    """Scores the mean of one channel. `unjudgeable` gives NaN, `miscounted` a wrong number of scores."""

    def __init__(self, device: str, channel: int = 0, load_s: float = 0.0) -> None:
        self.channel = channel
        time.sleep(load_s)

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        scores = np.array([np.asarray(image)[..., self.channel].mean() for image in images], np.float32)
        scores[["unjudgeable" in prompt for prompt in prompts]] = np.nan
        return scores[:-1] if any("miscounted" in prompt for prompt in prompts) else scores


class Versioned:
    """Scores every picture with the version of `toy_package` that its process has."""

    def __init__(self, device: str) -> None:
        import toy_package

        self.version = float(toy_package.VERSION)

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        return np.full(len(images), self.version, np.float32)
