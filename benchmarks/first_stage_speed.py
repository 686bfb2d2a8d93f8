"""Measures the first stage alone: build, size, load and query time of FAISS indexes, BM25 and score fusion.

The data are random: unit vectors, and texts of 300 words with the word frequencies of English (Zipf). A FAISS index is
queried with one query and with 33 queries; recall is against the exact first 20 pages. The defaults are 100,000 pages
with one vector of 2,048 numbers, queries with one vector, and five FAISS factories.

    python -m benchmarks.first_stage_speed [PAGES [WIDTH [PAGE_VECTORS [QUERY_VECTORS [FACTORY ...]]]]]

Feeds the section "Large collections" of BENCHMARKS.md.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from mmrr.search.fusion import fuse
from mmrr.search.indexes import TextIndex, build_dense, search_dense
from mmrr.stages.retrieve import best_by_text
from mmrr.types import Hit, rank

T = TypeVar("T")
DEPTH, WORDS, VOCABULARY, QUERIES = 100, 300, 100_000, 33


def timed(what: str, work: Callable[[], T], per: int = 1) -> tuple[T, float]:
    """The result of ``work`` and its time in ms, divided by ``per``; prints the time."""
    start = time.perf_counter()
    result = work()
    ms = 1000 * (time.perf_counter() - start) / per
    show(what, ms, "ms")
    return result, ms


def show(what: str, value: float, unit: str = "", digits: int = 1) -> None:
    print(f"{what:<44}{value:12.{digits}f} {unit}".rstrip(), flush=True)


def size_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


def measure_dense(pages: np.ndarray, queries: list[np.ndarray], factories: tuple[str, ...], folder: Path) -> list[Hit]:
    """Time FAISS indexes over page vectors (pages, V, D). Returns the hits of the first query in the last index."""
    exact: list[set[int]] = []
    several = pages.shape[1] > 1
    for factory in ("Flat", *factories):
        path = folder / f"index-{factory}"
        path.mkdir()

        def search(n: int, path: Path = path) -> list[dict[int, float]]:
            return search_dense({file.name: file for file in path.iterdir()}, queries[:n], DEPTH)

        timed(f"build {factory}", lambda f=factory, p=path: build_dense(pages, f, p, several=several))
        show("size", size_mb(path), "MB")
        one, ms_one = timed(f"load {factory}, 1 query", lambda run=search: run(1))
        many, ms_many = timed(f"load {factory}, {QUERIES} queries", lambda run=search: run(QUERIES))
        show("each further query", (ms_many - ms_one) / (QUERIES - 1), "ms")
        top = [{*sorted(found, key=lambda row, f=found: -f[row])[:20]} for found in many]
        exact = top if factory == "Flat" else exact
        show(
            "share of the exact first 20",
            float(np.mean([len(a & b) / 20 for a, b in zip(exact, top, strict=True)])),
            digits=2,
        )
    return rank({str(row): score for row, score in one[0].items()}, DEPTH)


def measure_text(texts: list[str], queries: list[str], folder: Path) -> list[Hit]:
    """Time BM25. Returns the hits of the first query."""
    index, _ = timed("build BM25", lambda: TextIndex.build(texts))
    index.save(folder / "text")
    show("size", size_mb(folder / "text"), "MB")
    loaded, _ = timed("load BM25", lambda: TextIndex.load(folder / "text", len(texts)))
    best_by_text(loaded, queries[0], DEPTH)
    found, _ = timed("query BM25", lambda: [best_by_text(loaded, text, DEPTH) for text in queries], len(queries))
    return rank({str(row): score for row, score in found[0]}, DEPTH)


def main(
    pages: int = 100_000, width: int = 2048, page_vectors: int = 1, query_vectors: int = 1, *factories: str
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((pages * page_vectors, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = list(rng.standard_normal((QUERIES, query_vectors, width), dtype=np.float32) / width**0.5)
    frequencies = 1 / np.arange(1, VOCABULARY + 1)
    frequencies /= frequencies.sum()
    texts, questions = (
        [" ".join(f"w{word}" for word in row) for row in rng.choice(VOCABULARY, shape, p=frequencies)]
        for shape in ((pages, WORDS), (32, 8))
    )
    short = f"PCA{min(256, width // 6)},SQ8,Refine(SQfp16)"
    factories = factories or ("SQfp16", "SQbf16", "SQ8", short, "IVF1024,Flat")
    with tempfile.TemporaryDirectory() as folder:
        by_page = vectors.reshape(pages, page_vectors, width)
        dense = {"q": measure_dense(by_page, queries, factories, Path(folder))}
        text = {"q": measure_text(texts, questions, Path(folder))}
        timed("fuse", lambda: [fuse(dense, text, 1.0) for _ in range(100)], 100)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), *sys.argv[5:])
