"""The hub's repositories that the tables name: files as published, by name, place and number of parts, small inside.

Names of files are those of the hub as of 2024, written down from its pages; `CERTAIN` holds the repositories of which
every file that is loaded is known, of the others the layout is that which their authors' or the libraries' code reads.
What lies beside (other formats, other variants, pictures) stands there too, and must not be fetched: it is a line of
text that no reader takes. Weights are random and small (`recipes.random_weights`); shards, indices, variants and
vocabularies are made of them in the published form. A second or two a pipeline; rewards of packages of their own are
taken from where `python -m recipes.random_weights` has written them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from hub_server import Hub
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertTokenizerFast, T5TokenizerFast

from recipes.random_weights import judges, qalign
from recipes.random_weights import rewards as small
from recipes.random_weights.__main__ import main as write_small
from recipes.random_weights.pipelines import PIPELINES, awaken
from recipes.shapes.text import END, MAX_TOKENS, START, byte_pairs

CLIP_WORDS = "merges.txt special_tokens_map.json tokenizer_config.json vocab.json"
T5_WORDS = "special_tokens_map.json spiece.model tokenizer_config.json"
SAFE, FP16, BF16 = (f"diffusion_pytorch_model{kind}.safetensors" for kind in ("", ".fp16", ".bf16"))
T5_SHARDS = "config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json"
_OTHERS = "flax_model.msgpack model.onnx openvino_model.bin openvino_model.xml"

FILES: dict[str, dict[str, str]] = {
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "": "model_index.json README.md LICENSE.md 01.png sd_xl_base_1.0.safetensors sd_xl_base_1.0_0.9vae.safetensors "
        "sd_xl_offset_example-lora_1.0.safetensors",
        "scheduler": "scheduler_config.json",
        "text_encoder": f"config.json model.fp16.safetensors model.safetensors {_OTHERS}",
        "text_encoder_2": f"config.json model.fp16.safetensors model.safetensors model.onnx_data {_OTHERS}",
        "tokenizer": CLIP_WORDS,
        "tokenizer_2": CLIP_WORDS,
        "unet": f"config.json diffusion_flax_model.msgpack {FP16} {SAFE} model.onnx model.onnx_data openvino_model.bin",
        "vae": f"config.json diffusion_flax_model.msgpack {FP16} {SAFE}",
        "vae_1_0": f"config.json diffusion_flax_model.msgpack {FP16} {SAFE}",
        "vae_decoder": "config.json model.onnx openvino_model.bin",
        "vae_encoder": "config.json model.onnx openvino_model.bin",
    },
    "stabilityai/stable-diffusion-3-medium-diffusers": {
        "": "model_index.json README.md LICENSE",
        "scheduler": "scheduler_config.json",
        "text_encoder": "config.json model.fp16.safetensors model.safetensors",
        "text_encoder_2": "config.json model.fp16.safetensors model.safetensors",
        "text_encoder_3": f"{T5_SHARDS} model.fp16-00001-of-00002.safetensors model.fp16-00002-of-00002.safetensors "
        "model.safetensors.index.fp16.json",
        "tokenizer": CLIP_WORDS,
        "tokenizer_2": CLIP_WORDS,
        "tokenizer_3": f"{T5_WORDS} tokenizer.json",
        "transformer": f"config.json {SAFE}",
        "vae": f"config.json {SAFE}",
    },
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": {
        "": "model_index.json README.md",
        "scheduler": "scheduler_config.json",
        "text_encoder": T5_SHARDS,
        "tokenizer": f"added_tokens.json {T5_WORDS}",
        "transformer": f"config.json {SAFE}",
        "vae": f"config.json {SAFE}",
    },
    "stabilityai/stable-cascade": {
        "": "model_index.json README.md LICENSE effnet_encoder.safetensors previewer.safetensors stage_a.safetensors "
        "stage_b.safetensors stage_b_bf16.safetensors stage_b_lite.safetensors stage_b_lite_bf16.safetensors "
        "stage_c.safetensors stage_c_bf16.safetensors stage_c_lite.safetensors stage_c_lite_bf16.safetensors",
        "controlnet": "canny.safetensors inpainting.safetensors super_resolution.safetensors",
        "comfyui_checkpoints": "stable_cascade_stage_b.safetensors stable_cascade_stage_c.safetensors",
        "decoder": f"config.json {BF16} {SAFE}",
        "decoder_lite": f"config.json {BF16} {SAFE}",
        "scheduler": "scheduler_config.json",
        "text_encoder": "config.json model.bf16.safetensors model.safetensors",
        "tokenizer": f"{CLIP_WORDS} tokenizer.json",
        "vqgan": f"config.json {SAFE}",
    },
    "stabilityai/stable-cascade-prior": {
        "": "model_index.json README.md",
        "feature_extractor": "preprocessor_config.json",
        "image_encoder": "config.json model.bf16.safetensors model.safetensors",
        "prior": f"config.json {BF16} {SAFE}",
        "prior_lite": f"config.json {BF16} {SAFE}",
        "scheduler": "scheduler_config.json",
        "text_encoder": "config.json model.bf16.safetensors model.safetensors",
        "tokenizer": f"{CLIP_WORDS} tokenizer.json",
    },
    "yuvalkirstain/PickScore_v1": {"": "README.md config.json model.safetensors pytorch_model.bin"},
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": {
        "": f"README.md config.json preprocessor_config.json tokenizer.json {CLIP_WORDS} open_clip_config.json "
        "open_clip_pytorch_model.bin pytorch_model-00001-of-00002.bin pytorch_model-00002-of-00002.bin "
        "pytorch_model.bin.index.json"
    },
    "openai/clip-vit-base-patch32": {
        "": f"README.md config.json preprocessor_config.json tokenizer.json {CLIP_WORDS} flax_model.msgpack "
        "pytorch_model.bin tf_model.h5"
    },
    "openai/clip-vit-base-patch32@refs/pr/15": {
        "": f"README.md config.json preprocessor_config.json tokenizer.json {CLIP_WORDS} flax_model.msgpack "
        "model.safetensors pytorch_model.bin tf_model.h5"
    },
    "openai/clip-vit-large-patch14": {
        "": f"README.md config.json preprocessor_config.json tokenizer.json {CLIP_WORDS} flax_model.msgpack "
        "model.safetensors pytorch_model.bin tf_model.h5"
    },
    "openai/clip-vit-large-patch14-336": {
        "": f"README.md config.json preprocessor_config.json tokenizer.json {CLIP_WORDS} pytorch_model.bin tf_model.h5"
    },
    "xswu/HPSv2": {"": "README.md HPS_v2_compressed.pt HPS_v2.1_compressed.pt"},
    "zai-org/ImageReward": {"": "README.md ImageReward.pt med_config.json config.json"},
    "google-bert/bert-base-uncased": {
        "": "README.md LICENSE config.json tokenizer.json tokenizer_config.json vocab.txt flax_model.msgpack "
        "model.onnx model.safetensors pytorch_model.bin rust_model.ot tf_model.h5"
    },
    "zhiqiulin/clip-flant5-xxl": {
        "": "README.md config.json generation_config.json pytorch_model-00001-of-00003.bin "
        "pytorch_model-00002-of-00003.bin pytorch_model-00003-of-00003.bin pytorch_model.bin.index.json "
        "special_tokens_map.json spiece.model tokenizer.json tokenizer_config.json"
    },
    "google/flan-t5-xxl": {
        "": f"README.md config.json generation_config.json {T5_WORDS} tokenizer.json tf_model.h5.index.json "
        "model-00001-of-00005.safetensors model.safetensors.index.json pytorch_model-00001-of-00005.bin "
        "pytorch_model.bin.index.json"
    },
    "facebook/mask2former-swin-small-coco-instance": {
        "": "README.md config.json model.safetensors preprocessor_config.json pytorch_model.bin"
    },
    "Salesforce/blip-vqa-base": {
        "": "README.md config.json model.safetensors preprocessor_config.json pytorch_model.bin tf_model.h5 "
        "special_tokens_map.json tokenizer.json tokenizer_config.json vocab.txt"
    },
    "google/owlv2-base-patch16-ensemble": {
        "": f"README.md added_tokens.json config.json model.safetensors preprocessor_config.json {CLIP_WORDS} "
        "pytorch_model.bin"
    },
    "q-future/one-align": {
        "": "README.md config.json configuration_mplug_owl2.py generation_config.json modeling_mplug_owl2.py "
        "preprocessor_config.json pytorch_model-00001-of-00002.bin pytorch_model-00002-of-00002.bin "
        "pytorch_model.bin.index.json special_tokens_map.json tokenizer.model tokenizer_config.json"
    },
}
"""Of each repository (at a reference other than `main`: NAME@REFERENCE), by folder, its files."""

CERTAIN = frozenset(
    {
        "stabilityai/stable-diffusion-xl-base-1.0",
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        "openai/clip-vit-base-patch32",
        "openai/clip-vit-base-patch32@refs/pr/15",
        "openai/clip-vit-large-patch14",
        "xswu/HPSv2",
        "google-bert/bert-base-uncased",
        "q-future/one-align",
    }
)

MOVED = {"THUDM/ImageReward": "zai-org/ImageReward"}
"""The organisation was renamed; the hub sends those who ask by the old name on."""

OF: dict[str, tuple[str, ...]] = {
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0",),
    "sd3-medium": ("stabilityai/stable-diffusion-3-medium-diffusers",),
    "pixart-sigma": ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",),
    "stable-cascade": ("stabilityai/stable-cascade", "stabilityai/stable-cascade-prior"),
    "pickscore": ("yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    "mps": ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K",),
    "clipscore": ("openai/clip-vit-base-patch32",),
    "hpsv2.1": ("xswu/HPSv2",),
    "imagereward": ("zai-org/ImageReward", "google-bert/bert-base-uncased"),
    "vqascore": ("zhiqiulin/clip-flant5-xxl", "google/flan-t5-xxl", "openai/clip-vit-large-patch14-336"),
    "qalign-quality": ("q-future/one-align",),
    "geneval": ("facebook/mask2former-swin-small-coco-instance", "openai/clip-vit-large-patch14"),
    "dpg": ("Salesforce/blip-vqa-base",),
    "compbench": (
        "Salesforce/blip-vqa-base",
        "google/owlv2-base-patch16-ensemble",
        "openai/clip-vit-base-patch32",
    ),
}
"""What each row of the tables asks the hub for."""
GATED = frozenset({"stabilityai/stable-diffusion-3-medium-diffusers"})

_SHARD = re.compile(
    r"(?P<stem>[a-z_]+)(\.(?P<variant>fp16|bf16))?(-(?P<n>\d{5})-of-(?P<of>\d{5}))?\.(?P<kind>safetensors|bin)"
)
_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16, None: None}
_BIN = {"pytorch_model": "model"}
"""Weights' name as a pickle, and as safetensors."""


def publish(hub: Hub, place: Path, names: Iterable[str] = ()) -> None:
    """Makes what the rows of those names need, all by default, and has `hub` serve it."""
    for repository in dict.fromkeys(one for name in names or OF for one in OF[name]):
        for key in (key for key in FILES if key.partition("@")[0] == repository):
            made = place / "repositories" / key
            if not made.is_dir():
                lay_out(key, _given(key, place / "small"), made)
            if "@" in key:
                hub.references[key.partition("@")[::2]] = made
            else:
                hub.repositories[key] = made
    hub.moved |= {old: new for old, new in MOVED.items() if new in hub.repositories}
    hub.gated |= GATED & hub.repositories.keys()


def lay_out(key: str, given: Path, place: Path) -> None:
    """Files of the repository `key` in `place`, made of the small checkpoint in `given`."""
    unfinished = place.with_name(f"{place.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    for folder, names in FILES[key].items():
        (unfinished / folder).mkdir(parents=True, exist_ok=True)
        for name in names.split():
            _file(given / folder, name, unfinished / folder / name)
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished.rename(place)


def _file(given: Path, name: str, made: Path) -> None:
    if (given / name).is_file():
        shutil.copyfile(given / name, made)
        return
    found, index = _SHARD.fullmatch(name), re.fullmatch(r"(.+)\.index(\.\w+)?\.json", name)
    if found and _weights(given, found["stem"]):
        shards = _shards(given, found["stem"], int(found["of"] or 1))
        shard = shards[int(found["n"] or 1) - 1]
        half = _HALF[found["variant"]]
        values = {
            key: tensor.to(half) if half and tensor.is_floating_point() else tensor
            for key, tensor in shard.items()
        }
        if found["kind"] == "bin":
            torch.save(values, made)
        else:
            save_file(values, made, {"format": "pt"})
    elif index and (parts := _parts(made.parent, index[1], index[2])):
        of = {key: part for part, keys in parts.items() for key in keys}
        made.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": of}))
    else:
        made.write_text("{}" if name.endswith(".json") else "another format or words, not to be read\n")


def _weights(given: Path, stem: str) -> list[Path]:
    """The files of the small checkpoint that hold those weights."""
    stem = _BIN.get(stem, stem)
    return [
        file
        for file in given.glob(f"{stem}*.safetensors")
        if (found := _SHARD.fullmatch(file.name)) and found["stem"] == stem
    ]


def _shards(given: Path, stem: str, count: int) -> list[dict[str, Tensor]]:
    weights = {key: tensor for file in _weights(given, stem) for key, tensor in load_file(file).items()}
    keys = sorted(weights)
    return [{key: weights[key].clone() for key in keys[n::count]} for n in range(count)]


def _parts(place: Path, whole: str, variant: str | None) -> dict[str, list[str]]:
    """Of each shard that was written there under the name of `whole` ("model.safetensors"), its keys."""
    stem, kind = whole.rsplit(".", 1)
    found: dict[str, list[str]] = {}
    for file in sorted(place.glob(f"{stem}{variant or ''}-*.{kind}")):
        read: Any = load_file if kind == "safetensors" else torch.load
        try:
            found[file.name] = list(read(file))
        except Exception:  # noqa: BLE001 - what is not to be read
            return {}
    return found


def _given(key: str, place: Path) -> Path:
    """The small checkpoint that a repository is made of, with vocabularies as they were published."""
    made = place / key.partition("@")[0]
    if not made.is_dir():
        torch.manual_seed(0)
        made.mkdir(parents=True)
        _MADE[key.partition("@")[0]](made)
    return made


def _clip_words(place: Path) -> None:
    """CLIP's vocabulary as it was published, in two files of words; `FILES` says where `tokenizer.json` stands too."""
    vocabulary, merges = byte_pairs()
    (place / "vocab.json").write_text(json.dumps(vocabulary))
    (place / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (place / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "do_lower_case": True,
        **special,
    }
    (place / "tokenizer_config.json").write_text(json.dumps(settings))


def _t5_words(place: Path) -> None:
    """T5's: a sentencepiece model."""
    shutil.rmtree(place)
    small.sentencepiece_words(place)
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (place / "special_tokens_map.json").write_text(json.dumps(special))
    words = json.loads((place / "tokenizer.json").read_text())["added_tokens"]
    extra = {word["content"]: word["id"] for word in words if word["content"].startswith("<extra_id_")}
    (place / "added_tokens.json").write_text(json.dumps(extra))
    settings = {
        "tokenizer_class": "T5Tokenizer",
        "model_max_length": 512,
        "extra_ids": 100,
        "legacy": True,
        **special,
    }
    (place / "tokenizer_config.json").write_text(json.dumps(settings))


def _pipeline(name: str, place: Path) -> Any:
    """A small pipeline in its folders, and it."""
    pipe = PIPELINES[name]()
    for part in ("text_encoder", "text_encoder_3"):
        encoder = getattr(pipe, part, None)
        if type(encoder).__name__ == "T5EncoderModel":
            encoder.resize_token_embeddings(small.sentencepiece_words(place / "words"))
    awaken(pipe)
    pipe.save_pretrained(place)
    for folder in place.glob("*tokenizer*"):
        t5 = folder.name == "tokenizer_3" or name == "pixart-sigma"
        (_t5_words if t5 else _clip_words)(folder)
    return pipe


def _changed(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}, indent=2))


def _sdxl(place: Path) -> None:
    _pipeline("sdxl", place)


def _sd3(place: Path) -> None:
    _pipeline("sd3-medium", place)


def _pixart(place: Path) -> None:
    _pipeline("pixart-sigma", place)
    # As they were called when it was published.
    _changed(place / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    _changed(place / "transformer" / "config.json", _class_name="Transformer2DModel")
    _changed(place / "scheduler" / "scheduler_config.json", lambda_min_clipped=float("-inf"))


def _cascade(place: Path) -> None:
    """The decoder's repository, whose card names the prior's."""
    _pipeline("stable-cascade", place)
    (place / "README.md").write_text(
        "---\npipeline_tag: text-to-image\nprior:\n- stabilityai/stable-cascade-prior\n---\n# Cascade\n"
    )
    index = {
        "_class_name": "StableCascadeDecoderPipeline",
        "_diffusers_version": "0.27.0.dev0",
        "decoder": ["diffusers", "StableCascadeUNet"],
        "latent_dim_scale": 10.67,
        "scheduler": ["diffusers", "DDPMWuerstchenScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizerFast"],
        "vqgan": ["wuerstchen", "PaellaVQModel"],
    }
    (place / "model_index.json").write_text(json.dumps(index))


def _cascade_prior(place: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    _pipeline("stable-cascade", place)
    for part in ("prior", "text_encoder", "scheduler", "tokenizer"):
        shutil.rmtree(place / part, ignore_errors=True)
        (place / f"prior_{part}").rename(place / part)
    tower = CLIPVisionConfig(**small.SHAPE, image_size=small.SIZE, patch_size=8, projection_dim=32)
    CLIPVisionModelWithProjection(tower).save_pretrained(place / "image_encoder")
    CLIPImageProcessor(size={"shortest_edge": small.SIZE}).save_pretrained(place / "feature_extractor")
    index = {
        "_class_name": "StableCascadePriorPipeline",
        "_diffusers_version": "0.27.0.dev0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "prior": ["diffusers", "StableCascadeUNet"],
        "resolution_multiple": 42.67,
        "scheduler": ["diffusers", "DDPMWuerstchenScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizerFast"],
    }
    (place / "model_index.json").write_text(json.dumps(index))


def _clip(place: Path) -> None:
    small.pickscore(place)
    _clip_words(place)
    # Configurations of that time say these, whatever the vocabulary.
    text = json.loads((place / "config.json").read_text())["text_config"]
    _changed(place / "config.json", text_config={**text, "bos_token_id": 0, "eos_token_id": 2})


def _tower(place: Path) -> None:
    """CLIP's, of VQAScore's rows."""
    _packaged("vqascore", place)
    shutil.copytree(place / "tower", place, dirs_exist_ok=True)


def _mask2former(place: Path) -> None:
    """With the keys of the time of its conversion: tables of positions, and no norm over Swin's last layer."""
    judges.mask2former(place)
    weights = load_file(place / "model.safetensors")
    swin = "model.pixel_level_module.encoder."
    made = {}
    for key, tensor in weights.items():
        if key.startswith((f"{swin}layernorm.", f"{swin}swin.layernorm.")):
            continue
        made[key] = tensor
        if key.endswith("relative_position_bias_table"):
            side = 4  # of a window
            made[key.replace("bias_table", "index")] = torch.zeros(side**2, side**2, dtype=torch.int64)
    save_file(made, place / "model.safetensors", {"format": "pt"})


def _blip(place: Path) -> None:
    judges.blip(place)
    (place / "preprocessor_config.json").write_text("{}")


def _owlv2(place: Path) -> None:
    judges.owlv2(place)
    _clip_words(place)
    (place / "added_tokens.json").write_text("{}")


def _bert(place: Path) -> None:
    _packaged("imagereward", place)
    shutil.copytree(place / "bert", place, dirs_exist_ok=True)
    BertTokenizerFast.from_pretrained(place).backend_tokenizer.save(str(place / "tokenizer.json"))
    settings = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))


def _flan(place: Path) -> None:
    _packaged("vqascore", place)
    shutil.copytree(place / "tokenizer", place, dirs_exist_ok=True)
    T5TokenizerFast.from_pretrained(place).backend_tokenizer.save(str(place / "tokenizer.json"))


def _flant5(place: Path) -> None:
    """CLIP-FlanT5, which names its vision tower as its authors' machine did."""
    _packaged("vqascore", place)
    shutil.copytree(place / "model", place, dirs_exist_ok=True)
    _changed(place / "config.json", mm_vision_tower="openai/clip-vit-large-patch14-336")
    weights = torch.load(place / "pytorch_model.bin", weights_only=True)
    save_file(
        {key: tensor.clone() for key, tensor in weights.items()},
        place / "model.safetensors",
        {"format": "pt"},
    )


def _packaged(name: str, place: Path) -> None:
    """What a reward's own package makes, in its environment, which is built where it is missing."""
    if write_small([str(place.parent.parent / "packaged"), name]):
        raise RuntimeError(f"{name} could not be made")
    shutil.copytree(place.parent.parent / "packaged" / name, place, dirs_exist_ok=True)


_MADE: dict[str, Callable[[Path], None]] = {
    "stabilityai/stable-diffusion-xl-base-1.0": _sdxl,
    "stabilityai/stable-diffusion-3-medium-diffusers": _sd3,
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": _pixart,
    "stabilityai/stable-cascade": _cascade,
    "stabilityai/stable-cascade-prior": _cascade_prior,
    "yuvalkirstain/PickScore_v1": _clip,
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": _clip,
    "openai/clip-vit-base-patch32": _clip,
    "openai/clip-vit-large-patch14": _clip,
    "openai/clip-vit-large-patch14-336": _tower,
    "xswu/HPSv2": lambda place: _packaged("hpsv2.1", place),
    "zai-org/ImageReward": lambda place: _packaged("imagereward", place),
    "google-bert/bert-base-uncased": _bert,
    "zhiqiulin/clip-flant5-xxl": _flant5,
    "google/flan-t5-xxl": _flan,
    "facebook/mask2former-swin-small-coco-instance": _mask2former,
    "Salesforce/blip-vqa-base": _blip,
    "google/owlv2-base-patch16-ensemble": _owlv2,
    "q-future/one-align": qalign.write,
}
"""What makes the small checkpoint of a repository."""
