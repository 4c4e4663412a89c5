"""A step of RankDPO on four candidates at full size on a fake device: what it holds, and bytes beside the plan's.

Real are the actors that encode, the model with its reference, the batch, the loss and the optimizer. DeepSpeed's engine
asks for NCCL: what it does on one GPU at ZeRO 2, as far as devices, dtypes and bytes go, is `OneGpu`'s. A backward pass
asks for CUDA's driver: it is run with fake tensors on "cpu", where bytes are counted; on "cuda" each trained
weight gets a gradient as it is. Guessed (`fake_cuda`): losses are 1, all four candidates are looked at, and times are
the last.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import hollow
import pyarrow as pa
import torch
from fake_cuda import fake_cuda
from one_gpu import OneGpu
from PIL import Image
from runs import Plant, Run
from torch import Tensor

from rankray import config
from rankray.config.rankdpo import OptimizerConfig, RankDPOConfig
from rankray.models.generators import GENERATORS, GeneratorSpec
from rankray.rankdpo import forecast as training_forecast
from rankray.rankdpo import step as training_step
from rankray.rankdpo.encoded import decoded_row, layout_of
from rankray.rankdpo.encoding import EncodeActor, EncodeJob, ReferenceActor, ReferenceJob
from rankray.rankdpo.feed import Loaded, Reads
from rankray.rankdpo.train_job import RowSet, TrainJob

CANDIDATES = 4
PROMPT = "a red kite over an old mill"
ONE_EPOCH = Reads(1, frozenset())

FULL = {"tuned.train": "full", "tuned.activation_checkpointing": True}
LORA = {"tuned.train": "lora"}
COPY, OFF, AHEAD = ({"objective.reference": mode} for mode in ("copy", "adapter_off", "precomputed"))
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name} {kind}": (name, tuned | reference)
    for name in ("sd15", "sdxl", "sd3-medium", "pixart-sigma", "sd3.5-medium")
    for kind, tuned, reference in (
        ("full, copy", FULL, COPY),
        ("full, precomputed", FULL, AHEAD),
        ("lora, adapter_off", LORA, OFF),
        ("lora, checkpointing, copy", LORA | {"tuned.activation_checkpointing": True}, COPY),
    )
}
"""Trainings by name: the model, and the options of its job; "full" is with activation checkpointing."""


class OnAFakeGpu(OneGpu):
    """The engine, its optimizer's state there before the step that is looked at; its backward pass: see the module."""

    def __init__(self, module: Any, settings: OptimizerConfig, accumulation: int) -> None:
        super().__init__(module, settings, accumulation)
        for group in self.optimizer.param_groups:
            group["foreach"] = True  # what torch takes of itself for real tensors on a GPU
        self.master.grad = torch.zeros_like(self.master)
        self.optimizer.step()
        self.master.grad = None

    def differentiate(self, loss: Tensor) -> None:
        """A real one on "cpu"; each trained weight's gradient as it is on "cuda"."""
        assert loss.requires_grad
        if loss.device.type == "cpu":
            super().differentiate(loss)
            return
        for parameter in self.learnt:
            parameter.grad = torch.empty_like(parameter)
            self.add(parameter)


def hollow_model(name: str, place: Path) -> GeneratorSpec:
    """A generator's row on a checkpoint without numbers."""
    hollow.generator(name, place)
    return replace(GENERATORS[name], source=str(place), variant=None)


def ranked(spec: GeneratorSpec, prompt_id: str) -> dict[str, Any]:
    """A row of a ranked dataset."""
    file = io.BytesIO()
    Image.new("RGB", (spec.width, spec.height), "red").save(file, "PNG")
    image = {"bytes": file.getvalue(), "path": None}
    found = [
        {"image": image, "win_probability": 1.0 - n / 3, "rank": n + 1, "scores": [0.0]}
        for n in range(CANDIDATES)
    ]
    return {"prompt_id": prompt_id, "prompt": PROMPT, "candidates": found}


def encoded(spec: GeneratorSpec, place: Path) -> pa.Table:
    """Two prompts through the encoding actor, in the half precision that the job files name."""
    with fake_cuda():
        actor = EncodeActor(EncodeJob(spec, "cuda", "bfloat16", "float16", 8, str(place)))
        return actor.encode([ranked(spec, "p"), ranked(spec, "q")])


def job_of(name: str, spec: GeneratorSpec, place: Path, device: str, options: Mapping[str, Any]) -> TrainJob:
    """What a worker is given."""
    tables = {"dataset": "/d", "output": str(place), "model": {"model": name}, "workers": {"num_gpus": 1}}
    tables["validation"] = {"share": 0.0}
    dotted = {"tuned.dtype": "bfloat16", "noise.prompt_dropout": 0.2, "workers.micro_batch": 1, **options}
    return TrainJob(
        config=config.build(RankDPOConfig, config.with_options(tables, dotted)),
        spec=spec,
        sets=(RowSet((), str(place), None),),
        encoded=str(place),
        encoders=(),
        reward=None,
        rows=2,
        sample_prompts=(),
        output=str(place),
        device=device,
    )


def step(case: str, place: Path, kind: str = "cpu", plant: Plant | None = None, **more: Any) -> Run:
    """Two prompts in two micro-batches through one step; what it made is its sums.

    Args:
        case: of `CASES`; `more` are further options of the job.
        kind: "cpu" for what a backward pass holds, "cuda" for devices and dtypes of all but that.
    """
    name, options = CASES[case]
    spec = hollow_model(name, place / "model")
    table = encoded(spec, place / "encoded")
    rows = tuple(decoded_row(row, layout_of(table.schema)) for row in table.to_pylist())
    job = job_of(name, spec, place / "encoded", kind, options | more)
    # With one worker a sum over workers is what it was.
    with (
        mock.patch.object(training_step, "_all_reduce", return_value=None),
        fake_cuda(counted=kind) as device,
    ):
        model = training_step.TrainedModel(job)
        if model.mode == "precomputed":
            reference = ReferenceActor(ReferenceJob(spec, kind, job.config, job.encoded, ONE_EPOCH))(table)
            rows = tuple(
                replace(row, ref_error=errors)
                for row, errors in zip(rows, reference["ref_error"].to_pylist(), strict=True)
            )
            del reference
        held = [*model.module.parameters(), *(model.copy.parameters() if model.copy is not None else ())]
        assert {(p.device.type, p.dtype) for p in held} == {(kind, torch.bfloat16)}
        if plant is not None:
            plant(model)
        weights = sum(p.nbytes for p in held)
        engine = OnAFakeGpu(model.module, job.config.optimizer, 2)
        model.start = {}
        loading, device.peak = device.peak, device.now
        made, _ = training_step.Training(job, model, engine, 2).step(Loaded(0, rows, (0, 0), 0.0))
        peak = device.peak
    facts = training_forecast.facts(spec)
    assert facts is not None
    plan = training_forecast.trainer(job.config, facts, CANDIDATES, model.mode)
    alive = (loading / 1e9, weights / 1e9, peak / 1e9)
    return Run(case, "bfloat16", 1, made, *alive, plan.weights / 1e9, plan.allocated / 1e9, plan.memory_gb)
