"""The types that all modules share: frozen dataclasses and aliases without behaviour.

Dimension letters, the same everywhere: Q queries, N candidates, T visual tokens of a page, K kept tokens,
P instruction-prefix tokens, M tokens of the query's segment, L layers, H heads, D model width, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Page:
    """One page image of a collection. ``page_id`` is ``<document>/<page, four digits, from 1>``, without spaces."""

    page_id: str
    doc_id: str
    number: int  # from 1
    width_px: int
    height_px: int
    sha256: str  # of the image file
    image: Path  # absolute path of the PNG
    label: str = ""  # the document's own number of the page, such as iv or A-3; "" if it is ``number``


@dataclass(frozen=True, slots=True)
class QueryImage:
    """An image in a query; ``mmrr.query_image`` makes one. Two are equal if their files have the same content."""

    sha256: str  # of the image file
    source: Path | bytes = field(compare=False, repr=False)  # the file, or what is in it
    name: str = field(default="image", compare=False)  # as the user named it


@dataclass(frozen=True, slots=True)
class Query:
    """A question, an image, or both. With the scope ``document``, ``doc_id`` is the document that is searched."""

    query_id: str
    text: str  # "": the image alone
    doc_id: str | None = None
    image: QueryImage | None = None


class Hit(NamedTuple):
    """One line of a run. Higher scores are better."""

    page_id: str
    score: float


#: {query_id: hits sorted by (-score, page_id)}
Run = dict[str, list[Hit]]
#: {query_id: {page_id: relevance}}
Qrels = dict[str, dict[str, int]]
#: Height and width of a page in merged visual tokens; T = height * width.
Grid = tuple[int, int]


def page_of(page_id: str) -> str:
    """The page of a tile, ``report.pdf/0001`` of ``report.pdf/0001#2``; any other page id itself."""
    document, slash, page = page_id.rpartition("/")
    return f"{document}{slash}{page.partition('#')[0]}"


def best_of_pages(scores: Iterable[tuple[str, float]]) -> dict[str, float]:
    """{page_id: score}, where a page with tiles has the score of its best image."""
    best: dict[str, float] = {}
    for page_id, score in scores:
        page = page_of(page_id)
        if page not in best or score > best[page]:
            best[page] = score
    return best


def rank(scores: dict[str, float], depth: int | None = None) -> list[Hit]:
    """Order ``{page_id: score}`` as every run is ordered: highest score first, ties by page id."""
    hits = [Hit(page_id, score) for page_id, score in scores.items()]
    return sorted(hits, key=lambda hit: (-hit.score, hit.page_id))[:depth]


@dataclass(frozen=True, slots=True)
class Embedding:
    """The embedder's output for one page."""

    vectors: torch.Tensor  # (V, D) float32 or float16, of length 1; late interaction (MaxSim) scores a page
    saliency: torch.Tensor  # (T,) float32 >= 0, attention of the last token, summed over layers, mean over heads
    grid: Grid
    owners: torch.Tensor | None = None  # (T,) int32, row of each visual token's vector or -1; None: token i has row i


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """The visual tokens of one page that pruning keeps."""

    indices: torch.Tensor  # (K,) int32, ascending, raster order of ``grid``
    grid: Grid


#: How a stage reports long work: ``with progress("embed", 120) as advance: advance(1)``. A stage has no display.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def silent(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """The Progress that shows nothing."""
    yield lambda n: None


#: The output of a scorer's ``prepare`` for one page: named tensors. Only the scorer's family knows what they mean.
PageCache = dict[str, "torch.Tensor"]
