"""Trainings of a minute or two, one after another in one process: train, draw, score, and keep the figures.

As jobs of their own such trials would spend most of their time importing; here four steps and ten pictures of the
shapes world took 0.0 to 0.2 CPU minutes. The price: a killed
trial starts over, it has one worker, and rewards that need an environment of their own cannot be asked.

    P prompts, S pictures a prompt
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rankray import schema, store
from rankray.cluster.item_safe import ItemSafe
from rankray.config import GeneratorChoice, RewardChoice
from rankray.models import generators, rewards
from rankray.models.targets import load
from rankray.rankdpo.train_job import TrainJob

if TYPE_CHECKING:
    from PIL import Image

MARKER = "trial.json"


@dataclass(frozen=True)
class Drawing:
    """What a model is measured on: prompts, pictures of each, whose seed and label, the judges."""

    model: GeneratorChoice
    prompts: tuple[str, ...]
    samples: int
    seed: int
    seed_name: str
    rewards: tuple[RewardChoice, ...]
    checked: bool


@dataclass(frozen=True)
class Task:
    """One trial: what is trained (None: the model is measured as it starts), and where figures go.

    `every` counts steps; the last is always measured.
    """

    job: TrainJob | None
    every: int
    drawing: Drawing
    output: str


class TrialActor:
    """Does tasks one after another; models that judge are loaded once."""

    def __init__(self, device: str) -> None:
        os.environ.setdefault("TQDM_DISABLE", "1")
        import torch

        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self._device = device
        self._judges: dict[str, Any] = {}
        self._painters: dict[str, Any] = {}

    def run(self, task: Task) -> dict[str, Any]:
        """The contents of `trial.json`: failed, cpu_minutes, and points of step and values (metric -> [P][S])."""
        fs, place = store.filesystem(task.output)
        fs.create_dir(place, recursive=True)
        begin_s = time.process_time()
        points, failed = [], None
        if task.job is None:
            points.append(
                {"step": 0, "values": self._values(task.drawing, self._painter(task.drawing.model))}
            )
        else:
            from rankray.rankdpo.step import train_alone

            try:
                for step, weights in train_alone(task.job, task.every):
                    painter = self._with_weights(task.job, task.drawing.model, weights)
                    points.append({"step": step, "values": self._values(task.drawing, painter)})
                    _keep(weights, f"{place}/step-{step:06}.safetensors", fs)
            except FloatingPointError as error:
                failed = str(error)
        found = {"failed": failed, "cpu_minutes": (time.process_time() - begin_s) / 60, "points": points}
        store.write_json(f"{place}/{MARKER}", found, fs)
        return found

    def _painter(self, model: GeneratorChoice) -> Any:
        if model.label not in self._painters:
            self._painters[model.label] = load(generators.resolve(model), self._device)
        return self._painters[model.label]

    def _with_weights(self, job: TrainJob, model: GeneratorChoice, weights: Mapping[str, Any]) -> Any:
        """The model's pipeline with trained weights in its denoiser's place."""
        from rankray.rankdpo.samples import place_weights

        painter = load(generators.resolve(model), self._device)
        place_weights(painter.pipe, job.spec, job.config, weights.items())
        return painter

    def _values(self, drawing: Drawing, painter: Any) -> dict[str, list[list[float]]]:
        """Every reward's scores, and the checker's verdicts, of pictures from the seeds that Syn-Pic would take."""
        texts = [prompt for prompt in drawing.prompts for _ in range(drawing.samples)]
        seeds = [
            schema.candidate_seed(drawing.seed, schema.prompt_id(prompt), drawing.seed_name, sample)
            for prompt in drawing.prompts
            for sample in range(drawing.samples)
        ]

        def paint(items: Sequence[tuple[str, int]]) -> list[Any]:
            return list(painter.generate([text for text, _ in items], [seed for _, seed in items]))

        pictures = ItemSafe(painter, drawing.model.label).run(paint, list(zip(texts, seeds, strict=True)))
        shown = [(n, picture) for n, picture in enumerate(pictures) if not isinstance(picture, Exception)]
        found = {choice.label: self._scores(choice, shown, texts) for choice in drawing.rewards}
        if drawing.checked:
            from rankray.shapes import check

            verdicts = np.full(len(texts), np.nan)
            for n, picture in shown:
                verdicts[n] = float(check(np.asarray(picture.convert("RGB")), texts[n]))
            found["checker"] = verdicts
        shape = (len(drawing.prompts), drawing.samples)
        return {name: values.reshape(shape).tolist() for name, values in found.items()}

    def _scores(
        self, choice: RewardChoice, shown: Sequence[tuple[int, Image.Image]], texts: Sequence[str]
    ) -> npt.NDArray[np.float64]:
        if choice.label not in self._judges:
            self._judges[choice.label] = load(rewards.resolve(choice), self._device)
        judge = self._judges[choice.label]

        def score(items: Sequence[tuple[Image.Image, str]]) -> list[float]:
            return [float(value) for value in judge.score([i for i, _ in items], [text for _, text in items])]

        scores = np.full(len(texts), np.nan)
        shown_texts = [(picture.convert("RGB"), texts[n]) for n, picture in shown]
        results = ItemSafe(judge, choice.label).run(score, shown_texts)
        for (n, _), result in zip(shown, results, strict=True):
            if not isinstance(result, Exception):
                scores[n] = result
        return scores


def _keep(weights: Mapping[str, Any], place: str, fs: Any) -> None:
    """The trained weights, whole or not at all."""
    from safetensors.torch import save

    with fs.open_output_stream(f"{place}.tmp") as stream:
        stream.write(save({name: value.contiguous() for name, value in weights.items()}))
    fs.move(f"{place}.tmp", place)
