"""Q-Align (Wu et al. 2023): how good, or how beautiful, a picture is, in a large multi-modal model's words, 0 to 1.

The model is asked to rate the picture, and the probabilities of "excellent", "good", "fair", "poor" and "bad" as its
next word are weighed 1, 0.75, 0.5, 0.25 and 0 (the paper's Eq. 1 and 2, on the authors' scale of 0 to 1; the published
model's own `score` runs from 1 to 5). It does not look at the prompt. Its code is published as code that the hub
would run here, and is not: the architecture is `qalign_model.py`, whose scores are the authors' to 7e-7 on small random
weights. 8.2 billion parameters, 16.4 GB in half precision, for either question: two rewards are two such actors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from google.protobuf.message import DecodeError
from PIL import Image
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from torch import Tensor

from rankray.config import ConfigError, nearest
from rankray.models.loading import files_of, fit, read_plain
from rankray.models.rewards import RewardSpec
from rankray.models.rewards.clip import Batched, Preprocessing
from rankray.models.rewards.qalign_model import Owl2, Sizes

ASPECTS = ("quality", "aesthetics")
QUESTION = "USER: How would you rate the {aspect} of this image?\n"
ANSWER = "\nASSISTANT: The {aspect} of the image is"
LEVELS = {"excellent": 1.0, "good": 0.75, "fair": 0.5, "poor": 0.25, "bad": 0.0}
SMALL_FILES = ("config.json", "preprocessor_config.json", "tokenizer.model", "*.index.json")
SUFFIXES = {"model": "safetensors", "pytorch_model": "bin"}
"""Names of weights, in the order in which they are looked for."""
BYTE_PAIRS = 2
"""What a sentencepiece file calls its kind of model; 1 is a unigram model."""
FREQUENCIES = ".self_attn.rotary_emb.inv_freq"
"""A table of LLaMA's that checkpoints of its time carry; it follows from the configuration, and is made from it."""


class QAlign(Batched):
    """The reward on one device. Scores: in 0 .. 1, higher is better; prompts have no part in it.

    Args:
        spec: its row; options `aspect`, "quality" or "aesthetics", and `vocabulary`, the size that it must have (0
            takes what it has).
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: configuration, weights, tokenizer or preprocessing are not what the model needs.
    """

    def __init__(self, spec: RewardSpec, device: str) -> None:
        aspect = spec.options["aspect"]
        if aspect not in ASPECTS:
            raise ConfigError(
                f"unknown aspect '{aspect}'{nearest(str(aspect), ASPECTS)}; known: {', '.join(ASPECTS)}"
            )
        self.batch_size, self.device, self.dtype = spec.batch_size, device, getattr(torch, spec.dtype)
        place = _directory(spec.source, spec.revision)
        config = _json(place / "config.json")
        sizes = Sizes.from_config(config)
        self.preprocess = _preprocessing(place, sizes.vision["image_size"])
        tokenizer = _tokenizer(place, config["vocab_size"], spec.options["vocabulary"])
        before = [int(config["bos_token_id"]), *encoded(tokenizer, QUESTION.format(aspect=aspect))]
        self.ids = torch.tensor(before + encoded(tokenizer, ANSWER.format(aspect=aspect)), device=device)
        self.levels = torch.tensor(level_ids(tokenizer), device=device)
        with torch.device("meta"):
            model = Owl2(sizes, len(before))
        _load(model, spec.source, place, device, self.dtype)
        self.model: Any = model.eval().requires_grad_(False)

    def _score_batch(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        pixels = torch.stack([self.preprocess(square(image, self.preprocess.mean)) for image in images])
        logits: Tensor = self.model(pixels.to(self.device, self.dtype), self.ids, self.levels)
        return expected(logits)


def expected(logits: Tensor) -> Tensor:
    """The levels' weights, each by its probability among the five: [n, 5] in the order of `LEVELS` -> float32[n]."""
    weights = torch.tensor(list(LEVELS.values()), device=logits.device)
    return logits.float().softmax(-1) @ weights


def square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """The picture in the middle of a square of the longer edge's size, in the colour `mean` (per channel, 0 .. 1)."""
    image = image.convert("RGB")
    width, height = image.size
    if width == height:
        return image
    edge = max(width, height)
    made = Image.new("RGB", (edge, edge), tuple(int(255 * value) for value in mean))
    made.paste(image, ((edge - width) // 2, (edge - height) // 2))
    return made


def read_vocabulary(path: Path) -> SentencePieceProcessor:
    """LLaMA's tokenizer: a sentencepiece file of byte pairs.

    Raises:
        ConfigError: there is no such file, or it holds no byte-pair vocabulary.
    """
    if not path.is_file():
        raise ConfigError(f"there is no {path}; the checkpoint's tokenizer belongs there")
    try:
        kind = ModelProto.FromString(path.read_bytes()).trainer_spec.model_type
        if kind != BYTE_PAIRS:
            raise ConfigError(f"{path} is no byte-pair vocabulary, which LLaMA's is; get the file again")
        return SentencePieceProcessor(model_file=str(path))
    except (DecodeError, RuntimeError) as error:
        raise ConfigError(f"{path} is no sentencepiece vocabulary ({error}); get the file again") from None


def encoded(tokenizer: Any, sentence: str) -> list[int]:
    """Ids of a sentence, with the space that sentencepiece puts before it and without a start token.

    Raises:
        ConfigError: a character that the vocabulary has neither as a piece nor by its bytes.
    """
    ids: list[int] = tokenizer.encode(sentence)
    if tokenizer.unk_id() in ids:
        raise ConfigError(f"the tokenizer has no piece for all of {sentence!r}, and no bytes either")
    return ids


def level_ids(tokenizer: Any) -> list[int]:
    """The token of each level's word, in the order of `LEVELS`.

    Raises:
        ConfigError: a word is more than one token, so that its probability is not the next token's.
    """
    ids = {word: encoded(tokenizer, word) for word in LEVELS}
    longer = [word for word, its in ids.items() if len(its) > 1]
    if longer:
        raise ConfigError(
            f"the tokenizer cuts {', '.join(longer)} into pieces, where one token each is due; is it LLaMA's?"
        )
    return [its[0] for its in ids.values()]


def _tokenizer(place: Path, rows: int, vocabulary: int | None) -> Any:
    tokenizer = read_vocabulary(place / "tokenizer.model")
    due = vocabulary or len(tokenizer)
    if not len(tokenizer) == rows == due:
        raise ConfigError(
            f"the tokenizer in '{place}' has {len(tokenizer)} tokens and the model {rows}, where {due} are due"
        )
    return tokenizer


def _preprocessing(place: Path, size: int) -> Preprocessing:
    preprocess = Preprocessing.from_config(_json(place / "preprocessor_config.json"))
    if preprocess.crop != (size, size):
        raise ConfigError(
            f"'{place}' makes pictures of {preprocess.crop} pixels, the model takes {size} squared"
        )
    return preprocess


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"there is no {path}; a checkpoint of Q-Align has one")
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def _directory(source: str, revision: str) -> Path:
    """The checkpoint's directory, fetched from the hub where it is there: no code, and weights in one format."""
    place = Path(files_of(source, revision, SMALL_FILES))
    for name, suffix in SUFFIXES.items():
        if (place / f"{name}.{suffix}.index.json").is_file():
            return Path(files_of(source, revision, [*SMALL_FILES, f"{name}-*.{suffix}"]))
    return place


def _load(model: Any, source: str, place: Path, device: str, dtype: torch.dtype) -> None:
    """Gives a model of no memory its weights, tensor by tensor, straight to the device."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    weights: dict[str, Tensor] = {}
    for path in _files(place):
        for key, tensor in read_plain(path).items():
            if not key.endswith(FREQUENCIES):
                weights[key] = tensor.to(device, dtype)
    fit(model, weights, source, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(model.model.config).to(device)


def _files(place: Path) -> list[Path]:
    """Files of the checkpoint's weights; safetensors where both formats are there."""
    for name, suffix in SUFFIXES.items():
        whole, index = place / f"{name}.{suffix}", place / f"{name}.{suffix}.index.json"
        if index.is_file():
            shards = [place / shard for shard in sorted(set(_json(index)["weight_map"].values()))]
            for path in shards:
                if not path.is_file():
                    raise ConfigError(f"there is no {path}, which the index names; get the checkpoint again")
            return shards
        if whole.is_file():
            return [whole]
    raise ConfigError(
        f"there are no weights in '{place}'; due are model.safetensors or pytorch_model.bin, or their index files"
    )
