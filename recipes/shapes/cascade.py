"""Trains `shapes-cascade`, a `StableCascadeCombinedPipeline`: `python -m recipes.shapes.cascade --work DIR`.

The parts are trained apart, as in Stable Cascade, each from pictures made once: the VQGAN, stage B (given the
pictures' embeddings with noise, so that it forgives stage C's errors) and stage C with its text encoder. Only stage C
reads prompts, so it takes most of the time.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers.models import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from torch import Tensor, nn

from rankray.shapes.checker import check
from rankray.shapes.prompts import prompts
from rankray.shapes.renderer import BACKGROUND
from recipes.shapes.cascade_card import write_card
from recipes.shapes.cascade_layout import Pool, make_pool
from recipes.shapes.cascade_models import (
    Diffusion,
    PriorWithText,
    build_decoder,
    build_vqgan,
    decoding_half,
    faster_norm,
)
from recipes.shapes.cascade_pipeline import (
    CALL,
    assemble,
    averaged,
    draw_latents,
    load,
    save,
    to_pictures,
    to_tensor,
)
from recipes.shapes.family import accuracy, spread
from recipes.shapes.loop import Budget, Training, fit
from recipes.shapes.text import MAX_TOKENS, POOLED, clip_tokenizer

PROMPT_DROPOUT = 0.1
LATENT_NOISE = 0.1
"""Standard deviation of the noise on latents (of standard deviation 1) under which the VQGAN learns to decode."""
EMBEDDING_NOISE = 0.25
"""Largest standard deviation of the noise on the embedding (of 0.5) under which stage B learns."""
FOREGROUND_WEIGHT = 3.0
"""Objects are a tenth of the pixels and all of the meaning: they, and two pixels around them, count this much more."""
REFINE_NOISE = 0.4
"""Largest standard deviation of the noise (of 1) on latents under which the decoder is refined."""
POOL = {"vqgan": 6_000, "decoder": 24_000, "prior": 80_000}
BATCH = {"vqgan": 16, "decoder": 32, "prior": 64}
LEARNING_RATE = {"vqgan": 4e-3, "refine": 2e-3, "decoder": 2e-3, "prior": 2e-3}
MUON = {"vqgan": None, "refine": None, "decoder": 2e-3, "prior": 2e-3}
"""Learning rates of Muon for the matrices of both stages."""
MEASURED = 128
"""Prompts a point of a curve (of the validation split for stage C); a point is ± 4 points."""
MINUTES = {"vqgan": 15.0, "refine": 6.0, "decoder": 20.0, "prior": 90.0}
SKEW = {"decoder": 1.0, "prior": 1.3}
"""Exponent that moves the training's timesteps towards noise: stage C decides what goes where at high noise."""


def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask as the pipeline makes them: int64[n, 16] each."""
    tokens = clip_tokenizer()(
        texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    return torch.as_tensor(tokens.input_ids), torch.as_tensor(tokens.attention_mask)


def _optimizers(model: nn.Module, learning_rate: float, muon: float | None) -> list[torch.optim.Optimizer]:
    """torch's Muon for the stages' linear layers where a rate is given for it, AdamW for all else that is trained."""
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    wide = {name for name, value in named if value.ndim == 2 and min(value.shape) >= 32 and "blocks." in name}
    hidden = [value for name, value in named if name in wide and muon is not None]
    rest = [value for name, value in named if name not in wide or muon is None]
    adam = torch.optim.AdamW(rest, learning_rate, betas=(0.9, 0.99), weight_decay=0.01, foreach=True)
    if muon is None:
        return [adam]
    return [adam, torch.optim.Muon(hidden, muon, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")]


def _training(model: nn.Module, part: str, seed: int, checkpoint: Path, resume: bool) -> Training:
    optimizers = _optimizers(model, LEARNING_RATE[part], MUON[part])
    training = Training(model, optimizers, torch.Generator().manual_seed(seed))
    if resume and checkpoint.exists():
        training.restore(checkpoint)
    return training


def train_vqgan(directory: Path, budget: Budget, seed: int, resume: bool) -> None:
    """Trains on rendered pictures, decoding latents with noise; no adversary, no codebook."""
    torch.manual_seed(seed)
    model = build_vqgan()
    training = _training(model, "vqgan", seed, directory / "state.pt", resume)
    pool = make_pool(POOL["vqgan"], seed, pictures=True)
    held = make_pool(MEASURED, seed + 1, pictures=True)

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(pool.texts), (BATCH["vqgan"],), generator=generator)
        pictures = to_tensor(pool.pictures[chosen.numpy()])
        latents = model.encode(pictures).latents
        noise = torch.randn(latents.shape, generator=generator) * LATENT_NOISE
        return _picture_error(model.decode(latents + noise).sample, pictures)

    def measure() -> dict[str, float]:
        model.eval()
        found = _reconstructed(model, held)
        model.train()
        return found

    fit(training, loss, budget, directory, measure, measure_minutes=1.5, save_minutes=1.0)


def refine_vqgan(directory: Path, budget: Budget, seed: int, resume: bool, vqgan: PaellaVQModel) -> None:
    """Trains the VQGAN's decoder alone on disturbed latents: the encoder, and so what stage B draws, stays as it is."""
    training = _training(decoding_half(vqgan), "refine", seed, directory / "state.pt", resume)
    pool = make_pool(POOL["vqgan"], seed + 5, pictures=True)
    held = make_pool(MEASURED, seed + 1, pictures=True)

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(pool.texts), (BATCH["vqgan"],), generator=generator)
        pictures = to_tensor(pool.pictures[chosen.numpy()])
        with torch.no_grad():
            latents = vqgan.encode(pictures).latents
        scale = REFINE_NOISE * torch.rand((len(latents), 1, 1, 1), generator=generator)
        noise = scale * torch.randn(latents.shape, generator=generator)
        return _picture_error(vqgan.decode(latents + noise).sample, pictures)

    fit(training, loss, budget, directory, lambda: _reconstructed(vqgan, held), measure_minutes=1.5)


def _picture_error(decoded: Tensor, pictures: Tensor) -> Tensor:
    """Absolute and squared error of pixels in [0, 1], objects and their surroundings weighted more."""
    background = torch.tensor(BACKGROUND).view(1, 3, 1, 1) / 255.0
    error = (decoded - pictures) * 2.0
    drawn = ((pictures - background).abs().amax(dim=1, keepdim=True) > 0.03).float()
    weight = 1.0 + FOREGROUND_WEIGHT * nn.functional.max_pool2d(drawn, 5, stride=1, padding=2)
    cost: Tensor = (weight * (error.abs() + error**2)).mean()
    return cost


def _reconstructed(vqgan: PaellaVQModel, held: Pool) -> dict[str, float]:
    """Shares of reconstructions that pass, as they are and with a fifth of a neighbour's latents on top."""
    latents = vqgan.encode(to_tensor(held.pictures)).latents
    parts = (latents, latents + 0.2 * latents.roll(1, 0))
    decoded = [to_pictures(vqgan.decode(part).sample) for part in parts]
    passed = [[check(p, t) for p, t in zip(some, held.texts, strict=True)] for some in decoded]
    return {"accuracy": float(np.mean(passed[0])), "accuracy_disturbed": float(np.mean(passed[1]))}


def trained_vqgan(work: Path) -> PaellaVQModel:
    """The VQGAN of a work directory, its decoder refined where that was done."""
    vqgan = averaged(build_vqgan(), work / "vqgan" / "state.pt")
    refined = work / "refine" / "state.pt"
    if refined.exists():
        averaged(decoding_half(vqgan), refined)
    return vqgan


def train_decoder(directory: Path, budget: Budget, seed: int, resume: bool, vqgan: PaellaVQModel) -> None:
    """Trains stage B to draw the VQGAN's latents from embeddings with up to `EMBEDDING_NOISE` of noise."""
    torch.manual_seed(seed)
    model = build_decoder()
    training = _training(model, "decoder", seed, directory / "state.pt", resume)
    pool = make_pool(POOL["decoder"], seed + 2, pictures=True)
    with torch.no_grad():
        parts = np.array_split(pool.pictures, len(pool.texts) // 256)
        latents = torch.cat([vqgan.encode(to_tensor(part)).latents for part in parts])
    embeddings = torch.from_numpy(pool.embeddings)
    texts, held = pool.texts, make_pool(MEASURED, seed + 3, pictures=False)
    del pool
    diffusion = Diffusion()

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(texts), (BATCH["decoder"],), generator=generator)
        given = embeddings[chosen]
        scale = EMBEDDING_NOISE * torch.rand((len(given), 1, 1, 1), generator=generator)
        given = given + scale * torch.randn(given.shape, generator=generator)
        pooled = torch.zeros(len(given), 1, POOLED)

        def network(noisy: Tensor, ratio: Tensor) -> Tensor:
            predicted: Tensor = model(noisy, ratio, pooled, effnet=given, return_dict=False)[0]
            return predicted

        return diffusion.loss(network, latents[chosen], generator, SKEW["decoder"])

    def measure() -> dict[str, float]:
        given = torch.from_numpy(held.embeddings)
        noise = 0.15 * torch.randn(given.shape, generator=torch.Generator().manual_seed(1))
        scores = {}
        for name, seen in {"accuracy": given, "accuracy_disturbed": given + noise}.items():
            pictures = draw_latents(model, vqgan, seen, seed)
            scores[name] = float(np.mean([check(p, t) for p, t in zip(pictures, held.texts, strict=True)]))
        return scores

    fit(training, loss, budget, directory, measure, measure_minutes=3.0, save_minutes=1.0)


def train_prior(
    directory: Path,
    budget: Budget,
    seed: int,
    resume: bool,
    rest: tuple[PaellaVQModel, StableCascadeUNet] | None,
) -> None:
    """Trains stage C and its text encoder; with the other parts at hand the curve has checker accuracies."""
    torch.manual_seed(seed)
    model = PriorWithText()
    training = _training(model, "prior", seed, directory / "state.pt", resume)
    pool = make_pool(POOL["prior"], seed + 4, pictures=False)
    embeddings = torch.from_numpy(pool.embeddings)
    ids, mask = tokenize([*pool.texts, ""])
    empty = len(pool.texts)
    diffusion = Diffusion()

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(empty, (BATCH["prior"],), generator=generator)
        dropped = torch.rand(chosen.shape, generator=generator) < PROMPT_DROPOUT
        said = torch.where(dropped, empty, chosen)
        return diffusion.loss(
            lambda noisy, ratio: model(noisy, ratio, ids[said], mask[said]),
            embeddings[chosen],
            generator,
            SKEW["prior"],
        )

    def measure() -> dict[str, float]:
        if rest is None:
            return {}
        pipeline = assemble(model, *rest)
        return accuracy(pipeline, spread("validation", MEASURED), CALL, seed)

    fit(training, loss, budget, directory, measure, measure_minutes=5.0, save_minutes=1.0)


def run(
    work: Path, parts: list[str], seed: int, resume: bool, minutes: float | None, steps: int | None
) -> None:
    """Trains some of the parts in order; each finds those before it in `work`."""
    for part in parts:
        (work / part).mkdir(parents=True, exist_ok=True)
        budget = Budget(steps, MINUTES[part] if minutes is None else minutes)
        if part == "vqgan":
            train_vqgan(work / part, budget, seed, resume)
        elif part == "refine":
            vqgan = averaged(build_vqgan(), work / "vqgan" / "state.pt")
            refine_vqgan(work / part, budget, seed, resume, vqgan)
        elif part == "decoder":
            train_decoder(work / part, budget, seed, resume, trained_vqgan(work))
        elif (work / "decoder" / "state.pt").exists():
            decoder = averaged(build_decoder(), work / "decoder" / "state.pt")
            train_prior(work / part, budget, seed, resume, (trained_vqgan(work), decoder))
        else:
            train_prior(work / part, budget, seed, resume, None)


def finish(work: Path, output: Path) -> None:
    """Assembles the parts, saves the pipeline and prints its accuracy on the held-out prompts as loaded again."""
    prior = averaged(PriorWithText(), work / "prior" / "state.pt")
    decoder = averaged(build_decoder(), work / "decoder" / "state.pt")
    save(assemble(prior, trained_vqgan(work), decoder), output)
    texts, start = prompts("heldout"), time.process_time()
    found = accuracy(load(output), texts, CALL, seed=10_000)
    found["images_per_s"] = round(len(texts) / (time.process_time() - start), 1)
    write_card(work, output, CALL, found)
    print(json.dumps(found))


def _main() -> None:
    parser = argparse.ArgumentParser(
        description="Trains shapes-cascade, part by part, and saves the pipeline."
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="directory for checkpoints, curves and parts"
    )
    parser.add_argument(
        "--parts",
        default="vqgan,refine,decoder,prior",
        help="which to train, in this order; the others are read from DIR",
    )
    parser.add_argument("--minutes", type=float, help="for each part, instead of 15, 6, 20 and 90")
    parser.add_argument("--steps", type=int, help="train each part this many steps, whatever they take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resume", action="store_true", help="continue from the checkpoints in the directory"
    )
    parser.add_argument("--output", type=Path, help="where the pipeline goes (default: DIR/shapes-cascade)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = [part for part in options.parts.split(",") if part]
    with faster_norm():
        run(options.work, parts, options.seed, options.resume, options.minutes, options.steps)
    finish(options.work, options.output or options.work / "shapes-cascade")


if __name__ == "__main__":
    _main()
