"""Tokenizers and text encoders of the shapes pipelines: thirty words, one token each, real CLIP and T5 classes.

Text encoders are trained once, by `language.py` in two minutes, and shared frozen by all families, as the real
SD3 takes over SDXL's. That leaves the families the image side to learn, which a small transformer otherwise starts
only after ten minutes of training on one core.

How another family reuses them: `load_clips(work / "text")` gives both CLIP encoders, `encode_clips(clips, clip_ids(
captions))` what SDXL conditions on, `load_t5` the T5, and `clip_tokenizer()` and `t5_tokenizer()` what the saved
pipeline needs beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from rankray.shapes.prompts import COLOURS, SHAPES

WORDS = (
    *("a", "one", "single", "two", "three", "and", "left", "right", "of", "above", "below"),
    *COLOURS,
    *SHAPES,
    *(shape + "s" for shape in SHAPES),
)
MAX_TOKENS = 16
"""The longest prompt of the world has 8 words; longer prompts are cut by the tokenizer."""
CLIP_WIDTH = 64
CLIP_LAYERS = 3
POOLED = CLIP_WIDTH
T5_WIDTH = 96
START, END = "<|startoftext|>", "<|endoftext|>"


def letters_of_bytes() -> list[str]:
    """The printable stand-ins of byte-level BPE for the 256 bytes, in the order of GPT-2's table."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in shown]
    table = {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    return [table[byte] for byte in range(256)]


def _apply(merges: list[tuple[str, str]], pieces: list[str]) -> list[str]:
    """BPE: merges the pair of lowest rank until none applies."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while len(pieces) > 1:
        pairs = list(pairwise(pieces))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        at = pairs.index(best)
        pieces = [*pieces[:at], best[0] + best[1], *pieces[at + 2 :]]
    return pieces


def byte_pairs(words: Sequence[str] = WORDS) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE that makes each word one token and still spells every other text."""
    letters = letters_of_bytes()
    tokens = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = _apply(merges, [*word[:-1], word[-1] + "</w>"])
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            tokens.append(pieces[0] + pieces[1])
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    for word in words:
        pieces = _apply(merges, [*word[:-1], word[-1] + "</w>"])
        if len(pieces) != 1:
            raise ValueError(
                f"{word!r} became {pieces}: put the words into an order in which merges do not clash"
            )
    unique = list(dict.fromkeys([*tokens, START, END]))
    return {token: index for index, token in enumerate(unique)}, merges


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer of the world's words, 16 tokens long."""
    vocabulary, merges = byte_pairs()
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=MAX_TOKENS,
        bos_token=START,
        eos_token=END,
        pad_token=END,
    )


def clip_config() -> CLIPTextConfig:
    """Configuration of either CLIP text encoder."""
    vocabulary, _ = byte_pairs()
    return CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=CLIP_WIDTH,
        intermediate_size=4 * CLIP_WIDTH,
        num_hidden_layers=CLIP_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=POOLED,
        hidden_act="gelu",
        bos_token_id=vocabulary[START],
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[END],
    )


def build_clips() -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """SDXL's two untrained text encoders."""
    clips = CLIPTextModel(clip_config()), CLIPTextModelWithProjection(clip_config())
    for clip in clips:
        for name, parameter in clip.named_parameters():
            if "embedding" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return clips


def load_clips(directory: Path) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """The two encoders that `language.py` (or a saved `shapes-sdxl`) left in a directory, in float32, frozen."""
    first = CLIPTextModel.from_pretrained(directory / "text_encoder", dtype=torch.float32)
    second = CLIPTextModelWithProjection.from_pretrained(directory / "text_encoder_2", dtype=torch.float32)
    return first.eval().requires_grad_(False), second.eval().requires_grad_(False)


def clip_ids(prompts: Sequence[str]) -> Tensor:
    """Token ids as every CLIP pipeline makes them: int64[n, 16], padded to the full length."""
    tokens = clip_tokenizer()(
        list(prompts), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    return torch.as_tensor(tokens.input_ids)


def encode_clips(
    clips: tuple[CLIPTextModel, CLIPTextModelWithProjection], token_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """What SDXL conditions on: the last but one hidden states [n, 16, 128] and the pooled embedding [n, 64]."""
    first = clips[0](token_ids, output_hidden_states=True)
    second = clips[1](token_ids, output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


def t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer (Unigram) of the world's words; other words become the unknown token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    pieces: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [("▁" + word, -2.0) for word in WORDS]
    inner: Any = Tokenizer(models.Unigram(pieces, unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5Tokenizer(tokenizer_object=inner, model_max_length=MAX_TOKENS, extra_ids=0)


def t5_ids(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids and mask as PixArt's pipeline makes them: int64[n, 16] each."""
    tokens = t5_tokenizer()(
        list(prompts), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    return torch.as_tensor(tokens.input_ids), torch.as_tensor(tokens.attention_mask)


def load_t5(directory: Path) -> T5EncoderModel:
    """The T5 that `language.py` left in a directory, in float32, frozen."""
    found = T5EncoderModel.from_pretrained(directory / "t5", dtype=torch.float32)
    return found.eval().requires_grad_(False)


def build_t5(width: int = T5_WIDTH, layers: int = 3) -> T5EncoderModel:
    """An untrained T5 encoder of the world's words."""
    config = T5Config(
        vocab_size=3 + len(WORDS),
        d_model=width,
        d_kv=24,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=4,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=16,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)
