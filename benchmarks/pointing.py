"""How well an embedder with late interaction finds words on real PDF pages: no ranking, so a page tells much.

``python -m benchmarks.pointing EMBEDDER FOLDER PAGES`` asks so many pages of the PDFs in a folder for four words in a
row of their own text layer. A word of four letters or more is found if,
of all the page's visual tokens (none pooled), the
one most like its vector is one that this word stands in, here or elsewhere on the page.
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

from benchmarks.reading import LEAST_CHARACTERS, truth
from mmrr.documents.page_grid import CELL_PX, snap
from mmrr.embedders import colqwen3
from mmrr.modeling import checkpoints
from mmrr.types import Grid
from mmrr.workspace.files import HashCache

PAGES_OF_ONE, QUERIES_OF_A_PAGE, WORDS, LETTERS = 2, 14, 4, 4
#: Print sizes, by the mean distance of a word's letters in pixels of a page of 1,280 cells.
SIZES = (0.0, 5.0, 6.5, 8.0, 10.0, 100.0)


@dataclass(frozen=True, slots=True)
class Placed:
    """A word and the middles of its characters, in pixels (n, 2)."""

    text: str
    middles: np.ndarray

    @property
    def pitch(self) -> float:
        """Mean distance of its letters, in pixels."""
        n = len(self.middles) - 1
        return float(np.linalg.norm(self.middles[-1] - self.middles[0])) / n if n else 0.0


def plain(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def lines(page: pdfium.PdfPage, size: tuple[int, int]) -> list[list[Placed]]:
    """The words of a page, line by line, as its text layer has them."""
    found: list[list[Placed]] = [[]]
    word: list[tuple[str, np.ndarray]] = []

    def end() -> None:
        if word:
            found[-1].append(Placed("".join(c for c, _ in word), np.stack([at for _, at in word])))
        word.clear()

    for character in truth(page, *size):
        if not character.text.isspace():
            word.append((character.text, character.centres[0]))
            continue
        end()
        if character.text in "\r\n":
            found.append([])
    end()
    return found


def pages(folder: Path, n: int) -> Iterator[tuple[Image.Image, list[list[Placed]], tuple[int, int]]]:
    """``n`` upright pages with a text layer, at most two of a PDF; files that do not open are passed over."""
    rng = random.Random(1)
    files = sorted(folder.rglob("*.pdf"))
    rng.shuffle(files)
    for file in files:
        try:
            document = pdfium.PdfDocument(file)
        except pdfium.PdfiumError:
            continue
        for number in rng.sample(range(len(document)), min(len(document), PAGES_OF_ONE)):
            page = document[number]
            width, height = page.get_size()
            width_px, height_px = snap(width * 150 / 72, height * 150 / 72, CELL_PX, 1280)
            if page.get_rotation() or page.get_textpage().count_chars() < LEAST_CHARACTERS:
                continue
            if n < 1:
                return
            n -= 1
            image = page.render(scale=150 / 72).to_pil().convert("RGB")
            yield image, lines(page, (width_px, height_px)), (width_px, height_px)


def cell(middle: np.ndarray, size: tuple[int, int], grid: Grid) -> int:
    """The visual token in which this place (x, y) lies."""
    row, column = (int(at / side * n) for at, side, n in zip(middle[::-1], size[::-1], grid, strict=True))
    return min(max(row, 0), grid[0] - 1) * grid[1] + min(max(column, 0), grid[1] - 1)


def measure(embedder: colqwen3.Embedder, folder: Path, n: int) -> list[tuple[float, bool]]:
    """Of each word that was asked for the pitch of its print and whether it was found."""
    results = []
    for image, rows, size in pages(folder, n):
        (page,) = embedder.embed_pages([image])
        n_tokens = page.grid[0] * page.grid[1]
        places: dict[str, set[int]] = {}
        for word in (word for row in rows for word in row):
            places.setdefault(plain(word.text), set()).update(cell(at, size, page.grid) for at in word.middles)
        rng = random.Random(3)
        asked = [row for row in rows if len(row) >= WORDS]
        rng.shuffle(asked)
        for row in asked[:QUERIES_OF_A_PAGE]:
            start = rng.randint(0, len(row) - WORDS)
            chosen = {plain(word.text): word for word in row[start : start + WORDS]}
            text = " ".join(word.text for word in row[start : start + WORDS])
            _, named = embedder.query(text, colqwen3.Search())
            (query,) = embedder.embed_queries([text], colqwen3.Search())
            best = (query @ page.vectors[:n_tokens].float().T).argmax(1).tolist()
            for name, token in zip(map(plain, named.values()), best, strict=True):
                if len(name) >= LETTERS and name in chosen:
                    results.append((chosen[name].pitch, token in places[name]))
    return results


if __name__ == "__main__":
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = checkpoints.resolve(sys.argv[1], None, HashCache(Path(scratch) / "hashes.json"))
    embedder = colqwen3.Embedder(checkpoint, colqwen3.Prepare(pool=1), torch.device("cpu"), torch.bfloat16)
    results = measure(embedder, Path(sys.argv[2]), int(sys.argv[3]))
    print(f"{len(results)} words, found {np.mean([found for _, found in results]):.3f}")
    for least, most in itertools.pairwise(SIZES):
        found = [hit for pitch, hit in results if least <= pitch < most]
        if found:
            print(f"  letters {least:g} to {most:g} px apart: {len(found)} words, {np.mean(found):.3f}")
