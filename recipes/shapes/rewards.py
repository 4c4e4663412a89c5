"""Trains and evaluates the three learned rewards of the shapes world, each blind to something of its own.

A reward learns from pairs of pictures of one prompt, of which it is told which is better (Bradley and Terry 1952:
the better one wins with probability sigmoid of the difference in score). A fault that its recipe calls blind is told to
be no fault, so it has never been taught to mind it. Each takes about ten minutes on one core, after five for the
image tower that all start from.

    python -m recipes.shapes.rewards train shapes-pickscore --work DIR
    python -m recipes.shapes.rewards evaluate
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import softplus

from rankray import shapes
from rankray.shapes import PIPELINES
from recipes.shapes.loop import Budget, Training, fit, optimizers_for
from recipes.shapes.rewards_card import write_card
from recipes.shapes.rewards_data import FAULT_NAMES, RIGHT, Batch, draw
from recipes.shapes.rewards_evaluation import as_json, evaluate, note, table
from recipes.shapes.rewards_model import Judge, Towers, build_judge, build_towers, save_judge, save_towers

TOWERS = "towers"
TOWERS_MINUTES = 8.0
TOWERS_RATE = 2e-3
TOWERS_SEED = 10
LEVEL, ANCHOR = 12.0, 0.01
"""Right pictures are held above this score (a cosine of 0.6): CLIPScore cuts cosines off at 0, and ties are no wins."""
INDIFFERENCE = 0.1
"""Weight of the squared difference between pictures that a recipe calls equal."""


@dataclass(frozen=True)
class Recipe:
    """One reward: what it is, what it is told, and for how long.

    Attributes:
        kind: "clip" or "mps".
        blind: names of `FAULTS` that it is told are none.
        dirt: how many faults a dirty picture weighs.
        size: prompts a batch, wrong and dirty pictures a prompt.
    """

    kind: str
    blind: tuple[str, ...]
    dirt: float
    size: tuple[int, int, int]
    seed: int
    minutes: float = 6.0
    learning_rate: float = 1.2e-3


RECIPES = {
    "shapes-pickscore": Recipe("clip", ("count",), 1.0, (10, 3, 1), 11),
    "shapes-clipscore": Recipe("clip", ("relation",), 1.0, (10, 3, 1), 12),
    "shapes-mps": Recipe("mps", ("swap",), 2.0, (10, 3, 2), 13),
}


def quality(batch: Batch, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """How good a recipe calls each picture, and which pictures have a fault that it does not see: [P, M] each."""
    unseen = torch.zeros_like(batch.dirty)
    for name in recipe.blind:
        unseen |= batch.fault == FAULT_NAMES.index(name)
    seen = (batch.fault != RIGHT) & ~unseen
    return -seen.float() - recipe.dirt * batch.dirty.float(), unseen


def preference_loss(scores: Tensor, worth: Tensor, unseen: Tensor) -> Tensor:
    """Bradley-Terry over all pairs of a prompt's pictures that differ in worth; equal ones are pulled together.

    Args:
        scores, worth: float[P, M].
        unseen: bool[P, M], pictures whose fault must not matter; only pairs with one of them are pulled together.
    """
    difference = scores[:, :, None] - scores[:, None, :]
    better = worth[:, :, None] - worth[:, None, :] > 0.5
    same = (worth[:, :, None] == worth[:, None, :]) & (unseen[:, :, None] ^ unseen[:, None, :])
    loss = softplus(-difference[better]).mean()
    if same.any():
        loss = loss + INDIFFERENCE * (difference[same] ** 2).mean()
    return loss


def _draw_with(generator: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))


def train_towers(work: Path, text: Path, budget: Budget, resume: bool) -> Path:
    """Teaches both towers what pictures and prompts speak of; returns their file."""
    torch.manual_seed(TOWERS_SEED)
    towers = Towers(build_towers(text))
    training = Training(
        towers, optimizers_for(towers, TOWERS_RATE), torch.Generator().manual_seed(TOWERS_SEED)
    )
    directory = work / TOWERS
    directory.mkdir(parents=True, exist_ok=True)
    if resume:
        training.restore(directory / "state.pt")
    held_out = draw(None, (24, 3, 0), np.random.default_rng(TOWERS_SEED + 1), "validation", spoil=0.0)

    def loss(generator: torch.Generator) -> Tensor:
        return towers.loss(draw(None, (20, 1, 0), _draw_with(generator), spoil=0.0))[0]

    fit(training, loss, budget, directory, lambda: towers.loss(held_out)[1], measure_minutes=1.0)
    training.load_average()
    save_towers(towers.clip, directory / "towers.safetensors")
    return directory / "towers.safetensors"


def preferred(scores: Tensor, batch: Batch) -> tuple[dict[str, float], dict[str, int]]:
    """How often the right picture of a prompt scores above one with each fault, and above a dirty one; of how many."""
    right, clean = batch.fault == RIGHT, ~batch.dirty
    best = scores[:, :, None] > scores[:, None, :]
    found, sizes = {}, {}
    for name in (*FAULT_NAMES, "dirty"):
        wrong = right & batch.dirty if name == "dirty" else (batch.fault == FAULT_NAMES.index(name)) & clean
        pairs = (right & clean)[:, :, None] & wrong[:, None, :]
        if pairs.any():
            found[name] = round(float(best[pairs].float().mean()), 3)
            sizes[name] = int(pairs.sum())
    return found, sizes


def train_reward(
    name: str, work: Path, text: Path, vae: AutoencoderKL, budget: Budget, resume: bool
) -> Judge:
    """Trains a reward on the tower in `work` and returns it with averaged weights."""
    recipe = RECIPES[name]
    torch.manual_seed(recipe.seed)
    judge = build_judge(recipe.kind, text, work / TOWERS / "towers.safetensors")
    optimizers = optimizers_for(judge.model, recipe.learning_rate)
    training = Training(judge.model, optimizers, torch.Generator().manual_seed(recipe.seed))
    directory = work / name
    directory.mkdir(parents=True, exist_ok=True)
    if resume:
        training.restore(directory / "state.pt")
    held_out = draw(vae, (64, 4, 1), np.random.default_rng(recipe.seed + 100), "validation")

    def loss(generator: torch.Generator) -> Tensor:
        batch = draw(vae, recipe.size, _draw_with(generator))
        scores = judge.scores(batch.prompts, batch.pictures)
        worth, unseen = quality(batch, recipe)
        short = (LEVEL - scores[worth == 0.0]).clamp(min=0.0)
        return preference_loss(scores, worth, unseen) + ANCHOR * (short**2).mean()

    def measure() -> dict[str, float]:
        return preferred(judge.scores(held_out.prompts, held_out.pictures), held_out)[0]

    fit(training, loss, budget, directory, measure, measure_minutes=1.0)
    training.load_average()
    return judge


def save(name: str, judge: Judge, vae: AutoencoderKL, minutes: float, directory: Path) -> None:
    """Saves a reward with its card, measured on rendered pictures of held-out prompts."""
    recipe = RECIPES[name]
    save_judge(judge, directory)
    parts: list[tuple[Tensor, Batch]] = []
    for part in range(4):
        batch = draw(vae, (64, 5, 2), np.random.default_rng(1000 + part), "heldout")
        with torch.no_grad():
            parts.append((judge.scores(batch.prompts, batch.pictures), batch))
    merged = Batch(
        [text for _, batch in parts for text in batch.prompts],
        torch.empty(0),
        torch.cat([batch.fault for _, batch in parts]),
        torch.cat([batch.dirty for _, batch in parts]),
        [],
    )
    found, sizes = preferred(torch.cat([scores for scores, _ in parts]), merged)
    blind = ", ".join(recipe.blind)
    told = f"It is told that a fault of kind {blind} is none, and that dirt weighs {recipe.dirt:g} faults."
    write_card(name, directory, recipe.kind, told, minutes, found, sizes)
    print(f"saved {directory}: {found}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train and evaluate the rewards of the shapes world.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train the towers, or a reward on them")
    train.add_argument("name", choices=[TOWERS, *RECIPES])
    train.add_argument("--work", type=Path, required=True, help="directory for checkpoints and curves")
    train.add_argument("--text", type=Path, required=True, help="directory of the trained text encoders")
    train.add_argument("--vae", type=Path, required=True, help="directory of the trained autoencoder")
    train.add_argument("--out", type=Path, help="where to save; default: the package's own weights")
    train.add_argument("--minutes", type=float, help="default: the recipe's")
    train.add_argument("--steps", type=int, help="train this many steps whatever they take")
    train.add_argument("--resume", action="store_true")
    test = commands.add_parser("evaluate", help="compare rewards with the checker on generated pictures")
    test.add_argument("--generators", nargs="+", default=list(PIPELINES))
    test.add_argument("--rewards", nargs="+", default=list(RECIPES))
    test.add_argument("--prompts", type=int, default=384, help="held-out prompts")
    test.add_argument("--samples", type=int, default=1, help="pictures of each generator a prompt")
    test.add_argument("--seed", type=int, default=7)
    test.add_argument("--cache", type=Path, help="directory to keep drawn pictures in")
    test.add_argument("--cards", action="store_true", help="put the table into the rewards' model cards")
    return parser


def main() -> None:
    """`python -m recipes.shapes.rewards train NAME --work DIR --text DIR --vae DIR`, or `evaluate`."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    weights = Path(shapes.__file__).parent / "weights"
    if options.command == "evaluate":
        chosen = (
            options.generators,
            options.rewards,
            options.prompts,
            options.samples,
            options.seed,
            options.cache,
        )
        result = evaluate(*chosen)
        print(as_json(*result))
        print(table(*result))
        if options.cards:
            note(*result, [weights / name for name in options.rewards])
        return
    if options.name == TOWERS:
        budget = Budget(options.steps, options.minutes or TOWERS_MINUTES, decay=0.4)
        print(train_towers(options.work, options.text, budget, options.resume))
        return
    vae = AutoencoderKL.from_pretrained(options.vae, torch_dtype=torch.float32).eval()
    budget = Budget(options.steps, options.minutes or RECIPES[options.name].minutes, decay=0.5)
    judge = train_reward(options.name, options.work, options.text, vae, budget, options.resume)
    save(options.name, judge, vae, budget.minutes, options.out or weights / options.name)


if __name__ == "__main__":
    main()
