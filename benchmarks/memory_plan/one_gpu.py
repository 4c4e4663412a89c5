"""RankDPO on one GPU where neither Ray nor DeepSpeed is installed: the trainer's own step around an engine of torch.

Model, reference, batch, loss and update are `rankray.rankdpo.step`'s, the settings those of the job file. What ZeRO
2 does on one GPU is `OneGpu`'s: float32 masters and optimizer state whole, gradients summed in float32 as they come.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from rankray import config
from rankray.config import read_toml
from rankray.config.rankdpo import OptimizerConfig, RankDPOConfig
from rankray.models.denoisers import DENOISERS, family
from rankray.models.generators import GeneratorSpec
from rankray.rankdpo import zero
from rankray.rankdpo.encoded import Layout, encoded_table
from rankray.rankdpo.feed import Rows
from rankray.rankdpo.step import TrainedModel, Training
from rankray.rankdpo.train_job import RowSet, TrainJob
from recipes.random_weights.full_size import fill

JOBS = {"sdxl": "rankdpo-sdxl.toml", "sd3-medium": "rankdpo-sd3.toml"}
CANDIDATES, PROMPTS, BATCH = 4, 32, 4
"""Of a row; of the encoded set; of a step, in whatever micro-batches."""


BUCKET = 500_000_000
"""Elements of DeepSpeed's buffer for gradients on their way, there as long as a backward pass."""


class OneGpu:
    """DeepSpeed's engine, as far as a training asks it: all masters in one float32 tensor, as is the optimizer's state;
    a gradient is added to their sum in float32 as soon as it is there, and dropped."""

    def __init__(self, module: Any, settings: OptimizerConfig, accumulation: int = 1) -> None:
        self.module, self.accumulation, self.micro_steps = module, accumulation, 0
        self.learnt = [p for p in module.parameters() if p.requires_grad]
        self._sizes, self._clip = [p.numel() for p in self.learnt], settings.clip
        self.master = nn.Parameter(torch.cat([p.detach().float().flatten() for p in self.learnt]))
        self.optimizer = zero.optimizer_for([self.master], settings)
        self._slices = dict(zip(self.learnt, self.master.detach().split(self._sizes), strict=True))
        self._sums: dict[Tensor, Tensor] = {}
        self.missing = set(self.learnt)
        for parameter in self.learnt:
            parameter.register_post_accumulate_grad_hook(self.add)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.module(*arguments, **named)

    def zero_optimization_stage(self) -> int:
        """The engine clips by itself."""
        return 2

    def get_global_grad_norm(self) -> None:
        """Not asked for."""

    def add(self, parameter: Tensor) -> None:
        """Takes a gradient as soon as it is there."""
        assert parameter.grad is not None
        self._sums[parameter].add_(parameter.grad.float().flatten())
        self.missing.discard(parameter)
        parameter.grad = None

    def differentiate(self, loss: Tensor) -> None:
        """The backward pass itself."""
        loss.backward()

    def backward(self, loss: Tensor, scale_wrt_gas: bool) -> None:
        """Adds to the masters' gradient."""
        bucket = torch.empty(BUCKET, dtype=self.learnt[0].dtype, device=loss.device)
        if self.master.grad is None:
            self.master.grad = torch.zeros_like(self.master)
        self._sums = dict(zip(self.learnt, self.master.grad.split(self._sizes), strict=True))
        self.differentiate(loss)
        del bucket
        self._sums = {}

    def step(self) -> None:
        """Moves the weights after the last micro-batch."""
        self.micro_steps += 1
        if self.micro_steps % self.accumulation:
            return
        assert not self.missing, "every trained weight has a gradient"
        if self._clip:
            torch.nn.utils.clip_grad_norm_([self.master], self._clip)
        self.optimizer.step()
        self.master.grad = None
        for parameter, master in self._slices.items():
            parameter.data.copy_(master.view(parameter.shape))


class Trainer:
    """A model and its reference on the device, and an encoded set beside them."""

    def __init__(self, spec: GeneratorSpec, name: str, place: Path, device: str, tiny: bool) -> None:
        begin_s = time.perf_counter()
        layout = _encoded(spec, place)
        tables = read_toml(Path(__file__).parents[2] / "jobs" / JOBS[name])
        changes: dict[str, Any] = {"batch_size": BATCH, "objective.reference": "copy", "workers.count": 1}
        changes |= {"validation.share": 0.0, "validation.stop": "none"}
        if tiny:
            changes["tuned.dtype"] = "float32"
        self.job = TrainJob(
            config=config.build(RankDPOConfig, config.with_options(tables, changes)),
            spec=spec, sets=(RowSet((str(place / "rows.parquet"),), str(place), layout),),
            encoded=str(place), encoders=(), reward=None,
            rows=PROMPTS, sample_prompts=(), output=str(place), device=device,
        )  # fmt: skip
        with _own_threads():
            self.model = TrainedModel(self.job)
        self.model.start = {}
        if not tiny:
            fill(self.model.module)
            fill(self.model.copy)
        self.engine = OneGpu(self.model.module, self.job.config.optimizer)
        self.load_s = time.perf_counter() - begin_s

    def steps(self, micro: int) -> Iterator[tuple[float, float, float]]:
        """(seconds of a step, seconds of them that it waited for data, loss), one after another."""
        self.engine.accumulation = -(-self.job.config.batch_size // micro)
        training = Training(self.job, self.model, self.engine, self.engine.accumulation)
        begin_s = time.perf_counter()
        for step in training.steps(Rows(self.job)):
            # Its sums are on the host, so the device is done with all but the update.
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            yield time.perf_counter() - begin_s, step.wait_s, step.sums["loss"]
            begin_s = time.perf_counter()


@contextmanager
def _own_threads() -> Iterator[None]:
    """A trainer takes the threads of its worker; the parts after it want their own back."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _encoded(spec: GeneratorSpec, place: Path) -> Layout:
    """Writes an encoded set of random rows in the model's shapes, as the encoding stage would."""
    weights = Path(spec.source)
    configs = {file.parent.name: json.loads(file.read_text()) for file in weights.glob("*/config.json")}
    down = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    latent = (configs["vae"]["latent_channels"], spec.height // down, spec.width // down)
    text = DENOISERS[family(spec)].text(configs, spec.call)
    layout = Layout(latent, text, "float16", (spec.height, spec.width))
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    candidates = [
        {"win_probability": 1 - n / (CANDIDATES - 1), "rank": n + 1, "scores": [0.0]}
        for n in range(CANDIDATES)
    ]
    rows = [
        {"prompt_id": f"{n:08}", "prompt": f"prompt {n}", "candidates": candidates} for n in range(PROMPTS)
    ]
    latents = [[(normal(*latent), np.abs(normal(*latent))) for _ in candidates] for _ in rows]
    embeddings = {name: normal(len(rows), *shape) for name, shape in text.items()}
    place.mkdir(parents=True, exist_ok=True)
    table = encoded_table(rows, latents, embeddings, layout)
    pq.write_table(table, place / "rows.parquet", row_group_size=1)
    save_file(
        {name: np.zeros(shape, np.float32) for name, shape in text.items()}, place / "empty.safetensors"
    )
    return layout
