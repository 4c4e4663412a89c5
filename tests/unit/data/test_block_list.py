"""Which prompts a block-list leaves out, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankray.config import ConfigError, PromptsConfig
from rankray.data.block_list import BlockList
from rankray.data.prompts import read_prompts


@pytest.mark.parametrize(
    ("phrase", "prompt", "held"),
    [
        ("gun", "A GUN, on a table", True),
        ("gun", "begun", False),
        ("gun", "guns", False),
        ("gun", "a g\u200bun", True),  # a space without width
        ("gun", "a \uff47\uff55\uff4e", True),  # full width
        ("gun", "my_gun_2", True),
        ("straße", "an einer STRASSE", True),
        ("café", "a cafe\u0301", True),  # the accent by itself
        ("café", "a cafe", False),
        ("top gun", "Top-Gun: a film", True),
        ("top gun", "top\n  gun", True),
        ("top gun", "stop gun", False),
        ("top gun", "top of a gun", False),
        ("武器", "一把武器在桌上", True),  # no spaces between words
        ("武器", "武 器", True),
        ("武器", "器武", False),
        ("ปืน", "มีปืนอยู่", True),
        ("c++", "C, a letter", True),  # signs are no part of a word
    ],
)
def test_words_are_matched_and_not_letters(phrase: str, prompt: str, held: bool) -> None:
    assert BlockList([phrase]).found_in(prompt) == (phrase if held else None)


def test_the_phrase_is_named_as_it_is_written() -> None:
    listed = BlockList(["Top Gun", "knife  ", "", "# a comment", "saw # but not the film", "!?"])
    assert len(listed) == 3
    assert listed.found_in("a KNIFE and a top gun") == "knife"
    assert listed.found_in("i saw it") == "saw # but not the film"
    assert listed.found_in("a comment on a film") is None
    assert BlockList([]).found_in("anything") is None


def test_prompts_are_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\nA Gun\na dog\nA Gun\n\na knife\na bird\n")
    (tmp_path / "block.txt").write_bytes("gun\r\nknife\r\n".encode("utf-16"))
    config = PromptsConfig(path=str(tmp_path / "p.txt"), block=str(tmp_path / "block.txt"))
    read = read_prompts(config)
    assert read.rows == ["a cat", "a dog", "a bird"]
    assert read.blocked == (("A Gun", "gun"), ("a knife", "knife"))
    assert read.read == 7 == len(read.rows) + read.empty + read.duplicates + len(read.blocked)
    assert (read.empty, read.duplicates) == (1, 1)
    assert read_prompts(config.model_copy(update={"limit": 2})).rows == ["a cat", "a dog"]
    assert read_prompts(config.model_copy(update={"block": None})).blocked == ()


def test_a_list_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a gun\n")
    (tmp_path / "empty.txt").write_text("# nothing yet\n")
    (tmp_path / "block.txt").write_text("gun\n")
    for name, message in (
        ("no.txt", r"prompts.block = /.*no\.txt cannot be read"),
        ("empty.txt", "holds no word; give one word or phrase a line"),
        ("block.txt", "1 left out by prompts.block"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            read_prompts(PromptsConfig(path=str(tmp_path / "p.txt"), block=str(tmp_path / name)))
        assert "\n" not in str(caught.value)
