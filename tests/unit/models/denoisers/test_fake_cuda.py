"""Each trainable family at full size on a fake CUDA device: its encoders, and a step of RankDPO on four candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs
import torch
import trainings
from fake_cuda import fake_cuda

from rankray.models.denoisers import parts

QUICK = "sd15 lora, adapter_off"
CASES = [pytest.param(case, marks=() if case == QUICK else pytest.mark.slow) for case in trainings.CASES]


@pytest.mark.parametrize("case", CASES)
def test_a_step_takes_the_memory_that_is_planned(case: str, tmp_path: Path) -> None:
    found = trainings.step(case, tmp_path)
    assert found.made["loss"] == 1.0
    assert found.weights == pytest.approx(found.planned_weights, rel=0.25)
    assert found.off == pytest.approx(1.0, abs=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("case", trainings.CASES)
def test_a_step_stays_on_its_device(case: str, tmp_path: Path) -> None:
    seen: list[Any] = []
    found = trainings.step(case, tmp_path, "cuda", seen.append)
    assert found.made["loss"] == 1.0
    assert found.peak < 80.0, "of an A100"
    learnt = [name for name, p in seen[0].module.named_parameters() if p.requires_grad]
    assert len(learnt) > 100
    assert all("lora" in name for name in learnt) == ("lora" in case)


def on_the_cpu(model: Any) -> None:
    model.module.conv_out.register_forward_hook(lambda module, given, made: made.cpu())


def left_behind(model: Any) -> None:
    model.module.conv_out.cpu()


def float_layer(model: Any) -> None:
    model.module.conv_out.float()


def float_text(model: Any) -> None:
    predict = model.predict
    model.predict = lambda denoiser, noisy, time, text, size: predict(
        denoiser, noisy, time, {name: value.float() for name, value in text.items()}, size
    )


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (on_the_cpu, "devices"),
        (float_text, "one dtype is due"),
        pytest.param(left_behind, "same device", marks=pytest.mark.slow),
        pytest.param(float_layer, "should be the same", marks=pytest.mark.slow),
    ],
)
def test_a_planted_fault_raises(fault: runs.Plant, says: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=says):
        trainings.step(QUICK, tmp_path, "cuda", fault)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl", "sd3-medium"])
def test_pictures_and_prompts_are_encoded(name: str, tmp_path: Path) -> None:
    spec = trainings.hollow_model(name, tmp_path / "model")
    table = trainings.encoded(spec, tmp_path / "encoded")
    row = table.to_pylist()[0]
    channels = 4 if name == "sdxl" else 16
    assert len(row["latents"]) == 4
    assert len(row["latents"][0]["mean"]) == channels * 128 * 128 * 2, "float16"
    assert row["prompt"] == trainings.PROMPT
    with fake_cuda():
        pipe = parts.load_encoders(spec, "cuda", torch.bfloat16)
        assert {p.dtype for p in pipe.vae.parameters()} == {torch.float32}
        denoiser = getattr(pipe, parts.row_of(spec).denoiser)
        assert {p.device.type for p in denoiser.parameters()} == {"meta"}
