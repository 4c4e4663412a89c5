"""How far the shapes rewards agree with the exact checker on pictures that the four generators really draw.

Candidates of one held-out prompt of which one passes the checker and one fails make a pair; a reward is right when
it scores the passing one higher. Generators and rewards are loaded as a job loads them. Only here do rewards and
checker meet. Drawing is what takes time: about 25 seconds for 384 pictures of one generator on one core.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rankray.config import GeneratorChoice, RewardChoice
from rankray.models import generators, rewards
from rankray.models.targets import load
from rankray.ranking import rank, win_probability
from rankray.shapes.checker import check
from rankray.shapes.prompts import CATEGORIES, category
from recipes.shapes.family import spread

MARK = "## On generated pictures"


@dataclass(frozen=True)
class Agreement:
    """What `agreement` finds.

    Attributes:
        pairs: how many pairs of a passing and a failing candidate there are.
        pairwise: reward (and "joint") to the share of pairs that it orders rightly; a tie counts one half.
        by_category: the same in each category.
        first: share of mixed prompts whose first-ranked candidate passes.
        chance: the mean share of passing candidates in those prompts.
    """

    pairs: int
    pairwise: dict[str, float]
    by_category: dict[str, dict[str, float]]
    first: dict[str, float]
    chance: float


def draw_pictures(name: str, texts: Sequence[str], samples: int, seed: int, cache: Path | None) -> np.ndarray:
    """Pictures uint8[prompts, samples, 64, 64, 3] of one generator, from `cache` where they were drawn before."""
    target = generators.resolve(GeneratorChoice(model=name))
    key = f"{name}-{target.revision[-12:]}-{len(texts)}x{samples}-{seed}.safetensors"
    if cache is not None and (cache / key).is_file():
        return np.asarray(load_file(cache / key)["pictures"].numpy())
    model = load(target, "cpu")
    repeated = [text for text in texts for _ in range(samples)]
    drawn = model.generate(repeated, [seed + place for place in range(len(repeated))])
    pictures = np.stack([np.asarray(picture) for picture in drawn])
    pictures = pictures.reshape(len(texts), samples, *pictures.shape[1:])
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        save_file({"pictures": torch.from_numpy(pictures)}, cache / key)
    return pictures


def score_pictures(name: str, pictures: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Scores float32[prompts, candidates] of uint8[prompts, candidates, 64, 64, 3] by one reward."""
    model = load(rewards.resolve(RewardChoice(model=name)), "cpu")
    images = [Image.fromarray(picture) for row in pictures for picture in row]
    repeated = [text for text in texts for _ in range(pictures.shape[1])]
    return np.asarray(model.score(images, repeated)).reshape(pictures.shape[:2])


def pairs_right(scores: np.ndarray, passed: np.ndarray) -> np.ndarray:
    """For each pair of a passing and a failing candidate of a prompt 1, 0, or 0.5 for a tie; with its prompt.

    Args:
        scores: float[prompts, candidates].
        passed: bool[prompts, candidates].

    Returns:
        float64[pairs, 2]: the prompt's number and the value.
    """
    prompt, good, bad = np.nonzero(passed[:, :, None] & ~passed[:, None, :])
    difference = scores[prompt, good] - scores[prompt, bad]
    return np.stack([prompt, 0.5 + 0.5 * np.sign(difference)], axis=1)


def agreement(scores: Mapping[str, np.ndarray], passed: np.ndarray, categories: Sequence[str]) -> Agreement:
    """Compares each reward, and their joint ranking by win probability, with the checker.

    Args:
        scores: reward to float[prompts, candidates].
        passed: bool[prompts, candidates].
        categories: of the prompts.
    """
    phi = win_probability(np.stack(list(scores.values()), axis=-1))
    orders = {**scores, "joint": phi}
    found = {name: pairs_right(values, passed) for name, values in orders.items()}
    kinds = np.asarray(categories)
    by_category: dict[str, dict[str, float]] = {}
    for kind in CATEGORIES:
        rows = {name: right[kinds[right[:, 0].astype(int)] == kind, 1] for name, right in found.items()}
        if len(rows["joint"]):
            by_category[kind] = {name: round(float(part.mean()), 4) for name, part in rows.items()}
    mixed = passed.any(axis=1) & ~passed.all(axis=1)
    first = {}
    for name, values in orders.items():
        best = np.argmin(rank(values[mixed]), axis=1)
        first[name] = round(float(np.take_along_axis(passed[mixed], best[:, None], axis=1).mean()), 4)
    return Agreement(
        pairs=len(found["joint"]),
        pairwise={name: round(float(right[:, 1].mean()), 4) for name, right in found.items()},
        by_category=by_category,
        first=first,
        chance=round(float(passed[mixed].mean()), 4),
    )


def evaluate(
    generator_names: Sequence[str],
    reward_names: Sequence[str],
    number: int,
    samples: int,
    seed: int,
    cache: Path | None,
) -> tuple[Agreement, dict[str, float]]:
    """Draws, checks and scores; also returns each generator's share of pictures that pass."""
    texts = spread("heldout", number)
    drawn = {
        name: draw_pictures(name, texts, samples, seed + 10**6 * i, cache)
        for i, name in enumerate(generator_names)
    }
    pictures = np.concatenate(list(drawn.values()), axis=1)
    passed = np.asarray([[check(p, text) for p in row] for row, text in zip(pictures, texts, strict=True)])
    shares = passed.reshape(len(texts), len(generator_names), samples).mean(axis=(0, 2))
    scores = {name: score_pictures(name, pictures, texts) for name in reward_names}
    found = agreement(scores, passed, [category(text) for text in texts])
    return found, {name: round(float(share), 4) for name, share in zip(generator_names, shares, strict=True)}


def table(found: Agreement, shares: Mapping[str, float]) -> str:
    """The result as Markdown."""
    names = list(found.pairwise)
    lines = [
        f"{found.pairs} pairs of a passing and a failing candidate; generators: "
        + ", ".join(f"{name} {share:.1%} pass" for name, share in shares.items())
        + ".",
        "",
        "| | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
        "| all pairs | " + " | ".join(f"{found.pairwise[name]:.1%}" for name in names) + " |",
    ]
    for kind, part in found.by_category.items():
        lines.append(
            f"| {kind.replace('_', ' ')} | " + " | ".join(f"{part[name]:.1%}" for name in names) + " |"
        )
    lines.append(
        f"| first-ranked passes (by chance {found.chance:.1%}) | "
        + " | ".join(f"{found.first[name]:.1%}" for name in names)
        + " |"
    )
    return "\n".join(lines)


def note(found: Agreement, shares: Mapping[str, float], directories: Sequence[Path]) -> None:
    """Puts the table into the model cards in the directories, instead of an older one."""
    for directory in directories:
        card = directory / "README.md"
        before = card.read_text().partition(MARK)[0].rstrip() if card.is_file() else f"# {directory.name}"
        card.write_text(f"{before}\n\n{MARK}\n\n{table(found, shares)}\n")


def as_json(found: Agreement, shares: Mapping[str, float]) -> str:
    """The result as JSON."""
    return json.dumps(asdict(found) | {"generators": dict(shares)}, indent=1)
