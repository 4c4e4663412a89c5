"""Tokenizers: one token a word, all other text still spelled, and what the encoders are asked to know."""

import pytest
import torch

from rankray.shapes.prompts import prompts
from recipes.shapes.language import CLASSES, targets, teach
from recipes.shapes.text import MAX_TOKENS, WORDS, byte_pairs, clip_ids, clip_tokenizer, t5_ids, t5_tokenizer


def test_every_word_is_one_token_of_both_tokenizers():
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    for word in WORDS:
        assert len(clip(word).input_ids) == 3, word
        assert len(t5(word).input_ids) == 2, word
        assert t5.unk_token_id not in t5(word).input_ids


def test_foreign_text_is_spelled_and_cut():
    assert clip_tokenizer()("Élan 🎉").input_ids[1:-1]
    assert clip_ids(["very " * 100]).shape == (1, MAX_TOKENS)
    assert t5_ids(["very " * 100])[0].shape == (1, MAX_TOKENS)


def test_a_word_whose_merges_clash_is_refused():
    vocabulary, merges = byte_pairs(["ab", "abc"])
    assert "abc</w>" in vocabulary
    assert len(merges) == 3


def test_saved_tokenizers_read_back_the_same(tmp_path):
    text = "two purple triangles left of a cyan star"
    for tokenizer in (clip_tokenizer(), t5_tokenizer()):
        tokenizer.save_pretrained(tmp_path / type(tokenizer).__name__)
        again = type(tokenizer).from_pretrained(tmp_path / type(tokenizer).__name__)
        assert again(text).input_ids == tokenizer(text).input_ids


def test_targets_by_hand():
    text = next(t for t in prompts("train") if "left of two" in t)
    table = targets(text, first_word=1)
    words = text.split()
    assert table.shape == (MAX_TOKENS, len(CLASSES))
    assert (table[0] == -100).all()
    end = table[1 + len(words)]
    assert (table[1 + len(words) :] == end).all()
    assert end[0] == 1
    assert end[3] == 2
    assert end[-1] == 1
    assert torch.equal(table[3][:3], end[:3])
    assert (targets("", first_word=1)[1:] == 0).all()


@pytest.mark.slow
def test_the_encoders_learn_the_language_and_generalise_to_held_out_prompts():
    torch.manual_seed(0)
    _, right = teach(seed=1, steps=300)
    assert right >= 0.97
