"""Draw pages of documents as PNG images for a vision model, and read their text layer.

This module knows the size of a visual token and two PDF renderers. It knows no workspace, artifacts, models or command
line. Every function may run in several processes at the same time, but not in two threads of one process.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mmrr.documents import poppler
from mmrr.documents.discovery import Source, is_machine_fault, one_line
from mmrr.documents.drawn import Drawn, Job, PageStatus, Renderer, RenderOptions
from mmrr.documents.image_pages import draw_image, draw_images
from mmrr.documents.limits import Limits, PastLimitError
from mmrr.documents.page_notes import SMALL_PRINT
from mmrr.documents.pdf_pages import OpenPdfs, draw_pdf
from mmrr.errors import MmrrError

__all__ = ["RenderOptions", "RenderedPage", "default_renderer", "draw_pages", "render_image", "render_pages"]

# Compression level, mean of 70 page images of 1,280 tokens: level 1 takes 38 ms and 387 kB, level 2 35 ms and 380 kB,
# level 3 37 ms and 371 kB, Pillow's default 6 60 ms and 401 kB. The PNG writer of poppler takes 300 to 600 ms, so
# poppler writes PPM.
PNG_LEVEL = 2


@dataclass(frozen=True, slots=True)
class RenderedPage:
    """One drawn page, or the reason why it failed. A failed page has no file: size 0, ``file`` and ``sha256`` empty."""

    number: int  # from 1
    status: PageStatus
    detail: str  # one line for people; for an ok page, anything unusual (such as the use of the other renderer)
    width_px: int
    height_px: int
    sha256: str  # of the PNG file
    file: str  # name inside the output folder, ``0007.png``
    text: str  # the text layer, "" if there is none
    notes: tuple[str, ...] = ()  # codes of what is wrong with it, see :mod:`mmrr.documents.page_notes`
    label: str = ""  # the document's own number of the page, such as iv; "" if it has none but ``number``


def default_renderer() -> Renderer:
    """``poppler`` if ``pdftoppm`` and ``pdfinfo`` are on PATH, else ``pdfium``, which needs no system package."""
    return "poppler" if poppler.installed() else "pdfium"


def render_pages(source: Source, first: int, last: int, out: Path, options: RenderOptions) -> list[RenderedPage]:
    """Draw pages ``first`` to ``last`` (from 1, inclusive) into the folder ``out`` as 8-bit RGB ``0001.png``, ...

    A bad page, document or page number gives a page of status ``failed`` without a file. PDFium draws a page if poppler
    cannot draw it, draws it blank, or disagrees with PDFium about its size. Poppler, if it is installed, draws a page
    that PDFium cannot open or draws blank. ``notes`` and ``detail`` then say so. PDF pages are drawn at their target
    size without resizing, by the crop box, upright, with annotations and forms. ``/UserUnit`` is ignored. With poppler,
    a page with ``/Rotate`` 90 or 270 keeps its exact aspect, and two sides of the canvas stay white. Memory does not
    grow with the number of pages. Poppler and images have the default limits, PDFium has none: only a process can be
    stopped.

    Raises:
        MmrrError: ``options.renderer`` is poppler and poppler is not on PATH.
        OSError: ``out`` or the folder for temporary files cannot be written.
        OSError, MemoryError: the file could not be read at this moment, or memory ran out (``is_machine_fault``).
    """
    with closing(OpenPdfs()) as open_pdfs:
        return list(draw_pages(source, Job(range(first, last + 1), options), out, open_pdfs))


def draw_pages(
    source: Source, job: Job, out: Path, open_pdfs: OpenPdfs, temporary: Path | None = None
) -> Iterator[RenderedPage]:
    """The pages of a job, as ``render_pages`` draws them, one by one.

    A PDF stays open in ``open_pdfs``. Poppler's images are written below ``temporary`` (default: the system's folder).
    A page past a limit has its status (``time_limit``, ``memory_limit``) and no file.
    """
    if source.kind == "pdf":
        if job.options.renderer == "poppler" and default_renderer() != "poppler":
            raise MmrrError("poppler's pdftoppm or pdfinfo is not on PATH; install poppler or use the pdfium renderer")
        pages = draw_pdf(open_pdfs.get(source.file), job, temporary)
    else:
        pages = draw_images(source, job)
    with closing(pages):  # deletes temporary files even if saving fails
        for page in pages:
            yield _save(page, out)


def render_image(path: Path, number: int, text: str, out: Path, max_tokens: int) -> RenderedPage:
    """One image file as page ``number``, with a given text layer. A bad image gives a failed page.

    Raises OSError if ``out`` cannot be written, and the errors of ``is_machine_fault``.
    """
    try:
        image, small = draw_image(path, 0, max_tokens, Limits())
    except PastLimitError as error:
        return _save(Drawn(number, None, str(error), text, status=error.status), out)
    except Exception as error:
        if is_machine_fault(error):
            raise
        return _save(Drawn(number, None, one_line(error), text), out)
    return _save(Drawn(number, image, "", text, (SMALL_PRINT,) * small), out)


def _save(page: Drawn, out: Path) -> RenderedPage:
    if page.image is None:
        return RenderedPage(page.number, page.status, page.detail, 0, 0, "", "", page.text)
    page.image.info.clear()  # otherwise colour profiles and the like would be written to the file
    buffer = io.BytesIO()
    page.image.save(buffer, "PNG", compress_level=PNG_LEVEL)
    data = buffer.getvalue()
    file = f"{page.number:04d}.png"
    (out / file).write_bytes(data)
    width, height = page.image.size
    sha256 = hashlib.sha256(data).hexdigest()
    return RenderedPage(page.number, "ok", page.detail, width, height, sha256, file, page.text, page.notes, page.label)
