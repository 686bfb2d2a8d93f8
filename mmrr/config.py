"""The options of every stage in one place. It does not import torch, so the command line can read the defaults.

The options of a model family (band, instruction, ...) are in that family's module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

#: One channel of the first stage (BM25, vectors of the text, vectors of the page image), or the sum of several. bm25
#: and dense are the former names of words and sight.
FirstStage = Literal["words", "meaning", "sight", "hybrid", "bm25", "dense"]
Scope = Literal["corpus", "document"]
#: Languages of text with a stemmer, by ISO 639-1 code. none: words are not stemmed.
Language = Literal[
    "auto", "ar", "ca", "cs", "da", "de", "el", "en", "es", "et", "eu", "fa", "fi", "fr", "ga", "hi", "hu", "hy", "id",
    "it", "lt", "ne", "nl", "no", "pl", "pt", "ro", "ru", "sr", "sv", "ta", "tr", "none",
]  # fmt: skip
DenseOrder = Literal["vision-first", "query-first"]
PruneBy = Literal["attention", "random"]
OcrMode = Literal["auto", "force", "never"]


@dataclass(frozen=True, slots=True)
class Machine:
    """The device, the processes and the memory. Only the number format that results from it is hashed."""

    device: str = "auto"
    dtype: str = "auto"
    workers: int = 0  # processes that render and run OCR; 0: one per core
    memory: int = 4 << 30  # bytes for page caches while they are scored, on top of the model
    resident: int = 0  # bytes of page caches that stay on the device between queries
    page_seconds: float = 60.0  # limit of the time to draw one page, for each renderer
    page_memory: int = 2 << 30  # bytes; limit of the memory of a process that draws a page


@dataclass(frozen=True, slots=True)
class Render:
    """How documents become page images."""

    renderer: str = "auto"  # poppler or pdfium; auto: poppler where it is installed
    dpi: int = 150  # of PDF pages, before the token budget
    max_tokens: int = 1280  # visual tokens per page, 32 x 32 pixels each
    #: Which pages OCR reads: all (force), or those without text, with an image and little text, and with garbled text.
    ocr: OcrMode = "never"
    ocr_language: str = ""  # a language code, or the path of a recognition model; "": Latin, Chinese and Japanese
    convert: bool = False  # office files become PDF by LibreOffice; not hashed: the files' contents are
    password: Path | None = None  # a file with the passwords of encrypted PDFs; never stored
    tiles: bool = False  # cut pages with small print into several images


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint as the user names it."""

    name: str  # local path or Hub id
    revision: str | None = None  # Hub branch, tag or commit


@dataclass(frozen=True, slots=True)
class Index:
    """How page vectors and page text are indexed."""

    faiss_factory: str = "Flat"
    language: Language = "auto"  # of the text; auto: detected for each page


@dataclass(frozen=True, slots=True)
class Retrieve:
    """How the first stage ranks pages."""

    first_stage: FirstStage | None = None  # None: the sum of every channel that the index has
    scope: Scope = "corpus"
    depth: int = 100  # candidates per query
    channels: Mapping[str, float] | None = None  # weights of the sum by channel; None: the default weights


@dataclass(frozen=True, slots=True)
class Prune:
    """Which visual tokens of a page are kept."""

    keep: float = 0.5  # share of the page's visual tokens
    by: PruneBy = "attention"  # the embedder's attention; random: a baseline


@dataclass(frozen=True, slots=True)
class Rerank:
    """How candidates are scored."""

    dense: DenseOrder | None = None  # the stock model's full forward instead of the caches
    fuse: float | None = None  # weight of the reranker in score fusion with the first stage; None: no fusion


@dataclass(frozen=True, slots=True)
class Mine:
    """Which wrong pages a query is trained with."""

    negatives: int = 4  # hard negatives per query: found by the first stage, not relevant
    top_k: int = 50  # candidates that they are drawn from
    skip: int = 0  # best wrong candidates that are left out, because unjudged pages may be relevant
    random: int = 1  # random pages per query
    seed: int = 0
