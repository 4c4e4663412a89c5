"""The pool of encoded pictures that all families train on, so that training neither renders nor encodes.

A shard holds 20,000 latents and takes about two minutes to make; three of them (60,000 pictures, 46 MB) are used some
ten times over in one training without a gap between trained and held-out loss worth the disk for more.

How another family uses it: `load_pool(directory, noise, seed)` gives the latents and their captions (index 0 is the
empty prompt), `pool.batch(size, generator)` one batch with 10 % of captions dropped for guidance.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankray.shapes.prompts import parse, prompts
from rankray.shapes.renderer import compose, paint
from recipes.shapes.autoencoder import sample_prompts, to_tensor
from recipes.shapes.captions import caption
from recipes.shapes.contents import layout

SHARD = 24_000
DROPOUT = 0.1
"""Share of captions replaced by the empty prompt, for classifier-free guidance."""


@dataclass(frozen=True)
class Pool:
    """Encoded pictures.

    Attributes:
        latents: float32[n, c, 8, 8].
        patches: what each latent cell shows, uint8[n, 64] (`contents.layout`).
        captions: the distinct captions; 0 is the empty one.
        caption_of: index of each picture's caption, int64[n].
    """

    latents: Tensor
    patches: Tensor
    captions: list[str]
    caption_of: Tensor

    def rows(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Numbers of `size` pictures, drawn with replacement, and their caption indices, some dropped: int64[size]."""
        rows = torch.randint(len(self.latents), (size,), generator=generator)
        dropped = torch.rand(size, generator=generator) < DROPOUT
        return rows, self.caption_of[rows].masked_fill(dropped, 0)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents [size, c, 8, 8] and caption indices int64[size], drawn with replacement."""
        rows, captions = self.rows(size, generator)
        return self.latents[rows], captions


def write_shard(vae: AutoencoderKL, path: Path, number: int, seed: int) -> None:
    """Renders and encodes pictures of training prompts: latents float16, the prompts' indices, what patches show."""
    rng = np.random.default_rng(seed)
    index = {text: place for place, text in enumerate(prompts("train"))}
    texts = sample_prompts(number, "train", rng)
    latents, patches = [], []
    with torch.no_grad():
        for start in range(0, number, 64):
            scenes = [compose(parse(text), rng) for text in texts[start : start + 64]]
            pictures = np.stack([paint(items) for items in scenes])
            patches += [layout(items)[0] for items in scenes]
            latents.append(vae.encode(to_tensor(pictures)).latent_dist.mode().half())
    chosen = torch.tensor([index[text] for text in texts], dtype=torch.int32)
    partial = path.with_suffix(".partial")
    shown = torch.as_tensor(np.stack(patches), dtype=torch.uint8)
    save_file({"latents": torch.cat(latents), "prompt": chosen, "patches": shown}, partial)
    partial.rename(path)


def load_pool(directory: Path, noise: dict[str, float], seed: int) -> Pool:
    """Reads all shards in a directory and captions them, falsely with the probabilities in `noise`.

    Raises:
        FileNotFoundError: the directory holds no shard.
    """
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(
            f"no encoded pictures in {directory}: make some with python -m recipes.shapes.data"
        )
    shards = [load_file(path) for path in paths]
    latents = torch.cat([shard["latents"] for shard in shards]).float()
    chosen = torch.cat([shard["prompt"] for shard in shards]).tolist()
    texts, rng = prompts("train"), np.random.default_rng(seed)
    captions = [caption(texts[place], noise, rng) for place in chosen]
    distinct = ["", *sorted(set(captions))]
    index = {text: place for place, text in enumerate(distinct)}
    patches = torch.cat([shard["patches"] for shard in shards])
    return Pool(latents, patches, distinct, torch.tensor([index[text] for text in captions]))


def main() -> None:
    """`python -m recipes.shapes.data --vae DIR --pool DIR --shard N`: writes one shard of the pool."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--shard", type=int, required=True)
    parser.add_argument("--number", type=int, default=SHARD)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.pool.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(options.vae).eval()
    path = options.pool / f"{options.shard:03d}.safetensors"
    write_shard(vae, path, options.number, seed=1000 + options.shard)


if __name__ == "__main__":
    main()
