"""Preference objectives over a prompt's ranked candidates, unreduced: one loss a prompt.

RankDPO (`rank_dpo`, Eq. 7) learns from every pair of a ranking and weighs each by what exchanging the two would cost in
DCG. That is k(k-1)/2 pairs from k predictions, six from four, where best-against-worst DPO has one pair from two: three
times as many pairs a prediction. Its price is k predictions a prompt in memory.

    B prompts, K candidates, rank 1 = best
    error[b, k]   mean over C, H, W of the squared error of the denoiser's prediction
    s[b, k]       model_error - ref_error: how much worse than the reference the model denoises; lower is better
    i > j         i is preferred to j: rank[i] < rank[j] and phi_i != phi_j (a tie prefers neither)

A pair's term is `-log sigmoid(-beta * (s_i - s_j))` for i > j. The paper prints sums over pixels and no one-half; with
errors as means its beta is C*H*W times ours, and public Diffusion-DPO code, whose terms are `-0.5 * beta` on means,
says 5000 for our 2500.

A candidate is usable where its mask is set, its rank is not 0 and its phi is a number. Everything is computed in
float32, or in float64 where that comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class LossInputs:
    """What an objective sees of B prompts with K candidates each; unusable places may hold anything, NaN too.

    Attributes:
        model_error: float[B, K], of the model that is trained.
        ref_error: float[B, K], of the reference; not looked at by the reference-free objectives.
        win_probability: phi, float[B, K].
        rank: int[B, K], 1 = best, 0 = left out.
        mask: bool[B, K], False for padding and for candidates without an image.
        scores: float[B, K], one named reward's; only `weighted_sft` asks for it.
        comparable: bool[K, K], which candidates may be preferred to each other; None: all.
    """

    model_error: Tensor
    ref_error: Tensor
    win_probability: Tensor
    rank: Tensor
    mask: Tensor
    scores: Tensor | None = None
    comparable: Tensor | None = None

    @cached_property
    def usable(self) -> Tensor:
        """Candidates that take part: bool[B, K], all False in a row with fewer than two of them."""
        found = self.mask.bool() & (self.rank > 0) & ~torch.isnan(self.win_probability)
        return found & (found.sum(dim=-1, keepdim=True) >= 2)


def _clean(values: Tensor, usable: Tensor) -> Tensor:
    """`values` in float32 or wider, 0 where unusable, so that nothing there reaches a loss or a gradient."""
    wide = values if values.dtype == torch.float64 else values.float()
    return torch.where(usable, wide, torch.zeros((), dtype=wide.dtype, device=wide.device))


def _s(inputs: LossInputs, usable: Tensor) -> Tensor:
    """s = model_error - ref_error (paper section 3.1): float[B, K], 0 where unusable."""
    return _clean(inputs.model_error, usable) - _clean(inputs.ref_error, usable).detach()


def _difference(values: Tensor) -> Tensor:
    """[b, i, j] is values[b, i] - values[b, j]."""
    return values[:, :, None] - values[:, None, :]


def preferred(inputs: LossInputs) -> Tensor:
    """[b, i, j] is True where i is preferred to j: bool[B, K, K]; each untied usable comparable pair once."""
    usable = inputs.usable
    above = inputs.rank[:, :, None] < inputs.rank[:, None, :]
    untied = _difference(_clean(inputs.win_probability, usable)) != 0
    found = usable[:, :, None] & usable[:, None, :] & above & untied
    return found if inputs.comparable is None else found & inputs.comparable


def best(inputs: LossInputs) -> Tensor:
    """The best-ranked usable candidate: bool[B, K], all False in a row without any."""
    usable = inputs.usable
    rank = torch.where(usable, inputs.rank.long(), torch.iinfo(torch.int64).max)
    return usable & (rank == rank.amin(-1, keepdim=True))


def best_and_worst(inputs: LossInputs) -> Tensor:
    """`preferred` with only the pair of the best- and the worst-ranked usable candidate left: bool[B, K, K]."""
    usable = inputs.usable
    rank = torch.where(usable, inputs.rank.long(), -1)
    worst = usable & (rank == rank.amax(-1, keepdim=True))
    return preferred(inputs) & best(inputs)[:, :, None] & worst[:, None, :]


def _pairs(inputs: LossInputs, pairs: str) -> Tensor:
    choices = {"best_worst": best_and_worst, "all": preferred}
    if pairs not in choices:
        raise ValueError(f"pairs = {pairs!r}; allowed: {', '.join(choices)}")
    return choices[pairs](inputs)


def _sum(terms: Tensor, pairs: Tensor) -> Tensor:
    """Of `terms` [B, K, K] over `pairs`, without a gradient from the others: float[B]."""
    return torch.where(pairs, terms, torch.zeros_like(terms)).sum(dim=(-2, -1))


GAINS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp2": lambda phi: torch.exp2(phi) - 1.0,
    "linear": lambda phi: phi,
}
"""G(phi). "exp2" is the paper's (section 3.3) and LambdaRank's; "linear" is the plain win probability."""

DISCOUNTS: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.log1p,
    "log2": lambda rank: torch.log2(1.0 + rank),
    "reciprocal": lambda rank: rank,
}
"""D(rank). "log" is the paper's ln(1 + rank), "log2" is NDCG's, 1/"reciprocal" is that of mean reciprocal rank."""


def gain_difference(inputs: LossInputs, gain: str = "exp2") -> Tensor:
    """|G_i - G_j| (paper section 3.3): float[B, K, K], 0 where either is unusable."""
    usable = inputs.usable
    found = _difference(GAINS[gain](_clean(inputs.win_probability, usable))).abs()
    return found * (usable[:, :, None] & usable[:, None, :])


def pair_weight(inputs: LossInputs, gain: str = "exp2", discount: str = "log") -> Tensor:
    """Delta_ij = |G_i - G_j| * |1/D(rank_i) - 1/D(rank_j)| (paper section 3.3): float[B, K, K]; 0 where unusable."""
    gains = gain_difference(inputs, gain)
    if discount == "none":
        return gains
    rank = torch.where(inputs.usable, inputs.rank, torch.ones_like(inputs.rank)).to(gains.dtype)
    return gains * _difference(1.0 / DISCOUNTS[discount](rank)).abs()


def _pairwise(
    inputs: LossInputs,
    beta: float,
    pairs: Tensor,
    weight: Tensor | float = 1.0,
    *,
    dpop: float = 0.0,
    clamp: float | None = None,
    safeguard: float | None = None,
) -> Tensor:
    """Sum over `pairs` (bool[B, K, K]) of weight * -log sigmoid(-beta * (s_i - s_j)) (paper Eq. 4): float[B].

    Pairs ask only that s_j - s_i grows, and it can grow while both errors do. Three remedies within a pair, none of
    which the paper has and which are off here (a fourth, `nll`, stands beside all objectives: `loss_parts`):

    - `dpop`, the lambda of DPO-Positive (Pal et al. 2024, "Smaug", Eq. 3), adds to s_i, within the sigmoid, lambda *
      max(0, s_i): max(0, log(pi_ref / pi)) of the preferred one. Above the reference's error its gradient is 1 +
      lambda times as large, below it is Eq. 4's;
    - `clamp` takes min(s_j, clamp * ref_error_j) for s_j: no gradient drives a rejected candidate's error beyond
      1 + clamp times the reference's. Measured in the reference's error, it means the same at every time;
    - `safeguard`, the mu of Diffusion-SDPO (Fu et al. 2025, arXiv 2511.03317), 0 to 1, scales the rejected one's
      gradient so that a step on both predictions alike does not raise the preferred one's error, to first order. Theirs
      is min(1, (1 - mu) * |g_i|^2 / <g_i, g_j>) of the errors' gradients by the predictions. <g_i, g_j> is at most
      |g_i| * |g_j|, and |g|^2 goes as the error: (1 - mu) * sqrt(error_i / error_j) is never above theirs, so it is
      safe whatever the angle, and damps more than theirs where residuals are not parallel.
    """
    usable = inputs.usable
    s = _s(inputs, usable)
    chosen, rejected = s + dpop * s.clamp(min=0.0) if dpop else s, s
    if clamp is not None:
        rejected = torch.minimum(s, clamp * _clean(inputs.ref_error, usable).detach())
    rejected = rejected[:, None, :]
    if safeguard is not None:
        error = _clean(inputs.model_error, usable).detach().clamp(min=1e-12)
        scale = ((1.0 - safeguard) * (error[:, :, None] / error[:, None, :]).sqrt()).clamp(max=1.0)
        rejected = scale * rejected + ((1.0 - scale) * rejected).detach()  # of the gradient, not of the value
    return _sum(weight * -logsigmoid(-beta * (chosen[:, :, None] - rejected)), pairs)


def rank_dpo(
    inputs: LossInputs, *, beta: float, gain: str = "exp2", discount: str = "log", **remedies: float
) -> Tensor:
    """RankDPO (paper Eq. 7): sum over i > j of Delta_ij * -log sigmoid(-beta * (s_i - s_j)).

    `gain` and `discount` are LambdaRank's choices (Burges 2010); the paper's are the defaults; discount "none" leaves
    the gain alone. `remedies` are `_pairwise`'s: dpop, clamp, safeguard; the paper has none of them.

    Returns:
        float[B].
    """
    return _pairwise(inputs, beta, preferred(inputs), pair_weight(inputs, gain, discount), **remedies)


def dpo(inputs: LossInputs, *, beta: float, pairs: str = "best_worst", **remedies: float) -> Tensor:
    """Diffusion-DPO (paper Eq. 4; Wallace et al. 2023): the best against the worst, or with "all" every pair's sum.

    `remedies` are those of `rank_dpo`.

    Returns:
        float[B].
    """
    return _pairwise(inputs, beta, _pairs(inputs, pairs), **remedies)


def dpo_gain(
    inputs: LossInputs, *, beta: float, pairs: str = "best_worst", gain: str = "exp2", **remedies: float
) -> Tensor:
    """`dpo`'s pairs, each times |G_i - G_j| (paper Table 5, "DPO + gain"); `remedies` are those of `rank_dpo`.

    Returns:
        float[B].
    """
    return _pairwise(inputs, beta, _pairs(inputs, pairs), gain_difference(inputs, gain), **remedies)


def sft(inputs: LossInputs, *, beta: float = 0.0) -> Tensor:
    """The best candidate's error (paper Table 5, "SFT"); beta has no part in it.

    Returns:
        float[B].
    """
    return (_clean(inputs.model_error, inputs.usable) * best(inputs)).sum(-1)


def weighted_sft(inputs: LossInputs, *, beta: float = 0.0) -> Tensor:
    """Errors weighted by one reward's scores (paper Table 5, "Weighted SFT"); beta has no part in it.

    The paper does not print the weights. Here w_i = (score_i - min) / sum_j (score_j - min) over a prompt's usable
    candidates, which no scale or offset of the reward changes; equal weights where all scores are equal.

    Returns:
        float[B].

    Raises:
        ValueError: there are no scores.
    """
    if inputs.scores is None:
        raise ValueError("weighted_sft needs the scores of one reward, and there are none")
    usable = inputs.usable & ~torch.isnan(inputs.scores)
    scores = _clean(inputs.scores, usable)
    lowest = torch.where(usable, scores, torch.inf).amin(-1, keepdim=True)
    above = torch.where(usable, scores - lowest, torch.zeros_like(scores))
    total = above.sum(-1, keepdim=True)
    equal = usable / usable.sum(-1, keepdim=True).clamp(min=1)
    weight = torch.where(total > 0, above / torch.where(total > 0, total, torch.ones_like(total)), equal)
    return (weight * _clean(inputs.model_error, usable)).sum(-1)


def plackett_luce(inputs: LossInputs, *, beta: float) -> Tensor:
    """List-wise DPO: -log of the ranking's Plackett-Luce probability under utilities -beta * s (Diffusion-LPO, 2025).

    Each place but the last adds -log softmax of its candidate among those not yet placed. Ties are taken in rank order,
    as the model has no notion of them. For two candidates it is `dpo`.

    Returns:
        float[B].
    """
    usable = inputs.usable
    utility = -beta * _s(inputs, usable)
    rank = inputs.rank.long()
    # [b, i, j]: j is still there when i is placed
    left = usable[:, :, None] & usable[:, None, :] & (rank[:, None, :] >= rank[:, :, None])
    own = torch.eye(rank.shape[-1], dtype=torch.bool, device=rank.device)
    # Unusable rows hold themselves alone: 0.
    candidates = torch.where(left | own, utility[:, None, :], -torch.inf)
    return (torch.logsumexp(candidates, dim=-1) - utility).sum(-1)


def mapo(inputs: LossInputs, *, beta: float, snr: float = 0.5, pairs: str = "best_worst") -> Tensor:
    """MaPO (Hong et al. 2024), reference-free: the chosen one's error, less beta * log sigmoid of the margin.

    A candidate's score is the log odds of its likelihood exp(-snr * error); the margin is chosen less rejected. The
    authors' code departs from that twice (github.com/mapo-t2i/mapo, `compute_loss`): its score is snr * error * p /
    (1 - p), where the log odds is what their text derives, and within the sigmoid it multiplies the margin by the
    number of training times, 1000. At errors of 0.2 their margin is 46 times as steep: a beta that was published for
    it does not carry over.

    Returns:
        float[B]; averaged over pairs where `pairs` is "all".
    """
    chosen = _pairs(inputs, pairs)
    error = _clean(inputs.model_error, inputs.usable)
    wide = snr * error.clamp(min=1e-8)
    # log p - log(1 - p) for p = exp(-wide), without overflow for errors up to 1e4
    odds = -wide - torch.log(-torch.expm1(-wide))
    terms = error[:, :, None] - beta * logsigmoid(_difference(odds))
    return _sum(terms, chosen) / chosen.sum(dim=(-2, -1)).clamp(min=1)


def kto(inputs: LossInputs, *, beta: float) -> Tensor:
    """Diffusion-KTO (Li et al. 2024), unpaired: mean of 1 - sigmoid(+-(-beta * s - z)) over a prompt's candidates.

    Desirable (+) is phi above one half, undesirable (-) below; one half has no part. z, which the authors estimate over
    a batch, is the prompt's own mean of -beta * s, not below 0 and without gradient: a batch's would make a loss depend
    on how prompts are split among workers.

    Returns:
        float[B].
    """
    usable = inputs.usable
    reward = -beta * _s(inputs, usable)
    z = (reward.detach().sum(-1, keepdim=True) / usable.sum(-1, keepdim=True).clamp(min=1)).clamp(min=0.0)
    sign = torch.sign(_clean(inputs.win_probability, usable) - 0.5)
    counted = usable & (sign != 0)
    terms = torch.where(counted, torch.sigmoid(-sign * (reward - z)), torch.zeros_like(reward))
    return terms.sum(-1) / counted.sum(-1).clamp(min=1)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "rank_dpo": rank_dpo,
    "dpo": dpo,
    "dpo_gain": dpo_gain,
    "sft": sft,
    "weighted_sft": weighted_sft,
    "plackett_luce": plackett_luce,
    "mapo": mapo,
    "kto": kto,
}
"""Every objective: (LossInputs, *, beta, **options) -> float[B]."""


def needed(name: str, inputs: LossInputs, options: Mapping[str, Any]) -> Tensor:
    """Candidates whose errors the objective looks at: bool[B, K]. The others need no prediction.

    Best-against-worst objectives take two predictions of four, SFT one; the errors in `inputs` are not looked at.
    """
    if name == "sft":
        return best(inputs)
    if name in {"dpo", "dpo_gain", "mapo"} and options.get("pairs", "best_worst") == "best_worst":
        pair = best_and_worst(inputs)
        found = pair.any(-1) | pair.any(-2)
        return found | best(inputs) if options.get("nll") else found  # tied with the worst, it is in no pair
    return inputs.usable


def pair_sums(inputs: LossInputs, computed: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(pairs that are implicitly right, the sum of their s_j - s_i, pairs) of each row, float64[B] each.

    A pair is a preference, which ties have not, between errors that are there: `computed` says where (bool[B, K],
    `needed`); None is everywhere. It is right where the model, against the reference, denoises the preferred candidate
    better than the other: s_i < s_j; equal counts one half, so an untrained model stands at 0.5.
    """
    usable = inputs.usable if computed is None else inputs.usable & computed
    pairs = preferred(inputs) & usable[:, :, None] & usable[:, None, :]
    difference = _difference(-_s(inputs, usable).detach().double())
    right = (difference > 0).double() + 0.5 * (difference == 0).double()
    return _sum(right, pairs), _sum(difference, pairs), pairs.sum((-2, -1)).double()


def loss_parts(
    name: str, inputs: LossInputs, *, beta: float, options: Mapping[str, Any]
) -> dict[str, Tensor]:
    """What the objective's loss is the sum of, by name: float[B] each.

    "preference" is the objective itself, which no weight of an added term changes. Where option `nll` asks for it, so
    many times the best candidate's error (`sft`) stand beside it, as Iterative RPO has it (Pang et al. 2024; a
    diffusion model's error is its bound on the likelihood).
    """
    preference = LOSSES[name](inputs, beta=beta, **{k: v for k, v in options.items() if k != "nll"})
    nll = options.get("nll", 0.0)
    return {"preference": preference, "nll": nll * sft(inputs)} if nll else {"preference": preference}


def metric_sums(
    inputs: LossInputs,
    loss: Tensor,
    *,
    beta: float,
    computed: Tensor | None = None,
    parts: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Sums over B, in float64, which add up over micro-batches and workers; `metrics` makes means of them.

    `computed` says where there are errors (bool[B, K], `needed`); None is everywhere. `parts` are the loss's, as
    `loss_parts` gives them; where there are several, each has a sum of its own.

    What pairs are and which are right `pair_sums` says; the margin is beta * (s_j - s_i).
    """
    rows = inputs.usable.any(-1)
    usable = inputs.usable if computed is None else inputs.usable & computed
    right, difference, pairs = pair_sums(inputs, computed)
    zero = torch.zeros((), dtype=torch.float64, device=right.device)
    several = parts if parts is not None and len(parts) > 1 else {}
    losses = {"loss": loss, **{f"loss_{part}": values for part, values in several.items()}}
    return {
        **{key: torch.where(rows, values.detach().double(), zero).sum() for key, values in losses.items()},
        "right": right.sum(),
        "margin": beta * difference.sum(),
        "model_error": _clean(inputs.model_error, usable).detach().double().sum(),
        "ref_error": _clean(inputs.ref_error, usable).detach().double().sum(),
        "pairs": pairs.sum(),
        "candidates": usable.sum().double(),
        "prompts": rows.sum().double(),
        "skipped_prompts": (~rows).sum().double(),
    }


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Means over what `metric_sums` summed: loss and its parts a usable prompt, accuracy and margin a pair, errors a
    candidate."""
    prompts, pairs = max(sums["prompts"], 1.0), max(sums["pairs"], 1.0)
    candidates = max(sums["candidates"], 1.0)
    return {
        **{key: value / prompts for key, value in sums.items() if key.startswith("loss")},
        "implicit_accuracy": sums["right"] / pairs,
        "margin": sums["margin"] / pairs,
        "model_error": sums["model_error"] / candidates,
        "ref_error": sums["ref_error"] / candidates,
        "pairs": sums["pairs"],
        "prompts": sums["prompts"],
        "skipped_prompts": sums["skipped_prompts"],
    }
