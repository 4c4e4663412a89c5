"""The diffusers adapter on sixteen genuine pipelines with random weights: each image from its prompt and seed alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor

from rankray.cluster import item_safe
from rankray.config import ConfigError
from rankray.models.generators import GENERATORS, GeneratorSpec
from rankray.models.generators.diffusers_pipeline import DiffusersGenerator, _tokenizers, to_bytes
from recipes.random_weights.pipelines import PIPELINES, awaken, sdxl

PROMPTS = [
    "a red circle",
    "",
    "two blue stars and a green square",
    "a yellow triangle",
    "a circle above a star",
]
SEEDS = [11, 2**62, 0, 11, 5]

SMALL = {"height": 64, "width": 64, "dtype": "float32", "variant": None}
# What holds for a real checkpoint and not for a small one: resolutions of 1024 pixels, long instructions, ratios.
SIZES: dict[str, dict[str, object]] = {
    "pixart-sigma": {"call": {"clean_caption": False, "use_resolution_binning": False}},
    "stable-cascade": {"after_load": GENERATORS["shapes-cascade"].after_load},
    "flux-dev": {"call": {"max_sequence_length": 16}},
    "sana": {
        "call": {
            "clean_caption": False,
            "use_resolution_binning": False,
            "complex_human_instruction": None,
            "max_sequence_length": 16,
        }
    },
    "sana-sprint": {
        "call": {
            "use_resolution_binning": False,
            "complex_human_instruction": None,
            "max_sequence_length": 16,
        }
    },
    "chroma": {"call": {"max_sequence_length": 16}},
    "lumina2": {"call": {"max_sequence_length": 64, "system_prompt": "a"}},
    "flux2-klein": {"call": {"max_sequence_length": 16, "text_encoder_out_layers": (1, 2, 3)}},
}
FAMILIES = [*PIPELINES, "shapes-sd3"]
UNFUSED = {"stable-cascade", "lumina2", "cogview4", "z-image-turbo", "ernie-image"}
"""Of whose denoisers diffusers has no fused projections."""
Build = Callable[..., DiffusersGenerator]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def build(tiny_pipelines: dict[str, Path]) -> Build:
    def make(family: str, **changes: object) -> DiffusersGenerator:
        # A row of one is one whose pipeline would let a picture's neighbours show in it.
        size = min(GENERATORS[family].batch_size, 4)
        few = {"source": str(tiny_pipelines[family]), "steps": 2, "batch_size": size}
        settings = {**SMALL, **SIZES.get(family, {}), **few, **changes}
        return DiffusersGenerator(replace(GENERATORS[family], **settings), "cpu")  # type: ignore[arg-type]

    return make


def pixels(generator: DiffusersGenerator, prompts: list[str], seeds: list[int]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in generator.generate(prompts, seeds)])


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_and_order_change_no_bit(build: Build, family: str) -> None:
    generator = build(family)
    together = pixels(generator, PROMPTS, SEEDS)
    assert together.shape == (5, 64, 64, 3)
    for place in (0, 2, 4):
        alone = pixels(generator, [PROMPTS[place]], [SEEDS[place]])
        assert (alone[0] == together[place]).all()
    backwards = pixels(generator, PROMPTS[::-1], SEEDS[::-1])[::-1]
    assert (backwards == together).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_neighbour_changes_no_bit_in_half_precision(build: Build, family: str) -> None:
    """Where lengths are those of a batch, what is padded away comes back as a rounding, which float32 may hide."""
    generator = build(family, dtype="bfloat16")
    among = pixels(generator, [PROMPTS[0], " ".join(3 * PROMPTS)], SEEDS[:2])
    assert (pixels(generator, PROMPTS[:1], SEEDS[:1])[0] == among[0]).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_seed_and_prompt_decide_the_image(build: Build, family: str) -> None:
    generator = build(family)
    one, same, other_seed, other_prompt = pixels(
        generator, [PROMPTS[0], PROMPTS[0], PROMPTS[0], PROMPTS[2]], [11, 11, 12, 11]
    )
    assert (one == same).all()
    assert (one != other_seed).any()
    assert (one != other_prompt).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_compute_batch_changes_at_most_a_grey_level(build: Build, family: str) -> None:
    wide = pixels(build(family, batch_size=4), PROMPTS, SEEDS)
    narrow = pixels(build(family, batch_size=1), PROMPTS, SEEDS)
    assert np.abs(wide - narrow).max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_it_draws_what_the_bare_pipeline_draws(build: Build, family: str) -> None:
    generator = build(family, batch_size=2)
    spec = generator.spec
    bare = generator.pipe(
        prompt=list(PROMPTS[:2]),
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS[:2]],
        height=64,
        width=64,
        output_type="np",
        **{spec.steps_argument: 2, spec.guidance_argument: spec.guidance},
        **({} if spec.negative_prompt is None else {"negative_prompt": [spec.negative_prompt] * 2}),
        **spec.call,
    ).images
    assert (pixels(generator, PROMPTS[:2], SEEDS[:2]) == (bare * 255).round()).all()


def test_a_long_or_odd_prompt_is_drawn(build: Build) -> None:
    odd = ["x" * 10_000, "\N{CAT} <b>&amp;</b>", "a\x00b", "\N{RIGHT-TO-LEFT OVERRIDE}circle"]
    for family in ("sdxl", "pixart-sigma"):
        assert len(build(family).generate(odd, [1, 2, 3, 4])) == 4


def test_prompts_that_are_cut_are_known(build: Build) -> None:
    # CLIP's own length here is 16 and decides for SD3, whose T5 reads 256; PixArt's T5 reads 300, as published.
    lengths = {"sdxl": 16, "sd3-medium": 16, "pixart-sigma": 300, "stable-cascade": 16}
    for family, length in lengths.items():
        generator = build(family)
        _, tokenizer = _tokenizers(generator.pipe)[0]
        own = len(tokenizer("").input_ids)  # start and end
        words = [" ".join(["red"] * n) for n in (0, 1, length - own, length - own + 1, 10_000)]
        assert [len(tokenizer(text).input_ids) > length for text in words] == [
            False,
            False,
            False,
            True,
            True,
        ]
        assert generator.truncated(words) == [False, False, False, True, True], family


def test_prompts_and_seeds_must_pair(build: Build) -> None:
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        build("sdxl").generate(["a", "b"], [1])


def test_numbers_that_are_not_finite_are_no_picture(build: Build) -> None:
    generator = build("sdxl")
    generator.pipe.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    (found,) = generator.generate(["a circle"], [1])
    assert repr(found) == "ValueError('float32 overflowed: pixels are not finite; take another dtype')"


def test_one_that_overflowed_costs_no_other_call_and_no_neighbour(build: Build) -> None:
    """Of three in a padded batch of four, the second's latents are spoilt."""
    generator, calls = build("sdxl"), 0
    before = pixels(generator, PROMPTS[:3], SEEDS[:3])
    decode = generator.pipe.vae.decode

    def spoilt(latents: torch.Tensor, *arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        latents = latents.clone()
        latents[1] = float("nan")
        return decode(latents, *arguments, **options)

    generator.pipe.vae.decode = spoilt
    found = item_safe.each_alone(
        lambda items: generator.generate([text for text, _ in items], [seed for _, seed in items]),
        list(zip(PROMPTS[:3], SEEDS[:3], strict=True)),
    )
    assert calls == 1
    assert isinstance(found[1], ValueError)
    for n in (0, 2):
        assert (np.asarray(found[n]) == before[n]).all()


def test_bytes_are_those_of_diffusers() -> None:
    halves = (torch.arange(256, dtype=torch.float64) + 0.5) / 255
    edges = torch.tensor([-1.0, 0.0, 1.0, 2.0, 1e-9, float("inf")])
    values = torch.cat(
        [halves.float(), torch.rand(10_000, generator=torch.Generator().manual_seed(0)), edges]
    )
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        shown = values.to(dtype).reshape(1, 1, 2, -1).expand(2, 3, 2, -1)
        due = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(shown.clamp(0, 1)))
        found, finite = to_bytes(shown)
        assert (found.numpy() == np.stack([np.asarray(picture) for picture in due])).all()
        assert finite.tolist() == [False, False]  # of the last value
    assert to_bytes(torch.full((1, 3, 2, 2), float("nan")))[1].tolist() == [False]
    assert to_bytes(torch.full((1, 3, 2, 2), 7.0))[1].tolist() == [True]


def test_a_smaller_batch_is_drawn_from_then_on(build: Build) -> None:
    generator = build("sdxl")
    wide = pixels(generator, PROMPTS, SEEDS)
    generator.batch_size = 2
    widths: list[int] = []
    generator.pipe.unet.register_forward_pre_hook(lambda module, arguments: widths.append(len(arguments[0])))
    narrow = pixels(generator, PROMPTS, SEEDS)
    assert set(widths) == {4}, "two prompts, with and without guidance"
    assert np.abs(wide - narrow).max() <= 1


def test_a_decoding_without_memory_costs_no_later_picture() -> None:
    """SDXL in float16, whose autoencoder decodes in float32: of two decodings the first has no memory."""
    spec = replace(GENERATORS["shapes-sdxl"], dtype="float16", steps=1, batch_size=2)
    generator = DiffusersGenerator(spec, "cpu")
    assert generator.pipe.vae.config.force_upcast
    widths: list[int] = []

    def full(module: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        widths.append(len(arguments[0]))
        if len(widths) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    generator.pipe.vae.decoder.register_forward_pre_hook(full)
    safe = item_safe.ItemSafe(generator, "shapes-sdxl", lambda line: None)
    (found,) = safe.run(lambda prompts: generator.generate(prompts, [11]), [PROMPTS[0]])
    assert widths == [2, 1]
    assert generator.pipe.vae.dtype == torch.float16
    due = DiffusersGenerator(replace(spec, batch_size=1), "cpu").generate([PROMPTS[0]], [11])[0]
    assert not isinstance(found, Exception)
    assert np.array_equal(np.asarray(found), np.asarray(due))


def test_scheduler_slicing_and_options_reach_the_pipeline(build: Build) -> None:
    generator = build("sdxl", scheduler="EulerDiscreteScheduler", vae_slicing=True, vae_tiling=True)
    assert type(generator.pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    assert generator.pipe.vae.use_slicing
    assert generator.pipe.vae.use_tiling
    assert generator.generate(["a circle"], [3])[0].size == (64, 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_faster_layouts_change_at_most_a_grey_level(build: Build, family: str) -> None:
    plain = pixels(build(family), PROMPTS[:2], SEEDS[:2])
    assert np.abs(pixels(build(family, channels_last=True), PROMPTS[:2], SEEDS[:2]) - plain).max() <= 1
    if family not in UNFUSED:
        assert np.abs(pixels(build(family, fused=True), PROMPTS[:2], SEEDS[:2]) - plain).max() <= 1
        return
    with pytest.raises(ConfigError, match=r"has no projections to fuse; leave out options\.fused"):
        build(family, fused=True)


def test_a_small_cascade_gets_its_ratios(build: Build) -> None:
    pipe = build("stable-cascade").pipe
    assert pipe.prior_pipe.config.resolution_multiple == 8.0
    assert pipe.decoder_pipe.config.latent_dim_scale == 2.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipeline": "StableDifusionXLPipeline"}, "no pipeline 'StableDifusionXLPipeline'"),
        ({"scheduler": "EulerScheduler"}, "no scheduler 'EulerScheduler'"),
        ({"after_load": {"prior_pipe": {"x": 1}}}, "StableDiffusionXLPipeline has no component 'prior_pipe'"),
    ],
)
def test_a_wrong_name_in_a_row_is_one_line(build: Build, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build("sdxl", **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    pipe = sdxl()
    awaken(pipe)
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    spec: GeneratorSpec = replace(GENERATORS["shapes-sdxl"], source=str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"Error no file named .*\.safetensors found in directory .*; get them again"
    ):
        DiffusersGenerator(spec, "cpu")
