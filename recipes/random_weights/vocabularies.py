"""Tokenizers of the published sizes, made on the spot: every text becomes tokens of up to four letters.

Real ones have words where these have letter groups, so that a prompt makes some two to three times as many tokens; each
pipeline pads to one length, and computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product
from string import ascii_lowercase
from typing import Any

from transformers import CLIPTokenizer, T5Tokenizer

from recipes.shapes.text import END, START, letters_of_bytes

CLIP_TOKENS = 49_408
"""256 bytes, the same at a word's end, 48,894 merges, start and end."""
CLIP_LENGTH = 77
T5_TOKENS = 32_000
"""Beside them stand T5's 100 of its own; the model has places for 32,128."""
T5_LENGTH = 512
GEMMA_TOKENS = 255_900
"""With T5's hundred, Gemma 2's 256,000."""
QWEN_TOKENS, GLM_TOKENS, MISTRAL_TOKENS = 151_500, 151_200, 130_900
"""With the hundred about as many as theirs, which their models round up: 151,936, 151,552 and 131,072."""


def _merges() -> Iterator[tuple[str, str]]:
    """Letters to pairs, pairs to threes, threes to fours, each within a word and at its end."""
    for length in (1, 2, 3):
        for letters in product(ascii_lowercase, repeat=length + 1):
            first, last = "".join(letters[:-1]), letters[-1]
            yield from ((first, last), (first, f"{last}</w>"))


def clip_tokenizer(length: int = CLIP_LENGTH) -> CLIPTokenizer:
    """CLIP's 49,408 tokens in number, 77 long, or as long as another's are."""
    letters = letters_of_bytes()
    known = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = list(islice(_merges(), CLIP_TOKENS - len(known) - 2))
    tokens = [*known, *(first + last for first, last in merges), START, END]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        model_max_length=length,
        bos_token=START,
        eos_token=END,
        pad_token=END,
    )


def t5_tokenizer(tokens: int = T5_TOKENS) -> T5Tokenizer:
    """T5's 32,100 tokens in number (Unigram), 512 long; or another's `tokens` and a hundred."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    pieces: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(chr(code), -6.0) for code in range(33, 127)]
    groups = ("".join(letters) for n in (2, 3, 4) for letters in product(ascii_lowercase, repeat=n))
    pieces += [(group, -8.0) for group in islice(groups, tokens - len(pieces))]
    inner: Any = Tokenizer(models.Unigram(pieces, unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5Tokenizer(tokenizer_object=inner, model_max_length=T5_LENGTH, extra_ids=100)


def chat_tokenizer(tokens: int) -> T5Tokenizer:
    """`t5_tokenizer` with a form for conversations, which is the words themselves."""
    tokenizer = t5_tokenizer(tokens)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer
