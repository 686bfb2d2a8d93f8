"""The two first-stage indexes: page vectors in FAISS, the text layer in BM25. The only importer of both libraries."""

from __future__ import annotations

from pathlib import Path

import bm25s
import faiss
import numpy as np
import Stemmer
from numpy.typing import NDArray

from mmrr.errors import MmrrError

#: Files of an ``index`` artifact.
DENSE, TEXT = "dense.faiss", "bm25"

#: Of an inverted file's lists a query looks into this share, and into so many at least.
PROBED, FEWEST = 1 / 16, 8

#: An index that rescores what shortened vectors find ("Refine") is given so many times as many as are asked for.
RESCORED = 4

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


def search_dense(path: Path, queries: NDArray[np.float32], n_pages: int, depth: int) -> list[dict[int, float]]:
    """Of each query (Q, D) the best ``depth`` pages by row at least, best first: the score of their best vector.

    An index that approximates may find fewer. Raises MmrrError if it is damaged.
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
    a_page = index.ntotal // n_pages  # vectors, one page's after another's
    found: list[dict[int, float]] = []
    for scores, rows in zip(*index.search(queries, min(depth * a_page, index.ntotal)), strict=True):
        pages: dict[int, float] = {}
        for score, row in zip(scores.tolist(), rows.tolist(), strict=True):
            if row >= 0:  # FAISS fills up with -1
                pages.setdefault(row // a_page, score)
        found.append(pages)
    return found


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
