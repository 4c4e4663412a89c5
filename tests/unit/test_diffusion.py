"""Noising and targets against diffusers' own schedulers; times and noise against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from rankray import diffusion
from rankray.diffusion import Process, TimeSampling

FLOW = Process("flow", torch.empty(0))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_noise_and_target_are_the_schedulers_own(prediction: str, schedule: str, zero_snr: bool) -> None:
    scheduler = DDPMScheduler(
        beta_schedule=schedule, prediction_type=prediction, rescale_betas_zero_snr=zero_snr, beta_end=0.012
    )
    process = Process(prediction, scheduler.alphas_cumprod)
    latents, noise = torch.randn(2, 5, 4, 8, 8)
    time = torch.tensor([0, 10, 500, 900, 999])
    torch.testing.assert_close(
        diffusion.noised(process, latents, noise, time),
        scheduler.add_noise(latents, noise, time),
        atol=1e-6,
        rtol=0,
    )
    due = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, time)
    torch.testing.assert_close(diffusion.target(process, latents, noise, time), due, atol=1e-6, rtol=0)


def test_flow_is_a_straight_line() -> None:
    process = FLOW
    latents, noise = torch.randn(2, 3, 4, 8, 8)
    sigma = torch.tensor([0.0, 0.25, 1.0])
    found = diffusion.noised(process, latents, noise, sigma)
    torch.testing.assert_close(found[0], latents[0])
    torch.testing.assert_close(found[1], 0.75 * latents[1] + 0.25 * noise[1])
    torch.testing.assert_close(found[2], noise[2])
    # the target is the line's slope
    ahead = diffusion.noised(process, latents, noise, sigma + 0.5)
    torch.testing.assert_close((ahead - found) / 0.5, diffusion.target(process, latents, noise, sigma))
    assert diffusion.model_time(process, sigma).tolist() == [0.0, 250.0, 1000.0]


def test_error_is_a_mean_over_channels_and_pixels() -> None:
    assert diffusion.error(torch.full((2, 4, 8, 8), 3.0), torch.ones(2, 4, 8, 8)).tolist() == [4.0, 4.0]


def test_a_draw_is_a_function_of_seed_epoch_and_prompt() -> None:
    def draw(seed: int, epoch: int, prompt: str, k: int = 4) -> diffusion.Draw:
        generator = diffusion.prompt_generator(seed, epoch, prompt)
        return diffusion.draw(FLOW, TimeSampling("logit_normal"), generator, (k, 4, 8, 8), 0.5)

    first = draw(0, 0, "a")
    again = draw(0, 0, "a")
    assert (first.time, first.dropped) == (again.time, again.dropped)
    assert torch.equal(first.noise, again.noise)
    for other in (draw(1, 0, "a"), draw(0, 1, "a"), draw(0, 0, "b")):
        assert other.time != first.time
        assert not torch.equal(other.noise, first.noise)
    assert torch.equal(draw(0, 0, "a", k=2).noise, first.noise[:2])
    assert not torch.equal(first.noise[0], first.noise[1])
    assert not torch.equal(first.noise, first.posterior)


def test_shared_noise_is_one_for_all_candidates() -> None:
    found = diffusion.draw(
        FLOW, TimeSampling(), diffusion.prompt_generator(0, 0, "a"), (3, 4, 8, 8), shared_noise=True
    )
    assert torch.equal(found.noise[0], found.noise[2])
    assert not torch.equal(found.posterior[0], found.posterior[2])


def times(process: Process, sampling: TimeSampling, dropout: float = 0.0) -> tuple[np.ndarray, float]:
    draws = [
        diffusion.draw(process, sampling, diffusion.prompt_generator(7, 0, str(i)), (1, 1, 1, 1), dropout)
        for i in range(4000)
    ]
    return np.array([d.time for d in draws]), float(np.mean([d.dropped for d in draws]))


def test_times_follow_their_distribution() -> None:
    uniform, dropped = times(FLOW, TimeSampling("uniform"), dropout=0.2)
    assert np.abs(np.quantile(uniform, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.03
    assert abs(dropped - 0.2) < 0.03
    normal, _ = times(FLOW, TimeSampling("logit_normal"))
    logits = np.log(normal / (1 - normal))
    assert abs(logits.mean()) < 0.06
    assert abs(logits.std() - 1) < 0.06
    shifted, _ = times(FLOW, TimeSampling("uniform", shift=3.0))
    np.testing.assert_allclose(shifted, 3 * uniform / (1 + 2 * uniform))


def test_discrete_times_are_whole_and_in_range() -> None:
    process = Process("epsilon", torch.ones(50), 50)
    found, _ = times(process, TimeSampling("uniform"))
    assert set(found) == set(range(50))


def test_min_snr_weights() -> None:
    process = Process("epsilon", DDPMScheduler(beta_schedule="scaled_linear").alphas_cumprod)
    time = torch.tensor([10, 900])
    signal, sigma = diffusion.signal_and_sigma(process, time)
    snr = (signal / sigma).square().flatten()
    assert snr[0] > 5 > snr[1]
    found = diffusion.time_weight(process, time, "min_snr")
    torch.testing.assert_close(found, torch.tensor([5.0 / snr[0].item(), 1.0]))
    v = Process("v_prediction", process.alphas_cumprod)
    torch.testing.assert_close(
        diffusion.time_weight(v, time, "min_snr"), torch.tensor([5.0, snr[1].item()]) / (snr + 1)
    )
    # sigma 0.5: snr 1, times 0.25; sigma 0.1: snr 81 capped at 5, times 0.01
    flow = diffusion.time_weight(FLOW, torch.tensor([0.5, 0.1]), "min_snr")
    torch.testing.assert_close(flow, torch.tensor([0.25, 0.05]))
    assert diffusion.time_weight(v, time, "none").tolist() == [1.0, 1.0]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="weighting 'snr'"):
        diffusion.time_weight(FLOW, torch.tensor([0.5]), "snr")
    with pytest.raises(ValueError, match="distribution 'cosine'"):
        diffusion.draw(FLOW, TimeSampling("cosine"), diffusion.prompt_generator(0, 0, "a"), (1, 1, 1, 1))
