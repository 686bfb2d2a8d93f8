"""The first-stage indexes: page vectors in FAISS, page text in BM25. The only module that imports both libraries."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import bm25s
import faiss
import numpy as np
from numpy.typing import NDArray

from mmrr.errors import MmrrError
from mmrr.search import languages, late_interaction, words

#: Files of an ``index`` artifact: the FAISS index; for multi-vector embedders the vectors and the number of vectors of
#: each page; the BM25 index.
DENSE, VECTORS, SIZES, TEXT = "dense.faiss", "vectors.npy", "sizes.npy", "bm25"
#: For text embedders: the FAISS index of the windows of all pages, and the number of windows of each page.
WINDOWS, WINDOW_COUNTS = "windows.faiss", "windows.npy"
#: The first search for n pages asks for 4 n windows.
_WINDOWS_A_PAGE = 4

#: Inverted file (IVF): nprobe = max(8, nlist / 16).
PROBED, FEWEST = 1 / 16, 8

#: Over-fetch factor: an approximate search for n pages passes 4 n candidates on to exact scoring.
RESCORED = 4
#: An approximate search for n pages asks for max(1024, 16 n) neighbours of each query vector.
NEIGHBOURS, NEAREST = 16, 1024
#: Training sample of a FAISS index: max(65536, 64 nlist) vectors.
_SAMPLED, _SAMPLE = 64, 1 << 16

#: Sizes in a FAISS factory string that FAISS does not refuse and cannot use.
_SIZE_ZERO = re.compile(r"[A-Za-z]*(?<!\d)0+(?!\d)")
_TOO_FEW_NEIGHBOURS = re.compile(r"(HNSW0*1|NSG0*[1-7])(?!\d)")

#: The defaults of bm25s (Lucene's BM25), and the version of the rules that cut text into words.
BM25 = {"method": "lucene", "k1": 1.5, "b": 0.75, "words": words.VERSION}
#: The file of a text index that says by which rules it was made.
_WORDS = "words.json"


#: Dimensions that a factory string is tried with before those of the vectors are known: PQ needs a multiple of its M.
_TRIED = (64, 320, 3840, 4096)


def check_factory(factory: str) -> None:
    """Refuse a factory string that FAISS cannot build, whatever the vectors, or that would stop the process.

    FAISS checks few numbers before it uses them. A size of 0 (HNSW0, IVF0, PQ4x0) ends the process, or makes an index
    that cannot be searched. HNSW1 ends the process too, and NSG with few neighbours never ends. Raises MmrrError.
    """
    found = _SIZE_ZERO.search(factory) or _TOO_FEW_NEIGHBOURS.search(factory)
    if found:
        raise MmrrError(
            f"--faiss-factory {factory}: found '{found[0]}', expected sizes above 0, at least HNSW2 and "
            "at least NSG8; try 'Flat' or 'HNSW32'"
        )
    if _tried(factory) is None:
        raise MmrrError(f"FAISS cannot build '{factory}'; expected a factory string such as Flat, HNSW32 or IVF64,Flat")


def check_vectors(factory: str, n: int) -> None:
    """Raise MmrrError if FAISS needs more than ``n`` vectors to train such an index."""
    index = _tried(factory)
    needed = _fewest(index) if index else 0
    if n < needed:
        raise MmrrError(
            f"FAISS cannot build '{factory}' over {n} vectors: it needs at least {needed}; try 'Flat', or a factory "
            "string of fewer lists"
        )


def _tried(factory: str) -> Any:  # Any: FAISS has no types
    """An empty index, or None if FAISS cannot build it for any dimensions."""
    for dimensions in _TRIED:
        with contextlib.suppress(RuntimeError):
            return faiss.index_factory(dimensions, factory, faiss.METRIC_INNER_PRODUCT)
    return None


def _fewest(index: Any) -> int:
    """The fewest vectors that an index can be trained with: one for each list and for each code of a quantizer."""
    index = faiss.downcast_index(index)
    inner = [getattr(index, name) for name in ("index", "base_index") if hasattr(index, name)]
    fewest = max(map(_fewest, inner), default=1)
    if hasattr(index, "pq"):
        fewest = max(fewest, index.pq.ksub)
    if hasattr(index, "nlist"):
        fewest = max(fewest, index.nlist)
    return fewest


def build_dense(pages: Iterable[NDArray[np.float32]], factory: str, folder: Path, *, several: bool) -> None:
    """Index the pages' unit vectors, (V, D) for each page. ``several``: V may be other than 1 (multi-vector embedder).

    Single vectors are the rows of a FAISS inner-product index, ``DENSE``. Multiple vectors are float16 rows of
    ``VECTORS``, with the number of each page's rows in ``SIZES``. Every page is scored by these rows, except that a
    ``factory`` other than "Flat" selects candidate pages first.
    Raises MmrrError as ``check_factory`` does, and if FAISS does not know the factory string or needs more vectors for
    it.
    """
    if not several:
        vectors = np.concatenate(list(pages))
        _faiss(factory, vectors, lambda n: vectors, folder / DENSE)
        return
    sizes = late_interaction.write_rows(pages, folder / VECTORS)
    np.save(folder / SIZES, sizes, allow_pickle=False)
    if factory != "Flat":
        stored = late_interaction.read_rows(folder / VECTORS, mapped=True)
        _faiss(factory, stored, lambda n: late_interaction.sample(stored, sizes, n), folder / DENSE)


def _faiss(factory: str, vectors: NDArray[Any], sample: Callable[[int], NDArray[np.float32]], path: Path) -> None:
    """Train an index on a ``sample`` of vectors, add all vectors in blocks, try a search, and write it."""
    check_factory(factory)
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            lists = faiss.try_extract_index_ivf(index)
            index.train(sample(max(_SAMPLE, _SAMPLED * lists.nlist if lists else 0)))
        for start in range(0, len(vectors), _SAMPLE):
            index.add(vectors[start : start + _SAMPLE].astype(np.float32, copy=False))
        index.search(vectors[:1].astype(np.float32, copy=False), 1)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].split("Error: ")[-1]
        raise MmrrError(
            f"FAISS cannot build '{factory}' over {len(vectors)} vectors: {reason}; try 'Flat', or a factory string of "
            "fewer lists"
        ) from error
    path.write_bytes(faiss.serialize_index(index).data)


class DenseIndex:
    """The page vectors of an index, open for searches."""

    def __init__(
        self, index: faiss.Index | None, vectors: NDArray[np.float16] | None, sizes: NDArray[np.int64] | None
    ) -> None:
        """``vectors`` and ``sizes``: the rows of multiple vectors per page; ``index`` None: all of them are scored."""
        self._index, self._vectors, self._sizes = index, vectors, sizes

    @classmethod
    def load(cls, files: Mapping[str, Path]) -> DenseIndex:
        """``files``: the files of an index by name. Raises MmrrError if a file is damaged."""
        index = _read_faiss(files[DENSE]) if DENSE in files else None
        if VECTORS not in files:
            return cls(index, None, None)
        vectors = late_interaction.read_rows(files[VECTORS], mapped=True)
        return cls(index, vectors, late_interaction.read_rows(files[SIZES]))

    def search(
        self, queries: Sequence[NDArray[np.float32]], depth: int, temperature: float = 0.0
    ) -> list[dict[int, float]]:
        """Top ``depth`` rows (pages) per query (M, D) with their MaxSim scores; ties at the last place are included.

        "Flat" is exact. Other indexes are approximate: they may miss pages and may find fewer; the soft IDF of
        ``temperature`` is then computed over the candidate pages only.
        """
        index, vectors, sizes = self._index, self._vectors, self._sizes
        if vectors is None or sizes is None:
            assert index is not None
            found = zip(*index.search(np.concatenate(queries), min(depth, index.ntotal)), strict=True)
            return [  # FAISS fills missing results with row -1
                {row: score for score, row in zip(scores.tolist(), rows.tolist(), strict=True) if row >= 0}
                for scores, rows in found
            ]
        if index is None:
            scored = late_interaction.max_sim(queries, vectors, sizes, temperature)
            return [_top_rows(scores, depth) for scores in scored]
        owners = np.repeat(np.arange(len(sizes)), sizes)
        candidates = [_candidate_pages(index, query, owners, depth) for query in queries]
        return [
            _score_exactly(query, rows, vectors, sizes, temperature)
            for query, rows in zip(queries, candidates, strict=True)
        ]

    def weights(self, query: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
        """The soft IDF (M,) of each vector of a query (M, D) among all pages. Only for several vectors a page."""
        assert self._vectors is not None
        assert self._sizes is not None
        return late_interaction.vector_idf(query, self._vectors, self._sizes, temperature)


def search_dense(
    files: Mapping[str, Path], queries: Sequence[NDArray[np.float32]], depth: int, temperature: float = 0.0
) -> list[dict[int, float]]:
    """As ``DenseIndex.search``, in the files of an index by name. Raises MmrrError if a file is damaged."""
    return DenseIndex.load(files).search(queries, depth, temperature)


def build_windows(pages: Iterable[NDArray[np.float32]], folder: Path) -> None:
    """Index the vectors (W, D) of each page's windows: the rows of an exact FAISS inner-product index, ``WINDOWS``.

    ``WINDOW_COUNTS`` has the number of rows of each page. Without any window there is no ``WINDOWS``.
    """
    vectors = list(pages)
    counts = np.array([len(of_page) for of_page in vectors], dtype=np.int64)
    np.save(folder / WINDOW_COUNTS, counts, allow_pickle=False)
    if counts.any():
        rows = np.concatenate([of_page for of_page in vectors if len(of_page)])
        _faiss("Flat", rows, lambda n: rows, folder / WINDOWS)


class WindowIndex:
    """The windows of pages by their vectors. A page scores its best window."""

    def __init__(self, index: faiss.Index | None, owners: NDArray[np.int64]) -> None:
        """``owners``: the row of the page of each window. ``index`` None: no page has a window."""
        self._index, self._owners = index, owners

    @classmethod
    def load(cls, files: Mapping[str, Path]) -> WindowIndex:
        """``files``: the files of an index by name. Raises MmrrError if one is damaged."""
        counts = late_interaction.read_rows(files[WINDOW_COUNTS])
        index = _read_faiss(files[WINDOWS]) if WINDOWS in files else None
        return cls(index, np.repeat(np.arange(len(counts)), counts))

    def search(self, query: NDArray[np.float32], depth: int) -> dict[int, float]:
        """{row: score} of the ``depth`` best pages for a query (D,), and of the ties at the last place.

        A page without text is never found. More windows are asked for until they belong to enough pages.
        """
        if self._index is None:
            return {}
        asked = min(depth * _WINDOWS_A_PAGE, self._index.ntotal)
        while True:
            (scores,), (rows,) = self._index.search(query[None], asked)
            pages, first = np.unique(self._owners[rows], return_index=True)  # sorted: the first one is the best
            best = scores[first]
            edge = np.partition(best, -depth)[-depth] if len(best) > depth else -np.inf
            if asked == self._index.ntotal or (len(best) > depth and scores[-1] < edge):
                return {int(page): float(score) for page, score in zip(pages, best, strict=True) if score >= edge}
            asked = min(4 * asked, self._index.ntotal)


def _read_faiss(path: Path) -> faiss.Index:
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise MmrrError(f"{path} is damaged or missing; run mmrr index again") from error
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:  # the default of FAISS is nprobe = 1
        lists.nprobe = max(FEWEST, round(lists.nlist * PROBED))
    if isinstance(index, faiss.IndexRefine):
        index.k_factor = RESCORED
    return index


def _score_exactly(
    query: NDArray[np.float32],
    rows: list[int],
    vectors: NDArray[np.float16],
    sizes: NDArray[np.int64],
    temperature: float,
) -> dict[int, float]:
    """MaxSim scores of the candidate pages ``rows`` for one query (M, D)."""
    if not rows:
        return {}
    of_rows = np.concatenate(list(late_interaction.pages_at(vectors, sizes, rows)))
    (scores,) = late_interaction.max_sim([query], of_rows, sizes[rows], temperature)
    return dict(zip(rows, scores.tolist(), strict=True))


def _top_rows(scores: NDArray[np.float32], depth: int) -> dict[int, float]:
    """The top ``depth`` rows and all ties at the last place, in no particular order."""
    edge = np.partition(scores, -depth)[-depth] if len(scores) > depth else -np.inf
    return {int(row): float(scores[row]) for row in np.flatnonzero(scores >= edge)}


def _candidate_pages(
    index: faiss.Index, query: NDArray[np.float32], owners: NDArray[np.int64], depth: int
) -> list[int]:
    """Candidate pages for exact scoring, best first: owners of the neighbours of any query vector.

    If a page has no neighbour of a query vector among the results, it gets the lowest score among them for this vector
    (imputed scores as in XTR, arXiv 2304.01982).
    """
    scores, rows = index.search(query, min(max(NEAREST, depth * NEIGHBOURS), index.ntotal))
    gains: dict[int, float] = {}
    for of_vector, found in zip(scores, rows, strict=True):
        found, of_vector = found[found >= 0], of_vector[found >= 0]
        if not len(found):
            continue
        pages, first = np.unique(owners[found], return_index=True)  # results are sorted: the first one is the best
        for page, score in zip(pages.tolist(), of_vector[first].tolist(), strict=True):
            gains[page] = gains.get(page, 0.0) + score - float(of_vector[-1])
    return sorted(gains, key=lambda page: (-gains[page], page))[: RESCORED * depth]


class TextIndex:
    """BM25 over the text of pages."""

    def __init__(self, bm25: bm25s.BM25 | None, of_pages: Sequence[str]) -> None:
        """``of_pages``: the language of each page."""
        self._bm25 = bm25  # None: the pages have no word at all
        self._of_pages = list(of_pages)
        self._words = words.Words(languages.by_frequency(of_pages))

    @classmethod
    def build(cls, texts: Sequence[str], of_pages: Sequence[str] | None = None) -> TextIndex:
        """``of_pages``: the language of each page; by default it is detected."""
        made = cls(None, languages.of_pages(texts) if of_pages is None else of_pages)
        tokens = [made._words.of_page(text, language) for text, language in zip(texts, made._of_pages, strict=True)]
        if any(tokens):
            made._bm25 = bm25s.BM25(method=BM25["method"], k1=BM25["k1"], b=BM25["b"])
            made._bm25.index(tokens, show_progress=False)
        return made

    def scores(self, query: str) -> NDArray[np.float32]:
        """BM25 scores (n,); 0 for a page that shares no word with the query."""
        of_query = self._words.of_query(query)
        if self._bm25 is None or not of_query:
            return np.zeros(len(self._of_pages), dtype=np.float32)
        scores: NDArray[np.float32] = self._bm25.get_scores(of_query)
        return scores

    def save(self, folder: Path) -> None:
        """Write plain arrays and JSON. An index without words is the file of the languages alone."""
        folder.mkdir()
        if self._bm25 is not None:
            self._bm25.save(folder, show_progress=False)
        record = {"version": words.VERSION, "pages": self._of_pages}
        (folder / _WORDS).write_text(json.dumps(record), "utf-8")

    @classmethod
    def load(cls, folder: Path, n_pages: int) -> TextIndex:
        """Raises MmrrError if the files are damaged or missing, or if their words were cut by other rules."""
        if not folder.is_dir():
            raise MmrrError(f"{folder} is missing; run mmrr index again")
        of_pages = read_languages(folder, n_pages)
        if all(path.name == _WORDS for path in folder.iterdir()):
            return cls(None, of_pages)
        try:
            return cls(bm25s.BM25.load(folder, load_corpus=False, allow_pickle=False), of_pages)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise MmrrError(f"{folder} is damaged ({error}); run mmrr index again") from error


def read_languages(folder: Path, n_pages: int) -> list[str]:
    """The language of each page of a text index. Raises MmrrError as ``TextIndex.load`` does."""
    try:
        record = json.loads((folder / _WORDS).read_text("utf-8"))
        version, of_pages = record["version"], record["pages"]
    except FileNotFoundError:
        version, of_pages = 0, []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MmrrError(f"{folder} is damaged ({error}); run mmrr index again") from error
    if version != words.VERSION:
        raise MmrrError(
            f"{folder} is damaged, or another version of mmrr made it: found words of version {version}, expected "
            f"{words.VERSION}; run mmrr index again"
        )
    known = {*languages.STEMMERS, languages.NONE}
    if not isinstance(of_pages, list) or len(of_pages) != n_pages or not known.issuperset(map(str, of_pages)):
        raise MmrrError(f"{folder} is damaged (languages of {n_pages} pages expected); run mmrr index again")
    return of_pages
