"""What a GPU alone can show of training: DeepSpeed's engines there, memory that is truly full, and what is exported."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from rankray.cluster.item_safe import ItemSafe
from rankray.config.rankdpo import OptimizerConfig, TunedConfig, WorkersConfig
from rankray.models.denoisers import parts
from rankray.models.generators import GENERATORS
from rankray.rankdpo import zero
from rankray.rankdpo.step import double_while
from recipes.random_weights.__main__ import main as write_weights

pytestmark = pytest.mark.gpu
TOO_MUCH = 2**50
"""Bytes that no machine has."""


@pytest.fixture(scope="module")
def group(device: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    pytest.importorskip("deepspeed", reason="ZeRO needs DeepSpeed, which is not installed here")
    if device != "cuda":
        zero.alone()
        yield
        return
    os.environ.setdefault("LOCAL_RANK", "0")
    store = f"file://{tmp_path_factory.mktemp('group')}/store"
    distributed.init_process_group("nccl", init_method=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def _layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 33), nn.Tanh(), nn.Linear(33, 7))


def _losses(module: Any, device: str, dtype: torch.dtype) -> Iterator[Tensor]:
    for step in range(3):
        x = torch.randn(8, 24, generator=torch.Generator().manual_seed(step)).to(device, dtype)
        yield module(x).float().square().mean()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masters_move_as_the_optimizer_alone_moves_them(
    device: str, group: None, stage: int, name: Any, dtype: torch.dtype
) -> None:
    """Three steps; in bfloat16 gradients are those of the rounded weights, and masters and sums are in float32."""
    config = OptimizerConfig(name=name, learning_rate=1e-3, clip=0.0)
    module = _layers()
    weights = {key: value.detach().clone() for key, value in module.named_parameters()}
    plain = copy.deepcopy(module).to(device, dtype)
    masters = [value.clone().to(device).requires_grad_() for value in weights.values()]
    alone = zero.optimizer_for(masters, config)  # type: ignore[arg-type]
    for loss in _losses(plain, device, dtype):
        loss.backward()
        for master, parameter in zip(masters, plain.parameters(), strict=True):
            assert parameter.grad is not None
            master.grad, parameter.grad = parameter.grad.float(), None
        alone.step()
        for master, parameter in zip(masters, plain.parameters(), strict=True):
            parameter.data.copy_(master.detach())

    module.to(device, dtype)
    tuned = TunedConfig(dtype="float32" if dtype == torch.float32 else "bfloat16")
    workers = WorkersConfig(zero_stage=stage)  # type: ignore[arg-type]
    settings = zero.deepspeed_config(workers, tuned, config.clip, 8, 1, 1)
    optimizer = zero.optimizer_for(list(module.parameters()), config)
    engine = zero.start(module, optimizer, settings, weights if dtype != torch.float32 else None)
    for loss in _losses(engine, device, dtype):
        engine.backward(loss)
        engine.step()
    found = zero.gather(engine)
    if stage == 0 and dtype == torch.bfloat16:
        found, tolerance = (
            {key: value.float() for key, value in found.items()},
            4e-3,
        )  # its weights have no masters
    else:
        tolerance = 1e-6
    for (key, value), due in zip(found.items(), masters, strict=True):
        assert torch.allclose(value, due.detach().cpu(), atol=tolerance), key
        assert not torch.equal(value, weights[key]), "it moved"


def test_memory_that_is_full_ends_the_search(device: str) -> None:
    tried: list[int] = []

    def passes(size: int) -> bool:
        tried.append(size)
        torch.empty(TOO_MUCH if size > 4 else size, dtype=torch.uint8, device=device)
        return True

    assert double_while(passes, 64) == 4
    assert tried == [1, 2, 4, 8]


class Hungry:
    """A model that has memory for two at once."""

    batch_size = 8

    def __init__(self, device: str) -> None:
        self.device = device

    def score(self, items: Sequence[int]) -> list[int]:
        torch.empty(TOO_MUCH if self.batch_size > 2 else 8, dtype=torch.uint8, device=self.device)
        return [item + 1 for item in items]


def test_a_full_device_halves_the_batch_and_fails_no_item(device: str) -> None:
    model, said = Hungry(device), []
    safe = ItemSafe(model, "hungry", said.append)
    assert safe.run(model.score, list(range(10))) == list(range(1, 11))
    assert (safe.fits, model.batch_size, len(said)) == (2, 2, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_masters_are_exported_in_the_published_dtype(device: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """What did not move comes back bit for bit."""
    assert write_weights([str(tmp_path), "sdxl"]) == 0
    spec = replace(GENERATORS["sdxl"], source=str(tmp_path / "sdxl"), variant=None)
    published = parts.load_denoiser(spec, "cpu", dtype)
    parts.export(spec, published, tmp_path / "published", dtype)
    spec = replace(spec, source=str(tmp_path / "published"))
    masters = parts.load_denoiser(spec, device, torch.float32)
    parts.export(spec, masters, tmp_path / "out")
    found = parts.load_denoiser(replace(spec, source=str(tmp_path / "out")), "cpu", dtype)
    due = parts.load_denoiser(spec, "cpu", dtype).state_dict()
    assert parts._published_dtypes(tmp_path / "out", None)["unet"] == dtype
    assert all(torch.equal(value, due[key]) for key, value in found.state_dict().items())
