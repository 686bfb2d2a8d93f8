"""The passage of a page's text that answers a query best, and the places of the query's words in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mmrr.search.words import Words

#: Of a passage, and of the text before its first word of the query.
LENGTH, BEFORE = 240, 40


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a page's text on one line."""

    text: str
    marks: list[tuple[int, int]]  # (start, end) of the query's words in ``text``
    cut: tuple[bool, bool] = (False, False)  # whether the page has text before and after it


class Marker:
    """Finds the words of one query in texts by the rules of the index: "dates" is found in "date"."""

    def __init__(self, query: str, languages: Sequence[str], words: Words | None = None) -> None:
        """``languages``: of the pages, the most frequent one first; not empty.

        ``words``: of these languages, with the words of earlier texts in its memory.
        """
        self._query, self._default = query, languages[0]
        self._words = words or Words(languages)

    @cached_property
    def _wanted(self) -> frozenset[str]:
        return frozenset(self._words.of_query(self._query))

    def places(self, text: str, language: str | None = None) -> list[tuple[int, int]]:
        """(start, end) of the query's words in a text of this language (None: the most frequent one), in order."""
        return self._words.places(text, self._wanted, language or self._default)

    def passage(self, text: str, language: str | None = None, length: int = LENGTH) -> Passage:
        """The part with the most different words of the query; the text's start if it has none of them."""
        text = " ".join(text.split())
        found = self.places(text, language)
        start = _best_start(text, found, length)
        end = len(text) if len(text) - start <= length else text.rfind(" ", start + length // 2, start + length + 1)
        if end < 0:  # no blank
            end = start + length
        marks = [(max(a, start) - start, min(b, end) - start) for a, b in found if start <= a < end]
        return Passage(text[start:end], marks, (start > 0, end < len(text)))


def _best_start(text: str, found: Sequence[tuple[int, int]], length: int) -> int:
    """Where the passage begins. The words are counted in a window that slides over them."""
    best, most, first = 0, 0, 0
    inside: Counter[str] = Counter()
    for start, end in found:
        inside[text[start:end].casefold()] += 1
        while end - found[first][0] > length - BEFORE:
            word = text[slice(*found[first])].casefold()
            inside[word] -= 1
            if not inside[word]:
                del inside[word]
            first += 1
        if len(inside) > most:
            best, most = found[first][0], len(inside)
    # Some words before the first one of the query; from the start of the text if that one is near it.
    return text.rfind(" ", 0, best - BEFORE) + 1 if best > length // 2 else 0
