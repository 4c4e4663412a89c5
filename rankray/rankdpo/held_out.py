"""What a run's held-out prompts say of it: errors of model and reference at fixed times and noises, as figures.

`draws` predictions of each candidate of at most `max_prompts` prompts every `every` steps: of SDXL as the paper trains
it, with 4 draws of 512, half a step's time in 25. The reference's errors are the model's own before the first step, so
no second model is asked, and objectives that have none are validated like all others. Errors are gathered from all
workers before anything is computed from them: every worker comes to the same figures, and to the same decision
(`validation`).

    V held-out prompts, D draws of each, K candidates
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, distributed

from rankray import losses, store
from rankray.config.rankdpo import REFERENCE_FREE, ObjectiveConfig
from rankray.losses import LossInputs
from rankray.rankdpo import batches
from rankray.rankdpo.feed import Rows, share
from rankray.rankdpo.step import Training, some
from rankray.rankdpo.train_job import RunState
from rankray.rankdpo.validation import Point

NO_NUMBER = 1e4
"""What an error counts as that overflowed: files of JSON take no NaN, and one such is far beyond any `max_rise`."""


class HeldOut:
    """A run's held-out prompts as one worker sees them: its share of the predictions, and everybody's figures.

    Rows are kept in memory, 512 of SDXL's at most 1.4 GB over all workers.
    """

    def __init__(self, training: Training, rows: Rows) -> None:
        self._training, model, job = training, training.model, training.job
        self._config, self._objective = job.config.validation, job.config.objective
        self._noising = replace(model.noising, dropout=0.0, strata=self._config.draws)
        self._all = len(rows.held_out)
        self._own = share(range(self._all), training.rank, training.world)
        # One that has no share takes part in every pass with another's row, and keeps nothing of it.
        self._rows = rows.read([rows.held_out[place] for place in self._own or [0]])
        labels: dict[str, list[Any]] = {
            "win_probability": [row.win_probability for row in self._rows],
            "rank": [row.rank for row in self._rows],
        }
        if job.reward is not None:
            labels["scores"] = [row.scores[:, job.reward] for row in self._rows]
        self._labels = self._gathered(labels)

    def measure(self, state: RunState) -> Point:
        """What they say of a run at `state`. Every worker must call it, and first of all before the first step."""
        with self._training.averaged(computing=True):
            model_error = self._errors()
        ref_error = self._reference(model_error if state.step == 0 else None)
        draws = self._config.draws
        labels = {name: values.repeat(draws, 1) for name, values in self._labels.items()}
        labels["rank"] = labels["rank"].long()
        comparable = self._training.model.comparable(model_error.shape[1], "cpu")
        inputs = LossInputs(model_error, ref_error, mask=labels["rank"] > 0, comparable=comparable, **labels)
        point = figures(state.step, inputs, draws, self._objective)
        # Without a reference in training its pairs are judged by the model alone, which is another thing.
        compared = self._objective.name not in REFERENCE_FREE
        return replace(point, training_accuracy=state.training_accuracy if compared else None)

    def _reference(self, errors: Tensor | None) -> Tensor:
        """The reference's errors: these, which are kept for a run that goes on later, or the ones that were kept."""
        fs, place = store.filesystem(f"{self._training.job.output}/_work/held-out.safetensors")
        if errors is None:
            with fs.open_input_stream(place) as stream:
                return load(stream.read())["ref_error"]
        if self._training.rank == 0:
            fs.create_dir(place.rpartition("/")[0], recursive=True)
            with fs.open_output_stream(place) as stream:
                stream.write(save({"ref_error": errors}))
        return errors

    def _errors(self) -> Tensor:
        """The model's error on every candidate in every draw: float64[D * V, K], on the CPU."""
        training, found = self._training, []
        at_once = training.engine.train_micro_batch_size_per_gpu()
        largest = math.ceil(self._all / training.world)
        passes = math.ceil(largest / at_once)  # as many on every worker
        for draw in range(self._config.draws):
            own: list[Any] = []
            for start in range(0, passes * at_once, at_once):
                rows = self._rows[start : start + at_once]
                seen, draws = rows or self._rows[:1], [draw] * max(1, len(rows))
                model = training.model
                batch = batches.make_batch(seen, draws, self._noising, model.empty, model.device)
                with torch.no_grad():
                    errors = training.model.errors(training.engine, batch, some(batch.mask))
                own += list(errors.double().cpu().numpy())[: len(rows)]
            found.append(self._gathered({"error": own})["error"])
        return torch.cat(found)

    def _gathered(self, own: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
        """Of each name this worker's rows [K_v] beside all others', padded with zeros: float64[V, K], on the CPU."""
        device = self._training.model.device
        most = torch.tensor(max(len(row) for rows in own.values() for row in rows), device=device)
        if distributed.is_initialized():
            distributed.all_reduce(most, distributed.ReduceOp.MAX)
        found = {}
        for name, rows in own.items():
            values = torch.zeros(self._all, int(most), dtype=torch.float64)
            for place, row in zip(self._own, rows, strict=False):
                values[place, : len(row)] = torch.as_tensor(row, dtype=torch.float64)
            values = values.to(device)
            if distributed.is_initialized():
                distributed.all_reduce(values)
            found[name] = values.cpu()
        return found


def figures(step: int, inputs: LossInputs, draws: int, objective: ObjectiveConfig) -> Point:
    """The point of these errors, rows in the order (draw, prompt): D * V of them.

    Pairs and candidates are those that training looks at, so that its accuracy can stand beside this one; of an
    objective that compares nothing with a reference, all. Where the reference's error is no finite number nothing is
    compared; the model's then counts as `NO_NUMBER`. Without a pair the accuracy is one half: nothing is known. One
    prompt alone says nothing of the next: its error is one half. Of n prompts it is at least one half by n, but of a
    model that is its reference still: two that agree spread by nothing, and every fourth two are both right by chance.
    Of 64 prompts that is 0.8 %, where their errors are 1.5 to 3 %.

    The rejected candidate is the worst-ranked one, whether or not `labels.pairs` lets it be compared with the best; a
    prompt whose candidates are all tied has none.
    """
    inputs = replace(
        inputs,
        model_error=inputs.model_error.nan_to_num(NO_NUMBER, NO_NUMBER),
        mask=inputs.mask & inputs.ref_error.isfinite(),
    )
    parts = losses.loss_parts(objective.name, inputs, beta=objective.beta, options=objective.options)
    looked_at = None
    if objective.name not in REFERENCE_FREE:
        looked_at = losses.needed(objective.name, inputs, objective.options)
    sums = losses.metric_sums(inputs, parts["preference"], beta=objective.beta, computed=looked_at)
    means = losses.metrics({key: float(value) for key, value in sums.items()})
    right, _, pairs = (part.view(draws, -1).sum(0) for part in losses.pair_sums(inputs, looked_at))
    asked = int((pairs > 0).sum())
    accuracy = means["implicit_accuracy"] if asked else 0.5
    spread = float((right - accuracy * pairs).square().sum().sqrt() / pairs.sum().clamp(min=1.0))
    least = 0.5 / asked if bool((2 * right != pairs).any()) else 0.0
    error = max(spread * (asked / max(asked - 1, 1)) ** 0.5, least)
    worst = losses.best_and_worst(replace(inputs, comparable=None)).any(1)
    return Point(
        step=step,
        implicit_accuracy=round(accuracy, 6),
        accuracy_error=round(error, 6),
        **{key: round(means[key], 6) for key in ("margin", "loss", "model_error", "ref_error")},
        chosen_rise=_rise(inputs, losses.best(inputs)),
        rejected_rise=_rise(inputs, worst),
    )


def _rise(inputs: LossInputs, those: Tensor) -> float:
    """The model's error on `those` (bool[B, K]) over the reference's, less one; 0 where there are none."""
    model, reference = (
        torch.where(those, error.double(), 0.0).sum() for error in (inputs.model_error, inputs.ref_error)
    )
    return round(float(model / reference) - 1.0, 6) if float(reference) else 0.0
