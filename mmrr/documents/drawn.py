"""What is asked of the modules that draw pages, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from PIL import Image

from mmrr.documents.limits import Limits, LimitStatus, PastLimitError
from mmrr.documents.page_grid import MIN_TOKENS
from mmrr.errors import MmrrError

Renderer = Literal["poppler", "pdfium"]
PageStatus = Literal["ok", "failed", "time_limit", "memory_limit"]

#: More tokens are 67 million pixels, 200 MB in memory.
MOST_TOKENS = 65_536
MOST_DPI = 9_600


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """How pages become images. ``dpi`` applies to PDF only: an image has its own size in pixels.

    Raises:
        MmrrError: ``dpi`` is not 1 to 9,600, or ``max_tokens`` is not 4 to 65,536.
    """

    renderer: Renderer
    dpi: int = 150
    max_tokens: int = 1280

    def __post_init__(self) -> None:
        if not 1 <= self.dpi <= MOST_DPI:
            raise MmrrError(f"--dpi {self.dpi}: expected at least 1 and at most {MOST_DPI}")
        if not MIN_TOKENS <= self.max_tokens <= MOST_TOKENS:
            raise MmrrError(f"--max-tokens {self.max_tokens}: expected at least {MIN_TOKENS} and at most {MOST_TOKENS}")


class Drawn(NamedTuple):
    """A page in memory. ``image`` None: ``status`` and ``detail`` say why."""

    number: int  # from 1
    image: Image.Image | None
    detail: str = ""
    text: str = ""
    notes: tuple[str, ...] = ()
    status: PageStatus = "failed"  # of a page without an image
    label: str = ""  # the page's own number


def _ignore(number: int, drawing: bool) -> None:
    """The ``begin`` of a job that nobody watches."""


@dataclass(frozen=True, slots=True)
class Job:
    """Pages of one document to draw."""

    numbers: Sequence[int]  # ascending
    options: RenderOptions
    limits: Limits = field(default_factory=Limits)
    #: The pages on which PDFium went past a limit: PDFium does not open them again.
    without_pdfium: Mapping[int, PastLimitError] = field(default_factory=dict)
    #: Called when PDFium or Pillow begins a page, with True if it draws the page, False if it reads it; with page 0
    #: when other work begins.
    begin: Callable[[int, bool], None] = _ignore


def is_limit(status: str) -> bool:
    """Whether this is the status of a page past a limit."""
    return status in get_args(LimitStatus)
