"""Steps on slices of tensors: the same whatever the ZeRO stage and the number of workers, from unrounded masters.

A checkpoint's tensors are read from the files of all workers or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, multiprocessing, nn

os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed looks at it when it is first imported

from rankray.config.rankdpo import OptimizerConfig, TunedConfig, WorkersConfig
from rankray.rankdpo import zero

NAMES: tuple[str, ...] = get_args(OptimizerConfig.model_fields["name"].annotation)
STAGES = (0, 1, 2, 3)
STEPS, PROMPTS = 3, 8


class Small(nn.Module):
    """Layers that two workers cannot share by whole tensors: 1,234 weights, of which the first layer has 216."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.middle = nn.Linear(8 * 4 * 4, 7)
        self.last = nn.Linear(7, 13)

    def forward(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.middle(self.first(pictures).flatten(1))))
        return found


def start_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: value.detach().clone() for name, value in Small().named_parameters()}


def engine_of(
    config: OptimizerConfig,
    stage: int,
    dtype: torch.dtype = torch.float32,
    world: int = 1,
    accumulation: int = 1,
    offload: bool = False,
) -> Any:
    module = Small()
    weights = start_weights()
    module.load_state_dict(weights)
    module.to(dtype)
    tuned = TunedConfig(dtype="bfloat16" if dtype == torch.bfloat16 else "float32")
    workers = WorkersConfig(zero_stage=stage, offload=offload)  # type: ignore[arg-type]
    micro = PROMPTS // world // accumulation
    settings = zero.deepspeed_config(workers, tuned, config.clip, micro, accumulation, world)
    optimizer = zero.optimizer_for(list(module.parameters()), config)
    return zero.start(module, optimizer, settings, weights if dtype != torch.float32 else None)


def take_steps(engine: Any, rank: int, world: int, accumulation: int = 1, steps: int = STEPS) -> None:
    for step in range(steps):
        pictures = torch.randn(PROMPTS, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        own = pictures[rank * PROMPTS // world : (rank + 1) * PROMPTS // world]
        for part in own.chunk(accumulation):
            found = engine(part.to(next(engine.module.parameters()).dtype)).float()
            # a prompt's loss over the global batch, as workers' gradients are averaged
            engine.backward(found.square().sum() * world / PROMPTS, scale_wrt_gas=False)
            engine.step()


def configs() -> Iterator[OptimizerConfig]:
    for name in NAMES:
        # eps: AdamW divides rounding by the root of next to nothing where a gradient is
        yield OptimizerConfig(name=name, learning_rate=1e-2, momentum=0.9, eps=1e-3, clip=0.0)  # type: ignore[arg-type]


def moved(engine: Any) -> dict[str, Tensor]:
    found = zero.gather(engine)
    return {name: found[name] - value for name, value in start_weights().items()}


def worker(rank: int, world: int, place: str) -> None:
    """One of several processes: every optimizer at every stage."""
    os.environ |= {"LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"}
    distributed.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=world)
    torch.set_num_threads(1)
    for config in configs():
        for stage in STAGES:
            for accumulation in (1, 2):
                engine = engine_of(config, stage, world=world, accumulation=accumulation)
                take_steps(engine, rank, world, accumulation)
                found = moved(engine)
                if rank == 0:
                    save_file(found, f"{place}/{config.name}-{stage}-{accumulation}.safetensors")
    distributed.destroy_process_group()


@pytest.fixture(scope="module", autouse=True)
def group() -> None:
    """It stays: DeepSpeed remembers a process's first group, and engines of later tests would ask one that is gone."""
    zero.alone()


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers made of every optimizer, stage and cut."""
    place = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(worker, (2, str(place)), nprocs=2)  # type: ignore[no-untyped-call]
    return place


@pytest.mark.timeout(300)
@pytest.mark.parametrize("config", list(configs()), ids=NAMES)
def test_a_step_depends_on_neither_workers_nor_stage_nor_cut(config: OptimizerConfig, by_two: Path) -> None:
    alone = engine_of(config, 0)
    take_steps(alone, 0, 1)
    due = moved(alone)
    for stage in STAGES:
        engine = engine_of(config, stage)
        take_steps(engine, 0, 1)
        two = [load_file(by_two / f"{config.name}-{stage}-{cut}.safetensors") for cut in (1, 2)]
        for found in (moved(engine), *two):
            for name, value in due.items():
                assert float(value.abs().max()) > 1e-3
                assert float((found[name] - value).norm() / value.norm()) < 1e-5, (stage, name)


SHARDED = [(stage, offload) for stage in (1, 2, 3) for offload in (False, True)]


@pytest.mark.parametrize(("stage", "offload"), SHARDED)
def test_masters_of_a_model_in_bfloat16_start_unrounded(stage: int, offload: bool) -> None:
    for rate in (0.0, 1e-6):
        config = OptimizerConfig(learning_rate=rate, clip=0.0)
        engine = engine_of(config, stage, torch.bfloat16, offload=offload)
        average = zero.Average(engine, 0.5)
        take_steps(engine, 0, 1, steps=1)
        average.follow()
        found = zero.gather(engine)
        with average.swapped():
            followed = zero.gather(engine)
        for name, value in start_weights().items():
            assert not torch.equal(value, value.bfloat16().float()), "the start is not bfloat16's"
            if rate == 0.0:
                assert torch.equal(found[name], value)
                assert torch.equal(followed[name], value)
            else:  # AdamW's first step is the rate long, a thousandth of a rounding of bfloat16
                step = (found[name] - value).abs()
                assert float(step.median()) == pytest.approx(rate, rel=0.1)
                assert float((followed[name] - value).abs().median()) == pytest.approx(rate / 2, rel=0.1)


@pytest.mark.parametrize("stage", [2, 3])
def test_gradients_of_micro_batches_add_up_in_float32(stage: int) -> None:
    """Of 64 equal micro-batches, bfloat16 sums would be off by the rounding of the larger addend."""
    config = OptimizerConfig(name="sgd", learning_rate=1e-3, weight_decay=0.0, clip=0.0)

    def after(times: int) -> dict[str, Tensor]:
        module = Small()
        module.load_state_dict(start_weights())
        module.bfloat16()
        settings = zero.deepspeed_config(
            WorkersConfig(zero_stage=stage),  # type: ignore[arg-type]
            TunedConfig(dtype="bfloat16"),
            0.0,
            1,
            times,
            1,
        )
        optimizer = zero.optimizer_for(list(module.parameters()), config)
        engine = zero.start(module, optimizer, settings, start_weights())
        picture = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(1)).bfloat16()
        for _ in range(times):
            engine.backward(engine(picture).float().square().sum() * 64 / times, scale_wrt_gas=False)
            engine.step()
        return moved(engine)

    once, often = after(1), after(64)
    for name, value in once.items():
        assert float((often[name] - value).norm() / value.norm()) < 1e-3, name


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_gathered_goes_on_at_any_stage(stage: int) -> None:
    config = OptimizerConfig(learning_rate=1e-2, eps=1e-3, clip=0.0)
    whole = engine_of(config, 2)
    take_steps(whole, 0, 1)
    weights, (keys, scalars) = zero.gather(whole), zero.state_keys(whole)
    assert sorted(keys) == ["exp_avg", "exp_avg_sq"]
    assert scalars == {"step": STEPS}
    state = {key: zero.gather(whole, key) for key in keys}
    other = engine_of(config, stage)
    zero.scatter(other, weights)
    zero.refresh(other, weights)
    zero.restore_optimizer(other, state, scalars)
    for engine in (whole, other):
        take_steps(engine, 0, 1, steps=1)
    torch.testing.assert_close(zero.gather(other), zero.gather(whole), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_workers_keep_each_tensor_once_and_alike(world: int) -> None:
    engine = engine_of(OptimizerConfig(), 3)
    shares = [zero.share(engine, rank, world) for rank in range(world)]
    sizes = {name: value.numel() for name, value in start_weights().items()}
    assert sorted(name for part in shares for name in part) == sorted(sizes)
    most = max(sum(sizes[name] for name in part) for part in shares)
    assert most <= sum(sizes.values()) / world + max(sizes.values())
    for part in shares:
        assert zero.gather(engine, None, part).keys() == part


def test_tensors_are_read_from_all_workers_files(tmp_path: Path) -> None:
    shares = [{"a": torch.ones(2)}, {}, {"b": torch.zeros(3), "c": torch.full((1,), 7.0)}]
    for rank, part in enumerate(shares):
        save_file(part, tmp_path / f"optimizer.exp_avg-{rank + 1:05}-of-00003.safetensors")
        save_file({"z": torch.ones(1)}, tmp_path / f"optimizer.exp_avg_sq-{rank + 1:05}-of-00003.safetensors")
    found = zero.Stored(tmp_path, "optimizer.exp_avg")
    assert sorted(found) == ["a", "b", "c"]
    assert found["c"].tolist() == [7.0]
    with pytest.raises(KeyError):
        found["z"]


def test_one_workers_file_is_whole(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    assert dict(zero.Stored(tmp_path, "weights"))["a"].tolist() == [1.0, 1.0]


def test_a_share_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds 0 of 1 files of weights"):
        zero.Stored(tmp_path, "weights")
    save_file({"a": torch.ones(2)}, tmp_path / "weights-00002-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match="holds 1 of 2 files of weights"):
        zero.Stored(tmp_path, "weights")
