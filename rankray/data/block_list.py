"""A block-list of words and phrases: prompts that hold one are left out, counted and named.

Matched by words, whatever their case and their Unicode spelling (NFKC, case folded, without characters that have no
width), across punctuation and white space: `top gun` blocks "Top-Gun!" and not "stop gunning". Scripts that do not part
words by spaces are matched anywhere. A list knows no meaning: "bare" blocks a bare tree, and no list is complete.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable


class BlockList:
    """The phrases of a list.

    Args:
        phrases: as they are written; those without a letter or digit, and those behind a #, are left aside.
    """

    def __init__(self, phrases: Iterable[str]) -> None:
        self._spelt: dict[tuple[str, ...], str] = {}
        self._anywhere: dict[str, str] = {}
        for phrase in map(str.strip, phrases):
            words = _words(phrase.partition("#")[0])
            if any(map(_unspaced, words)):
                self._anywhere.setdefault("".join(words), phrase)
            elif words:
                self._spelt.setdefault(words, phrase)
        self._lengths = sorted({len(words) for words in self._spelt})

    def __len__(self) -> int:
        return len(self._spelt) + len(self._anywhere)

    def found_in(self, prompt: str) -> str | None:
        """The first of its phrases that a prompt holds, as it is written in the list; None for none."""
        words = _words(prompt)
        for start in range(len(words)):
            for length in self._lengths:
                phrase = self._spelt.get(words[start : start + length])
                if phrase is not None:
                    return phrase
        text = "".join(words)
        return next((phrase for spelt, phrase in self._anywhere.items() if spelt in text), None)


def _words(text: str) -> tuple[str, ...]:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    shown = "".join(c for c in folded if unicodedata.category(c) != "Cf")
    return tuple(re.findall(r"[^\W_]+", shown))


def _unspaced(word: str) -> bool:
    """Whether it is of a script that parts no words by spaces: Chinese, Japanese, Korean with its particles, Thai."""
    return any(unicodedata.east_asian_width(c) in "WF" or "\u0e00" <= c <= "\u0eff" for c in word)
