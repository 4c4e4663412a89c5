"""Noun phrases and places of short English prompts, by words alone.

T2I-CompBench's authors ask spaCy's English model, which no package index carries. A phrase here begins at a determiner
or after a word of function, and ends before the next, so "The blue mug sat next to a soft green towel" has "The blue
mug" and "a soft green towel". A verb without an auxiliary is told by its ending and by a list, so some stay in their
phrase; where that matters, give the split with the prompts (`compbench.read_items`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

NO_OBJECTS = ("top", "the side", "the left", "the right")
"""Phrases that name a place and no object, left out as published."""

LOCALITIES = (
    "on side of",
    "next to",
    "near",
    "on the left of",
    "on the right of",
    "on the bottom of",
    "on the top of",
    "on top of",
)
PEOPLE = ("girl", "boy", "man", "woman")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words(
    "a an the this that these those his her its their our my your some each every another two three four five"
)
_FUNCTION = _words(
    "of in on at to from with without by for near next above below under over behind beside between among across into "
    "onto through around along against inside outside beneath toward towards past down up off out upon within during "
    "and or but as while when where which who whose that than then if so like is are was were be been being has have "
    "had do does did could will would should may might must not it they he she we you i them him there very both "
    "about before after until front back away together"
)
_VERBS = _words(
    "sat sits lay lies hung hangs hang rest rests hold holds held mix mixes serve serves release releases stood shone "
    "shines flew flies drove drives ran runs fell falls sank swam sped shows told made gave woke wore grew blew rose "
    "provide provides spread cooked melted lingered spun glowed gleamed wrote became felt lit kept"
)
_COLOURS = _words(
    "red orange yellow green blue purple pink brown black white grey gray gold silver beige tan teal"
)
_ADJECTIVES = _COLOURS | _words(
    "big bold broad cubic cubical curved cylindrical dark deep dry fabric flat fluffy fragile fresh furry glass golden "
    "hard heavy huge large leather little long lush metallic narrow new oblong old oval pentagonal plastic pyramidal "
    "rectangular rough round rubber sharp shiny short slim small smooth soft spherical square straight sweet tall "
    "teardrop thick thin tiny triangular vibrant warm wet wide wooden young"
)
"""Of the benchmark's kinds and common ones: what follows one of them and would end a phrase is its noun."""
_NO_VERBS = _words(
    "red bed shed sled seed weed reed king ring wing string thing ceiling building painting clothing flooring meeting "
    "morning evening earring lightning wedding bedding icing frosting railing sibling family lily fly belly jelly "
    "butterfly sapling duckling stitching watering"
)


@dataclass(frozen=True)
class Spatial:
    """A spatial prompt: what stands where; people are "person", as detectors call them."""

    first: str
    locality: str
    second: str


def parse_spatial(prompt: str) -> Spatial:
    """Splits "a girl on the top of a frog" into its objects and the locality between them.

    Raises:
        ValueError: it has no locality of `LOCALITIES` between two objects.
    """
    text = prompt.strip().rstrip(".").lower()
    for locality in LOCALITIES:
        first, found, second = text.partition(f" {locality} ")
        if found and first.strip() and second.strip():
            return Spatial(_noun(first), locality, _noun(second))
    raise ValueError(f"'{prompt}' has none of {', '.join(LOCALITIES)} between two objects")


def sentence_spatial(prompt: str) -> Spatial | None:
    """The same of a whole sentence, "The blue mug was on top of the shelf": the nearest phrase's noun on each side.

    A phrase's noun is its last word. The authors take the nearest word that is a noun, so of "the coat rack" on the
    right they look for "coat".
    """
    text = prompt.strip().rstrip(".").lower()
    for locality in LOCALITIES:
        first, found, second = text.partition(f" {locality} ")
        before, after = noun_phrases(first), noun_phrases(second)
        if found and before and after:
            first, second = (phrase.split()[-1] for phrase in (before[-1], after[0]))
            return Spatial(_noun(first), locality, _noun(second))
    return None


def _noun(phrase: str) -> str:
    words = re.sub(r"^(a|an|the) ", "", phrase.strip())
    return "person" if words in PEOPLE else words


def noun_phrases(prompt: str) -> list[str]:
    """Noun phrases of a prompt in its order, "a teal drum", "a round kettle"; those that name a place are left out."""
    found = (" ".join(_without_verbs(words)) for words in _chunks(prompt))
    return [phrase for phrase in found if phrase and phrase.lower() not in NO_OBJECTS]


def _chunks(prompt: str) -> Iterator[list[str]]:
    """Words between words of function; a comma within a list of adjectives stays with its word."""
    tokens = re.findall(r"[^\s,;:.!?\"()]+|[,;:.!?]", prompt)
    words: list[str] = []
    for place, token in enumerate(tokens):
        before, after = (tokens[n].lower() if 0 <= n < len(tokens) else "" for n in (place - 1, place + 1))
        lower = token.lower()
        begun = len(words) == 2 and words[0].lower() in _DETERMINERS
        if lower == "and" and before in _COLOURS and after in _COLOURS:
            words.append(token)
        elif token == "," and begun and after not in _DETERMINERS:
            words[-1] += ","
        elif lower in _DETERMINERS and all(word.lower() in _DETERMINERS for word in words):
            words.append(token)
        elif lower in _DETERMINERS:
            yield words
            words = [token]
        elif lower in _FUNCTION or re.fullmatch(r"[,;:.!?]", token):
            yield words
            words = []
        else:
            words.append(token)
    yield words


def _without_verbs(words: list[str]) -> list[str]:
    """A phrase without the verbs and adverbs at its end; nothing where nothing but a determiner is left."""
    kept = list(words)
    # Before a verb stand a determiner and a noun at least, or a verb stands alone behind its auxiliary.
    while kept and (len(kept) != 2 or kept[0].lower() not in _DETERMINERS) and _is_verb(kept[-1].lower()):
        if len(kept) > 1 and kept[-2].lower() in _ADJECTIVES:
            break  # "a red rose", "a yellow butterfly": no phrase ends with an adjective
        kept.pop()
    kept[-1:] = [word.rstrip(",") for word in kept[-1:]]
    return kept if any(word.lower() not in _DETERMINERS for word in kept) else []


def _is_verb(word: str) -> bool:
    if word in _NO_VERBS:
        return False
    return word in _VERBS or (len(word) > 4 and word.endswith(("ed", "ing", "ly")))
