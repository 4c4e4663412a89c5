"""What leaves a run beside its pipeline: adapters that plain diffusers, peft and kohya's readers load, without rankray.

The pictures of the published pipeline with the adapters are held against those of the merged one. Adapters are random
and large, so that a wrong scale moves pictures by far more than rounding does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rankray.config import GeneratorChoice
from rankray.models import generators
from rankray.models.denoisers import DENOISERS, parts
from rankray.models.generators import GeneratorSpec
from recipes.random_weights import pipelines

RANK = 4
ALPHAS = (4, 6)
DIFFUSERS, KOHYA = "pytorch_lora_weights.safetensors", "pytorch_lora_weights_kohya.safetensors"
MODELS = {"sdxl": "shapes-sdxl", "sd3": "shapes-sd3", "pixart_sigma": "shapes-pixart"}

# One process for all, as importing diffusers takes longest. `-I` leaves PYTHONPATH out, and of an editable installation
# the names are taken.
PLAIN = """
import json, sys
sys.modules.update(dict.fromkeys(("rankray", "recipes")))
import diffusers, numpy as np, torch
from peft import PeftModel
for task in json.loads(sys.stdin.read()):
    pipe = getattr(diffusers, task["pipeline"]).from_pretrained(task["source"], **task["load"])
    if task["how"] == "load_lora_weights":
        pipe.load_lora_weights(task["lora"], **task["arguments"])
    elif task["how"] == "peft":
        pipe.transformer = PeftModel.from_pretrained(pipe.transformer, task["lora"])
    pipe.set_progress_bar_config(disable=True)
    call = dict(task["call"], generator=torch.manual_seed(0), output_type="np")
    np.save(task["out"], pipe("a red circle above a blue square", **call).images)
assert not [name for name, module in sys.modules.items() if name.split(".")[0] == "rankray" and module]
"""


def specs(root: Path) -> Iterator[tuple[str, GeneratorSpec]]:
    for name, model in MODELS.items():
        spec = generators.resolve(GeneratorChoice(model=model, steps=3)).kwargs["spec"]
        yield name, spec
    pipe = pipelines.sd15()
    pipelines.awaken(pipe)
    pipe.save_pretrained(root / "sd15")
    small: dict[str, Any] = {"steps": 2, "guidance": 2.0, "height": 64, "width": 64}
    absent: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
    yield (
        "sd15",
        GeneratorSpec(
            source=str(root / "sd15"),
            pipeline="StableDiffusionPipeline",
            dtype="float32",
            load=absent,
            **small,
        ),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ROOT/FAMILY-ALPHA[-half]/ with the adapters, and pipeline/ merged; the pictures of each, *.npy."""
    root = tmp_path_factory.mktemp("adapters")
    tasks: list[dict[str, Any]] = []
    for name, spec in specs(root):
        for alpha, dtype in [*((alpha, torch.float32) for alpha in ALPHAS), (6, torch.float16)]:
            half = dtype == torch.float16
            if half and name not in MODELS:
                continue
            place = root / f"{name}-{alpha}{'-half' if half else ''}"
            torch.manual_seed(0)
            denoiser = parts.load_denoiser(spec, "cpu", torch.float32).eval()
            parts.add_lora(denoiser, spec, RANK, alpha)
            for key, parameter in denoiser.named_parameters():
                if "lora_B" in key:
                    torch.nn.init.normal_(parameter, std=0.3)
            parts.export_lora(spec, denoiser, place, dtype)
            parts.merge_lora(denoiser)
            parts.export(spec, denoiser, place / "pipeline", dtype)
            tasks += tasks_of(spec, name, place)
    command = [sys.executable, "-I", "-c", PLAIN]
    ended = subprocess.run(
        command, input=json.dumps(tasks), capture_output=True, text=True, check=False, timeout=600
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return root


def tasks_of(spec: GeneratorSpec, name: str, place: Path) -> Iterator[dict[str, Any]]:
    call = {"num_inference_steps": spec.steps, "guidance_scale": spec.guidance, "height": 64, "width": 64}
    task = {
        "pipeline": spec.pipeline,
        "source": str(place / "pipeline"),
        "load": dict(spec.load),
        "call": {**call, **spec.call},
        "how": "merged",
        "lora": str(place),
        "arguments": {},
    }
    yield {**task, "out": str(place / "merged.npy")}
    source = str(parts.locate(spec.source))
    yield {**task, "source": source, "out": str(place / "published.npy")}
    form = DENOISERS[name].lora_form
    how = "peft" if form == "peft" else "load_lora_weights"
    yield {**task, "source": source, "how": how, "out": str(place / "adapted.npy")}
    if form == "kohya":
        chosen = {"weight_name": KOHYA}
        yield {**task, "source": source, "how": how, "arguments": chosen, "out": str(place / "kohya.npy")}


def apart(place: Path, picture: str) -> float:
    """Largest difference of a pixel from the merged pipeline's picture, of 0 to 1."""
    return float(np.abs(np.load(place / f"{picture}.npy") - np.load(place / "merged.npy")).max())


@pytest.mark.parametrize("name", [*MODELS, "sd15"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_adapters_draw_the_merged_pipelines_pictures(made: Path, name: str, alpha: int) -> None:
    place = made / f"{name}-{alpha}"
    assert apart(place, "published") > 0.05
    assert apart(place, "adapted") < 1e-4
    if DENOISERS[name].lora_form == "kohya":
        assert apart(place, "kohya") < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_adapters_in_half_precision_differ_by_rounding(made: Path, name: str) -> None:
    place = made / f"{name}-6-half"
    (file,) = (f for f in place.glob("*.safetensors") if f.name in (DIFFUSERS, "adapter_model.safetensors"))
    assert {value.dtype for value in load_file(file).values()} == {torch.float16}
    assert apart(place, "adapted") < 0.1 * apart(place, "published")


def test_names_rank_and_alpha_are_those_of_diffusers(made: Path) -> None:
    for name, prefix in (("sdxl", "unet"), ("sd3", "transformer")):
        with safe_open(made / f"{name}-6" / DIFFUSERS, "pt") as file:
            keys, about = list(file.keys()), json.loads(file.metadata()["lora_adapter_metadata"])
            assert all(key.startswith(f"{prefix}.") and ".default" not in key for key in keys)
            assert {file.get_slice(key).get_shape()[0] for key in keys if "lora_A" in key} == {RANK}
        assert (about[f"{prefix}.r"], about[f"{prefix}.lora_alpha"]) == (RANK, 6)
        assert about[f"{prefix}.target_modules"] == sorted(DENOISERS[name].lora_targets)


def test_kohyas_file_has_its_alpha_beside_each_layer(made: Path) -> None:
    found = load_file(made / "sdxl-6" / KOHYA)
    layers = {key.removesuffix(".lora_down.weight") for key in found if key.endswith(".lora_down.weight")}
    assert len(layers) * 3 == len(found)
    assert all(layer.startswith("lora_unet_") for layer in layers)
    assert {float(found[f"{layer}.alpha"]) for layer in layers} == {6.0}
    assert not (made / "sd3-6" / KOHYA).exists(), "diffusers reads no such names for SD3"


@pytest.mark.parametrize("name", DENOISERS)
def test_the_table_says_what_diffusers_can_load(name: str) -> None:
    row = DENOISERS[name]
    can = hasattr(getattr(diffusers, row.pipeline), "load_lora_weights")
    assert can == (row.lora_form != "peft")
    assert (row.lora_form == "kohya") == (can and row.denoiser == "unet")
