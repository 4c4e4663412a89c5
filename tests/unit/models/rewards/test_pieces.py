"""Byte-pair encoding by hand, and files that are no such vocabulary."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from rankray.config import ConfigError
from rankray.models.rewards.pieces import BYTE, NORMAL, SPACE, Pieces
from recipes.random_weights.qalign import vocabulary, write_vocabulary


def made(*joined: str, letters: str = "abcd") -> Pieces:
    names = [*joined, *letters, SPACE, "<0x65>"]
    scores = {name: -float(n) for n, name in enumerate(names) if name != "<0x65>"}
    return Pieces({name: n for n, name in enumerate(names)}, scores)


def test_the_best_pair_is_joined_first_and_the_left_one_of_equals() -> None:
    pieces = made("bc", "ab", "bcd")
    names = list(pieces.ids)
    assert [names[n] for n in pieces.encode("abc")] == [SPACE, "a", "bc"]  # not "ab", "c"
    assert [names[n] for n in pieces.encode("abcd")] == [SPACE, "a", "bcd"]
    twice = made("aa")
    assert twice.encode("aaa") == [twice.ids[SPACE], twice.ids["aa"], twice.ids["a"]]
    assert [names[n] for n in pieces.encode("a b")] == [SPACE, "a", SPACE, "b"]


def test_a_character_without_a_piece_is_its_bytes() -> None:
    pieces = made()
    assert pieces.encode("ae") == [pieces.ids[SPACE], pieces.ids["a"], pieces.ids["<0x65>"]]
    with pytest.raises(ConfigError, match=r"no piece for 'f', and no bytes either"):
        pieces.encode("f")


def test_a_file_gives_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    write_vocabulary(path, vocabulary())
    pieces = Pieces.read(path)
    assert list(pieces.ids) == [name for name, _, _ in vocabulary()]
    assert pieces.scores == {name: score for name, score, kind in vocabulary() if kind == NORMAL}
    assert pieces.encode("good\nfair") == [
        pieces.ids[f"{SPACE}good"], pieces.ids["<0x0A>"], *(pieces.ids[letter] for letter in "fair")
    ]  # fmt: skip
    assert "<0x0A>" not in pieces.scores
    assert {name: kind for name, _, kind in vocabulary()}["<0x0A>"] == BYTE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"there is no .*/tokenizer\.model; the checkpoint's tokenizer belongs there"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is no sentencepiece vocabulary"),
        (b"\x0a\x08\x0a\x01a", r"is no sentencepiece vocabulary \(cut short\)"),
        (b"\x0a\x08\x0a\x01a\x15" + struct.pack("<f", -1.0), "is no byte-pair vocabulary"),
    ],
)
def test_other_files_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        Pieces.read(tmp_path / "tokenizer.model")
