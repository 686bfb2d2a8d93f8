"""Late interaction: page vectors in one memory-mapped file, and the scores of pages.

The score of a page is the sum, over the query's vectors, of the largest dot product with one of the page's vectors
(MaxSim; ColBERT, arXiv 2004.12832). If a temperature turns products into logits, each query vector is weighted by its
soft inverse document frequency among the pages, as BM25 weights words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmrr.errors import MmrrError

#: Page vectors per matmul block. 4,096 vectors of 128 numbers fit the L2 cache.
_BLOCK = 4096
#: Maximum number of products in memory, and of largest products.
_PRODUCTS = 1 << 25


def write_rows(pages: Iterable[NDArray[np.float32]], path: Path) -> NDArray[np.int64]:
    """Write a NumPy file of float16 rows, page after page. Returns the number of rows of each page."""
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
        header()  # of the same length: NumPy leaves room for the first axis to grow
    return np.array(sizes)


def read_rows(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """A NumPy file of rows. ``mapped``: rows are read from the disk on access. Raises MmrrError if it is damaged."""
    try:  # "c" is read-only on disk like "r", but torch accepts the array
        rows: NDArray[Any] = np.asarray(np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise MmrrError(f"{path} is damaged or missing; run mmrr index again") from error
    return rows


def pages_at(vectors: NDArray[Any], sizes: NDArray[np.int64], rows: Iterable[int]) -> Iterator[NDArray[Any]]:
    """The vectors (V, D) of the pages at ``rows``."""
    ends = np.cumsum(sizes)
    return (vectors[ends[row] - sizes[row] : ends[row]] for row in rows)


def sample(vectors: NDArray[np.float16], sizes: NDArray[np.int64], n: int) -> NDArray[np.float32]:
    """At least ``n`` vectors of randomly chosen whole pages; all vectors if there are fewer."""
    order = np.random.default_rng(0).permutation(len(sizes))
    drawn = np.sort(order[: int(np.searchsorted(np.cumsum(sizes[order]), n)) + 1])
    return np.concatenate(list(pages_at(vectors, sizes, drawn))).astype(np.float32)


def max_sim(
    queries: Sequence[NDArray[np.float32]],
    vectors: NDArray[Any],
    sizes: NDArray[np.int64],
    temperature: float = 0.0,
) -> NDArray[np.float32]:
    """MaxSim scores (Q, pages): the sum, over a query's vectors (M, D), of the largest product with a page's vector.

    ``vectors`` (sum of ``sizes``, D): float32 or float16, page after page; every page has at least one vector.
    ``temperature``: divisor that turns products into logits. If it is not 0, each query vector is weighted by its
    ``soft_idf`` among these pages. 0: all weights are 1.
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
            best *= soft_idf(best, temperature)[:, None]
        firsts = np.cumsum([0, *map(len, queries[first : after - 1])])
        scores[first:after] = np.add.reduceat(best, firsts, axis=0)
        first = after
    return scores


def soft_idf(best: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Soft IDF of each query vector, (M,): log(N / df), at least 0, from its largest products ``best`` (M, N pages).

    df is the soft document frequency: the sum over pages of exp((s - s_max) / ``temperature``).
    """
    gaps = (best - best.max(axis=1, keepdims=True)) / np.float32(temperature)
    frequencies: NDArray[np.float32] = np.exp(gaps, out=gaps).sum(axis=1)
    return np.maximum(np.log(best.shape[1] / frequencies), 0).astype(np.float32)


def vector_idf(
    query: NDArray[np.float32], vectors: NDArray[Any], sizes: NDArray[np.int64], temperature: float
) -> NDArray[np.float32]:
    """``soft_idf`` (M,) of a query's vectors (M, D) among all pages; the parameters are those of ``max_sim``."""
    return soft_idf(_best_products(query, vectors, sizes), temperature)


def _best_products(query: NDArray[np.float32], vectors: NDArray[Any], sizes: NDArray[np.int64]) -> NDArray[np.float32]:
    """(M, pages): the largest product of each query vector (M, D) with a vector of each page."""
    query_tensor = torch.from_numpy(query)
    ends = np.cumsum(sizes)
    best = np.empty((len(query), len(sizes)), dtype=np.float32)
    block = min(_BLOCK, _PRODUCTS // len(query))
    page = 0
    while page < len(sizes):
        start = ends[page] - sizes[page]
        after = max(page + 1, int(np.searchsorted(ends, start + block, side="right")))
        part = torch.from_numpy(vectors[start : ends[after - 1]]).float()  # several times faster than in NumPy
        with torch.autocast("cpu", enabled=False):  # training may call this inside an autocast block
            products = (query_tensor @ part.T).numpy()
        np.maximum.reduceat(products, ends[page:after] - sizes[page:after] - start, axis=1, out=best[:, page:after])
        page = after
    return best
