"""What a diffusion model is trained on: noising, targets and times for epsilon, v-prediction and rectified flow.

Everything random about a prompt's training step is a function of (seed, epoch, prompt_id) and of nothing else: not of
the batch, the worker or the order. So a run can be repeated, its reference errors can be computed ahead by another
process, and losses do not depend on how prompts are split. The price is a generator a prompt: 40 microseconds to seed.

As Algorithm 2 has it, one time is shared by a prompt's K candidates and noise is drawn for each of them; Diffusion-DPO
shares the noise as well (`shared_noise`).

    signal, sigma   x_t = signal * x_0 + sigma * noise
    epsilon         target = noise
    v_prediction    target = signal * noise - sigma * x_0             (Salimans and Ho 2022)
    flow            signal = 1 - sigma, target = noise - x_0          (Liu et al. 2022; SD3 paper, Eq. 13)
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "flow")


@dataclass(frozen=True)
class Process:
    """A model's forward process.

    Attributes:
        prediction: what the model predicts, one of PREDICTIONS.
        alphas_cumprod: float32[T], squared signal at each discrete time; empty for flow.
        num_times: T, which a flow model's time is scaled by.
    """

    prediction: str
    alphas_cumprod: Tensor
    num_times: int = 1000

    @property
    def is_flow(self) -> bool:
        return self.prediction == "flow"


@dataclass(frozen=True)
class TimeSampling:
    """How times are drawn.

    Attributes:
        distribution: "uniform" or "logit_normal" (SD3 paper, section 3.1), over sigma for flow and over discrete times
            for the others.
        mean, std: of the logit-normal.
        shift: moves flow's sigma towards noise: shift * sigma / (1 + (shift - 1) * sigma) (SD3 paper, Eq. 23).
    """

    distribution: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0


@dataclass(frozen=True)
class Draw:
    """A prompt's randomness in one epoch.

    Attributes:
        time: discrete time for epsilon and v, sigma for flow.
        noise: float32[K, C, H, W].
        posterior: noise of the autoencoder's posterior, float32[K, C, H, W].
        dropped: train on the empty prompt instead.
    """

    time: float
    noise: Tensor
    posterior: Tensor
    dropped: bool


def signal_and_sigma(process: Process, time: Tensor) -> tuple[Tensor, Tensor]:
    """(signal, sigma) at times [B], each float32[B, 1, 1, 1]."""
    if process.is_flow:
        sigma = time.float()
        signal = 1.0 - sigma
    else:
        squared = process.alphas_cumprod.to(time.device)[time.long()]
        signal, sigma = squared.sqrt(), (1.0 - squared).sqrt()
    return signal[:, None, None, None], sigma[:, None, None, None]


def noised(process: Process, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t = signal * x_0 + sigma * noise: float[B, C, H, W] at times [B]."""
    signal, sigma = signal_and_sigma(process, time)
    return signal * latents + sigma * noise


def target(process: Process, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """What the model should predict: float[B, C, H, W]."""
    if process.prediction == "epsilon":
        return noise
    if process.is_flow:
        return noise - latents
    signal, sigma = signal_and_sigma(process, time)
    return signal * noise - sigma * latents


def model_time(process: Process, time: Tensor) -> Tensor:
    """The time as the model takes it: a discrete time, or T * sigma for flow; float32[B] or int64[B]."""
    return process.num_times * time.float() if process.is_flow else time.long()


def error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over C, H, W of the squared error, in float32: float32[B]."""
    return (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))


def time_weight(process: Process, time: Tensor, weighting: str, gamma: float = 5.0) -> Tensor:
    """Factor of the error at times [B]: float32[B].

    "none" is 1, as the paper has it. "min_snr" is min(snr, gamma) on the clean picture (Hang et al. 2023), which makes
    min(snr, gamma) / snr for epsilon, / (snr + 1) for v and, as a flow's error is that of x_0 over sigma squared,
    * sigma squared for flow.

    Raises:
        ValueError: another weighting.
    """
    if weighting == "none":
        return torch.ones_like(time, dtype=torch.float32)
    if weighting != "min_snr":
        raise ValueError(f"weighting {weighting!r}; allowed: none, min_snr")
    signal, sigma = (part[:, 0, 0, 0] for part in signal_and_sigma(process, time))
    snr = (signal / sigma).square()
    capped = snr.clamp(max=gamma)
    if process.prediction == "epsilon":
        return capped / snr.clamp(min=1e-8)
    return capped / (snr + 1.0) if process.prediction == "v_prediction" else capped * sigma.square()


def prompt_generator(seed: int, epoch: int, prompt_id: str) -> torch.Generator:
    """The source of all of a prompt's randomness in an epoch."""
    digest = hashlib.sha256(f"{seed}\0{epoch}\0{prompt_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def draw(
    process: Process,
    sampling: TimeSampling,
    generator: torch.Generator,
    shape: tuple[int, int, int, int],
    dropout: float = 0.0,
    shared_noise: bool = False,
    stratum: tuple[int, int] = (0, 1),
) -> Draw:
    """One prompt's time, noise and dropout (Algorithm 2, lines 3 and 4), for latents of `shape` [K, C, H, W].

    Candidates come after time and dropout, in their order, so the first k of them do not depend on how many follow.
    `stratum` (i, n) takes the time from the i-th of n equally likely parts of its distribution.
    """
    time = _time(process, sampling, generator, stratum)
    dropped = bool(torch.rand((), generator=generator) < dropout)
    rows = [torch.randn((2, *shape[1:]), generator=generator) for _ in range(shape[0])]
    posterior = torch.stack([row[1] for row in rows])
    noise = torch.stack([rows[0][0] if shared_noise else row[0] for row in rows])
    return Draw(time, noise, posterior, dropped)


def _time(
    process: Process, sampling: TimeSampling, generator: torch.Generator, stratum: tuple[int, int]
) -> float:
    part, parts = stratum
    if sampling.distribution == "uniform":
        share = (part + float(torch.rand((), generator=generator, dtype=torch.float64))) / parts
    elif sampling.distribution == "logit_normal":
        normal = torch.randn((), generator=generator, dtype=torch.float64)
        if parts > 1:
            normal = torch.special.ndtri((part + torch.special.ndtr(normal)) / parts)
        share = 1.0 / (1.0 + math.exp(-(sampling.mean + sampling.std * float(normal))))
    else:
        raise ValueError(f"distribution {sampling.distribution!r}; allowed: uniform, logit_normal")
    if process.is_flow:
        return sampling.shift * share / (1.0 + (sampling.shift - 1.0) * share)
    return float(min(int(share * process.num_times), process.num_times - 1))
