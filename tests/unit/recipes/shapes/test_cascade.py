"""`shapes-cascade`: its embedding, its noise process, its training and the pipeline that ships."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_stable_cascade import GlobalResponseNorm

from rankray.shapes import pipeline_dir, prompts
from rankray.shapes.renderer import BACKGROUND, Item
from recipes.shapes import cascade
from recipes.shapes.cascade_layout import SPREAD, layout, make_pool
from recipes.shapes.cascade_models import Diffusion, build_prior, faster_norm
from recipes.shapes.cascade_pipeline import CALL, load
from recipes.shapes.family import accuracy, generate

FLOOR = 0.25


@pytest.fixture(scope="module")
def pipeline() -> object:
    torch.set_num_threads(1)
    return load(pipeline_dir("shapes-cascade"))


def test_layout_of_one_object_is_its_code_times_the_covered_share() -> None:
    fill = tuple(channel - 127.5 for channel in BACKGROUND)
    found = layout([Item("triangle", 32.0, 30.0, 8.0, fill)])
    rows, columns = np.zeros(8), np.zeros(8)
    rows[2:5] = (2.0 / 8.0, 1.0, 6.0 / 8.0)  # y from 22 to 38: 2 pixels of row 2, all of 3, 6 of row 4
    columns[3:5] = 1.0  # x from 24 to 40
    expected = np.array([1.0, 1.0, 1.0, -1.0, 1.0])[:, None, None] * np.outer(rows, columns)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_embeddings_of_other_scenes_are_nearly_white() -> None:
    cells = make_pool(600, 123, pictures=False).embeddings.transpose(1, 0, 2, 3).reshape(5, -1)
    np.testing.assert_allclose(cells.mean(axis=1), 0.0, atol=0.05)
    np.testing.assert_allclose(np.cov(cells), SPREAD**2 * np.eye(5), atol=0.06)


def test_pool_is_the_same_for_the_same_seed() -> None:
    first, second = make_pool(5, 7, pictures=True), make_pool(5, 7, pictures=True)
    assert first.texts == second.texts
    assert np.array_equal(first.embeddings, second.embeddings)
    assert np.array_equal(first.pictures, second.pictures)


def test_loss_is_zero_for_the_true_v() -> None:
    diffusion, clean = Diffusion(), torch.full((16, 5, 8, 8), 0.3)

    def oracle(noisy: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
        step = (diffusion.ratio[:, None] == ratio[None, :]).float().argmax(dim=0)
        kept = diffusion.kept[step].view(-1, 1, 1, 1)
        noise = (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()
        return kept.sqrt() * noise - (1 - kept).sqrt() * clean

    assert diffusion.loss(oracle, clean, torch.Generator().manual_seed(0), 1.3).item() < 1e-6


def test_training_sees_the_timestep_ratios_that_the_pipeline_gives(pipeline: object) -> None:
    steps = torch.tensor([0, 1, 99, 500, 998, 999])
    diffusion = Diffusion()
    given = pipeline.prior_pipe.get_timestep_ratio_conditioning(steps, diffusion.kept)  # type: ignore[attr-defined]
    # Near 1 the arc cosine of a float32 is as exact as the processor's square roots make it.
    torch.testing.assert_close(diffusion.ratio[steps], given, atol=1e-5, rtol=0.0)


def test_faster_norm_computes_the_same_and_ends() -> None:
    torch.manual_seed(0)
    network, before = build_prior().eval(), GlobalResponseNorm.forward
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    inputs = (
        torch.randn(2, 5, 8, 8),
        torch.rand(2),
        torch.randn(2, 1, 64),
        torch.randn(2, 16, 64),
        torch.zeros(2, 1, 1),
    )
    slow = network(*inputs).sample
    with faster_norm():
        assert GlobalResponseNorm.forward is not before
        fast = network(*inputs).sample
    assert GlobalResponseNorm.forward is before
    torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)


def test_faster_norm_has_a_finite_slope_where_a_channel_is_silent() -> None:
    norm = GlobalResponseNorm(3)
    hidden = torch.ones(1, 2, 2, 3)
    hidden[..., 1] = 0.0
    hidden.requires_grad_()
    with faster_norm():
        norm(hidden).sum().backward()
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(norm.gamma.grad).all()


def test_each_part_trains_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(cascade, "POOL", {"vqgan": 32, "decoder": 300, "prior": 64})
    monkeypatch.setattr(cascade, "MEASURED", 2)
    cascade.run(tmp_path, ["vqgan", "decoder", "prior"], seed=0, resume=False, minutes=None, steps=2)
    cascade.run(tmp_path, ["prior"], seed=0, resume=True, minutes=None, steps=4)
    for part, steps in {"vqgan": [2], "decoder": [2], "prior": [2, 4]}.items():
        lines = [json.loads(line) for line in (tmp_path / part / "curve.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == steps
        assert all(0.0 <= line["accuracy"] <= 1.0 and np.isfinite(line["loss"]) for line in lines)


def test_shipped_pipeline_draws_a_batch_of_three(pipeline: object) -> None:
    texts = ["a red circle", "two blue squares", "a green star left of a yellow triangle"]
    pictures = generate(pipeline, texts, CALL, seed=3)
    assert pictures.shape == (3, 64, 64, 3)
    assert pictures.dtype == np.uint8
    assert np.abs(np.median(pictures, axis=(1, 2)) - BACKGROUND).max() < 20.0
    alone = generate(pipeline, texts[2:], CALL, seed=5)[0]
    assert np.abs(alone.astype(int) - pictures[2].astype(int)).max() <= 2, (
        "a picture depends on its neighbours"
    )


def test_shipped_pipeline_is_small() -> None:
    size = sum(file.stat().st_size for file in pipeline_dir("shapes-cascade").rglob("*") if file.is_file())
    assert size <= 5_000_000


@pytest.mark.slow
def test_shipped_pipeline_reaches_its_accuracy(pipeline: object) -> None:
    texts = prompts("heldout")
    assert len(texts) >= 384
    assert accuracy(pipeline, texts, CALL, seed=20_000)["accuracy"] >= FLOOR
