"""The training loop: schedules by hand, Muon against a singular value decomposition, and resuming to the bit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.shapes.loop import Budget, Training, fit, optimizers_for
from recipes.shapes.muon import Muon, orthogonal


def test_rates_by_hand():
    budget = Budget(steps=1000, decay=0.5)
    assert budget.rate(0, 0.0) == pytest.approx(0.01)
    assert budget.rate(300, 0.0) == 1.0
    assert budget.rate(750, 0.0) == pytest.approx(0.5)
    assert budget.rate(1000, 0.0) == pytest.approx(0.0, abs=1e-12)
    assert Budget(minutes=10.0).progress(5, 300.0) == 0.5


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 20), st.integers(4, 20), st.integers(0, 1000))
def test_orthogonal_keeps_singular_vectors_and_evens_singular_values(rows, columns, seed):
    matrix = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, rows, columns))).float()
    left, values, right = torch.linalg.svd(matrix[0], full_matrices=False)
    found = left.T @ orthogonal(matrix)[0] @ right.T
    kept = values > 0.05 * values.max()
    assert (found.diagonal()[kept] - 1.0).abs().max() < 0.65
    assert (found - found.diagonal().diag()).abs().max() < 1e-2


def test_muon_moves_kernels_against_the_gradient_by_its_rate():
    kernel = torch.nn.Parameter(torch.zeros(32, 32, 3, 3))
    kernel.grad = torch.randn(32, 32, 3, 3, generator=torch.Generator().manual_seed(0))
    Muon([kernel], lr=0.1, weight_decay=0.0).step()
    assert (kernel.detach() * kernel.grad).sum() < 0
    assert kernel.detach().square().mean().sqrt() == pytest.approx(0.02, rel=0.35)


def build(muon):
    torch.manual_seed(3)
    layers = torch.nn.Linear(6, 32), torch.nn.GELU(), torch.nn.Linear(32, 32), torch.nn.Linear(32, 2)
    model = torch.nn.Sequential(*layers)
    return Training(model, optimizers_for(model, 1e-2, muon), torch.Generator().manual_seed(5))


def loss_of(training):
    def loss(generator):
        x = torch.randn(16, 6, generator=generator)
        return (training.model(x) - x[:, :2] ** 2).square().mean()

    return loss


@pytest.mark.parametrize("muon", [None, 1e-2])
def test_resumed_training_equals_an_undisturbed_one(tmp_path, muon):
    budget = Budget(steps=60, log_steps=10)
    whole, part = build(muon), build(muon)
    assert len(whole.optimizers) == (1 if muon is None else 2)
    (tmp_path / "whole").mkdir()
    (tmp_path / "part").mkdir()
    fit(whole, loss_of(whole), budget, tmp_path / "whole")
    fit(part, loss_of(part), replace(budget, stop_at=23), tmp_path / "part")
    resumed = build(muon)
    resumed.restore(tmp_path / "part" / "state.pt")
    assert resumed.step == 23
    fit(resumed, loss_of(resumed), budget, tmp_path / "part")
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert all(torch.equal(whole.average[name], resumed.average[name]) for name in whole.average)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60, 60]
    assert lines[-2]["loss"] < lines[0]["loss"]


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    training = build(None)
    with pytest.raises(FloatingPointError, match="step 1"):
        fit(
            training, lambda _: training.model(torch.full((1, 6), torch.nan)).sum(), Budget(steps=5), tmp_path
        )


def test_the_measurement_sees_averaged_weights_and_training_goes_on_with_its_own(tmp_path):
    training = build(None)
    seen = []

    def measure():
        seen.append(torch.equal(next(training.model.parameters()), next(iter(training.average.values()))))
        return {"accuracy": 0.5}

    fit(training, loss_of(training), Budget(steps=20), tmp_path, measure)
    assert seen == [True]
    assert not torch.equal(next(training.model.parameters()), next(iter(training.average.values())))
    assert '"accuracy": 0.5' in (tmp_path / "curve.jsonl").read_text()
