"""Every dial of every stage on one screen. Free of torch, so that the command line can read the defaults.

The options that belong to a model family (band, instruction, ...) are in that family's own module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FirstStage = Literal["dense", "bm25", "hybrid"]
Scope = Literal["corpus", "document"]
DenseOrder = Literal["vision-first", "query-first"]
PruneBy = Literal["attention", "random"]


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how wide the work runs. Never hashed, but for the number format the model ends up with."""

    device: str = "auto"
    dtype: str = "auto"
    workers: int = 0  # processes that render and do OCR; 0: one per core
    memory: int = 4 << 30  # bytes that page caches may take while they are scored, model excluded
    resident: int = 0  # bytes of page caches that stay on the device from query to query


@dataclass(frozen=True, slots=True)
class Render:
    renderer: str = "auto"  # poppler, pdfium; auto: poppler where it is installed
    dpi: int = 150  # of PDF pages, before the token budget
    max_tokens: int = 1280  # visual tokens a page, 32 x 32 pixels each
    ocr: bool = False  # read the pages that have no text layer


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint as the user names it."""

    name: str  # local path or Hub id
    revision: str | None = None  # Hub branch, tag or commit


@dataclass(frozen=True, slots=True)
class Index:
    faiss_factory: str = "Flat"


@dataclass(frozen=True, slots=True)
class Retrieve:
    first_stage: FirstStage | None = None  # None: hybrid where there are page vectors, else bm25
    scope: Scope = "corpus"
    depth: int = 100  # candidates a query


@dataclass(frozen=True, slots=True)
class Prune:
    keep: float = 0.5  # share of a page's visual tokens
    by: PruneBy = "attention"  # the embedder's; random: a baseline


@dataclass(frozen=True, slots=True)
class Rerank:
    dense: DenseOrder | None = None  # the stock model's own full forward instead of the caches
    blend: float | None = None  # weight of the reranker's scores beside the first stage's; None: they rank alone


@dataclass(frozen=True, slots=True)
class Mine:
    """Which wrong pages a query is given to learn from."""

    negatives: int = 4  # hard ones a query: found by the first stage, not relevant
    top_k: int = 50  # candidates that they are drawn from
    skip: int = 0  # best wrong candidates that are passed over: where judgements have gaps, some are right
    random: int = 1  # any other pages a query
    seed: int = 0
