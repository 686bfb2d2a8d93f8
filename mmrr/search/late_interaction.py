"""Late interaction: pages' vectors in one file that is mapped into memory, and what they score.

A page scores the sum, over a query's vectors, of the best product with one of its own (ColBERT, arXiv 2004.12832).
Where products can be told to be logits, each of the query's vectors counts by how few of the pages have what it asks
for, as a word does in BM25.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmrr.errors import MmrrError

#: Vectors that are products' other side at once: 4,096 of 128 numbers stay in a processor's own memory.
_BLOCK = 4096
#: Products held at once, and best ones.
_PRODUCTS = 1 << 25


def write_rows(pages: Iterable[NDArray[np.float32]], path: Path) -> NDArray[np.int64]:
    """Write a NumPy file of float16 rows, one page's after another's, and return how many each page has."""
    sizes: list[int] = []
    width = 0
    with path.open("wb") as file:

        def header() -> None:
            shape = {"descr": "<f2", "fortran_order": False, "shape": (sum(sizes), width)}
            np.lib.format.write_array_header_1_0(file, shape)

        for page in pages:
            if not sizes:
                width = page.shape[1]
                header()
            file.write(page.astype("<f2").tobytes())
            sizes.append(len(page))
        file.seek(0)
        header()  # as long as before: NumPy leaves room for the first axis to grow
    return np.array(sizes)


def read_rows(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """A NumPy file of rows; ``mapped``: read from the disk as they are needed. Raises MmrrError if it is damaged."""
    try:  # "c": as "r", but torch may look at it
        rows: NDArray[Any] = np.asarray(np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise MmrrError(f"{path} is damaged or gone; run mmrr index again") from error
    return rows


def pages_at(vectors: NDArray[Any], sizes: NDArray[np.int64], rows: Iterable[int]) -> Iterator[NDArray[Any]]:
    """The vectors (V, D) of the pages at ``rows``."""
    ends = np.cumsum(sizes)
    return (vectors[ends[row] - sizes[row] : ends[row]] for row in rows)


def sample(vectors: NDArray[np.float16], sizes: NDArray[np.int64], n: int) -> NDArray[np.float32]:
    """At least ``n`` vectors, of whole pages drawn at random, or all."""
    order = np.random.default_rng(0).permutation(len(sizes))
    drawn = np.sort(order[: int(np.searchsorted(np.cumsum(sizes[order]), n)) + 1])
    return np.concatenate(list(pages_at(vectors, sizes, drawn))).astype(np.float32)


def max_sim(
    queries: Sequence[NDArray[np.float32]],
    vectors: NDArray[Any],
    sizes: NDArray[np.int64],
    temperature: float = 0.0,
) -> NDArray[np.float32]:
    """Scores (Q, pages): the sum, over a query's vectors (M, D), of the best product with one of a page's.

    ``vectors`` (sum of ``sizes``, D) float32 or float16, one page's after another's; every page has one at least.
    ``temperature``: what products are divided by to be logits; then each of the query's vectors counts ``rarity``
    times among these pages. 0: each counts once.
    """
    scores = np.empty((len(queries), len(sizes)), dtype=np.float32)
    first = 0
    while first < len(queries):
        after, n = first + 1, len(queries[first])
        while after < len(queries) and (n + len(queries[after])) * len(sizes) <= _PRODUCTS:
            n += len(queries[after])
            after += 1
        best = _best_products(np.concatenate(queries[first:after]), vectors, sizes)
        if temperature:
            best *= rarity(best, temperature)[:, None]
        firsts = np.cumsum([0, *map(len, queries[first : after - 1])])
        scores[first:after] = np.add.reduceat(best, firsts, axis=0)
        first = after
    return scores


def rarity(best: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Of vectors with these best products (M, pages), how much each tells, (M,): log(pages / df), at least 0.

    An inverse document frequency whose documents are counted softly: the page with the largest product is one, any
    other as much of one as its likelihood beside it, exp(difference / ``temperature``).
    """
    gaps = (best - best.max(axis=1, keepdims=True)) / np.float32(temperature)
    found: NDArray[np.float32] = np.exp(gaps, out=gaps).sum(axis=1)
    return np.maximum(np.log(best.shape[1] / found), 0).astype(np.float32)


def _best_products(asked: NDArray[np.float32], vectors: NDArray[Any], sizes: NDArray[np.int64]) -> NDArray[np.float32]:
    """(M, pages): the largest product of each of ``asked`` (M, D) with one of a page's vectors."""
    asked_tensor = torch.from_numpy(asked)
    ends = np.cumsum(sizes)
    best = np.empty((len(asked), len(sizes)), dtype=np.float32)
    block = min(_BLOCK, _PRODUCTS // len(asked))
    page = 0
    while page < len(sizes):
        start = ends[page] - sizes[page]
        after = max(page + 1, int(np.searchsorted(ends, start + block, side="right")))
        part = torch.from_numpy(vectors[start : ends[after - 1]]).float()  # several times as fast as by NumPy
        with torch.autocast("cpu", enabled=False):  # a training may be inside of one
            products = (asked_tensor @ part.T).numpy()
        np.maximum.reduceat(products, ends[page:after] - sizes[page:after] - start, axis=1, out=best[:, page:after])
        page = after
    return best
