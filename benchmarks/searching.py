"""Measures the first stage alone: ``python -m benchmarks.searching [PAGES [WIDTH [VECTORS [ASKED [FACTORY ...]]]]]``,
by default 100,000 pages with one vector of 2,048, queries with one, and all of the FAISS factories below.

Random unit vectors, and texts of 300 words drawn as often as words are in English (Zipf). Building, loading, and the
time of a query, alone and among 32 asked together.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from mmrr.search.fusion import blend
from mmrr.search.indexes import TextIndex, build_dense, search_dense
from mmrr.stages.retrieve import best_by_text
from mmrr.types import rank

T = TypeVar("T")
DEPTH, WORDS, VOCABULARY = 100, 300, 100_000


def timed(what: str, work: Callable[[], T], per: int = 1) -> tuple[T, float]:
    start = time.perf_counter()
    result = work()
    ms = 1000 * (time.perf_counter() - start) / per
    print(f"{what:<44}{ms:12.1f} ms", flush=True)
    return result, ms


def main(pages: int = 100_000, width: int = 2048, n_vectors: int = 1, n_asked: int = 1, *factories: str) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((pages * n_vectors, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = list(rng.standard_normal((33, n_asked, width), dtype=np.float32) / width**0.5)
    by_page = vectors.reshape(pages, n_vectors, width)

    def search(index: Path, n: int) -> list[dict[int, float]]:
        return search_dense({path.name: path for path in index.iterdir()}, queries[:n], DEPTH)

    likely = 1 / np.arange(1, VOCABULARY + 1)
    likely /= likely.sum()
    texts = [" ".join(f"w{word}" for word in row) for row in rng.choice(VOCABULARY, (pages, WORDS), p=likely)]
    asked = [" ".join(f"w{word}" for word in row) for row in rng.choice(VOCABULARY, (32, 8), p=likely)]
    exact = None
    with tempfile.TemporaryDirectory() as folder:
        short = f"PCA{min(256, width // 6)},SQ8,Refine(SQfp16)"
        for factory in ("Flat", *(factories or ("SQfp16", "SQbf16", "SQ8", short, "IVF1024,Flat"))):
            path = Path(folder) / f"index-{factory}"
            path.mkdir()
            timed(f"build {factory}", lambda f=factory, p=path: build_dense(by_page, f, p, several=n_vectors > 1))
            print(f"{'bytes':<44}{sum(file.stat().st_size for file in path.iterdir()) / 1e6:12.1f} MB")
            one, ms = timed(f"load {factory} and ask one", lambda p=path: search(p, 1))
            many, more = timed(f"load {factory} and ask 33", lambda p=path: search(p, 33))
            print(f"{'each further query':<44}{(more - ms) / 32:12.1f} ms")
            first = [{*sorted(found, key=lambda row, f=found: -f[row])[:20]} for found in many]
            exact = first if factory == "Flat" else exact
            shared = np.mean([len(a & b) / 20 for a, b in zip(exact, first, strict=True)])
            print(f"{'of the exact first 20':<44}{shared:12.2f}")
        index, _ = timed("build BM25", lambda: TextIndex.build(texts))
        index.save(Path(folder) / "text")
        print(f"{'bytes':<44}{sum(p.stat().st_size for p in (Path(folder) / 'text').iterdir()) / 1e6:12.1f} MB")
        loaded, _ = timed("load BM25", lambda: TextIndex.load(Path(folder) / "text", pages))
        best_by_text(loaded, asked[0], DEPTH)
        by_text, _ = timed("ask BM25", lambda: [best_by_text(loaded, text, DEPTH) for text in asked], len(asked))
        dense = {"q": rank({str(row): score for row, score in one[0].items()}, DEPTH)}
        text = {"q": rank({str(row): score for row, score in by_text[0]}, DEPTH)}
        timed("blend", lambda: [blend(dense, text, 1.0) for _ in range(100)], 100)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), *sys.argv[5:])
