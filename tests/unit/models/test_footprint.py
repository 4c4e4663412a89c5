"""Memory and seconds of a model: worked out by hand, then from its row and its parts' facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rankray.config import GeneratorChoice, RewardChoice
from rankray.models import generators, rewards
from rankray.models.footprint import Footprint, Part, footprint, own_parameters
from rankray.models.generators import GENERATORS
from rankray.models.hardware import GPU_TYPES
from rankray.models.rewards import REWARDS

TEXT = Part("text", 2e9, 0.0, 0.0, "half")
DENOISER = Part("denoiser", 4e9, 100e12, 0.5e9, "half")
VAE = Part("vae", 1e9, 10e12, 1e9, "tf32")
MODEL = Footprint((TEXT, DENOISER, VAE))


def test_memory_is_weights_and_the_largest_activations_of_the_batch() -> None:
    assert MODEL.weights_gb == 7.0
    assert MODEL.memory_gb(4) == pytest.approx(7 + 1.25 * 4 + 0.7)


def test_a_part_that_takes_an_item_at_a_time_does_not_grow_with_the_batch() -> None:
    sliced = Footprint((TEXT, DENOISER, replace(VAE, together=False)))
    assert sliced.memory_gb(4) == pytest.approx(7 + 1.25 * 2 + 0.7), "the denoiser's are the largest now"
    assert sliced.memory_gb(1) == pytest.approx(7 + 1.25 * 1 + 0.7)


def test_the_largest_batch_is_found_by_halving() -> None:
    assert MODEL.largest_batch(17.7 + 1e-9, 8) == 8
    assert MODEL.largest_batch(17.6, 8) == 4
    assert MODEL.largest_batch(9.0, 8) == 1
    assert MODEL.largest_batch(8.9, 8) == 0, "8.95 GB are needed for one"


def test_seconds_add_up_over_the_parts_in_their_precisions() -> None:
    a100 = GPU_TYPES["A100-80"]
    assert MODEL.flops == 110e12
    assert MODEL.seconds(a100) == pytest.approx(100 / (312 * 0.4) + 10 / (156 * 0.4))


def of_generator(**settings: object) -> Footprint:
    choice = GeneratorChoice.model_validate(settings)
    return footprint(generators.resolve(choice, look_up=False))


def of_reward(**settings: object) -> Footprint:
    return footprint(rewards.resolve(RewardChoice.model_validate(settings), look_up=False))


def part(found: Footprint, name: str) -> Part:
    return next(part for part in found.parts if part.name == name)


def test_steps_and_guidance_multiply_the_denoiser_alone() -> None:
    usual, plain = of_generator(model="sdxl"), of_generator(model="sdxl", steps=25, guidance=0.0)
    assert part(usual, "unet").flops == pytest.approx(part(plain, "unet").flops * 2 * 2)
    assert part(usual, "unet").activation_bytes == part(plain, "unet").activation_bytes * 2
    assert part(usual, "vae").flops == part(plain, "vae").flops
    assert part(usual, "unet").flops == pytest.approx(50 * 2 * 6.76e12, rel=1e-3)


def test_the_vae_of_sdxl_runs_in_float32_where_the_rest_is_float16() -> None:
    half, brain = of_generator(model="sdxl"), of_generator(model="sdxl", dtype="bfloat16")
    assert part(half, "vae").rate == "tf32"
    assert part(brain, "vae").rate == "half"
    assert part(half, "vae").activation_bytes == 2 * part(brain, "vae").activation_bytes
    assert part(half, "vae").weight_bytes == part(brain, "vae").weight_bytes == 2 * 83_653_863
    assert part(of_generator(model="sd15"), "vae").rate == "half", "its pipeline does not"


def test_a_smaller_picture_takes_less() -> None:
    large, small = of_generator(model="sd3-medium"), of_generator(model="sd3-medium", height=512, width=512)
    ratio = part(large, "transformer").flops / part(small, "transformer").flops
    assert 3.5 < ratio < 16, "between tokens and tokens squared"
    assert part(large, "text_encoder_3").flops == part(small, "text_encoder_3").flops
    assert small.memory_gb(8) < large.memory_gb(8)


def test_slicing_keeps_the_vae_to_one_picture() -> None:
    sliced = of_generator(model="sdxl", options={"vae_slicing": True})
    assert not part(sliced, "vae").together
    assert sliced.memory_gb(8) < of_generator(model="sdxl").memory_gb(8) / 2
    assert sliced.memory_gb(1) == of_generator(model="sdxl").memory_gb(1)


def test_the_two_stages_of_a_cascade_have_steps_of_their_own() -> None:
    found = of_generator(model="stable-cascade")
    fewer = of_generator(model="stable-cascade", steps=10, options={"call": {"num_inference_steps": 5}})
    for name in ("prior_prior", "decoder"):
        assert part(found, name).flops == pytest.approx(2 * part(fewer, name).flops)


def test_a_component_that_is_left_out_weighs_nothing() -> None:
    without = of_generator(model="sd3-medium", options={"load": {"text_encoder_3": None}})
    usual = of_generator(model="sd3-medium")
    assert usual.weights_gb - without.weights_gb == pytest.approx(2 * (4_762_310_656 + 1_006_632_960) / 1e9)


def test_what_transformers_keeps_in_float32_is_counted_so() -> None:
    """T5's `wo`, 24 matrices of 10,240 x 4,096, where the rest is float16; where it is bfloat16 they are too."""
    half, brain = of_generator(model="pixart-sigma"), of_generator(model="pixart-sigma", dtype="bfloat16")
    more = part(half, "text_encoder").weight_bytes - part(brain, "text_encoder").weight_bytes
    assert more == 2 * 24 * 10_240 * 4_096


def test_sdxl_in_bfloat16_takes_what_was_published() -> None:
    """8.96 GiB allocated at the peak for one picture, 3.3 s for 30 steps, on an A100 with diffusers and SDPA."""
    found = of_generator(model="sdxl", dtype="bfloat16", steps=30)
    assert found.memory_gb(1) - 0.7 == pytest.approx(8.958 * 1024**3 / 1e9, rel=0.1)
    assert found.seconds(GPU_TYPES["A100-80"]) == pytest.approx(3.315, rel=0.05)


def test_a_row_of_the_tables_is_known_in_full_unless_it_is_small_or_a_server() -> None:
    for name in GENERATORS:
        assert of_generator(model=name).complete != name.startswith("shapes-")
    for name in REWARDS:
        served = not REWARDS[name].source
        source = {"source": "http://localhost/score"} if served else {}
        small = name == "safety" or name.startswith("shapes-")
        assert of_reward(model=name, **source).complete == (not served and not small)


def test_a_reward_s_model_may_be_chosen() -> None:
    xxl, xl = of_reward(model="vqascore"), of_reward(model="vqascore", options={"model": "clip-flant5-xl"})
    assert xxl.weights_gb == pytest.approx(2 * (11_135_332_352 + 303_507_456 + 20_979_712) / 1e9)
    assert xl.weights_gb < xxl.weights_gb / 3
    assert xxl.bfloat16


def test_a_class_of_one_s_own_is_unknown() -> None:
    found = of_reward(model="json:JSONDecoder")
    assert (found.parts, found.complete) == ((), False)


def test_weights_of_one_s_own_are_counted_from_their_headers(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    save_file({"a": torch.zeros(10, 20), "b": torch.zeros(5)}, tmp_path / "unet" / "model.safetensors")
    save_file({"a": torch.zeros(300)}, tmp_path / "unet" / "model.fp16.safetensors")
    save_file({"a": torch.zeros(7)}, tmp_path / "other-00001-of-00002.safetensors")
    assert own_parameters(tmp_path, None) == 212
    assert own_parameters(tmp_path, "fp16") == 300
    small = of_generator(model="sdxl", source=str(tmp_path))
    assert (small.weights_gb, small.complete) == (212 * 2 / 1e9, False)


def test_weights_as_large_as_the_row_s_are_taken_for_its_model(tmp_path: Path) -> None:
    parameters = 151_277_313  # CLIP ViT-B/32
    header = f'{{"a": {{"dtype": "F16", "shape": [{parameters + 1_000_000}], "data_offsets": [0, 0]}}}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    assert of_reward(model="clipscore", source=str(tmp_path)).complete


def test_a_file_that_is_no_safetensors_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not a header at all")
    assert own_parameters(tmp_path, None) is None
    assert own_parameters(tmp_path / "nothing", None) is None


def test_a_pickle_is_measured_and_not_opened(tmp_path: Path) -> None:
    (tmp_path / "HPS_v2.1_compressed.pt").write_bytes(b"x" * 400)
    found = of_reward(model="hpsv2.1", source=str(tmp_path))
    assert (found.weights_gb, found.complete) == (pytest.approx(400 / 1e9), False)


def test_a_directory_that_is_elsewhere_is_unknown_and_another_repository_is_not() -> None:
    assert of_generator(model="sdxl", source="/not/on/this/machine").parts == ()
    assert of_generator(model="sdxl", source="someone/their-sdxl") == of_generator(model="sdxl")
