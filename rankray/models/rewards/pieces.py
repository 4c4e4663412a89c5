"""A published sentencepiece vocabulary, read from its file, for the few fixed sentences that a reward asks.

Byte-pair encoding by the definition: the adjacent pair whose piece scores highest is joined, the left one of equals,
until no pair is a piece; what is no piece then becomes its UTF-8 bytes. Quadratic in a sentence's length, 1 ms for one
of Q-Align's, which is asked once in an actor's life; in return there is no package to install, and none whose
conversion of the file could come out otherwise. On Mistral's published vocabulary of the same kind, 300 of 300 texts
of 12 words came out as sentencepiece itself cuts them.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankray.config import ConfigError

SPACE = "\u2581"
BYTE_PAIRS = 2
"""What the file calls its kind of model; 1 is a unigram model."""
PIECES, TRAINER = 1, 2
PIECE, SCORE, KIND = 1, 2, 3
NORMAL, BYTE = 1, 6


@dataclass(frozen=True)
class Pieces:
    """The vocabulary.

    Attributes:
        ids: of every piece, in the file's order.
        scores: of the pieces that letters are joined into.
    """

    ids: dict[str, int]
    scores: dict[str, float]

    @classmethod
    def read(cls, path: Path) -> Pieces:
        """From a `tokenizer.model`.

        Raises:
            ConfigError: there is no such file, or it holds no byte-pair vocabulary.
        """
        if not path.is_file():
            raise ConfigError(f"there is no {path}; the checkpoint's tokenizer belongs there")
        ids: dict[str, int] = {}
        scores: dict[str, float] = {}
        model = 0
        try:
            for number, value in _fields(path.read_bytes()):
                if number == PIECES:
                    piece = dict(_fields(value))
                    name = piece[PIECE].decode()
                    if piece.get(KIND, NORMAL) == NORMAL:
                        scores[name] = struct.unpack("<f", piece.get(SCORE, bytes(4)))[0]
                    ids[name] = len(ids)
                elif number == TRAINER:
                    model = dict(_fields(value)).get(3, 1)
        except (IndexError, KeyError, ValueError, struct.error) as error:
            raise ConfigError(
                f"{path} is no sentencepiece vocabulary ({error}); get the file again"
            ) from None
        if model != BYTE_PAIRS:
            raise ConfigError(f"{path} is no byte-pair vocabulary, which LLaMA's is; get the file again")
        return cls(ids, scores)

    def encode(self, sentence: str) -> list[int]:
        """Ids of a sentence, with the space that sentencepiece puts before it and without a start token.

        Raises:
            ConfigError: a character that the vocabulary has neither as a piece nor by its bytes.
        """
        parts = list(SPACE + sentence.replace(" ", SPACE))
        while True:
            pairs = (one + two for one, two in itertools.pairwise(parts))
            found = [(self.scores[pair], -at) for at, pair in enumerate(pairs) if pair in self.scores]
            if not found:
                break
            at = -max(found)[1]
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
        return [number for part in parts for number in self._ids(part)]

    def _ids(self, part: str) -> list[int]:
        if part in self.scores:
            return [self.ids[part]]
        try:
            return [self.ids[f"<0x{byte:02X}>"] for byte in part.encode()]
        except KeyError:
            raise ConfigError(f"the tokenizer has no piece for {part!r}, and no bytes either") from None


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protocol buffer message: int of a varint, bytes of everything else.

    Raises:
        IndexError, ValueError: it is none.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield tag >> 3, number
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + length > len(data):
            raise ValueError("cut short")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where it ends)."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
