"""The GENERATORS table: what a configuration's choice becomes."""

import re
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest

from rankray.config import ConfigError, GeneratorChoice
from rankray.models.generators import GENERATORS, GeneratorSpec, resolve
from rankray.models.targets import load
from rankray.models.weights import UNRECORDED


def choice(**settings: object) -> GeneratorChoice:
    return GeneratorChoice.model_validate(settings)


@pytest.mark.parametrize("name", GENERATORS)
def test_every_row_names_a_pipeline_that_diffusers_has(name: str) -> None:
    spec = GENERATORS[name]
    assert issubclass(getattr(diffusers, spec.pipeline), diffusers.DiffusionPipeline)


def test_models_have_their_published_settings() -> None:
    settings = {
        name: (spec.steps, spec.guidance, spec.height, spec.width)
        for name, spec in GENERATORS.items()
        if not name.startswith("shapes-")
    }
    assert settings == {
        "sdxl": (50, 5.0, 1024, 1024),
        "sd3-medium": (28, 7.0, 1024, 1024),
        "pixart-sigma": (20, 4.5, 1024, 1024),
        "stable-cascade": (20, 4.0, 1024, 1024),
        "sd15": (50, 7.5, 512, 512),
        "sdxl-turbo": (1, 0.0, 512, 512),
        "sd3.5-medium": (40, 4.5, 1024, 1024),
        "sd3.5-large": (28, 3.5, 1024, 1024),
        "flux-schnell": (4, 0.0, 1024, 1024),
        "flux-dev": (50, 3.5, 1024, 1024),
        "sana": (20, 4.5, 1024, 1024),
        "sana-sprint": (2, 4.5, 1024, 1024),
        "chroma": (40, 3.0, 1024, 1024),
        "lumina2": (50, 4.0, 1024, 1024),
        "cogview4": (50, 3.5, 1024, 1024),
        "z-image-turbo": (8, 0.0, 1024, 1024),
        "flux2-klein": (4, 1.0, 1024, 1024),
        "qwen-image": (50, 4.0, 1328, 1328),
        "ernie-image": (50, 4.0, 1024, 1024),
    }


def test_settings_and_options_replace_the_row_s(tiny_pipelines: dict[str, Path]) -> None:
    target = resolve(
        choice(
            model="sdxl",
            name="mine",
            source=str(tiny_pipelines["sdxl"]),
            steps=3,
            height=64,
            options={"vae_slicing": True, "call": {"eta": 0.5}, "denoisers": ["unet"]},
            samples=4,
        )
    )
    spec = target.kwargs["spec"]
    assert (target.name, target.samples) == ("mine", 4)
    assert (spec.steps, spec.height, spec.width, spec.guidance) == (3, 64, 1024, 5.0)
    assert spec.vae_slicing
    assert spec.call == {"eta": 0.5}
    assert spec.denoisers == ("unet",)
    assert spec.variant is None, "a source of one's own has no fp16 files"
    assert GENERATORS["sdxl"].steps == 50, "the table is not touched"


def test_tables_in_options_are_merged_into_the_row_s(tiny_pipelines: dict[str, Path]) -> None:
    place = str(tiny_pipelines["stable-cascade"])
    target = resolve(
        choice(model="stable-cascade", source=place, options={"call": {"num_inference_steps": 2}})
    )
    assert target.kwargs["spec"].call == {"num_inference_steps": 2, "decoder_guidance_scale": 0.0}


def test_revision_is_the_hash_of_the_weights(tiny_pipelines: dict[str, Path]) -> None:
    one = resolve(choice(model="sdxl", source=str(tiny_pipelines["sdxl"]))).revision
    other = resolve(choice(model="sdxl", source=str(tiny_pipelines["sd3-medium"]))).revision
    assert one.startswith("sha256:")
    assert len(one) == 7 + 64
    assert one != other


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "sdxxl"}, "unknown generator 'sdxxl' (did you mean 'sdxl'?)"),
        ({"model": "sdxl", "options": {"vae_slice": True}}, "unknown option 'vae_slice'"),
        ({"model": "sdxl", "options": {"call": 3}}, "option 'call' must be a table, got 3"),
        ({"model": "sdxl", "source": "/no/such/place"}, "no directory '/no/such/place' here"),
        ({"model": "no_such_package.x:Y"}, "no package 'no_such_package' can be imported here"),
        ({"model": "json:JSONDecoder", "steps": 3}, "takes its settings by `options`; move steps there"),
    ],
)
def test_one_line_says_what_is_wrong(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(choice(**settings))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_of_one_s_own_is_a_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_generator.py").write_text(
        "class Grey:\n"
        "    def __init__(self, device, level):\n"
        "        self.device, self.level = device, level\n"
        "    def generate(self, prompts, seeds):\n"
        "        return [self.level] * len(prompts)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    target = resolve(choice(model="their_generator:Grey", options={"level": 7}, samples=2))
    assert (target.samples, target.revision) == (2, UNRECORDED)
    assert load(target, "cpu").generate(["a", "b"], [0, 1]) == [7, 7]


def test_the_driver_s_side_imports_no_model() -> None:
    code = (
        "import sys; from rankray.models.generators import resolve; from rankray.config import GeneratorChoice; "
        "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_a_row_is_data_alone() -> None:
    assert all(
        isinstance(spec, GeneratorSpec) and spec.target == GENERATORS["sdxl"].target
        for spec in GENERATORS.values()
    )


def test_the_document_states_each_row_s_licence() -> None:
    text = (Path(__file__).parents[4] / "docs" / "generators.md").read_text()
    lines: dict[str, str] = {}
    for line in text.partition("| name | pipeline |")[2].splitlines():
        cells = line.split("|")
        for name in re.findall(r"`([\w.-]+)`", cells[1]) if len(cells) > 6 else ():
            lines.setdefault(name, cells[6])
    for name, row in GENERATORS.items():
        assert (row.licence or "–") in lines[name], name
