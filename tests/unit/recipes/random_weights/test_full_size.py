"""What writes full-size checkpoints, on small configurations: the classes that load real ones load these, and draw."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import hollow
import numpy as np
import pytest
import torch
from accelerate import init_empty_weights

from rankray.models.footprint import Component, components
from rankray.models.generators import GENERATORS
from rankray.models.generators.diffusers_pipeline import DiffusersGenerator
from recipes.random_weights import full_size as writer
from recipes.random_weights.__main__ import FULL, main
from recipes.random_weights.__main__ import GENERATORS as MADE
from recipes.random_weights.pipelines import PIPELINES
from recipes.random_weights.vocabularies import clip_tokenizer, t5_tokenizer


def test_vocabularies_have_the_published_sizes() -> None:
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    assert (len(clip), clip.bos_token_id, clip.eos_token_id, clip.model_max_length) == (
        49_408,
        49_406,
        49_407,
        77,
    )
    assert (len(t5), t5.pad_token_id, t5.eos_token_id) == (32_100, 0, 1)
    for tokenizer in (clip, t5):
        ids = tokenizer("a red kite over the old mill").input_ids
        assert 8 <= len(ids) <= 30
        assert ids != tokenizer("a red kite over the old well").input_ids
        assert tokenizer.unk_token_id not in ids[:-1]


def small_components(name: str) -> list[Component]:
    """The tiny pipeline's components as the full-size table would state them, with places for the full vocabulary."""
    pipe = PIPELINES[name]()
    found = []
    for part in components("generators", name):
        module = getattr(pipe, part.name)
        if part.kind.startswith("transformers."):
            words = 32_128 if "T5" in part.kind else 49_408
            config = {**module.config.to_dict(), "vocab_size": words}
            if words == 49_408:
                config |= {"max_position_embeddings": 77, "bos_token_id": 49_406, "eos_token_id": 49_407}
        else:
            config = {key: value for key, value in module.config.items() if not key.startswith("_")}
        found.append(replace(part, config=config))
    return found


@pytest.mark.parametrize("name", MADE)
def test_a_pipeline_that_was_written_loads_and_draws(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = small_components(name)
    monkeypatch.setattr(writer, "components", lambda *_: parts)
    monkeypatch.setattr(writer, "SHARD_BYTES", 1_000_000)
    writer.generator(name, tmp_path / "w", "float32")
    changes: dict[str, Any] = {
        "stable-cascade": {
            "after_load": {
                "prior_pipe": {"resolution_multiple": 8.0},
                "decoder_pipe": {"latent_dim_scale": 2.0},
            }
        }
    }.get(name, {})
    call = {**GENERATORS[name].call, **({"use_resolution_binning": False} if name == "pixart-sigma" else {})}
    spec = replace(
        GENERATORS[name], source=str(tmp_path / "w"), variant=None, dtype="float32", steps=2, height=64, width=64,
        batch_size=1, call=call, **changes,
    )  # fmt: skip
    model = DiffusersGenerator(spec, "cpu")
    picture = np.asarray(model.generate(["a kite over a mill"], [3])[0])
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 1.0, "noise, and not one colour"


def test_each_number_is_written_once_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T5's tied embedding stands once; shards and index agree; nothing is missing or unexpected."""
    monkeypatch.setattr(writer, "SHARD_BYTES", 400_000)
    monkeypatch.setattr(writer, "NUMBERS", 5_000)
    part = small_components("pixart-sigma")
    text = next(one for one in part if one.name == "text_encoder")
    with init_empty_weights(include_buffers=False):
        module = writer.build(text, "cpu")
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    due = dict(writer.random_tensors(module, torch.float16))
    writer.write_module(module, tmp_path, torch.float16)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(2 * value.numel() for value in due.values())
    loaded, found = type(module).from_pretrained(tmp_path, dtype=torch.float16, output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    values = dict(loaded.named_parameters())
    assert values.keys() == due.keys()
    assert all(torch.equal(values[name], due[name]) for name in due)
    matrix = due["encoder.block.0.layer.0.SelfAttention.q.weight"].float()
    assert float(matrix.std()) == pytest.approx(matrix.shape[1] ** -0.5, rel=0.1)


def test_buffers_keep_their_values(tmp_path: Path) -> None:
    config = PIPELINES["sd3-medium"]().transformer.config
    with init_empty_weights(include_buffers=False):
        module = diffusers.SD3Transformer2DModel.from_config(config)
    writer.write_module(module, tmp_path, torch.float32)
    loaded = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path)
    whole = diffusers.SD3Transformer2DModel.from_config(config)
    assert torch.equal(loaded.pos_embed.pos_embed, whole.pos_embed.pos_embed)


def test_a_hollow_module_keeps_its_buffers_and_is_filled(tmp_path: Path) -> None:
    config = PIPELINES["sd3-medium"]().transformer.config
    with init_empty_weights(include_buffers=False):
        module = diffusers.SD3Transformer2DModel.from_config(config)
    writer.write_module(module, tmp_path, torch.float16, hollow.write_module)
    loaded = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path, dtype=torch.float16)
    positions = diffusers.SD3Transformer2DModel.from_config(config).pos_embed.pos_embed.half()
    weight = loaded.transformer_blocks[0].attn.to_q.weight
    assert not weight.any()
    torch.manual_seed(0)
    writer.fill(loaded)
    assert torch.equal(loaded.pos_embed.pos_embed, positions)
    assert float(weight.detach().float().std()) == pytest.approx(weight.shape[1] ** -0.5, rel=0.1)
    assert not loaded.transformer_blocks[0].attn.to_q.bias.any()


def test_the_command_asks_for_names_and_for_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(tmp_path), "--size", "full"]) == 2
    assert capsys.readouterr().err == f"--size full: name the models, of {', '.join(FULL)}\n"
    assert main([str(tmp_path), "vqascore", "--size", "full"]) == 2
    assert "unknown model 'vqascore'" in capsys.readouterr().err
    monkeypatch.setattr(writer, "bytes_of", lambda name: 10**18)
    assert main([str(tmp_path), "sdxl", "--size", "full"]) == 2
    assert "sdxl takes 1000000000.0 GB" in capsys.readouterr().err
    assert main([str(tmp_path), "pickscore"]) == 0
    assert main([str(tmp_path), "pickscore", "--size", "full"]) == 2
    assert "holds a tiny checkpoint, not a full one; take another directory" in capsys.readouterr().err


def test_bytes_follow_the_parameters() -> None:
    assert writer.bytes_of("sdxl") == pytest.approx(6.94e9, rel=0.01)
    assert writer.bytes_of("sdxl", "float32") == 2 * writer.bytes_of("sdxl")
    assert set(FULL) == {*MADE, *writer.REWARDS_FULL}
