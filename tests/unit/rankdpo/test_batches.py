"""Rows as tensors: padding, dropout, and errors that do not depend on what stands beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from rankray.diffusion import Process, TimeSampling
from rankray.rankdpo.batches import Batch, Noising, errors, make_batch
from rankray.rankdpo.encoded import EncodedRow

FLOW = Process("flow", torch.empty(0))
EMPTY = {"text": np.zeros((2,), np.float32)}


def noising(dropout: float = 0.0, sample: bool = True) -> Noising:
    return Noising(FLOW, TimeSampling(), 5, dropout, False, sample, "none")


def row(name: str, k: int) -> EncodedRow:
    rng = np.random.default_rng(sum(map(ord, name)))
    return EncodedRow(
        prompt_id=name,
        mean=rng.normal(size=(k, 2, 4, 4)).astype(np.float32),
        std=np.full((k, 2, 4, 4), 0.5, np.float32),
        win_probability=np.linspace(1, 0, k, dtype=np.float32),
        rank=np.arange(1, k + 1),
        scores=np.stack([np.arange(k), 10.0 * np.arange(k)], axis=-1).astype(np.float32),
        text={"text": np.array([1.0, 2.0], np.float32)},
    )


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))


def predict(
    denoiser: nn.Module, noisy: Tensor, time: Tensor, text: Mapping[str, Tensor], size: tuple[int, int]
) -> Tensor:
    return (
        denoiser.weight * noisy + text["text"].sum(1)[:, None, None, None] + 1e-3 * time[:, None, None, None]
    )


def batch(names: list[tuple[str, int]], **changes: float | bool) -> Batch:
    return make_batch(
        [row(*name) for name in names], [0] * len(names), noising(**changes), EMPTY, "cpu", reward=1
    )  # type: ignore[arg-type]


def test_shorter_rows_are_padded_and_masked() -> None:
    found = batch([("a", 2), ("b", 4)])
    assert found.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert found.rank[0].tolist() == [1, 2, 0, 0]
    assert torch.isnan(found.win_probability[0, 2:]).all()
    assert found.scores is not None
    assert found.scores[1].tolist() == [0.0, 10.0, 20.0, 30.0]


def test_errors_do_not_depend_on_neighbours_or_padding() -> None:
    alone, together = batch([("a", 2)]), batch([("b", 4), ("a", 2)])
    model = Denoiser()
    one = errors(model, predict, alone, alone.mask, noising(), (4, 4), torch.float32)
    two = errors(model, predict, together, together.mask, noising(), (4, 4), torch.float32)
    torch.testing.assert_close(one[0], two[1, :2])
    assert two[1, 2:].tolist() == [0.0, 0.0]


def test_only_what_is_asked_for_is_predicted() -> None:
    seen: list[int] = []

    def count(denoiser: nn.Module, noisy: Tensor, *rest: object) -> Tensor:
        seen.append(len(noisy))
        return predict(denoiser, noisy, *rest)  # type: ignore[arg-type]

    found = batch([("a", 3), ("b", 3)])
    asked = torch.tensor([[True, False, True], [False, False, False]])
    error = errors(Denoiser(), count, found, asked, noising(), (4, 4), torch.float32)
    assert seen == [2]
    assert (error != 0).tolist() == asked.tolist()
    error.sum().backward()


def test_a_flow_error_by_hand() -> None:
    found = batch([("a", 1)], sample=False)
    sigma = found.time[0].float()
    x, noise = found.latents[0, 0], found.noise[0, 0]
    prediction = 0.3 * ((1 - sigma) * x + sigma * noise) + 3.0 + sigma  # 1e-3 * 1000 * sigma
    due = ((prediction - (noise - x)) ** 2).mean()
    error = errors(Denoiser(), predict, found, found.mask, noising(), (4, 4), torch.float32)
    torch.testing.assert_close(error[0, 0], due)


def test_dropped_prompts_are_the_empty_one_and_latents_are_sampled_on_request() -> None:
    names = [(f"p{n}", 1) for n in range(60)]
    dropped = (batch(names, dropout=0.5).text["text"].sum(1) == 0).float().mean().item()
    assert 0.3 < dropped < 0.7
    mean, sampled = batch(names, sample=False), batch(names)
    assert torch.equal(mean.latents[0, 0], torch.from_numpy(row("p0", 1).mean[0]))
    spread = (sampled.latents - mean.latents).std().item()
    assert abs(spread - 0.5) < 0.05


def test_reference_errors_are_those_of_the_rows_epoch() -> None:
    known = {"a": [[1.0, 2.0], [3.0, 4.0]], "b": [[5.0, 6.0, 7.0], [8.0, 9.0, 10.0]]}
    rows = [replace(row(name, len(errors[0])), ref_error=errors) for name, errors in known.items()]
    found = make_batch([*rows, row("c", 1)], [1, 0, 0], noising(), EMPTY, "cpu").ref_error
    assert found[found.isfinite()].tolist() == [3.0, 4.0, 5.0, 6.0, 7.0]
    assert found.isnan().tolist() == [[False, False, True], [False] * 3, [True] * 3], (
        "not computed is no number"
    )
