"""Targets for dense supervision: the characters and words in each cell of a page. Knows no models."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import xxhash

from mmrr.training.synthetic.canvas import Word

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
#: Number of buckets into which the n-grams of words are hashed.
N_HASHES = 1024
_INDEX = {character: i for i, character in enumerate(ALPHABET)}
_NOT_WORD = re.compile(r"[^a-z0-9]+")


def fold(text: str) -> str:
    """A word to compare: lower case letters and digits, without accents, punctuation and spaces."""
    plain = unicodedata.normalize("NFKD", text).lower()
    return _NOT_WORD.sub("", plain)


@lru_cache(maxsize=200_000)
def word_hashes(folded: str) -> tuple[int, ...]:
    """Sorted buckets of a word: of its trigrams with marked ends, and of the whole word. Empty for an empty word."""
    if not folded:
        return ()
    marked = f"^{folded}$"
    grams = {marked[i : i + 3] for i in range(len(marked) - 2)} | {marked}
    return tuple(sorted({xxhash.xxh32_intdigest(gram.encode()) % N_HASHES for gram in grams}))


@lru_cache(maxsize=65536)
def _character(character: str) -> int:
    """Index in ``ALPHABET``; -1: not a letter or digit."""
    folded = fold(character)
    return _INDEX.get(folded[:1], -1)


class CellTargets:
    """The characters of a page as arrays, from which the targets of any rectangle of cells are computed quickly."""

    def __init__(self, words: Sequence[Word]) -> None:
        self.hashes = [word_hashes(fold(word.text)) for word in words]
        centres = [word.centres for word in words]
        self.centres = np.concatenate(centres) if centres else np.zeros((0, 2), np.float32)
        self.characters = np.array([_character(c) for word in words for c in word.text], dtype=np.int64)
        lengths = [len(word.text) for word in words]
        self.word_of = np.repeat(np.arange(len(words)), lengths)

    def crop(self, left: int, top: int, columns: int, rows: int, cell_px: float) -> tuple[np.ndarray, np.ndarray]:
        """Targets of a rectangle: characters (rows * columns, 36) and hashes (rows * columns, N_HASHES), both bool.

        ``left``, ``top`` and ``cell_px``: the rectangle's corner and the side of a cell, in page pixels. A character
        belongs to the cell that contains its centre. A word belongs to every cell of its characters.
        """
        x = np.floor((self.centres[:, 0] - left) / cell_px).astype(np.int64)
        y = np.floor((self.centres[:, 1] - top) / cell_px).astype(np.int64)
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows) & (self.characters >= 0)
        cells = (y * columns + x)[inside]
        characters = np.zeros((rows * columns, len(ALPHABET)), dtype=bool)
        characters[cells, self.characters[inside]] = True
        hashes = np.zeros((rows * columns, N_HASHES), dtype=bool)
        pairs = np.unique(np.stack([cells, self.word_of[inside]], axis=1), axis=0)
        if len(pairs):
            of_word = [self.hashes[word] for word in pairs[:, 1]]
            where = np.repeat(pairs[:, 0], [len(found) for found in of_word])
            hashes[where, np.concatenate([np.array(found, dtype=np.int64) for found in of_word])] = True
        return characters, hashes
