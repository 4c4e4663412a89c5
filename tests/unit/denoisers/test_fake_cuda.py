"""Each trainable family at full size on a fake CUDA device: its encoders, and a step of RankDPO on four candidates.

Real are the actors, the model with its reference, the batch, the loss and the optimizer. DeepSpeed's engine asks for
NCCL: what it does on one GPU at ZeRO 2, as far as devices, dtypes and bytes go, is `OneGpu`'s here. The backward pass
asks for CUDA's driver: it is run with fake tensors on "cpu", and on "cuda" each trained weight gets a gradient as it
is. Guessed (`rankray.fake_cuda`): losses are 1, all four candidates
are looked at, and times are the last.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from rankray import config, training, zero
from rankray.denoisers import parts
from rankray.encode_actors import EncodeActor, EncodeJob, ReferenceActor, ReferenceJob
from rankray.encoded import Reads, decoded_row, layout_of
from rankray.fake_cuda import fake_cuda
from rankray.feed import Loaded
from rankray.generators import GENERATORS, GeneratorSpec
from rankray.random_weights import full_size
from rankray.training_config import RankDPOConfig

pytestmark = pytest.mark.slow

PROMPT = "a red kite over an old mill"
ONE_EPOCH = Reads(1, frozenset())


class OneGpu:
    """An engine on one GPU: masters and the optimizer's state in float32, gradients summed in float32."""

    def __init__(self, module: Any, optimizer: Any) -> None:
        self.module = module
        self.learnt = [p for p in module.parameters() if p.requires_grad]
        self.masters = [p.detach().float().requires_grad_() for p in self.learnt]
        self.optimizer = zero.optimizer_for(self.masters, optimizer)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.module(*arguments, **named)

    def zero_optimization_stage(self) -> int:
        return 2

    def backward(self, loss: Tensor, scale_wrt_gas: bool) -> None:
        assert loss.requires_grad
        if loss.device.type == "cpu":
            loss.backward()
        else:
            for parameter in self.learnt:
                parameter.grad = torch.empty_like(parameter)
        for parameter, master in zip(self.learnt, self.masters, strict=True):
            assert parameter.grad is not None, "every trained weight has a gradient"
            grad = parameter.grad.float()
            master.grad = grad if master.grad is None else master.grad + grad
            parameter.grad = None

    def step(self) -> None:
        self.optimizer.step()
        for parameter, master in zip(self.learnt, self.masters, strict=True):
            parameter.data.copy_(master.detach())
            master.grad = None


def hollow(name: str, place: Path) -> GeneratorSpec:
    full_size.generator(name, place, hollow=True)
    return replace(GENERATORS[name], source=str(place), variant=None)


def ranked(spec: GeneratorSpec) -> dict[str, Any]:
    """A row with four pictures."""
    file = io.BytesIO()
    Image.new("RGB", (spec.width, spec.height), "red").save(file, "PNG")
    image = {"bytes": file.getvalue(), "path": None}
    found = [
        {"image": image, "win_probability": 1.0 - n / 3, "rank": n + 1, "scores": [0.0]} for n in range(4)
    ]
    return {"prompt_id": "p", "prompt": PROMPT, "candidates": found}


def encoded(spec: GeneratorSpec, place: Path) -> pa.Table:
    """Two prompts through the encoding actor, in the half precision that the job files name."""
    with fake_cuda():
        actor = EncodeActor(EncodeJob(spec, "cuda", "bfloat16", "float16", 8, str(place)))
        return actor.encode([ranked(spec), {**ranked(spec), "prompt_id": "q"}])


def job_of(name: str, spec: GeneratorSpec, place: Path, device: str, **options: Any) -> training.TrainJob:
    tables = {"dataset": "/d", "output": str(place), "model": {"model": name}, "workers": {"num_gpus": 1}}
    dotted = {"tuned.dtype": "bfloat16", "noise.prompt_dropout": 0.2, **options}
    return training.TrainJob(
        config=config.build(RankDPOConfig, config.with_options(tables, dotted)),
        spec=spec,
        revision="",
        files=(),
        files_uri=str(place),
        layout=None,
        place=str(place),
        reference=None,
        encoders=(),
        reward=None,
        labelling=None,
        rows=2,
        sample_prompts=(),
        output=str(place),
        device=device,
    )


Wrap = Callable[[Any], None]


def step(
    name: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str = "cuda",
    wrap: Wrap | None = None,
    **options: Any,
) -> int:
    """Two prompts in two micro-batches through one step; bytes at the peak."""
    spec = hollow(name, place / "model")
    table = encoded(spec, place / "encoded")
    # With one worker a sum over workers is what it was.
    monkeypatch.setattr(training, "_all_reduce", lambda values: None)
    rows = tuple(decoded_row(row, layout_of(table.schema)) for row in table.to_pylist())
    job = job_of(name, spec, place / "encoded", kind, **options)
    with fake_cuda(counted=kind) as device:
        model = training._Model(job)
        if model.mode == "precomputed":
            reference = ReferenceActor(ReferenceJob(spec, kind, job.config, job.place, ONE_EPOCH))(table)
            model.ahead = {row["prompt_id"]: row["ref_error"] for row in reference.to_pylist()}
            assert [len(errors[0]) for errors in model.ahead.values()] == [4, 4]
        assert {p.device.type for p in model.module.parameters()} == {kind}
        assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}
        if wrap is not None:
            wrap(model)
        engine = OneGpu(model.module, job.config.optimizer)
        sums = training._step(job, model, engine, Loaded(0, rows, (0, 0), 0.0), 2, 1)
        assert sums["loss"] == 1.0
        if job.config.tuned.train == "lora":
            names = [key for key, p in model.module.named_parameters() if p.requires_grad]
            assert all("lora" in key for key in names)
            assert len(engine.masters) == len(names) > 100
        return device.peak


FULL = {"tuned.train": "full", "tuned.activation_checkpointing": True}
LORA = {"tuned.train": "lora"}
COPY, OFF, AHEAD = ({"objective.reference": mode} for mode in ("copy", "adapter_off", "precomputed"))


CASES = {
    f"{name}-{kind}": (name, tuned | reference)
    for name in ("sd15", "sdxl", "sd3-medium", "pixart-sigma", "sd3.5-medium")
    for kind, tuned, reference in (
        ("full-copy", FULL, COPY),
        ("full-precomputed", FULL, AHEAD),
        ("lora-adapter_off", LORA, OFF),
        ("lora-checkpointing-copy", LORA | {"tuned.activation_checkpointing": True}, COPY),
    )
}
QUICK = {
    ("sd15-lora-adapter_off", "cpu"),
    ("pixart-sigma-full-precomputed", "cuda"),
    ("pixart-sigma-lora-checkpointing-copy", "cpu"),
    ("sdxl-full-copy", "cuda"),
}


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        pytest.param(case, kind, marks=() if (case, kind) in QUICK else pytest.mark.slow)
        for case in CASES
        for kind in ("cuda", "cpu")
    ],
)
def test_a_step(case: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within an A100-80's memory; ZeRO's slices on one GPU are the whole."""
    name, options = CASES[case]
    assert step(name, tmp_path, monkeypatch, kind, **options) < 80e9


def cpu_output(model: Any) -> None:
    model.module.conv_out.register_forward_hook(lambda module, given, made: made.cpu())


def float_layer(model: Any) -> None:
    model.module.conv_out.float()


@pytest.mark.parametrize(
    ("fault", "says"),
    [(cpu_output, "devices"), (float_layer, "should be the same")],
)
def test_a_planted_fault_raises(
    fault: Wrap, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match=says):
        step("sd15", tmp_path, monkeypatch, wrap=fault, **LORA, **OFF)


@pytest.mark.parametrize("name", ["sdxl", pytest.param("sd3-medium", marks=pytest.mark.slow)])
def test_pictures_and_prompts_are_encoded(name: str, tmp_path: Path) -> None:
    spec = hollow(name, tmp_path / "model")
    table = encoded(spec, tmp_path / "encoded")
    row = table.to_pylist()[0]
    channels = 4 if name == "sdxl" else 16
    assert len(row["latents"]) == 4
    assert len(row["latents"][0]["mean"]) == channels * 128 * 128 * 2, "float16"
    assert row["prompt"] == PROMPT
    with fake_cuda():
        pipe = parts.load_encoders(spec, "cuda", torch.bfloat16)
        assert {p.dtype for p in pipe.vae.parameters()} == {torch.float32}
        denoiser = getattr(pipe, parts.row_of(spec).denoiser)
        assert {p.device.type for p in denoiser.parameters()} == {"meta"}
