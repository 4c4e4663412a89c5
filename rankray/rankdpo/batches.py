"""Batches of Algorithm 2: rows and their randomness as tensors, and the errors that a denoiser makes on them.

The same two functions serve trainers and the stage that computes reference errors ahead, so both see the same times and
noise and their errors agree to rounding. Only candidates that an objective looks at are predicted: best-against-worst
DPO costs two predictions of four.

    B prompts, K candidates (padded to the most of the batch), n predictions
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankray import diffusion
from rankray.config.rankdpo import RankDPOConfig
from rankray.losses import LossInputs
from rankray.models.denoisers import parts
from rankray.models.generators import GeneratorSpec
from rankray.rankdpo.encoded import EncodedRow


@dataclass(frozen=True)
class Noising:
    """How a row is made a training example: all that decides its time, noise and text.

    With `strata` a row's epoch is one of so many fixed draws, each from its own part of the times: validation's.
    """

    process: diffusion.Process
    sampling: diffusion.TimeSampling
    seed: int
    dropout: float
    shared_noise: bool
    sample_latents: bool
    weighting: str
    strata: int = 0


def noising(spec: GeneratorSpec, config: RankDPOConfig) -> Noising:
    """How rows become training examples: the configuration's, or what the model was trained with."""
    noise = config.noise
    return Noising(
        process=parts.load_process(spec),
        sampling=parts.time_sampling(spec, noise.distribution, noise.mean, noise.std),
        seed=config.seed,
        dropout=noise.prompt_dropout,
        shared_noise=noise.shared,
        sample_latents=noise.sample_latents,
        weighting=noise.weighting,
    )


@dataclass(frozen=True)
class Batch:
    """A micro-batch on a device.

    Attributes:
        latents, noise: float32[B, K, C, H, W].
        time: float64[B]; see `diffusion.Draw`.
        text: name -> [B, ...], the empty prompt's where it was dropped.
        win_probability: float32[B, K]; NaN where padded.
        rank: int64[B, K]; 0 where padded.
        mask: bool[B, K].
        scores: float32[B, K] of one reward, or None.
        ref_error: float32[B, K], computed ahead of training; NaN where it was not.
        comparable: bool[K, K], which candidates may be compared, or None: all.
    """

    latents: Tensor
    noise: Tensor
    time: Tensor
    text: Mapping[str, Tensor]
    win_probability: Tensor
    rank: Tensor
    mask: Tensor
    scores: Tensor | None
    ref_error: Tensor
    comparable: Tensor | None = None

    def inputs(self, model_error: Tensor, ref_error: Tensor) -> LossInputs:
        """What an objective sees of this batch."""
        given = (self.win_probability, self.rank, self.mask, self.scores, self.comparable)
        return LossInputs(model_error, ref_error, *given)

    def without_errors(self) -> LossInputs:
        """As `inputs`, with zeros for errors: enough to say which candidates are needed."""
        zeros = torch.zeros_like(self.win_probability)
        return self.inputs(zeros, zeros)


def make_batch(
    rows: Sequence[EncodedRow],
    epochs: Sequence[int],
    noising: Noising,
    empty: Mapping[str, np.ndarray],
    device: str,
    reward: int | None = None,
) -> Batch:
    """Pads and noises rows; `epochs` says in which epoch each is seen, `reward` whose scores an objective weighs by."""
    k = max(len(row.rank) for row in rows)
    c, h, w = rows[0].mean.shape[1:]
    latents, noise = torch.zeros(len(rows), k, c, h, w), torch.zeros(len(rows), k, c, h, w)
    phi, rank = torch.full((len(rows), k), torch.nan), torch.zeros(len(rows), k, dtype=torch.int64)
    scores, ref_error = torch.full((2, len(rows), k), torch.nan)
    times, text = [], []
    for b, (row, epoch) in enumerate(zip(rows, epochs, strict=True)):
        own = len(row.rank)
        stratum = (epoch, noising.strata) if noising.strata else (0, 1)
        drawn = diffusion.draw(
            noising.process,
            noising.sampling,
            # No epoch is negative, so no validation sees a noise that training has seen.
            diffusion.prompt_generator(noising.seed, -1 - epoch if noising.strata else epoch, row.prompt_id),
            (own, c, h, w),
            noising.dropout,
            noising.shared_noise,
            stratum,
        )
        latents[b, :own] = torch.from_numpy(row.mean)
        if noising.sample_latents:
            latents[b, :own] += torch.from_numpy(row.std) * drawn.posterior
        noise[b, :own] = drawn.noise
        phi[b, :own], rank[b, :own] = torch.from_numpy(row.win_probability), torch.from_numpy(row.rank)
        if reward is not None:
            scores[b, :own] = torch.from_numpy(row.scores[:, reward])
        if row.ref_error:
            ref_error[b, :own] = torch.tensor(row.ref_error[epoch])
        times.append(drawn.time)
        text.append(empty if drawn.dropped else row.text)
    return Batch(
        latents=latents.to(device),
        noise=noise.to(device),
        time=torch.tensor(times, dtype=torch.float64).to(device),
        text={name: torch.from_numpy(np.stack([one[name] for one in text])).to(device) for name in empty},
        win_probability=phi.to(device),
        rank=rank.to(device),
        mask=(rank > 0).to(device),
        scores=scores.to(device) if reward is not None else None,
        ref_error=ref_error.to(device),
    )


def errors(
    denoiser: Any,
    predict: Callable[..., Tensor],
    batch: Batch,
    computed: Tensor,
    noising: Noising,
    size: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """The denoiser's error on each candidate where `computed` (bool[B, K]) is set, 0 elsewhere: float32[B, K]."""
    b, k = computed.shape
    flat = computed.flatten().nonzero(as_tuple=True)[0]
    if len(flat) == 0:
        return torch.zeros(b, k, device=batch.latents.device)
    prompt = flat // k
    latents, noise = batch.latents.flatten(0, 1)[flat], batch.noise.flatten(0, 1)[flat]
    time = batch.time[prompt]
    noisy = diffusion.noised(noising.process, latents, noise, time)
    text = {name: value[prompt].to(dtype) for name, value in batch.text.items()}
    prediction = predict(denoiser, noisy.to(dtype), diffusion.model_time(noising.process, time), text, size)
    target = diffusion.target(noising.process, latents, noise, time)
    weight = diffusion.time_weight(noising.process, time, noising.weighting)
    error = diffusion.error(prediction, target) * weight
    return torch.zeros(b * k, device=error.device).index_put((flat,), error).view(b, k)
