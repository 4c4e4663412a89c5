"""All that this project asks of DeepSpeed: an engine, whole tensors out of its shards, and back into them.

ZeRO keeps a slice of every weight's float32 master and optimizer state on each worker, laid out differently for each
stage and number of workers. A checkpoint here holds whole tensors by name, gathered one at a time, so it fits any stage
and any number of workers and needs no pickle (DeepSpeed's own checkpoints do, and its universal ones a conversion
between). The price is the gathering: 12 bytes a trained parameter, 31 GB for all of SDXL's UNet, of which each worker
keeps its share.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, distributed, nn

from rankray.config import ConfigError
from rankray.config.rankdpo import OptimizerConfig, TunedConfig, WorkersConfig
from rankray.models.caches import writing


def optimizer_for(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The configured optimizer: one that treats each weight by itself, so that slices of tensors will do."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=rate, betas=config.betas, eps=config.eps, weight_decay=decay)


def deepspeed_config(
    workers: WorkersConfig, tuned: TunedConfig, clip: float, micro_batch: int, accumulation: int, world: int
) -> dict[str, Any]:
    """DeepSpeed's own configuration. At stage 0 the caller clips.

    Micro-batches' gradients are summed in float32: 64 of them in bfloat16 are off by 1 to 2 %, in float32 by 0.3 %.
    Stage 1 sums in the model's dtype all the same, as DeepSpeed's other way of it never leaves out a step.
    """
    zero: dict[str, Any] = {"stage": workers.zero_stage}
    if workers.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if workers.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    found = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_batch * accumulation * world,
        # Its clipping at stage 0 cannot leave out a step: it divides by a norm that it takes of no gradient.
        "gradient_clipping": clip if workers.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": tuned.dtype == "bfloat16", "check_grad_overflow": True},
        "steps_per_print": None,
    }
    if workers.zero_stage > 1:
        found["data_types"] = {"grad_accum_dtype": "fp32"}
    return found


def start(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor] | None = None,
) -> Any:
    """The DeepSpeed engine around a module, in the process group that Ray Train has made.

    Args:
        weights: what the masters of a module in bfloat16 start from; its own weights are these, rounded.
    """
    import deepspeed

    with writing("TORCH_EXTENSIONS_DIR"):  # where DeepSpeed builds what it computes with
        deepspeed.init_distributed(dist_init_required=False)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        model_parameters=[p for p in module.parameters() if p.requires_grad],
        config=dict(config),
        dist_init_required=False,
    )
    if weights:
        scatter(engine, weights)
    return engine


def alone() -> None:
    """A process group of this process, for an engine that no Ray Train worker starts; nothing where there is one."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed looks for what a launcher would set
    if not distributed.is_initialized():
        directory = tempfile.mkdtemp(prefix="rankray-alone-")
        distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=0, world_size=1)


def trained(engine: Any) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by name."""
    return {name: p for name, p in engine.module.named_parameters() if p.requires_grad}


def masters(engine: Any) -> list[Tensor]:
    """The float32 tensors that the optimizer on this worker moves: its slices, or at stage 0 the parameters."""
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    if stage in (1, 2):
        return list(engine.optimizer.single_partition_of_fp32_groups)
    return list(trained(engine).values())


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer within the engine."""
    found: torch.optim.Optimizer
    found = engine.optimizer.optimizer if engine.zero_optimization_stage() else engine.optimizer
    return found


def state_keys(engine: Any) -> tuple[list[str], dict[str, float]]:
    """Names of the optimizer's per-weight tensors, and its per-weight scalars (all weights' are the same)."""
    first = masters(engine)[0]
    state = base_optimizer(engine).state.get(first, {})
    tensors = [k for k, v in state.items() if isinstance(v, Tensor) and v.shape == first.shape and v.ndim]
    others = {k: v for k, v in state.items() if k not in tensors}
    scalars = {
        k: float(v)
        for k, v in others.items()
        if isinstance(v, int | float) or (isinstance(v, Tensor) and v.numel() == 1)
    }
    return tensors, scalars


def each(engine: Any, key: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """Whole float32 tensors by name, one at a time: the masters, or the optimizer's state `key`.

    They are on the worker's device and may be the engine's own: copy them. Every worker must take all of them.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    for name, parameter in trained(engine).items():
        if engine.zero_optimization_stage() == 0:
            value = parameter.detach() if key is None else base_optimizer(engine).state[parameter][key]
        elif key is None:
            value = safe_get_full_fp32_param(parameter)
        else:
            value = safe_get_full_optimizer_state(parameter, key)
        yield name, value.detach().float().reshape(_shape(parameter))


def gather(engine: Any, key: str | None = None, names: Container[str] | None = None) -> dict[str, Tensor]:
    """What `each` goes through, on the CPU; of `names` alone where they are given. Every worker must call it."""
    return {
        name: torch.empty(value.shape).copy_(value)
        for name, value in each(engine, key)
        if names is None or name in names
    }


def share(engine: Any, rank: int, world: int) -> frozenset[str]:
    """The trained tensors that a worker keeps for all, consecutive and of about as many weights as any other's."""
    sizes = {name: _shape(parameter).numel() for name, parameter in trained(engine).items()}
    total, before, found = max(1, sum(sizes.values())), 0, []
    for name, size in sizes.items():
        if (2 * before + size) * world // (2 * total) == rank:  # by a tensor's middle
            found.append(name)
        before += size
    return frozenset(found)


def _shape(parameter: Any) -> torch.Size:
    """A parameter's whole shape; stage 3 leaves an empty tensor in its place."""
    found: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return found


def scatter(engine: Any, tensors: Mapping[str, Tensor], key: str | None = None) -> None:
    """The reverse of `gather`: each worker takes its slices of whole tensors that all workers hold."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    stage = engine.zero_optimization_stage()
    for name, parameter in trained(engine).items():
        value = tensors[name].float()
        if stage == 0:
            own = parameter.data if key is None else base_optimizer(engine).state[parameter][key]
            own.copy_(value.to(own.device))
        elif stage == 3:
            _set_slice(parameter, value, key)
        elif key is None:
            safe_set_full_fp32_param(parameter, value.to(engine.device))
        else:
            safe_set_full_optimizer_state(parameter, value.to(engine.device), key)


def refresh(engine: Any, weights: Mapping[str, Tensor]) -> None:
    """Makes the weights that the model computes with those of its masters, after `scatter`."""
    stage = engine.zero_optimization_stage()
    if stage in (1, 2):
        engine.optimizer.update_lp_params()
    if stage == 3:
        import deepspeed

        parameters = trained(engine)
        with torch.no_grad(), deepspeed.zero.GatheredParameters(list(parameters.values()), modifier_rank=0):
            if distributed.get_rank() == 0:
                for name, parameter in parameters.items():
                    parameter.copy_(weights[name].to(parameter.device))


def _set_slice(parameter: Any, value: Tensor, key: str | None) -> None:
    """Stage 3: this worker's slice of a parameter, the last one padded (DeepSpeed's own setter does not pad)."""
    from deepspeed.utils import (
        safe_get_local_fp32_param,
        safe_get_local_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    there = (parameter,) if key is None else (parameter, key)
    local = (safe_get_local_fp32_param if key is None else safe_get_local_optimizer_state)(*there)
    start = distributed.get_rank() * local.numel()
    part = value.flatten()[start : start + local.numel()]
    own = torch.zeros(local.numel(), dtype=torch.float32)
    own[: len(part)] = part
    if key is None:
        safe_set_local_fp32_param(parameter, own.to(local.device))
    else:
        safe_set_local_optimizer_state(parameter, own.to(local.device), key)


def restore_optimizer(
    engine: Any, tensors: Mapping[str, Mapping[str, Tensor]], scalars: Mapping[str, float]
) -> None:
    """Gives the optimizer the state that `gather` and `state_keys` took, before its first step."""
    if not tensors and not scalars:
        return
    state = base_optimizer(engine).state
    for master in masters(engine):
        state[master] = {key: torch.zeros_like(master, dtype=torch.float32) for key in tensors}
        state[master] |= {key: torch.tensor(value, dtype=torch.float32) for key, value in scalars.items()}
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    for key, values in tensors.items():
        scatter(engine, values, key)


class Average:
    """An exponential average of the masters (EMA), in the same slices: 4 bytes a parameter over all workers."""

    def __init__(self, engine: Any, decay: float) -> None:
        self._engine, self._decay = engine, decay
        self._values = [master.detach().clone() for master in masters(engine)]

    def follow(self) -> None:
        """Moves the average towards the masters."""
        torch._foreach_lerp_(self._values, [m.detach() for m in masters(self._engine)], 1.0 - self._decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within, the masters hold the average: `gather` then takes it, and `scatter` sets it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within, the model computes with the average too. At stage 3 that takes whole tensors: every worker's host
        holds them for as long."""
        try:
            with self.swapped():
                self._refresh()
                yield
        finally:
            self._refresh()

    def _refresh(self) -> None:
        stage = self._engine.zero_optimization_stage()
        refresh(self._engine, gather(self._engine) if stage == 3 else {})

    def _swap(self) -> None:
        with torch.no_grad():
            for own, master in zip(self._values, masters(self._engine), strict=True):
                kept = master.detach().clone()
                master.data.copy_(own)
                own.copy_(kept)


class Stored(Mapping[str, Tensor]):
    """The tensors of a NAME in a checkpoint's directory, each read when it is asked for.

    Raises:
        FileNotFoundError: a worker's share is not there.
        ConfigError: a file is cut short or damaged.
    """

    def __init__(self, directory: Path, name: str) -> None:
        whole = directory / f"{name}.safetensors"
        files = [whole] if whole.exists() else sorted(directory.glob(f"{name}-*-of-*.safetensors"))
        last = files[0].stem.rpartition("-of-")[2] if files and files != [whole] else "1"
        workers = int(last) if last.isdecimal() else 0
        if len(files) != workers:
            raise FileNotFoundError(f"{directory} holds {len(files)} of {workers} files of {name}")
        self._files: dict[str, Any] = {}
        for file in files:
            try:
                opened = safe_open(file, "pt")
            except SafetensorError as error:
                raise ConfigError(
                    f"{file} is cut short or damaged ({error}); remove its checkpoint, and training goes on from the "
                    "one before"
                ) from None
            self._files |= dict.fromkeys(opened.keys(), opened)  # type: ignore[no-untyped-call]

    def __getitem__(self, key: str) -> Tensor:
        found: Tensor = self._files[key].get_tensor(key)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
