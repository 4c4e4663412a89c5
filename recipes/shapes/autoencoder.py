"""The autoencoder shared by the shapes pipelines: 64 x 64 pictures to 8 x 8 latents, eightfold like the real ones.

A plain diffusers `AutoencoderKL` of half a million parameters. Raw latents are almost of low rank, so after training
a PCA whitening is folded into `quant_conv` and `post_quant_conv`: every latent channel then has mean 0 and
variance 1 (scaling factor 1, no shift) at no cost. It decodes about 290 pictures a second on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from rankray.shapes.checker import check
from rankray.shapes.prompts import CATEGORIES, category, prompts
from rankray.shapes.renderer import BACKGROUND, render
from recipes.shapes.loop import Budget, Training, fit

LATENT_CHANNELS = 4
LATENT_SIZE = 8
BLOCK_CHANNELS = (8, 16, 32, 64)
BATCH = 16
LEARNING_RATE = 3e-3
KL_WEIGHT = 1e-5
FOREGROUND_WEIGHT = 3.0
"""Objects are a tenth of the pixels and all of the meaning: their error counts this much more."""
REFINE_RATE = 1.5e-3
MOST_NOISE = 0.2
"""The decoder is refined on latents with up to this much noise, of their own standard deviation of 1: those that a
diffusion model draws are never exact, and small stars are what it costs."""


def build(latent_channels: int = LATENT_CHANNELS) -> AutoencoderKL:
    """An untrained autoencoder."""
    levels = len(BLOCK_CHANNELS)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=BLOCK_CHANNELS,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=LATENT_SIZE * 8,
        scaling_factor=1.0,
        shift_factor=0.0,
        mid_block_add_attention=False,
    )


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8[n, h, w, 3] to float32[n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1.0).contiguous()


def to_pictures(pixels: Tensor) -> np.ndarray:
    """float[n, 3, h, w] in [-1, 1] to uint8[n, h, w, 3]."""
    scaled = pixels.detach().float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    return np.asarray(scaled.permute(0, 2, 3, 1).to(torch.uint8).numpy())


def sample_prompts(number: int, split: str, rng: np.random.Generator, even: float = 0.35) -> list[str]:
    """Prompts drawn with replacement: a share `even` with equal categories, the rest as the split has them."""
    texts = prompts(split)
    by_category = {name: [text for text in texts if category(text) == name] for name in CATEGORIES}
    drawn = []
    for _ in range(number):
        source = by_category[CATEGORIES[rng.integers(len(CATEGORIES))]] if rng.random() < even else texts
        drawn.append(source[rng.integers(len(source))])
    return drawn


def reconstruction_accuracy(vae: AutoencoderKL, number: int, seed: int) -> float:
    """Share of reconstructed held-out pictures that still pass the checker."""
    rng = np.random.default_rng(seed)
    texts = sample_prompts(number, "heldout", rng)
    pictures = np.stack([render(text, rng) for text in texts])
    with torch.no_grad():
        latents = [vae.encode(part).latent_dist.mode() for part in to_tensor(pictures).split(64)]
        decoded = np.concatenate([to_pictures(vae.decode(part).sample) for part in latents])
    return float(np.mean([check(picture, text) for picture, text in zip(decoded, texts, strict=True)]))


def whiten(vae: AutoencoderKL, pictures: np.ndarray) -> None:
    """Folds a PCA whitening of the latents of uint8[n, h, w, 3] into the two 1 x 1 convolutions, in place.

    Reconstructions do not change: decoding undoes exactly what encoding adds. Directions whose standard deviation is
    below 1 % of the largest are not blown up beyond that.
    """
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mode() for part in to_tensor(pictures).split(64)])
        flat = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]).double()
        mean = flat.mean(dim=0)
        values, vectors = torch.linalg.eigh(torch.cov(flat.T))
        spread = values.clamp(min=1e-4 * float(values.max())).sqrt()
        forward, back = vectors.T / spread[:, None], vectors * spread[None, :]
        _fold(vae, forward, back, mean)


def _fold(vae: AutoencoderKL, forward: Tensor, back: Tensor, mean: Tensor) -> None:
    quant, post = vae.quant_conv, vae.post_quant_conv
    for layer in (quant, post):
        if not isinstance(layer, nn.Conv2d) or layer.bias is None:
            raise TypeError(f"whitening needs 1 x 1 convolutions with a bias, this autoencoder has {layer}")
    channels = len(mean)
    weight = quant.weight[:channels, :, 0, 0].double()
    quant.weight[:channels, :, 0, 0] = (forward @ weight).float()
    quant.bias[:channels] = (forward @ (quant.bias[:channels].double() - mean)).float()
    weight = post.weight[:, :, 0, 0].double()
    post.bias += (weight @ mean).float()
    post.weight[:, :, 0, 0] = (weight @ back).float()


def train(directory: Path, budget: Budget, seed: int, resume: bool, latent_channels: int) -> AutoencoderKL:
    """Trains on rendered pictures of training prompts and returns the whitened autoencoder."""
    torch.manual_seed(seed)
    vae = build(latent_channels)
    optimizer = torch.optim.AdamW(
        vae.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0, foreach=True
    )
    training = Training(vae, [optimizer], torch.Generator().manual_seed(seed))
    if resume:
        training.restore(directory / "state.pt")

    def loss(generator: torch.Generator) -> Tensor:
        pictures = _pictures(generator)
        posterior = vae.encode(pictures).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        total: Tensor = _error(decoded, pictures) + KL_WEIGHT * posterior.kl().mean()
        return total

    def measure() -> dict[str, float]:
        return {"accuracy": reconstruction_accuracy(vae, 192, seed + 1)}

    fit(training, loss, budget, directory, measure, measure_minutes=1.5)
    training.load_average()
    rng = np.random.default_rng(seed + 2)
    whiten(vae, np.stack([render(text, rng) for text in sample_prompts(1024, "train", rng)]))
    return vae.eval()


def _pictures(generator: torch.Generator) -> Tensor:
    """A batch of rendered pictures of training prompts, float32[BATCH, 3, 64, 64]."""
    rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    return to_tensor(np.stack([render(text, rng) for text in sample_prompts(BATCH, "train", rng)]))


def _error(decoded: Tensor, pictures: Tensor) -> Tensor:
    """Absolute and squared error, objects weighted more."""
    background = to_tensor(np.full((1, 1, 1, 3), BACKGROUND, dtype=np.uint8))
    weight = 1.0 + FOREGROUND_WEIGHT * ((pictures - background).abs().amax(dim=1, keepdim=True) > 0.05)
    error = decoded - pictures
    total: Tensor = (weight * (error.abs() + error**2)).mean()
    return total


def refine(vae: AutoencoderKL, directory: Path, budget: Budget, seed: int, resume: bool) -> AutoencoderKL:
    """Trains the decoder alone on inexact latents: the encoder, and so what models learnt to draw, stays as it is."""
    decoder = nn.ModuleList([vae.decoder, vae.post_quant_conv])
    optimizer = torch.optim.AdamW(
        decoder.parameters(), REFINE_RATE, betas=(0.9, 0.99), weight_decay=0.0, foreach=True
    )
    training = Training(decoder, [optimizer], torch.Generator().manual_seed(seed))
    if resume:
        training.restore(directory / "state.pt")

    def loss(generator: torch.Generator) -> Tensor:
        pictures = _pictures(generator)
        with torch.no_grad():
            latents = vae.encode(pictures).latent_dist.mode()
        size = MOST_NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        return _error(vae.decode(latents + size * noise).sample, pictures)

    def measure() -> dict[str, float]:
        return {"accuracy": reconstruction_accuracy(vae, 192, seed + 1)}

    fit(training, loss, budget, directory, measure, measure_minutes=1.5)
    training.load_average()
    return vae.eval()


def main() -> None:
    """`python -m recipes.shapes.autoencoder --work DIR`: trains, refines the decoder, and saves to DIR/vae."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--work", type=Path, required=True, help="directory for checkpoints, curve and result"
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--refine-minutes", type=float, default=6.0)
    parser.add_argument("--steps", type=int, help="train this many steps whatever they take")
    parser.add_argument("--refine-only", action="store_true", help="refine the decoder in DIR/vae")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latent-channels", type=int, default=LATENT_CHANNELS)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.refine_only:
        vae = AutoencoderKL.from_pretrained(options.work / "vae")
    else:
        budget = Budget(options.steps, options.minutes, decay=0.6)
        vae = train(options.work, budget, options.seed, options.resume, options.latent_channels)
    directory = options.work / "refine"
    directory.mkdir(exist_ok=True)
    budget = Budget(options.steps, options.refine_minutes, decay=0.6)
    resume = options.resume and (directory / "state.pt").is_file()
    vae = refine(vae, directory, budget, options.seed + 4, resume)
    vae.save_pretrained(options.work / "vae", safe_serialization=True)
    print(f"reconstructions that pass: {reconstruction_accuracy(vae, 768, options.seed + 3):.3f}")


if __name__ == "__main__":
    main()
