"""The GENERATORS table: every text-to-image model that a configuration can name, as data.

One adapter serves all rows; what a family needs differently stands in its row. That keeps a new diffusers
pipeline to one row, and its price is that a row can hold only what data can say: a pipeline that needs code
of its own (none of these does) is a class of its own, named "package.module:Class".

Importing this module loads neither torch nor diffusers: the driver does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from rankray.config import ConfigError, GeneratorChoice
from rankray.models import targets
from rankray.models.targets import Spec, Target, Weights, require_known
from rankray.models.weights import Pinned

ADAPTER = "rankray.models.generators.diffusers_pipeline:DiffusersGenerator"


@dataclass(frozen=True, kw_only=True)
class GeneratorSpec(Spec):
    """One diffusers pipeline and how it is called.

    Attributes:
        pipeline: class name in `diffusers`.
        steps, guidance: denoising steps and guidance scale, passed as `steps_argument` and `guidance_argument`.
        height, width: pixels.
        variant: weight files' variant, such as "fp16".
        negative_prompt: None leaves the pipeline's own.
        load: further arguments of `from_pretrained`.
        call: further arguments of each call.
        after_load: component path -> keyword arguments of its `register_to_config`.
        patch: "module.NAME" -> "module:attribute" to set there before loading.
        connected: prefix of a component -> the repository or directory of the pipeline that it is taken from, where the
            source holds a part of the whole alone. Each is resolved and recorded as the source is.
        connected_revisions: branch, tag or commit of each; "main" where it names none.
        denoisers: components that `compile` compiles.
        scheduler: class name in `diffusers` to swap in, built from the old one's configuration.
        vae_slicing, vae_tiling: decode one image, or one tile, at a time: less memory, more time.
        channels_last: lay out the denoisers' convolutions as tensor cores read them.
        fused: one product in place of three for queries, keys and values; the same sums in another order.
        compile: run the denoisers through `torch.compile`; gains nothing on CPU.
    """

    target: str = ADAPTER
    dtype: str = "bfloat16"
    batch_size: int = 8
    pipeline: str
    steps: int
    guidance: float
    height: int = 1024
    width: int = 1024
    variant: str | None = None
    negative_prompt: str | None = None
    load: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    after_load: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    patch: Mapping[str, str] = field(default_factory=dict)
    connected: Mapping[str, str] = field(default_factory=dict)
    connected_revisions: Mapping[str, str] = field(default_factory=dict)
    denoisers: tuple[str, ...] = ("transformer",)
    steps_argument: str = "num_inference_steps"
    guidance_argument: str = "guidance_scale"
    scheduler: str | None = None
    vae_slicing: bool = False
    vae_tiling: bool = False
    channels_last: bool = False
    fused: bool = False
    compile: bool = False

    def elsewhere(self) -> GeneratorSpec:
        """Another source has other variants, and nothing that the row connects to it."""
        return replace(super().elsewhere(), variant=None, connected={}, connected_revisions={})

    def with_options(self, choice: GeneratorChoice) -> GeneratorSpec:
        """`options` may hold any field that is no setting of its own; its tables are merged into the row's."""
        whose = f"generator '{choice.label}'"
        require_known(whose, "option", choice.options, _OPTIONS)
        changes: dict[str, Any] = {}
        for key, value in choice.options.items():
            old = getattr(self, key)
            if isinstance(old, Mapping) and not isinstance(value, Mapping):
                raise ConfigError(f"{whose}: option '{key}' must be a table, got {value!r}")
            merged = {**old, **value} if isinstance(old, Mapping) else value
            changes[key] = tuple(merged) if isinstance(merged, list) else merged
        return replace(self, **changes)

    def settings(self) -> dict[str, Any]:
        """All of its own fields but those that name weights, and those that no picture tells."""
        beside = {key.name for key in fields(Spec)} | {
            "connected",
            "connected_revisions",
            "patch",
            "denoisers",
        }
        own = {key.name: getattr(self, key.name) for key in fields(self) if key.name not in beside}
        return super().settings() | own

    def weights(self) -> dict[str, Weights]:
        """The source, and what is connected to it, by its prefix."""
        connected = {
            prefix: Weights(source, self.connected_revisions.get(prefix, "main"), pickles=False)
            for prefix, source in self.connected.items()
        }
        return {"": Weights(self.source, self.revision, pickles=False), **connected}

    def pinned(self, pins: Mapping[str, Pinned]) -> GeneratorSpec:
        """The row with commits in it."""
        return replace(
            super().pinned(pins),
            connected={prefix: pins[prefix].source for prefix in self.connected},
            connected_revisions={prefix: pins[prefix].revision for prefix in self.connected},
        )


_OPTIONS = tuple(
    key.name
    for key in fields(GeneratorSpec)
    if key.name not in {key.name for key in fields(Spec)} | GeneratorChoice.model_fields.keys()
)


# diffusers moved this class out of its top level, and its module, and then refuses the component that names either: a
# saved pipeline names the class, the published one the module.
_PAELLA = {
    "diffusers.PaellaVQModel": "diffusers.pipelines.deprecated.wuerstchen:PaellaVQModel",
    "diffusers.pipelines.wuerstchen": "diffusers.pipelines.deprecated:wuerstchen",
}

# An image must not depend on whether a package is installed: PixArt cleans captions only where ftfy and bs4
# are, SDXL draws an invisible watermark only where its package is. Both are off.
_SDXL = GeneratorSpec(
    source="stabilityai/stable-diffusion-xl-base-1.0",
    pipeline="StableDiffusionXLPipeline",
    steps=50,
    guidance=5.0,
    dtype="float16",
    variant="fp16",
    full_size="sdxl",
    licence="openrail++",
    load={"add_watermarker": False},
    denoisers=("unet",),
)
_SD3 = GeneratorSpec(
    source="stabilityai/stable-diffusion-3-medium-diffusers",
    pipeline="StableDiffusion3Pipeline",
    steps=28,
    guidance=7.0,
    dtype="float16",
    full_size="sd3-medium",
    licence="stabilityai-ai-community",
)
_PIXART = GeneratorSpec(
    source="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    pipeline="PixArtSigmaPipeline",
    steps=20,
    guidance=4.5,
    dtype="float16",
    full_size="pixart-sigma",
    call={"clean_caption": False},
)
_CASCADE = GeneratorSpec(
    source="stabilityai/stable-cascade",
    pipeline="StableCascadeCombinedPipeline",
    steps=20,
    guidance=4.0,
    variant="bf16",
    full_size="stable-cascade",
    licence="stable-cascade-nc-community",
    call={"num_inference_steps": 10, "decoder_guidance_scale": 0.0},
    patch=_PAELLA,
    connected={"prior": "stabilityai/stable-cascade-prior"},
    denoisers=("prior_prior", "decoder"),
    steps_argument="prior_num_inference_steps",
    guidance_argument="prior_guidance_scale",
)
_SD35 = replace(
    _SD3,
    source="stabilityai/stable-diffusion-3.5-medium",
    steps=40,
    guidance=4.5,
    dtype="bfloat16",
    full_size="sd3.5-medium",
)
_FLUX = GeneratorSpec(
    source="black-forest-labs/FLUX.1-dev",
    pipeline="FluxPipeline",
    steps=50,
    guidance=3.5,
    batch_size=4,
    full_size="flux-dev",
    licence="flux-1-dev-non-commercial-license",
    call={"max_sequence_length": 512},
)
_SANA = GeneratorSpec(
    source="Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
    pipeline="SanaPipeline",
    steps=20,
    guidance=4.5,
    variant="bf16",
    full_size="sana",
    call={"clean_caption": False},
)


def _shapes(spec: GeneratorSpec, name: str, **changes: Any) -> GeneratorSpec:
    """A row of the shapes world: the big model's, at 64 x 64, in float32, on a share of a CPU core."""
    small: dict[str, Any] = {
        "source": f"shapes:{name}",
        "guidance": 2.5,
        "height": 64,
        "width": 64,
        "dtype": "float32",
        "variant": None,
        "connected": {},
        "batch_size": 16,
        "num_gpus": 0.0,
        "num_cpus": 0.05,
        "full_size": None,
        "licence": "apache-2.0",
    }
    return replace(spec, **{**small, **changes})


GENERATORS: dict[str, GeneratorSpec] = {
    "sdxl": _SDXL,
    "sd3-medium": _SD3,
    "pixart-sigma": _PIXART,
    "stable-cascade": _CASCADE,
    "sd15": GeneratorSpec(
        source="stable-diffusion-v1-5/stable-diffusion-v1-5",
        pipeline="StableDiffusionPipeline",
        steps=50,
        guidance=7.5,
        height=512,
        width=512,
        dtype="float16",
        variant="fp16",
        full_size="sd15",
        # Its checker paints a picture black and says so to the log alone; a black candidate would be ranked.
        load={"safety_checker": None, "requires_safety_checker": False},
        denoisers=("unet",),
    ),
    "sdxl-turbo": replace(
        _SDXL,
        source="stabilityai/sdxl-turbo",
        licence=None,
        steps=1,
        guidance=0.0,
        height=512,
        width=512,
    ),
    "sd3.5-medium": _SD35,
    "sd3.5-large": replace(
        _SD35,
        source="stabilityai/stable-diffusion-3.5-large",
        steps=28,
        guidance=3.5,
        full_size="sd3.5-large",
    ),
    # Distilled without guidance; its transformer takes none.
    "flux-schnell": replace(
        _FLUX,
        source="black-forest-labs/FLUX.1-schnell",
        steps=4,
        guidance=0.0,
        call={"max_sequence_length": 256},
        full_size="flux-schnell",
        licence="apache-2.0",
    ),
    "flux-dev": _FLUX,
    "sana": _SANA,
    # Two steps and their times: nvlabs.github.io/Sana/docs/sana_sprint, and the pipeline's own. Guidance is embedded.
    "sana-sprint": replace(
        _SANA,
        source="Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
        pipeline="SanaSprintPipeline",
        steps=2,
        variant=None,
        full_size="sana-sprint",
    ),
    # Settings: diffusers' documentation of the pipeline, api/pipelines/chroma, but for its negative prompt.
    "chroma": replace(
        _FLUX,
        source="lodestones/Chroma1-HD",
        pipeline="ChromaPipeline",
        steps=40,
        guidance=3.0,
        full_size="chroma",
        licence="apache-2.0",
    ),
    # Settings: README of github.com/Alpha-VLLM/Lumina-Image-2.0. Its model pads to the longest of a batch, and masks
    # only where lengths differ.
    "lumina2": GeneratorSpec(
        source="Alpha-VLLM/Lumina-Image-2.0",
        pipeline="Lumina2Pipeline",
        steps=50,
        guidance=4.0,
        batch_size=1,
        full_size="lumina2",
        call={"cfg_trunc_ratio": 0.25, "cfg_normalization": True},
    ),
    # Settings: the page of its weights. Its pipeline pads prompts to the longest of a batch, and the model sees it.
    "cogview4": GeneratorSpec(
        source="zai-org/CogView4-6B",
        pipeline="CogView4Pipeline",
        steps=50,
        guidance=3.5,
        batch_size=1,
        full_size="cogview4",
        licence="apache-2.0",
    ),
    # Settings: the pipeline's example in diffusers 0.42. The page of its weights says 9, of which 8 were steps before.
    "z-image-turbo": GeneratorSpec(
        source="Tongyi-MAI/Z-Image-Turbo",
        pipeline="ZImagePipeline",
        steps=8,
        guidance=0.0,
        batch_size=1,
        full_size="z-image-turbo",
        licence="apache-2.0",
    ),
    # Four steps: README of github.com/black-forest-labs/flux2. Distilled without guidance, which its pipeline ignores.
    "flux2-klein": GeneratorSpec(
        source="black-forest-labs/FLUX.2-klein-4B",
        pipeline="Flux2KleinPipeline",
        steps=4,
        guidance=1.0,
        batch_size=4,
        full_size="flux2-klein",
        licence="apache-2.0",
    ),
    # Settings, size and the blank for a negative prompt: README of github.com/QwenLM/Qwen-Image.
    "qwen-image": GeneratorSpec(
        source="Qwen/Qwen-Image",
        pipeline="QwenImagePipeline",
        steps=50,
        guidance=4.0,
        height=1328,
        width=1328,
        batch_size=1,
        negative_prompt=" ",
        full_size="qwen-image",
        guidance_argument="true_cfg_scale",
        licence="apache-2.0",
    ),
    # Settings: diffusers' documentation of the pipeline, api/pipelines/ernie_image. Its enhancer writes another prompt
    # from numbers that no seed decides, so that a picture could not be drawn again, and is left out.
    "ernie-image": GeneratorSpec(
        source="baidu/ERNIE-Image",
        pipeline="ErnieImagePipeline",
        steps=50,
        guidance=4.0,
        batch_size=1,
        full_size="ernie-image",
        load={"pe": None, "pe_tokenizer": None},
        call={"use_pe": False},
        licence="apache-2.0",
    ),
    "shapes-sdxl": _shapes(_SDXL, "shapes-sdxl", steps=12),
    # Without T5 the pipeline fills 256 zero tokens unless told not to; it was trained without them.
    "shapes-sd3": _shapes(
        _SD3,
        "shapes-sd3",
        steps=12,
        load={"text_encoder_3": None, "tokenizer_3": None},
        call={"max_sequence_length": 0},
    ),
    "shapes-pixart": _shapes(
        _PIXART,
        "shapes-pixart",
        steps=12,
        call={"clean_caption": False, "use_resolution_binning": False, "max_sequence_length": 16},
    ),
    # A small Cascade's ratios between stages are not saved with it, and the pipeline's own are for 1024 pixels.
    "shapes-cascade": _shapes(
        _CASCADE,
        "shapes-cascade",
        steps=10,
        call={"num_inference_steps": 4, "decoder_guidance_scale": 0.0},
        after_load={"prior_pipe": {"resolution_multiple": 8.0}, "decoder_pipe": {"latent_dim_scale": 2.0}},
    ),
}


def resolve(choice: GeneratorChoice, look_up: bool = True) -> Target:
    """What a pool has to run for one generator of the configuration: `targets.resolve`, and its samples and seeds.

    Raises:
        ConfigError: unknown name (nearest match given), unknown option, or weights that cannot be found.
    """
    target = targets.resolve(choice, GENERATORS, "generator", look_up)
    return replace(target, samples=choice.samples, seed_name=choice.seed_name)
