"""Measures whether a late-interaction embedder finds words on real PDF pages. No ranking, so one page tells a lot.

The queries are four consecutive words of the page's own text layer. A word of at least four letters is found if the
page's visual token that is most similar to the word's vector contains this word, at this or another place of the page.
Visual tokens are not pooled. ``FOLDER`` has PDFs, and ``PAGES`` is the maximum number of pages.

    python -m benchmarks.word_localization EMBEDDER FOLDER PAGES

Feeds the section "How well the reader reads" of BENCHMARKS.md.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pypdfium2 as pdfium
import torch
from PIL import Image

from benchmarks.pdf_pages import MIN_CHARACTERS, characters, image, size_px
from mmrr.embedders import colqwen3
from mmrr.modeling import checkpoints
from mmrr.types import Grid
from mmrr.workspace.files import HashCache

PAGES_PER_PDF, QUERIES_PER_PAGE, WORDS, MIN_LETTERS = 2, 14, 4, 4
#: Limits of the classes of print size: mean distance of a word's letters, in pixels of a page image of 1,280 tokens.
PITCHES = (0.0, 5.0, 6.5, 8.0, 10.0, 100.0)


@dataclass(frozen=True, slots=True)
class PlacedWord:
    """A word and the centres of its characters in pixels, (n, 2)."""

    text: str
    centres: np.ndarray

    @property
    def pitch(self) -> float:
        """Mean distance of its letters in pixels."""
        n = len(self.centres) - 1
        return float(np.linalg.norm(self.centres[-1] - self.centres[0])) / n if n else 0.0


@dataclass(frozen=True, slots=True)
class TestPage:
    """A page image and the words of its text layer, line by line."""

    image: Image.Image
    lines: list[list[PlacedWord]]
    size_px: tuple[int, int]


def normalized(text: str) -> str:
    """The letters and digits of a word in lower case."""
    return "".join(filter(str.isalnum, text.casefold()))


def lines(page: pdfium.PdfPage, size: tuple[int, int]) -> list[list[PlacedWord]]:
    """The words of a page's text layer, line by line."""
    found: list[list[PlacedWord]] = [[]]
    word: list[tuple[str, np.ndarray]] = []

    def end_word() -> None:
        if word:
            found[-1].append(PlacedWord("".join(c for c, _ in word), np.stack([centre for _, centre in word])))
        word.clear()

    for character in characters(page, *size):
        if not character.text.isspace():
            word.append((character.text, character.centres[0]))
            continue
        end_word()
        if character.text in "\r\n":
            found.append([])
    end_word()
    return found


def pages(folder: Path, n: int) -> Iterator[TestPage]:
    """``n`` upright pages with a text layer, at most two per PDF. Files that do not open are skipped."""
    rng = random.Random(1)
    files = sorted(folder.rglob("*.pdf"))
    rng.shuffle(files)
    for file in files:
        try:
            document = pdfium.PdfDocument(file)
        except pdfium.PdfiumError:
            continue
        for number in rng.sample(range(len(document)), min(len(document), PAGES_PER_PDF)):
            page = document[number]
            if page.get_rotation() or page.get_textpage().count_chars() < MIN_CHARACTERS:
                continue
            if n < 1:
                return
            n -= 1
            size = size_px(page)
            yield TestPage(image(page), lines(page, size), size)


def cell(centre: np.ndarray, size: tuple[int, int], grid: Grid) -> int:
    """The raster index of the visual token that contains a point (x, y)."""
    row, column = (int(at / side * n) for at, side, n in zip(centre[::-1], size[::-1], grid, strict=True))
    return min(max(row, 0), grid[0] - 1) * grid[1] + min(max(column, 0), grid[1] - 1)


def measure(embedder: colqwen3.Embedder, folder: Path, n: int) -> list[tuple[float, bool]]:
    """(pitch, whether it was found) of each word in the queries."""
    return [result for page in pages(folder, n) for result in _measure_page(embedder, page)]


def _measure_page(embedder: colqwen3.Embedder, tested: TestPage) -> Iterator[tuple[float, bool]]:
    (page,) = embedder.embed_pages([tested.image])
    n_tokens = page.grid[0] * page.grid[1]
    tokens_of: dict[str, set[int]] = {}
    for word in itertools.chain.from_iterable(tested.lines):
        cells = {cell(centre, tested.size_px, page.grid) for centre in word.centres}
        tokens_of.setdefault(normalized(word.text), set()).update(cells)
    rng = random.Random(3)
    usable = [line for line in tested.lines if len(line) >= WORDS]
    rng.shuffle(usable)
    for line in usable[:QUERIES_PER_PAGE]:
        start = rng.randint(0, len(line) - WORDS)
        chosen = {normalized(word.text): word for word in line[start : start + WORDS]}
        text = " ".join(word.text for word in line[start : start + WORDS])
        _, named = embedder.query(text, colqwen3.Search())
        (query,) = embedder.embed_queries([text], colqwen3.Search())
        best = (query @ page.vectors[:n_tokens].float().T).argmax(1).tolist()
        for name, token in zip(map(normalized, named.values()), best, strict=True):
            if len(name) >= MIN_LETTERS and name in chosen:
                yield chosen[name].pitch, token in tokens_of[name]


def main(model: str, folder: Path, n_pages: int) -> None:
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = checkpoints.resolve(model, None, HashCache(Path(scratch) / "hashes.json"))
    embedder = colqwen3.Embedder(checkpoint, colqwen3.Prepare(pool=1), torch.device("cpu"), torch.bfloat16)
    results = measure(embedder, folder, n_pages)
    print(f"{len(results)} words, found {np.mean([found for _, found in results]):.3f}")
    for low, high in itertools.pairwise(PITCHES):
        found = [hit for pitch, hit in results if low <= pitch < high]
        if found:
            print(f"  letters {low:g} to {high:g} px apart: {len(found)} words, {np.mean(found):.3f}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
