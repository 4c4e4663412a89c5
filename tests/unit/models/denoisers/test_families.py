"""Each trainable family against a training step written with diffusers' own parts, on pipelines of random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hub_server import asked, serving
from PIL import Image
from torch import Tensor

from rankray import diffusion
from rankray.config import ConfigError
from rankray.diffusion import TimeSampling
from rankray.models.denoisers import DENOISERS, check_family, family, parts
from rankray.models.generators import GeneratorSpec
from rankray.rankdpo.batches import Noising, errors, make_batch
from rankray.rankdpo.encoded import EncodedRow
from recipes.random_weights import pipelines

PROMPTS = ["a red circle", "two blue squares"]
CALLS: dict[str, dict[str, Any]] = {
    "sd15": {},
    "sdxl": {},
    "sd3": {"max_sequence_length": 0},
    "pixart_sigma": {"max_sequence_length": 16, "clean_caption": False},
}


BUILDERS = {
    "sd15": pipelines.sd15,
    "sdxl": pipelines.sdxl,
    "sd3": lambda: pipelines.sd3(with_t5=False),
    "pixart_sigma": pipelines.pixart,
}


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GeneratorSpec]:
    """Family -> the row of a saved pipeline with random weights."""
    root = tmp_path_factory.mktemp("families")
    torch.manual_seed(0)
    found = {}
    for name, build in BUILDERS.items():
        pipe = build()
        pipelines.awaken(pipe)
        pipe.save_pretrained(root / name)
        absent = {key: None for key, part in pipe.components.items() if part is None}
        found[name] = GeneratorSpec(
            source=str(root / name),
            pipeline=DENOISERS[name].pipeline,
            steps=2,
            guidance=1.0,
            height=64,
            width=64,
            dtype="float32",
            load=absent,
            call=CALLS[name],
        )
    return found


def reference_error(pipe: Any, name: str, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """One training step's error a picture, as diffusers' own training scripts compute it."""
    if name == "sd3":
        sigma = time.float()[:, None, None, None]
        embeds, _, pooled, _ = pipe.encode_prompt(
            PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=0
        )
        found = pipe.transformer(
            hidden_states=(1.0 - sigma) * latents + sigma * noise,
            timestep=time.float() * 1000.0,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
        ).sample
        return ((found - (noise - latents)) ** 2).mean(dim=(1, 2, 3))
    scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    steps = time.long()
    noisy = scheduler.add_noise(latents, noise, steps)
    if name == "sd15":
        embeds, _ = pipe.encode_prompt(PROMPTS, "cpu", 1, False)
        found = pipe.unet(noisy, steps, embeds).sample
    elif name == "sdxl":
        embeds, _, pooled, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        ids = pipe._get_add_time_ids((64, 64), (0, 0), (64, 64), embeds.dtype, pipelines.WIDTH)
        added = {"text_embeds": pooled, "time_ids": ids.repeat(2, 1)}
        found = pipe.unet(noisy, steps, embeds, added_cond_kwargs=added).sample
    else:
        embeds, mask, _, _ = pipe.encode_prompt(
            PROMPTS, do_classifier_free_guidance=False, max_sequence_length=16
        )
        found = pipe.transformer(
            noisy,
            encoder_hidden_states=embeds,
            encoder_attention_mask=mask,
            timestep=steps,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample.chunk(2, 1)[0]
    velocity = scheduler.config.prediction_type == "v_prediction"
    due = scheduler.get_velocity(latents, noise, steps) if velocity else noise
    return ((found - due) ** 2).mean(dim=(1, 2, 3))


@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_errors_are_those_of_a_plain_training_step(specs: Mapping[str, GeneratorSpec], name: str) -> None:
    spec = specs[name]
    encoders = parts.load_encoders(spec, "cpu", torch.float32)
    module = parts.module_of(spec)
    text = module.encode_prompts(encoders, PROMPTS, spec.call)
    empty = {key: value[0].numpy() for key, value in module.encode_prompts(encoders, [""], spec.call).items()}
    rng = np.random.default_rng(0)
    rows = [
        EncodedRow(
            prompt_id=f"p{b}",
            mean=rng.normal(size=(2, 4, 8, 8)).astype(np.float32),
            std=np.zeros((2, 4, 8, 8), np.float32),
            win_probability=np.array([1.0, 0.0], np.float32),
            rank=np.array([1, 2]),
            scores=np.zeros((2, 1), np.float32),
            text={key: value[b].numpy() for key, value in text.items()},
        )
        for b in range(2)
    ]
    process = parts.load_process(spec)
    noising = Noising(process, TimeSampling(), 0, 0.0, False, True, "none")
    batch = make_batch(rows, [0, 0], noising, empty, "cpu")
    denoiser = parts.load_denoiser(spec, "cpu", torch.float32).eval()
    found = errors(denoiser, module.predict, batch, batch.mask, noising, (64, 64), torch.float32)
    whole = getattr(diffusers, spec.pipeline).from_pretrained(spec.source, **spec.load)
    for k in range(2):
        due = reference_error(whole, name, batch.latents[:, k], batch.noise[:, k], batch.time)
        torch.testing.assert_close(found[:, k], due, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_sdxl_s_empty_prompt_is_its_unconditional_part_where_a_negative_prompt_says_so(
    specs: Mapping[str, GeneratorSpec],
) -> None:
    pipe = parts.load_encoders(specs["sdxl"], "cpu", torch.float32)
    assert pipe.config.force_zeros_for_empty_prompt  # as published
    empty = parts.module_of(specs["sdxl"]).encode_prompts(pipe, [""], {})
    for negative, is_trained in ((None, False), ("", True)):
        _, text, _, pooled = pipe.encode_prompt(["a"], negative_prompt=negative)
        assert torch.equal(text, empty["text"] * is_trained)
        assert torch.equal(pooled, empty["pooled"] * is_trained)


@pytest.mark.parametrize("name", BUILDERS)
def test_pictures_are_encoded_as_the_pipeline_decodes_them(
    specs: Mapping[str, GeneratorSpec], name: str
) -> None:
    spec = specs[name]
    encoders = parts.load_encoders(spec, "cpu", torch.float32)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    mean, std = parts.encode_images(encoders, [picture, picture])
    pixels = encoders.image_processor.preprocess(picture)
    posterior = encoders.vae.encode(pixels).latent_dist
    shift = getattr(encoders.vae.config, "shift_factor", None) or 0.0
    due = (posterior.mean - shift) * encoders.vae.config.scaling_factor
    torch.testing.assert_close(mean[1:], due, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        std[:1], posterior.std * encoders.vae.config.scaling_factor, atol=1e-6, rtol=1e-5
    )
    assert all(p.device.type == "meta" for p in getattr(encoders, parts.row_of(spec).denoiser).parameters())


@pytest.mark.parametrize("name", BUILDERS)
def test_adapters_start_as_no_change_and_merge_into_what_they_did(
    specs: Mapping[str, GeneratorSpec], name: str, tmp_path: Path
) -> None:
    spec = specs[name]
    plain = parts.load_denoiser(spec, "cpu", torch.float32).eval()
    adapted = parts.load_denoiser(spec, "cpu", torch.float32).eval()
    parts.add_lora(adapted, spec, 4, 4)
    learnt = {key for key, p in adapted.named_parameters() if p.requires_grad}
    assert learnt
    assert all("lora" in key for key in learnt)
    encoders = parts.load_encoders(spec, "cpu", torch.float32)
    module = parts.module_of(spec)
    text = module.encode_prompts(encoders, PROMPTS, spec.call)
    noisy, time = torch.randn(2, 4, 8, 8), torch.tensor([10, 500])

    def predict(denoiser: Any) -> Tensor:
        with torch.no_grad():
            found: Tensor = module.predict(denoiser, noisy, time, text, (64, 64))
        return found

    torch.testing.assert_close(predict(adapted), predict(plain))
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    changed = predict(adapted)
    assert (changed - predict(plain)).abs().max() > 1e-3
    parts.merge_lora(adapted)
    assert not any("lora" in key for key, _ in adapted.named_parameters())
    torch.testing.assert_close(predict(adapted), changed, atol=1e-5, rtol=1e-4)
    parts.export(spec, adapted, tmp_path / "pipeline")
    configs = [file.read_text() for file in (tmp_path / "pipeline").rglob("*.json")]
    assert not [text for text in configs if str(spec.source) in text], "places of a machine go to no hub"
    again = getattr(diffusers, spec.pipeline).from_pretrained(tmp_path / "pipeline", **spec.load)
    torch.testing.assert_close(
        predict(getattr(again, parts.row_of(spec).denoiser)), changed, atol=1e-5, rtol=1e-4
    )


WITHOUT_T5 = {"text_encoder_3": None, "tokenizer_3": None}

EXPORTED = """
import sys
from pathlib import Path
import torch
from rankray.models.denoisers import parts
from rankray.models.generators import GeneratorSpec

load = {"text_encoder_3": None, "tokenizer_3": None}
spec = GeneratorSpec(source="owner/sd3", pipeline="StableDiffusion3Pipeline", steps=1, guidance=1.0, load=load)
parts.export(spec, parts.load_denoiser(spec, "cpu", torch.float32), Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def sd3_with_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD3 as it is published, all three encoders, and a folder of weights that is no component."""
    place = tmp_path_factory.mktemp("sd3")
    pipelines.sd3().save_pretrained(place)
    (place / "more").mkdir()
    shutil.copy(place / "vae" / "diffusion_pytorch_model.safetensors", place / "more" / "model.safetensors")
    return place


def test_what_the_row_leaves_out_is_not_exported(sd3_with_t5: Path, tmp_path: Path) -> None:
    spec = GeneratorSpec(
        source=str(sd3_with_t5), pipeline="StableDiffusion3Pipeline", steps=1, guidance=1.0, load=WITHOUT_T5
    )
    parts.export(spec, parts.load_denoiser(spec, "cpu", torch.float32), tmp_path)
    assert {place.parent.name for place in tmp_path.glob("*/*.safetensors")} == {
        *("text_encoder", "text_encoder_2", "transformer", "vae")
    }
    config = "text_encoder_2/config.json"
    assert (tmp_path / config).read_bytes() == (sd3_with_t5 / config).read_bytes()
    again = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path, **WITHOUT_T5)
    assert again.text_encoder_2 is not None


def test_what_the_row_leaves_out_is_not_fetched(sd3_with_t5: Path, tmp_path: Path) -> None:
    with serving() as hub:
        hub.repositories["owner/sd3"] = sd3_with_t5
        asked(EXPORTED, hub, tmp_path / "home", str(tmp_path / "pipeline"))
    assert (tmp_path / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors").is_file()
    assert "owner/sd3/text_encoder_2/model.safetensors" in hub.sent
    assert not [file for file in hub.sent if file.startswith("owner/sd3/text_encoder_3")]


def test_flow_times_follow_the_schedulers_shift(specs: Mapping[str, GeneratorSpec]) -> None:
    assert parts.time_sampling(specs["sdxl"], None, 0.0, 1.0) == TimeSampling("uniform", 0.0, 1.0)
    found = parts.time_sampling(specs["sd3"], None, 0.0, 1.0)
    assert found == TimeSampling(
        "logit_normal", 0.0, 1.0, diffusers.FlowMatchEulerDiscreteScheduler().config.shift
    )
    assert isinstance(parts.load_process(specs["sd3"]), diffusion.Process)


def test_other_pipelines_are_refused(specs: Mapping[str, GeneratorSpec]) -> None:
    cascade = GeneratorSpec(source="x", pipeline="StableCascadeCombinedPipeline", steps=1, guidance=1.0)
    with pytest.raises(
        ConfigError, match="a StableCascadeCombinedPipeline, which no family trains; families: sd15"
    ):
        family(cascade)
    wrong = GeneratorSpec(
        source=specs["sd3"].source, pipeline="StableDiffusionXLPipeline", steps=1, guidance=1.0
    )
    with pytest.raises(ConfigError, match="holds a StableDiffusion3Pipeline and the model's row says"):
        check_family(wrong)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_squared_signal_is_the_scheduler_s_own(name: str, schedule: str, zero_snr: bool) -> None:
    scheduler = getattr(diffusers, name)(
        beta_schedule=schedule,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=zero_snr,
    )
    process = parts.process_of(name, scheduler.config)
    assert (process.prediction, process.num_times) == ("v_prediction", 1000)
    assert torch.equal(process.alphas_cumprod[:-1], scheduler.alphas_cumprod[:-1])
    # Samplers by sigmas have 2^-24 there; training ends in pure noise.
    assert process.alphas_cumprod[-1] == (0.0 if zero_snr else scheduler.alphas_cumprod[-1])


def test_what_a_scheduler_describes_or_does_not() -> None:
    flow = parts.process_of(
        "FlowMatchEulerDiscreteScheduler", diffusers.FlowMatchEulerDiscreteScheduler().config
    )
    assert (flow.prediction, flow.num_times) == ("flow", 1000)
    assert parts.process_of("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}).is_flow
    betas = parts.process_of("DDPMScheduler", {"trained_betas": [0.5, 0.5], "num_train_timesteps": 2})
    assert betas.alphas_cumprod.tolist() == [0.5, 0.25]
    with pytest.raises(ValueError, match="prediction_type 'sample'; allowed: epsilon, v_prediction, flow"):
        parts.process_of("DDPMScheduler", {"prediction_type": "sample", "beta_schedule": "linear"})
    with pytest.raises(ValueError, match="beta_schedule 'exp'"):
        parts.process_of("DDPMScheduler", {"beta_schedule": "exp"})


@pytest.mark.parametrize(
    "name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "IPNDMScheduler", "ScoreSdeVeScheduler"]
)
def test_a_process_that_is_not_trained_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"scheduler is '{name}', without betas .* name a model whose"):
        parts.process_of(name, getattr(diffusers, name)().config)


@pytest.mark.parametrize(
    "name", ["DDIM", "PNDM", "DEISMultistep", "UniPCMultistep", "LCM", "EulerAncestralDiscrete"]
)
def test_schedulers_with_betas_are_none_of_a_flow(name: str) -> None:
    assert not parts.process_of(f"{name}Scheduler", getattr(diffusers, f"{name}Scheduler")().config).is_flow


def test_an_edm_model_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    index = {"_class_name": "StableDiffusionXLPipeline", "scheduler": ["diffusers", "EDMEulerScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    spec = GeneratorSpec(source=str(tmp_path), pipeline="StableDiffusionXLPipeline", steps=1, guidance=1.0)
    with pytest.raises(ConfigError, match=r"it has no scheduler/scheduler_config\.json"):
        check_family(spec)
    diffusers.EDMEulerScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ConfigError, match="scheduler is 'EDMEulerScheduler'"):
        check_family(spec)
    diffusers.EulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    check_family(spec)
