"""The objectives against hand-computed numbers, a slow float64 oracle, finite differences and each other."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankray import ranking
from rankray.config.rankdpo import REFERENCE_FREE
from rankray.losses import (
    DISCOUNTS,
    GAINS,
    LOSSES,
    LossInputs,
    loss_parts,
    metric_sums,
    metrics,
    needed,
    pair_weight,
)

BETA = 3.0
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in LOSSES),
    ("dpo", {"pairs": "all"}),
    ("dpo_gain", {"pairs": "all"}),
    ("mapo", {"pairs": "all"}),
    ("rank_dpo", {"gain": "linear", "discount": "log2"}),
    ("rank_dpo", {"discount": "none"}),
    ("rank_dpo", {"discount": "reciprocal"}),
    *((name, {"nll": 2.5}) for name in ("rank_dpo", "dpo", "dpo_gain")),
    *((name, {"dpop": 4.0}) for name in ("rank_dpo", "dpo", "dpo_gain")),
    *((name, {"clamp": 0.5}) for name in ("rank_dpo", "dpo", "dpo_gain")),
    *((name, {"safeguard": 0.25}) for name in ("rank_dpo", "dpo", "dpo_gain")),
    ("rank_dpo", {"clamp": 0.0, "dpop": 50.0, "nll": 0.1}),
    ("dpo", {"pairs": "all", "clamp": 0.1, "dpop": 1.0, "nll": 3.0}),
]


def whole(name: str, batch: LossInputs, *, beta: float, **options: Any) -> torch.Tensor:
    """What a step minimises: the objective and what is added to it."""
    return torch.stack(list(loss_parts(name, batch, beta=beta, options=options).values())).sum(0)


def inputs(seed: int, b: int = 6, k: int = 4, ties: bool = True, holes: bool = True) -> LossInputs:
    """Random rows as training sees them: padded, with failed candidates, ties, and NaN where nothing is usable."""
    rng = np.random.default_rng(seed)
    phi = rng.integers(0, 7, (b, k)) / 6.0 if ties else rng.random((b, k))
    mask = np.ones((b, k), bool)
    if holes:
        phi[rng.random((b, k)) < 0.15] = np.nan
        mask = rng.random((b, k)) < 0.85
    rank = ranking.rank(phi)
    model, ref = rng.random((b, k)), rng.random((b, k))
    scores = rng.normal(size=(b, k))
    for array in (model, ref, scores):
        array[~mask | (rank == 0)] = np.nan
    arrays = [torch.tensor(array) for array in (model, ref, phi)]
    return LossInputs(*arrays, torch.tensor(rank), torch.tensor(mask), torch.tensor(scores))


def test_rank_dpo_by_hand_for_two() -> None:
    # phi 1 and 0, ranks 1 and 2: |G| = 1, 1/ln 2 - 1/ln 3 = 1.442695 - 0.910239 = 0.532456
    # s = (0.3 - 0.5, 0.6 - 0.4) = (-0.2, 0.2): -log sigmoid(3 * 0.4) = log(1 + e^-1.2) = 0.263282
    row = LossInputs(
        torch.tensor([[0.3, 0.6]]),
        torch.tensor([[0.5, 0.4]]),
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[1, 2]]),
        torch.ones(1, 2, dtype=torch.bool),
    )
    assert LOSSES["rank_dpo"](row, beta=3.0).item() == pytest.approx(0.532456 * 0.263282, abs=1e-5)
    assert LOSSES["dpo"](row, beta=3.0).item() == pytest.approx(0.263282, abs=1e-5)
    assert LOSSES["sft"](row, beta=3.0).item() == pytest.approx(0.3)
    assert LOSSES["plackett_luce"](row, beta=3.0).item() == pytest.approx(0.263282, abs=1e-5)


def test_rank_dpo_by_hand_for_four() -> None:
    phi, rank = [1 / 3, 1.0, 2 / 3, 0.0], [3, 1, 2, 4]
    model, ref = [0.5, 0.4, 0.45, 0.6], [0.5, 0.5, 0.5, 0.5]
    due = 0.0
    gains = {r: 2**p - 1 for p, r in zip(phi, rank, strict=True)}  # by rank: 1, 0.5874, 0.2599, 0
    s = {r: m - f for m, f, r in zip(model, ref, rank, strict=True)}  # by rank: -0.1, -0.05, 0, 0.1
    for i, j in [(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)]:
        delta = (gains[i] - gains[j]) * (1 / math.log(1 + i) - 1 / math.log(1 + j))
        due += delta * math.log(1 + math.exp(10.0 * (s[i] - s[j])))
    row = LossInputs(
        *(torch.tensor([values]) for values in (model, ref, phi)),
        torch.tensor([rank]),
        torch.ones(1, 4, dtype=torch.bool),
    )
    assert LOSSES["rank_dpo"](row, beta=10.0).item() == pytest.approx(due, rel=1e-5)
    # 0.2197 * 0.4741 + 0.5339 * 0.3133 + 0.8214 * 0.1269 + 0.0619 * 0.4741 + 0.1697 * 0.2014 + 0.0260 * 0.3133
    assert due == pytest.approx(0.4474, abs=2e-4)


def oracle(  # noqa: C901, PLR0911
    name: str, row: dict[str, list[float]], beta: float, options: dict[str, Any]
) -> float:
    """One prompt's loss by plain loops over its usable candidates, in Python floats. Written from the papers,
    MaPO's too, whose code has another margin."""
    here = [
        i
        for i in range(len(row["rank"]))
        if row["mask"][i] and row["rank"][i] > 0 and not math.isnan(row["phi"][i])
    ]
    if len(here) < 2:
        return 0.0
    here.sort(key=lambda i: row["rank"][i])
    s = {i: row["model"][i] - row["ref"][i] for i in here}
    gain = {i: row["phi"][i] if options.get("gain") == "linear" else 2 ** row["phi"][i] - 1 for i in here}
    discounts = {"log": math.log, "log2": math.log2, "reciprocal": lambda v: v - 1}
    inverse = {
        i: 0.0 if (d := options.get("discount", "log")) == "none" else 1 / discounts[d](1 + row["rank"][i])
        for i in here
    }
    pairs = [(i, j) for n, i in enumerate(here) for j in here[n + 1 :] if row["phi"][i] != row["phi"][j]]
    if name in {"dpo", "dpo_gain", "mapo"} and options.get("pairs") != "all":
        pairs = [(i, j) for i, j in pairs if i == here[0] and j == here[-1]]

    def term(i: int, j: int) -> float:
        ceiling = options.get("clamp", math.inf) * row["ref"][j]
        x = beta * (s[i] + options.get("dpop", 0.0) * max(0.0, s[i]) - min(s[j], ceiling))
        return max(x, 0.0) + math.log1p(math.exp(-abs(x)))

    nll = options.get("nll", 0.0) * row["model"][here[0]]
    if name == "rank_dpo":
        plain = options.get("discount") == "none"
        ranked = sum(
            abs(gain[i] - gain[j]) * (1.0 if plain else abs(inverse[i] - inverse[j])) * term(i, j)
            for i, j in pairs
        )
        return ranked + nll
    if name == "dpo":
        return sum(term(i, j) for i, j in pairs) + nll
    if name == "dpo_gain":
        return sum(abs(gain[i] - gain[j]) * term(i, j) for i, j in pairs) + nll
    if name == "sft":
        return row["model"][here[0]]
    if name == "weighted_sft":
        low = min(row["scores"][i] for i in here)
        total = sum(row["scores"][i] - low for i in here)
        return sum((row["scores"][i] - low) / total * row["model"][i] for i in here)
    if name == "plackett_luce":
        return sum(
            math.log(sum(math.exp(-beta * s[j]) for j in here[n:])) + beta * s[i] for n, i in enumerate(here)
        )
    if name == "mapo":
        p = {i: math.exp(-0.5 * row["model"][i]) for i in here}
        odds = {i: math.log(p[i] / (1 - p[i])) for i in here}
        terms = [row["model"][i] + beta * math.log1p(math.exp(odds[j] - odds[i])) for i, j in pairs]
        return sum(terms) / len(terms) if terms else 0.0
    assert name == "kto"
    z = max(0.0, sum(-beta * s[i] for i in here) / len(here))
    values = [
        1 - 1 / (1 + math.exp(-sign * (-beta * s[i] - z)))
        for i in here
        if (sign := (row["phi"][i] > 0.5) - (row["phi"][i] < 0.5))
    ]
    return sum(values) / len(values) if values else 0.0


def test_how_far_the_margin_of_mapos_own_code_is_from_its_text() -> None:
    """By their code 1000 * w * p / (1 - p) with p = exp(-w), by their text log(p / (1 - p)); here w = 0.5 * 0.2."""
    w = 0.1
    theirs = 1000 * (math.expm1(w) - w * math.exp(w)) / math.expm1(w) ** 2
    error = torch.tensor([[0.2, 0.2]], dtype=torch.float64, requires_grad=True)
    row = LossInputs(error, torch.zeros(1, 2), *torch.tensor([[[0.9, 0.1]], [[1, 2]]]), torch.ones(1, 2) > 0)
    (slope,) = torch.autograd.grad(LOSSES["mapo"](row, beta=1.0).sum(), error)
    # beta / 2 of the margin's slope by w, times d w / d error = 0.5; the chosen one's own error adds 1 to its own.
    ours = -(slope[0, 0].item() - 1.0) / 0.25
    assert ours == pytest.approx(-1 - 1 / math.expm1(w), rel=1e-6)
    assert theirs / ours == pytest.approx(46, abs=0.5)


def rows_of(batch: LossInputs) -> list[dict[str, list[float]]]:
    assert batch.scores is not None
    fields = {
        "model": batch.model_error,
        "ref": batch.ref_error,
        "phi": batch.win_probability,
        "rank": batch.rank,
        "mask": batch.mask,
        "scores": batch.scores,
    }
    return [{name: part[b].tolist() for name, part in fields.items()} for b in range(len(batch.rank))]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.parametrize("seed", range(8))
def test_every_objective_equals_the_oracle(name: str, options: dict[str, Any], seed: int) -> None:
    batch = inputs(seed, b=12, k=2 + seed % 5)
    due = [oracle(name, row, BETA, options) for row in rows_of(batch)]
    assert whole(name, batch, beta=BETA, **options).tolist() == pytest.approx(due, rel=1e-9, abs=1e-12)
    single = replace(batch, model_error=batch.model_error.float(), ref_error=batch.ref_error.float())
    single = replace(single, win_probability=batch.win_probability.float())
    found = whole(name, single, beta=BETA, **options)
    assert found.tolist() == pytest.approx(due, rel=3e-5, abs=1e-5)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_equal_the_oracles_differences(name: str, options: dict[str, Any], seed: int) -> None:
    batch = inputs(seed, b=5)
    error = batch.model_error.clone().requires_grad_()
    whole(name, replace(batch, model_error=error), beta=BETA, **options).sum().backward()
    assert error.grad is not None
    step = 1e-6
    if (
        name == "kto" or "safeguard" in options
    ):  # z and its scale carry no gradient: differences are another thing
        assert torch.isfinite(error.grad).all()
        return
    for b, row in enumerate(rows_of(batch)):
        for k in range(error.shape[1]):
            sides = []
            for sign in (1, -1):
                moved = {**row, "model": [v + sign * step * (i == k) for i, v in enumerate(row["model"])]}
                sides.append(oracle(name, moved, BETA, options))
            due = (sides[0] - sides[1]) / (2 * step)
            assert error.grad[b, k].item() == pytest.approx(due, rel=1e-5, abs=1e-7)


def test_kto_gradient_with_z_held() -> None:
    # s = (-0.2, 0.1), beta 2: rewards 0.4 and -0.2, z = 0.1; loss = mean(sigmoid(-0.3), sigmoid(-0.2 - 0.1))
    error = torch.tensor([[0.3, 0.6]], dtype=torch.float64, requires_grad=True)
    row = LossInputs(
        error,
        torch.tensor([[0.5, 0.5]], dtype=torch.float64),
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[1, 2]]),
        torch.ones(1, 2, dtype=torch.bool),
    )
    loss = LOSSES["kto"](row, beta=2.0)
    sigmoid = 1 / (1 + math.exp(0.3))
    assert loss.item() == pytest.approx(sigmoid)
    loss.sum().backward()
    slope = sigmoid * (1 - sigmoid)
    assert error.grad is not None
    # -beta * ds raises the desirable one's reward: less loss; both terms have the argument -0.3
    assert error.grad[0].tolist() == pytest.approx([0.5 * 2.0 * slope, -0.5 * 2.0 * slope])


@given(st.integers(0, 10_000), st.floats(0.1, 50.0))
def test_for_two_candidates_rank_dpo_is_gain_weighted_dpo(seed: int, beta: float) -> None:
    """Paper A.2: with k = 2 the discounts are the same constant for every prompt."""
    batch = inputs(seed, k=2, holes=False)
    constant = 1 / math.log(2) - 1 / math.log(3)
    torch.testing.assert_close(
        LOSSES["rank_dpo"](batch, beta=beta), constant * LOSSES["dpo_gain"](batch, beta=beta)
    )


@given(st.integers(0, 10_000), st.sampled_from(OPTIONS))
def test_the_order_of_candidates_does_not_matter(seed: int, objective: tuple[str, dict[str, Any]]) -> None:
    name, options = objective
    batch = inputs(seed)
    order = torch.tensor(np.random.default_rng(seed).permutation(batch.rank.shape[1]))
    fields = {key: value[:, order] for key, value in vars(batch).items() if value is not None}
    torch.testing.assert_close(
        whole(name, batch, beta=BETA, **options), whole(name, LossInputs(**fields), beta=BETA, **options)
    )


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_no_nan_at_extremes(name: str, options: dict[str, Any], size: float) -> None:
    batch = inputs(3)
    error = (batch.model_error.float() * size).requires_grad_()
    row = replace(batch, model_error=error, ref_error=batch.ref_error.float())
    loss = whole(name, row, beta=2500.0, **options)
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    assert error.grad is not None
    assert torch.isfinite(error.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_single(name: str) -> None:
    batch = inputs(1)
    half = replace(batch, model_error=batch.model_error.bfloat16(), ref_error=batch.ref_error.bfloat16())
    wide = replace(half, model_error=half.model_error.float(), ref_error=half.ref_error.float())
    found = LOSSES[name](half, beta=BETA)
    assert found.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(found, LOSSES[name](wide, beta=BETA))


@pytest.mark.parametrize("name", LOSSES)
def test_rows_with_one_usable_candidate_give_nothing_and_are_counted(name: str) -> None:
    batch = inputs(0, b=2, holes=False)
    mask = batch.mask.clone()
    mask[0, 1:] = False
    loss = LOSSES[name](replace(batch, mask=mask), beta=BETA)
    assert loss[0] == 0
    sums = metric_sums(replace(batch, mask=mask), loss, beta=BETA)
    assert (sums["prompts"].item(), sums["skipped_prompts"].item()) == (1, 1)


@pytest.mark.parametrize("name", ["rank_dpo", "dpo", "dpo_gain"])
def test_learning_raises_the_preferred_one(name: str) -> None:
    """The sign: the gradient lowers the preferred candidate's error and raises the other's."""
    batch = inputs(0, b=1, k=2, ties=False, holes=False)
    error = batch.model_error.clone().requires_grad_()
    LOSSES[name](replace(batch, model_error=error), beta=BETA).sum().backward()
    assert error.grad is not None
    best = int(batch.rank[0].argmin())
    assert error.grad[0, best] > 0 > error.grad[0, 1 - best]


def pair_of(model: list[float], ref: list[float]) -> tuple[LossInputs, torch.Tensor]:
    """Two candidates, the first preferred, and the tensor that their gradient will be of."""
    error = torch.tensor([model], dtype=torch.float64, requires_grad=True)
    phi, rank = torch.tensor([[1.0, 0.0]]), torch.tensor([[1, 2]])
    known = torch.tensor([ref], dtype=torch.float64)
    return LossInputs(error, known, phi, rank, torch.ones(1, 2, dtype=torch.bool)), error


def gradient(row: LossInputs, error: torch.Tensor, **options: Any) -> list[float]:
    error.grad = None
    LOSSES["dpo"](row, beta=2.0, **options).sum().backward()
    assert error.grad is not None
    return [float(value) for value in error.grad[0]]


def test_dpo_positive_by_hand() -> None:
    # s = (0.1, 0.3): -log sigmoid(-2 (0.1 + 5 * 0.1 - 0.3)) = log(1 + e^0.6) = 1.0374879505
    row, error = pair_of([0.6, 0.7], [0.5, 0.4])
    assert LOSSES["dpo"](row, beta=2.0, dpop=5.0).item() == pytest.approx(1.0374879505, abs=1e-10)
    # slopes: beta * sigmoid(0.6) = 1.2913126125, and 1 + 5 times that of the preferred one
    assert gradient(row, error, dpop=5.0) == pytest.approx([6 * 1.2913126125, -1.2913126125], abs=1e-9)


def test_dpo_positive_pulls_only_above_the_references_error() -> None:
    below, error = pair_of([0.4, 0.7], [0.5, 0.4])
    assert gradient(below, error, dpop=5.0) == gradient(below, error)
    above, error = pair_of([0.6, 1.4], [0.5, 0.4])  # a margin of 0.9, which DPO is content with
    plain, pulled = gradient(above, error), gradient(above, error, dpop=20.0)
    assert pulled[0] > 30 * plain[0] > 0  # downhill is a lower error of the preferred one


def test_clamp_by_hand() -> None:
    # s = (0.1, 0.3), and 0.3 is above half of 0.4: -log sigmoid(-2 (0.1 - 0.2)) = log(1 + e^-0.2) = 0.5981388693
    row, error = pair_of([0.6, 0.7], [0.5, 0.4])
    assert LOSSES["dpo"](row, beta=2.0, clamp=0.5).item() == pytest.approx(0.5981388693, abs=1e-10)
    # 2 * sigmoid(-0.2) = 0.9003320054 on the preferred one, and none on the other
    assert gradient(row, error, clamp=0.5) == pytest.approx([0.9003320054, 0.0], abs=1e-9)


def test_clamp_lets_go_beyond_its_share_of_the_references_error_and_changes_nothing_before() -> None:
    row, error = pair_of([0.4, 0.7], [0.5, 0.4])
    assert gradient(row, error, clamp=0.76) == gradient(row, error)
    assert gradient(row, error, clamp=0.74)[1] == 0.0 > gradient(row, error)[1]


def test_safeguard_by_hand() -> None:
    # the rejected one's slope times 0.75 * sqrt(0.2 / 0.8) = 0.375, and the loss as it was
    row, error = pair_of([0.2, 0.8], [0.3, 0.4])
    plain = gradient(row, error)
    assert LOSSES["dpo"](row, beta=2.0, safeguard=0.25).item() == LOSSES["dpo"](row, beta=2.0).item()
    assert gradient(row, error, safeguard=0.25) == pytest.approx([plain[0], 0.375 * plain[1]], rel=1e-12)
    better, error = pair_of([0.8, 0.2], [0.3, 0.4])  # sqrt(4), held to 1
    assert gradient(better, error, safeguard=0.0) == pytest.approx(gradient(better, error), rel=1e-12)


@given(st.integers(0, 10_000), st.floats(0.0, 0.9), st.floats(-1.0, 1.0), st.floats(0.1, 5.0))
def test_safeguard_never_raises_the_preferred_ones_error(
    seed: int, mu: float, angle: float, size: float
) -> None:
    """Both predictions moved alike, as Diffusion-SDPO's analysis has it: <dL, dA> >= mu * weight * |dA|^2."""
    rng = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, 64, generator=rng, dtype=torch.float64)
    rejected = size * (angle * one + (1 - abs(angle)) * other)
    moved = torch.zeros(64, dtype=torch.float64, requires_grad=True)
    errors = torch.stack([(one + moved).square().mean(), (rejected + moved).square().mean()])[None]
    row = replace(pair_of([0.0, 0.0], [1.0, 1.0])[0], model_error=errors)
    (best_one,) = torch.autograd.grad(errors[0, 0], moved, retain_graph=True)
    (by,) = torch.autograd.grad(LOSSES["dpo"](row, beta=1.0, safeguard=mu).sum(), moved)
    weight = torch.sigmoid(errors[0, 0] - errors[0, 1])
    assert best_one @ by >= weight * mu * best_one @ best_one - 1e-9


def test_without_a_safeguard_a_larger_parallel_residual_raises_the_preferred_ones_error() -> None:
    one = torch.ones(4, dtype=torch.float64)
    moved = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    errors = torch.stack([(one + moved).square().mean(), (3 * one + moved).square().mean()])[None]
    row = replace(pair_of([0.0, 0.0], [1.0, 1.0])[0], model_error=errors)
    slopes = {}
    for mu in (None, 0.0, 0.5):
        loss = LOSSES["dpo"](row, beta=1.0, safeguard=mu).sum()
        (by,) = torch.autograd.grad(loss, moved, retain_graph=True)
        slopes[mu] = float(by[0] / torch.sigmoid(torch.tensor(-8.0, dtype=torch.float64)))
    # (2 - 6 * scale) / 4 with scale 1, 1/3 and 1/6: uphill, level, downhill for the preferred one
    assert list(slopes.values()) == pytest.approx([-1.0, 0.0, 0.25], abs=1e-12)


def test_nll_asks_the_best_ones_error_where_best_and_worst_are_tied() -> None:
    row, _ = pair_of([0.6, 0.7], [0.5, 0.4])
    tied = replace(row, win_probability=torch.tensor([[0.5, 0.5]]))
    assert needed("dpo", tied, {}).tolist() == [[False, False]]
    assert needed("dpo", tied, {"nll": 2.0}).tolist() == [[True, False]]
    assert whole("dpo", tied, beta=2.0, nll=2.0).tolist() == [pytest.approx(1.2)]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_what_is_not_needed_is_not_looked_at(name: str, options: dict[str, Any]) -> None:
    batch = inputs(5, b=12)
    asked = needed(name, batch, options)
    other = replace(
        batch, model_error=torch.where(asked, batch.model_error, torch.full_like(batch.model_error, 7.0))
    )
    torch.testing.assert_close(
        whole(name, batch, beta=BETA, **options), whole(name, other, beta=BETA, **options)
    )
    assert not (asked & ~batch.usable).any()


@pytest.mark.parametrize("name", sorted(REFERENCE_FREE))
def test_reference_free_objectives_do_not_look_at_the_reference(name: str) -> None:
    batch = inputs(2)
    other = replace(batch, ref_error=torch.full_like(batch.ref_error, 9.0))
    torch.testing.assert_close(LOSSES[name](batch, beta=BETA), LOSSES[name](other, beta=BETA))


def test_gain_discount_and_weight_by_hand() -> None:
    nan = math.nan
    assert GAINS["exp2"](torch.tensor([0, 0.5, 1.0])).tolist() == pytest.approx([0, math.sqrt(2) - 1, 1])
    assert DISCOUNTS["log"](torch.tensor([1.0, 2.0])).tolist() == pytest.approx([math.log(2), math.log(3)])
    phi, rank = torch.tensor([[1.0, 0.0, nan]], dtype=torch.float64), torch.tensor([[1, 2, 0]])
    weight = pair_weight(LossInputs(phi, phi, phi, rank, torch.ones(1, 3, dtype=torch.bool)))[0]
    due = 1.0 * (1 / math.log(2) - 1 / math.log(3))
    np.testing.assert_allclose(weight.numpy(), [[0, due, 0], [due, 0, 0], [0, 0, 0]], rtol=1e-15)


def test_metrics_by_hand() -> None:
    # s = (-0.2, 0.2, 0.0), ranks 1, 2, 3: pairs (1,2) right, (1,3) right, (2,3) wrong
    row = LossInputs(
        torch.tensor([[0.3, 0.6, 0.5]]),
        torch.tensor([[0.5, 0.4, 0.5]]),
        torch.tensor([[1.0, 0.5, 0.0]]),
        torch.tensor([[1, 2, 3]]),
        torch.ones(1, 3, dtype=torch.bool),
    )
    sums = {k: float(v) for k, v in metric_sums(row, torch.tensor([0.7]), beta=10.0).items()}
    found = metrics(sums)
    assert found["implicit_accuracy"] == pytest.approx(2 / 3)
    assert found["margin"] == pytest.approx(10.0 * (0.4 + 0.2 - 0.2) / 3, rel=1e-5)
    assert found["model_error"] == pytest.approx(1.4 / 3)
    assert (found["pairs"], found["loss"]) == (3, pytest.approx(0.7))


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_added_terms_do_not_change_the_preference(name: str, options: dict[str, Any]) -> None:
    batch = inputs(4, b=12)
    found = loss_parts(name, batch, beta=BETA, options=options)
    assert set(found) == ({"preference", "nll"} if options.get("nll") else {"preference"})
    bare = {key: value for key, value in options.items() if key != "nll"}
    torch.testing.assert_close(found["preference"], LOSSES[name](batch, beta=BETA, **bare), rtol=0, atol=0)
    assert set(loss_parts(name, batch, beta=BETA, options={**options, "nll": 0})) == {"preference"}


def test_parts_have_metrics_of_their_own_where_there_are_several() -> None:
    row, _ = pair_of([0.6, 0.7], [0.5, 0.4])
    # preference: -log sigmoid(-2 (0.1 - 0.3)) = log(1 + e^-0.4) = 0.5130152524; nll: 100 * 0.6
    for nll, due in ((100.0, {"loss_preference": 0.5130152524, "loss_nll": 60.0}), (0.0, {})):
        apart = loss_parts("dpo", row, beta=2.0, options={"nll": nll})
        loss = torch.stack(tuple(apart.values())).sum(0)
        sums = metric_sums(row, loss, beta=2.0, parts=apart)
        found = metrics({key: 3 * float(value) for key, value in sums.items()})  # three such rows
        assert {key: found[key] for key in found if key.startswith("loss_")} == pytest.approx(due)
        assert found["loss"] == pytest.approx(sum(due.values()) or 0.5130152524)


def test_an_untrained_model_stands_at_one_half() -> None:
    batch = inputs(0, holes=False)
    same = replace(batch, model_error=batch.ref_error)
    sums = metric_sums(same, LOSSES["rank_dpo"](same, beta=BETA), beta=BETA)
    assert metrics({k: float(v) for k, v in sums.items()})["implicit_accuracy"] == 0.5


def test_weighted_sft_needs_scores() -> None:
    with pytest.raises(ValueError, match="needs the scores of one reward"):
        LOSSES["weighted_sft"](replace(inputs(0), scores=None), beta=1.0)


@given(st.integers(0, 100))
def test_pairs_that_may_be_compared_and_the_others_are_all_pairs(seed: int) -> None:
    every = inputs(seed)
    same = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    parts = [replace(every, comparable=chosen) for chosen in (same, ~same)]
    for name, options in (("rank_dpo", {}), ("dpo", {"pairs": "all"}), ("dpo_gain", {"pairs": "all"})):
        found = [whole(name, part, beta=BETA, **options) for part in (*parts, every)]
        torch.testing.assert_close(found[0] + found[1], found[2])
    pairs = [metric_sums(part, torch.zeros(6), beta=BETA)["pairs"] for part in (*parts, every)]
    assert pairs[0] + pairs[1] == pairs[2]


def test_two_that_may_not_be_compared_have_no_term() -> None:
    row = inputs(0, b=1, k=2, ties=False, holes=False)
    assert LOSSES["rank_dpo"](row, beta=BETA).item() > 0.0
    alone = replace(row, comparable=torch.eye(2, dtype=torch.bool))
    assert LOSSES["rank_dpo"](alone, beta=BETA).item() == 0.0
