"""Cuts a page's text into overlapping windows of words that fit a model."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

from mmrr.contracts import Window

#: Scripts without blanks between words: Thai, Japanese, Chinese.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
#: A word: two characters of these scripts, else at most 40 characters without a blank.
_WORD = re.compile(f"[{_UNSPACED}]{{1,2}}|[^\\s{_UNSPACED}]{{1,40}}")


def cut(
    text: str, words: int, step: int, most_tokens: int, count_tokens: Callable[[list[str]], Sequence[int]]
) -> list[Window]:
    """Windows of ``words`` words every ``step`` words. A text without words has none.

    ``count_tokens`` gives the number of tokens of each of some texts. A window of more than ``most_tokens`` tokens is
    cut to them, and the next window then starts after the same share of it.
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    starts = [0, *(end for _, end in spans[:-1])]  # a word is counted with the blanks before it
    parts = [text[start:end] for start, (_, end) in zip(starts, spans, strict=False)]
    edges = [0, *itertools.accumulate(count_tokens(parts) if parts else [])]
    found: list[Window] = []
    first = 0
    while first < len(spans):
        after = min(first + words, len(spans))
        while after > first + 1 and edges[after] - edges[first] > most_tokens:
            after -= 1
        found.append(Window(spans[first][0], spans[after - 1][1]))
        if after == len(spans):
            break
        first += max(1, (after - first) * step // words)
    return found
