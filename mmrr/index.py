"""The two first-stage indexes: page vectors in FAISS, the text layer in BM25. The only importer of both libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import bm25s
import faiss
import numpy as np
import Stemmer
from numpy.typing import NDArray

from mmrr.errors import MmrrError

#: Files of an ``index`` artifact.
DENSE, SIZES, TEXT = "dense.faiss", "sizes.npy", "bm25"

#: Of an inverted file's lists a query looks into this share, and into so many at least.
PROBED, FEWEST = 1 / 16, 8

#: Of what an approximate search finds, so many times as many are scored exactly as are asked for.
RESCORED = 4
#: For each vector of a query, an approximate search asks for so many times as many vectors as pages are wanted.
NEIGHBOURS = 16
#: Products held at once while every page is scored.
_PRODUCTS = 1 << 25

#: bm25s's own defaults (Lucene's BM25), with English stemming and its short list of stop words.
BM25 = {"method": "lucene", "k1": 1.5, "b": 0.75, "stemmer": "english", "stopwords": "en"}


def build_dense(vectors: NDArray[np.float32], factory: str, path: Path) -> None:
    """Build a FAISS inner-product index over unit vectors (n, D) and write it.

    Raises MmrrError if the factory string is not FAISS's or needs more vectors than there are.
    """
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(vectors)
        index.add(vectors)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].split("Error: ")[-1]
        raise MmrrError(f"FAISS cannot build '{factory}' over {len(vectors)} vectors: {reason}") from error
    path.write_bytes(faiss.serialize_index(index).tobytes())


def max_sim(
    queries: Sequence[NDArray[np.float32]], vectors: NDArray[np.float32], sizes: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Scores (Q, pages): the sum, over a query's vectors (M, D), of the best product with one of a page's.

    ``vectors`` (sum of ``sizes``, D), one page's after another's; every page has one at least.
    """
    asked = np.concatenate(queries)
    firsts = np.cumsum([0, *map(len, queries[:-1])])
    ends = np.cumsum(sizes)
    scores = np.empty((len(queries), len(sizes)), dtype=np.float32)
    page = 0
    while page < len(sizes):
        start = ends[page] - sizes[page]
        after = max(page + 1, int(np.searchsorted(ends, start + _PRODUCTS // len(asked), side="right")))
        products = asked @ vectors[start : ends[after - 1]].T
        best = np.maximum.reduceat(products, ends[page:after] - sizes[page:after] - start, axis=1)
        scores[:, page:after] = np.add.reduceat(best, firsts, axis=0)
        page = after
    return scores


def search_dense(
    path: Path,
    queries: Sequence[NDArray[np.float32]],
    sizes: NDArray[np.int64],
    depth: int,
    read: Callable[[list[int]], list[NDArray[np.float32]]],
) -> list[dict[int, float]]:
    """Of each query (M, D) the best ``depth`` pages by row at least, with their ``max_sim``.

    ``sizes`` (pages,): how many vectors a page has; ``read`` gives the vectors (V, D) of pages by row. "Flat" finds
    exactly the best; an index that approximates may miss some, and may find fewer. Raises MmrrError if it is damaged.
    """
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise MmrrError(f"{path} is damaged or gone; run mmrr index again") from error
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:  # FAISS's own default looks into a single list
        lists.nprobe = max(FEWEST, round(lists.nlist * PROBED))
    if isinstance(index, faiss.IndexRefine):
        index.k_factor = RESCORED
    if index.ntotal == len(sizes) and all(len(query) == 1 for query in queries):
        found = zip(*index.search(np.concatenate(queries), min(depth, index.ntotal)), strict=True)
        return [  # FAISS fills up with -1
            {row: score for score, row in zip(scores.tolist(), rows.tolist(), strict=True) if row >= 0}
            for scores, rows in found
        ]
    if isinstance(index, faiss.IndexFlat):
        vectors = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(-1, index.d)
        return [_best(scores, depth) for scores in max_sim(queries, vectors, sizes)]
    owners = np.repeat(np.arange(len(sizes)), sizes)
    return [_approximate(index, query, owners, depth, read) for query in queries]


def _best(scores: NDArray[np.float32], depth: int) -> dict[int, float]:
    """The best ``depth`` rows, and ties at the edge, in no order."""
    edge = np.partition(scores, -depth)[-depth] if len(scores) > depth else -np.inf
    return {int(row): float(scores[row]) for row in np.flatnonzero(scores >= edge)}


def _approximate(
    index: faiss.Index,
    query: NDArray[np.float32],
    owners: NDArray[np.int64],
    depth: int,
    read: Callable[[list[int]], list[NDArray[np.float32]]],
) -> dict[int, float]:
    """Pages near any of the query's vectors; the most promising are scored exactly.

    A page that was not found for a vector counts there as the last one that was (the missing scores of XTR,
    arXiv 2304.01982).
    """
    scores, rows = index.search(query, min(depth * NEIGHBOURS, index.ntotal))
    gains: dict[int, float] = {}
    for of_vector, found in zip(scores, rows, strict=True):
        found, of_vector = found[found >= 0], of_vector[found >= 0]
        if not len(found):
            continue
        pages, first = np.unique(owners[found], return_index=True)  # best first: a page's first is its best
        for page, score in zip(pages.tolist(), of_vector[first].tolist(), strict=True):
            gains[page] = gains.get(page, 0.0) + score - float(of_vector[-1])
    promising = sorted(gains, key=lambda page: (-gains[page], page))[: RESCORED * depth]
    if not promising:
        return {}
    vectors = read(promising)
    (exact,) = max_sim([query], np.concatenate(vectors), np.array([len(one) for one in vectors]))
    return dict(zip(promising, exact.tolist(), strict=True))


def tokenize(texts: list[str]) -> list[list[str]]:
    """Lower-cased, stemmed words of two letters or more, stop words removed."""
    stemmer = Stemmer.Stemmer(BM25["stemmer"])
    tokens: list[list[str]] = bm25s.tokenize(
        texts, stopwords=BM25["stopwords"], stemmer=stemmer, return_ids=False, show_progress=False
    )
    return tokens


class TextIndex:
    """BM25 over some pages' text."""

    def __init__(self, bm25: bm25s.BM25 | None, n_pages: int) -> None:
        self._bm25 = bm25  # None: not one word in all the pages
        self._n_pages = n_pages

    @classmethod
    def build(cls, texts: list[str]) -> TextIndex:
        tokens = tokenize(texts)
        if not any(tokens):
            return cls(None, len(texts))
        bm25 = bm25s.BM25(method=BM25["method"], k1=BM25["k1"], b=BM25["b"])
        bm25.index(tokens, show_progress=False)
        return cls(bm25, len(texts))

    def scores(self, query: str) -> NDArray[np.float32]:
        """(n,), 0 for a page that shares no word with the query."""
        words = tokenize([query])[0]
        if self._bm25 is None or not words:
            return np.zeros(self._n_pages, dtype=np.float32)
        scores: NDArray[np.float32] = self._bm25.get_scores(words)
        return scores

    def save(self, folder: Path) -> None:
        """Plain arrays and JSON; an index without words is an empty folder."""
        folder.mkdir()
        if self._bm25 is not None:
            self._bm25.save(folder, show_progress=False)

    @classmethod
    def load(cls, folder: Path, n_pages: int) -> TextIndex:
        """Raises MmrrError if the files are damaged or gone."""
        if not folder.is_dir():
            raise MmrrError(f"{folder} is gone; run mmrr index again")
        if not any(folder.iterdir()):
            return cls(None, n_pages)
        try:
            return cls(bm25s.BM25.load(folder, load_corpus=False, allow_pickle=False), n_pages)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise MmrrError(f"{folder} is damaged ({error}); run mmrr index again") from error
