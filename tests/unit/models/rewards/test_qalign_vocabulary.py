"""Q-Align's vocabulary: a byte-pair file as published, and files that are no such vocabulary."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from rankray.config import ConfigError
from rankray.models.rewards.qalign import encoded, read_vocabulary
from recipes.random_weights.qalign import SPACE, vocabulary, write_vocabulary


def test_a_sentence_is_cut_into_the_file_s_pieces(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    write_vocabulary(path, vocabulary())
    ids = {name: number for number, (name, _, _) in enumerate(vocabulary())}
    tokenizer = read_vocabulary(path)
    assert len(tokenizer) == len(ids)
    letters = [ids[letter] for letter in "fair"]
    assert encoded(tokenizer, "good\nfair") == [ids[f"{SPACE}good"], ids["<0x0A>"], *letters]
    assert encoded(tokenizer, "a  x") == [ids[SPACE], ids["a"], ids[SPACE], ids[SPACE], ids["x"]]
    assert encoded(tokenizer, "é") == [ids[SPACE], ids["<0xC3>"], ids["<0xA9>"]]


def test_a_character_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    pieces = [piece for piece in vocabulary() if not piece[0].startswith("<0x")]
    write_vocabulary(path, pieces, byte_fallback=False)
    with pytest.raises(ConfigError, match=r"no piece for all of 'a\?', and no bytes either"):
        encoded(read_vocabulary(path), "a?")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"there is no .*/tokenizer\.model; the checkpoint's tokenizer belongs there"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is no sentencepiece vocabulary"),
        (b"\x0a\x08\x0a\x01a", "is no sentencepiece vocabulary"),
        (b"\x0a\x08\x0a\x01a\x15" + struct.pack("<f", -1.0), "is no byte-pair vocabulary"),
    ],
)
def test_other_files_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_vocabulary(tmp_path / "tokenizer.model")
    assert "\n" not in str(caught.value)
