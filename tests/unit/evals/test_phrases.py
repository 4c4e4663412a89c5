"""Noun phrases and places of sentences, by words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankray.evals.phrases import Spatial, noun_phrases, sentence_spatial

SENTENCES = {
    "A teal drum and a round kettle.": ["A teal drum", "a round kettle"],
    "The blue mug sat next to a soft green towel.": ["The blue mug", "a soft green towel"],
    "A slim, tall grey lamp stands in a hall with black and white tiles.": [
        "A slim, tall grey lamp stands",  # a verb that no list knows stays
        "a hall",
        "black and white tiles",
    ],
    "The old rope was hanging on the left of the wooden gate": ["The old rope", "the wooden gate"],
    "Six pale eggs, a tin spoon and some flour": ["Six pale eggs", "a tin spoon", "some flour"],
    "The torn flag fluttered slowly above the ceiling": ["The torn flag", "the ceiling"],
    "a slice of rye bread on top of a plate": ["a slice", "rye bread", "a plate"],
    "A clay pot covered the stove, hiding it.": ["A clay pot", "the stove"],
    "the red": ["the red"],
    "a pink rose and a tall sapling": ["a pink rose", "a tall sapling"],
    "The moon rose above a wide lake": ["The moon", "a wide lake"],
    "a grey moth and a purple butterfly": ["a grey moth", "a purple butterfly"],
    "a cubic crate and a cylindrical can of beans": ["a cubic crate", "a cylindrical can", "beans"],
    "A brass watering can held its wilted stitching": ["A brass watering can", "its wilted stitching"],
    "": [],
    "and of the": [],
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_noun_phrases_of_sentences(sentence: str) -> None:
    assert noun_phrases(sentence) == SENTENCES[sentence]


@given(st.text(max_size=60))
def test_no_text_is_too_odd(text: str) -> None:
    assert all(phrase.strip() for phrase in noun_phrases(text))


def test_places_in_sentences() -> None:
    found = {
        "The blue mug was on top of the oak shelf.": Spatial("mug", "on top of", "shelf"),
        "A lantern hung in the hall near a man": Spatial("hall", "near", "person"),
        "The mug sat inside the shelf.": None,
        "near a shelf": None,
    }
    for sentence, expected in found.items():
        assert sentence_spatial(sentence) == expected
