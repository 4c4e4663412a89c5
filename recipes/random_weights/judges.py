"""Parts of the benchmarks' judges with random weights: the classes of the published ones, small.

What they see is noise, and all else is as it is with real weights: a detector of COCO's 80 classes, colours, answers,
objects by name. A second or two and 3 MB in all; a directory holds one part in each of its folders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rankray.evals import EVALS, EvalSpec
from recipes.random_weights.rewards import SHAPE, SIZE, pickscore
from recipes.shapes.text import WORDS, byte_pairs, clip_tokenizer

_COCO = (
    "person,bicycle,car,motorbike,aeroplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,"
    "snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,"
    "fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,sofa,"
    "pottedplant,bed,diningtable,toilet,tvmonitor,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
COCO = tuple(_COCO.split(","))
"""COCO's classes in the words of the detectors that were converted from the authors' framework."""

CHAT = (
    "{% for message in messages %}USER: {% for part in message['content'] %}{% if part['type'] == 'image' %}<image> "
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}ASSISTANT:"
)


def mask2former(place: Path) -> None:
    """A detector of COCO's classes with masks, for pictures of 64 pixels."""
    from transformers import Mask2FormerConfig, Mask2FormerImageProcessor, SwinConfig

    from rankray.evals.detection import bare_mask2former

    swin = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        dim_feedforward=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=24,
        id2label=dict(enumerate(COCO)), label2id={name: n for n, name in enumerate(COCO)},
    )  # fmt: skip
    model = bare_mask2former()(config)
    disturb(model)
    model.class_predictor.weight.data.mul_(20.0)  # some classes seen with confidence
    model.save_pretrained(place)
    # The published checkpoints hold the loss's class weights too.
    weights = load_file(place / "model.safetensors")
    weights["criterion.empty_weight"] = torch.ones(len(COCO) + 1)
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(place)


def blip(place: Path) -> None:
    """BLIP for question answering, with a BERT vocabulary of a hundred words."""
    from transformers import BertTokenizer, BlipConfig, BlipForQuestionAnswering

    letters = "abcdefghijklmnopqrstuvwxyz0123456789?,'-"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    words += ["yes", "no", *(word for word in WORDS if word not in words)]
    place.mkdir(parents=True, exist_ok=True)
    (place / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(place / "vocab.txt")).save_pretrained(place)
    text = {
        **SHAPE, "vocab_size": len(words) + 2, "encoder_hidden_size": SHAPE["hidden_size"], "projection_dim": 16,
        "max_position_embeddings": 128, "bos_token_id": len(words), "pad_token_id": 0, "sep_token_id": 3,
        "eos_token_id": 3,
    }  # fmt: skip
    vision = {**SHAPE, "image_size": SIZE, "patch_size": 8, "projection_dim": 16}
    model = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision))
    disturb(model.eval(), 0.3)
    # Of random weights "yes" would be the likeliest of a hundred words once in a hundred times.
    bias = model.text_decoder.cls.predictions.bias
    yes, no = words.index("yes"), words.index("no")
    bias.data[[yes, no]] += 6.0
    with torch.inference_mode():
        seen = model.vision_model(pixel_values=torch.randn(16, 3, SIZE, SIZE))[0]
        asked = model.text_encoder(
            input_ids=torch.randint(5, len(words), (16, 8)), encoder_hidden_states=seen
        )[0]
        start = torch.full((16, 1), len(words))
        logits = model.text_decoder(input_ids=start, encoder_hidden_states=asked).logits[:, 0]
        often = (logits[:, no] - logits[:, yes]).median()
    bias.data[yes] += float(often)  # yes as often as no
    model.save_pretrained(place)


def owlv2(place: Path) -> None:
    """OWLv2, for pictures of 32 pixels and the words of the shapes world."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor

    tokenizer = clip_tokenizer()
    text = {
        **SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0,
    }  # fmt: skip
    vision = {**SHAPE, "image_size": SIZE, "patch_size": 8}
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=SHAPE["hidden_size"])
    model = Owlv2ForObjectDetection(config)
    disturb(model, 0.2)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    Owlv2ImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(place)


def llava(place: Path) -> None:
    """A LLaVA that chats about pictures of 32 pixels, letter by letter."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    vocabulary, merges = byte_pairs(())
    inner: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = {
        **SHAPE, "model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": 512,
        "num_key_value_heads": 2, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {**SHAPE, "model_type": "clip_vision_model", "image_size": SIZE, "patch_size": 8}
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIZE // 8) ** 2,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    disturb(model, 0.1)
    model.save_pretrained(place)
    LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT,
    ).save_pretrained(place)


def disturb(model: nn.Module, spread: float = 0.05) -> None:
    """Moves every parameter, so that gates and biases that start at zero have a say."""
    for parameter in model.parameters():
        parameter.data.add_(spread * torch.randn_like(parameter))


JUDGES_MADE: Mapping[str, Mapping[str, Callable[[Path], None]]] = {
    "geneval": {"detector": mask2former, "clip": pickscore},
    "dpg": {"vqa": blip},
    "compbench": {"vqa": blip, "detector": owlv2, "clip": pickscore},
}
"""By the benchmarks' names: what makes each part of its judge."""


def make(name: str, place: Path) -> None:
    """Writes each part of a benchmark's judge into a folder of its name."""
    for part, write in JUDGES_MADE[name].items():
        (place / part).mkdir(parents=True, exist_ok=True)
        write(place / part)


def small_spec(name: str, place: Path) -> EvalSpec:
    """A benchmark's row with its parts in `place`, as `make` wrote them, on a CPU."""
    options = dict(EVALS[name].options)
    options.update({key: None for key in options if key.endswith("vocabulary")})
    if "size" in options:
        options["size"] = {}
    models = {part: str(place / part) for part in JUDGES_MADE[name]}
    return replace(EVALS[name], models=models, options=options, batch_size=4, num_gpus=0.0)
