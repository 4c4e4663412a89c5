"""Training end to end on a tiny pool: one step, resuming, saving, loading, the card; and what ships."""

import json
import time

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from rankray import shapes
from rankray.shapes.renderer import render
from recipes.shapes import autoencoder
from recipes.shapes.autoencoder import build, reconstruction_accuracy, to_pictures, to_tensor, whiten
from recipes.shapes.card import write_card
from recipes.shapes.data import load_pool, write_shard
from recipes.shapes.family import accuracy, generate, spread
from recipes.shapes.language import Lessons
from recipes.shapes.loop import Budget
from recipes.shapes.train import FAMILIES, train

ABSENT = {"shapes-sd3": {"text_encoder_3": None, "tokenizer_3": None}}
"""A saved SD3 without T5 has to be told so when it is loaded."""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """An untrained autoencoder, untrained text encoders and 64 encoded pictures."""
    directory = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    vae = build().eval()
    vae.save_pretrained(directory / "vae")
    (directory / "pool").mkdir()
    write_shard(vae, directory / "pool" / "000.safetensors", 64, seed=1)
    lessons = Lessons()
    for encoder, name in zip(
        (*lessons.clips, lessons.t5), ("text_encoder", "text_encoder_2", "t5"), strict=True
    ):
        encoder.save_pretrained(directory / "text" / name)
    return directory


def load(name, directory):
    return DiffusionPipeline.from_pretrained(directory, **ABSENT.get(name, {}))


def test_pictures_survive_the_way_to_tensors_and_back():
    pictures = np.stack([render(text, np.random.default_rng(0)) for text in shapes.prompts("train")[:3]])
    assert np.array_equal(to_pictures(to_tensor(pictures)), pictures)


def test_whitening_gives_unit_latents_and_keeps_reconstructions():
    torch.manual_seed(1)
    vae = build().eval()
    rng = np.random.default_rng(0)
    pictures = np.stack([render(text, rng) for text in autoencoder.sample_prompts(128, "train", rng)])
    with torch.no_grad():
        before = vae(to_tensor(pictures)).sample
        whiten(vae, pictures)
        latents = vae.encode(to_tensor(pictures)).latent_dist.mode()
        after = vae.decode(latents).sample
    assert (before - after).abs().max() < 2e-3
    flat = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    assert flat.mean(dim=0).abs().max() < 1e-2
    assert (torch.cov(flat.T) - torch.eye(latents.shape[1])).abs().max() < 2e-2


def test_the_pool_is_captioned_reproducibly_and_drops_captions(work):
    clean, noisy, again = (
        load_pool(work / "pool", noise, 3) for noise in ({}, {"shape": 1.0}, {"shape": 1.0})
    )
    assert set(clean.captions[1:]) <= set(shapes.prompts("train"))
    assert noisy.captions == again.captions
    latents, captions = clean.batch(5000, torch.Generator().manual_seed(0))
    assert latents.shape == (5000, autoencoder.LATENT_CHANNELS, 8, 8)
    assert 400 < int((captions == 0).sum()) < 600
    with pytest.raises(FileNotFoundError, match=r"recipes\.shapes\.data"):
        load_pool(work / "text", {}, 0)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_resumed_family_equals_an_undisturbed_one_and_loads_as_saved(name, work, tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.shapes.train.MEASURED", 2)
    family = FAMILIES[name]
    whole = train(family, work, tmp_path / "whole", Budget(steps=3), seed=5, resume=False)
    train(family, work, tmp_path / "part", Budget(steps=3, stop_at=1), seed=5, resume=False)
    resumed = train(family, work, tmp_path / "part", Budget(steps=3), seed=5, resume=True)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    loaded = load(name, tmp_path / "part")
    assert type(loaded).__name__ == type(family.pipeline(whole, build())).__name__
    dtypes = {
        p.dtype
        for part in loaded.components.values()
        if isinstance(part, torch.nn.Module)
        for p in part.parameters()
    }
    assert dtypes == {torch.float32}
    pictures = generate(loaded, ["a red circle"] * 2, family.call, seed=1)
    assert pictures.shape == (2, 64, 64, 3)
    assert not np.array_equal(pictures[0], pictures[1])
    write_card(family, tmp_path / "part", work / name / "curve.jsonl", {"accuracy": 0.5, "position": 0.25})
    card = (tmp_path / "part" / "README.md").read_text()
    assert f"python -m recipes.shapes.train {name}" in card
    assert "| position | 25.0% |" in card


def test_an_unknown_model_is_refused_with_those_that_ship():
    with pytest.raises(ValueError, match="shapes-sdxl"):
        shapes.pipeline_dir("shapes-flux")


def test_all_weights_together_are_small_enough_for_the_wheel():
    weights = shapes.pipeline_dir("shapes-sdxl").parent
    files = [file for file in weights.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 25e6
    assert not [file for file in files if file.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}]


def test_the_shipped_autoencoder_is_one_and_reconstructs():
    parts = [load(name, shapes.pipeline_dir(name)).vae for name in sorted(FAMILIES)]
    first = parts[0].state_dict()
    for other in parts[1:]:
        assert all(torch.equal(value, first[key]) for key, value in other.state_dict().items())
    assert reconstruction_accuracy(parts[0], 96, seed=0) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_shipped_pipeline_is_as_good_as_its_card_says(name):
    directory = shapes.pipeline_dir(name)
    claimed = json.loads((directory / "accuracy.json").read_text())["accuracy"]
    pipeline, texts = load(name, directory), spread("heldout", 48)
    generate(pipeline, texts[:16], FAMILIES[name].call, seed=0)
    start = time.process_time()
    found = accuracy(pipeline, texts, FAMILIES[name].call, seed=77)["accuracy"]
    spent = time.process_time() - start
    assert found >= claimed - 2.5 * (0.25 / 48) ** 0.5
    assert 48 / spent >= 10.0
