"""Draw pages of documents as PNG images for a vision model, and read their text layer.

This module knows the size of a visual token and two PDF renderers. It knows no workspace, artifacts, models or command
line. Every function may run in several processes at the same time, but not in two threads of one process.
"""

from __future__ import annotations

import hashlib
import io
import math
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pypdfium2 as pdfium  # type: ignore[import-untyped]
import pypdfium2.raw as pdfium_c  # type: ignore[import-untyped]
from PIL import Image, ImageOps

from mmrr.documents import poppler
from mmrr.documents.canvas import Size, drawn_size, offset, on_canvas, target_size, to_rgb
from mmrr.documents.discovery import (
    Source,
    check_readable,
    is_machine_fault,
    one_line,
    open_image,
    open_pdf,
    page_frames,
    utf8,
)
from mmrr.documents.page_grid import MIN_TOKENS
from mmrr.errors import MmrrError

Renderer = Literal["poppler", "pdfium"]

# Compression level, mean of 70 page images of 1,280 tokens: level 1 takes 38 ms and 387 kB, level 2 35 ms and 380 kB,
# level 3 37 ms and 371 kB, Pillow's default 6 60 ms and 401 kB. The PNG writer of poppler takes 300 to 600 ms, so
# poppler writes PPM.
PNG_LEVEL = 2
# Pages per poppler process. A limit bounds the temporary folder (4 MB a page); many pages hide the process start.
BATCH_PAGES = 16


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """How pages become images. ``dpi`` applies to PDF only: an image has its own size in pixels.

    Raises:
        MmrrError: ``dpi`` is not positive or ``max_tokens`` is below 4.
    """

    renderer: Renderer
    dpi: int = 150
    max_tokens: int = 1280

    def __post_init__(self) -> None:
        if self.dpi <= 0 or self.max_tokens < MIN_TOKENS:
            raise MmrrError(
                f"cannot draw at {self.dpi} dpi and {self.max_tokens} tokens; dpi is at least 1, tokens {MIN_TOKENS}"
            )


@dataclass(frozen=True, slots=True)
class RenderedPage:
    """One drawn page, or the reason why it failed. A failed page has no file: size 0, ``file`` and ``sha256`` empty."""

    number: int  # from 1
    status: Literal["ok", "failed"]
    detail: str  # one line for people; for an ok page, anything unusual (such as the use of the other renderer)
    width_px: int
    height_px: int
    sha256: str  # of the PNG file
    file: str  # name inside the output folder, ``0007.png``
    text: str  # the text layer, "" if there is none


class _Drawn(NamedTuple):
    number: int
    image: Image.Image | None
    detail: str
    text: str


@dataclass(frozen=True, slots=True)
class _Plan:
    """A PDF page that opened, and the size at which it will be drawn."""

    number: int
    page: Any  # pypdfium2.PdfPage, to be closed; None: only poppler opens the page
    points: tuple[float, float]  # width and height after rotation
    rotation: int  # degrees clockwise: 0, 90, 180, 270
    canvas: Size
    drawn: Size  # size of the page on the canvas; smaller than the canvas only beyond MAX_ASPECT
    text: str
    n_objects: int
    detail: str


def default_renderer() -> Renderer:
    """``poppler`` if ``pdftoppm`` and ``pdfinfo`` are on PATH, else ``pdfium``, which needs no system package."""
    return "poppler" if poppler.installed() else "pdfium"


def render_pages(source: Source, first: int, last: int, out: Path, options: RenderOptions) -> list[RenderedPage]:
    """Draw pages ``first`` to ``last`` (from 1, inclusive) into the folder ``out`` as 8-bit RGB ``0001.png``, ...

    A bad page, document or page number gives a page of status ``failed`` without a file. PDFium draws a page if poppler
    cannot draw it, draws it blank though it has content, or disagrees with PDFium about its size. Poppler, if it is
    installed, draws a page that PDFium cannot open. ``detail`` then says so. PDF pages are drawn at their target size
    without resizing, by the crop box, upright, with annotations and forms. ``/UserUnit`` is ignored. With poppler, a
    page with ``/Rotate`` 90 or 270 keeps its exact aspect, and two sides of the canvas stay white. Memory does not grow
    with the number of pages. PDFium has no time limit.

    Raises:
        MmrrError: ``options.renderer`` is poppler and poppler is not on PATH.
        OSError: ``out`` or the folder for temporary files cannot be written.
        OSError, MemoryError: the file could not be read at this moment, or memory ran out (``is_machine_fault``).
    """
    numbers = range(first, last + 1)
    if source.kind == "pdf":
        if options.renderer == "poppler" and default_renderer() != "poppler":
            raise MmrrError("poppler's pdftoppm or pdfinfo is not on PATH; install poppler or use the pdfium renderer")
        pages = _draw_pdf(source.file, numbers, options)
    else:
        pages = _draw_images(source, numbers, options)
    with closing(pages):  # deletes temporary files even if saving fails
        return [_save(page, out) for page in pages]


def render_image(path: Path, number: int, text: str, out: Path, max_tokens: int) -> RenderedPage:
    """One image file as page ``number``, with a given text layer. A bad image gives a failed page.

    Raises OSError if ``out`` cannot be written, and the errors of ``is_machine_fault``.
    """
    try:
        image = _draw_image(path, 0, max_tokens)
    except Exception as error:
        if is_machine_fault(error):
            raise
        return _save(_Drawn(number, None, one_line(error), text), out)
    return _save(_Drawn(number, image, "", text), out)


def _save(page: _Drawn, out: Path) -> RenderedPage:
    if page.image is None:
        return RenderedPage(page.number, "failed", page.detail, 0, 0, "", "", page.text)
    page.image.info.clear()  # otherwise colour profiles and the like would be written to the file
    buffer = io.BytesIO()
    page.image.save(buffer, "PNG", compress_level=PNG_LEVEL)
    data = buffer.getvalue()
    file = f"{page.number:04d}.png"
    (out / file).write_bytes(data)
    width, height = page.image.size
    return RenderedPage(
        page.number, "ok", page.detail, width, height, hashlib.sha256(data).hexdigest(), file, page.text
    )


# PDF


def _draw_pdf(path: Path, numbers: Sequence[int], options: RenderOptions) -> Generator[_Drawn, None, None]:
    batches = [numbers[start : start + BATCH_PAGES] for start in range(0, len(numbers), BATCH_PAGES)]
    try:
        pdf = open_pdf(path)
    except pdfium.PdfiumError as error:
        check_readable(path)
        for batch in batches:
            yield from _draw_batch(path, f"PDFium cannot open the PDF: {error}", batch, options)
        return
    with closing(pdf):
        # The form environment draws fields without an appearance stream. pypdfium2 logs a warning for XFA forms, which
        # PDFium cannot fill in. Their stored appearances are drawn as annotations.
        if pdf.get_formtype() == pdfium_c.FORMTYPE_ACRO_FORM:
            with suppress(pdfium.PdfiumError):
                pdf.init_forms()
        for batch in batches:
            yield from _draw_batch(path, pdf, batch, options)


def _draw_batch(path: Path, pdf: Any, numbers: Sequence[int], options: RenderOptions) -> Generator[_Drawn, None, None]:
    """``pdf``: the open document, or why PDFium cannot open it."""
    plans: dict[int, _Plan] = {}
    errors: dict[int, str] = dict.fromkeys(numbers, pdf) if isinstance(pdf, str) else {}
    n_pages = 0 if isinstance(pdf, str) else len(pdf)
    for number in numbers if not errors else ():
        try:
            plans[number] = _plan(pdf, number, options)
        except (pdfium.PdfiumError, ValueError) as error:
            errors[number] = f"page {number} of {n_pages}: {one_line(error)}"
    poppler_plans = _poppler_plans(path, n_pages, errors, options)
    with tempfile.TemporaryDirectory(prefix="mmrr-") as folder:
        files: dict[int, Path] = {}
        reasons: dict[int, str] = {}
        if options.renderer == "poppler" and plans:
            reasons = _disagreements(path, n_pages, list(plans.values()))
        agreed = [plan for plan in plans.values() if options.renderer == "poppler" and plan.number not in reasons]
        _run_poppler(path, agreed + poppler_plans, Path(folder), files, reasons)
        alone = {plan.number: plan for plan in poppler_plans}
        for number in numbers:
            file, reason = files.get(number), reasons.get(number, "")
            if number in alone:
                yield _draw_without_pdfium(
                    alone[number], file, f"{errors[number]}; {reason}" if reason else errors[number]
                )
            elif number in errors:
                yield _Drawn(number, None, errors[number], "")
            else:
                plan = plans.pop(number)
                yield _draw_page(plan, file, reason)
                plan.page.close()


def _poppler_plans(path: Path, n_pages: int, errors: Mapping[int, str], options: RenderOptions) -> list[_Plan]:
    """The pages among ``errors``, which PDFium cannot open, that poppler opens.

    ``n_pages`` is PDFium's count, 0 if it counts none. If poppler counts otherwise, its pages may be other ones.
    """
    if not errors or not poppler.installed():
        return []
    try:
        info = poppler.read_info(path, min(errors), max(errors))
    except poppler.PopplerError:
        return []
    plans = []
    for number in sorted(errors.keys() & info.shapes.keys()) if n_pages in (0, info.n_pages) else ():
        shape = info.shapes[number]
        points = (shape.height, shape.width) if shape.rotation % 180 else (shape.width, shape.height)
        scale = options.dpi / 72
        try:
            canvas = target_size(points[0] * scale, points[1] * scale, options.max_tokens)
        except ValueError:  # no area
            continue
        text, detail = "", ""
        try:
            text = poppler.read_text(path, number)
        except poppler.PopplerError:
            detail = "the text layer could not be read"
        plan = _Plan(number, None, points, shape.rotation, canvas, drawn_size(*points, canvas), text, 0, detail)
        plans.append(plan)
    return plans


def _plan(pdf: Any, number: int, options: RenderOptions) -> _Plan:
    """Open a page and read everything except its pixels. Raises PdfiumError (does not load) or ValueError (no area)."""
    page = pdf[number - 1]
    width, height = page.get_size()
    scale = options.dpi / 72
    canvas = target_size(width * scale, height * scale, options.max_tokens)
    text, detail = "", ""
    try:
        with closing(page.get_textpage()) as textpage:
            text = textpage.get_text_range()  # drops lone surrogates
    except (pdfium.PdfiumError, AssertionError, RecursionError):  # pypdfium2 raises the last two for odd text layers
        detail = "the text layer could not be read"
    # PDFium writes U+FFFE for a hyphen at the end of a line. Without it, the two halves of the word are joined.
    text = text.replace("\r\n", "\n").replace("\0", "").replace("\ufffe", "")
    n_objects = pdfium_c.FPDFPage_CountObjects(page)
    drawn = drawn_size(width, height, canvas)
    return _Plan(number, page, (width, height), page.get_rotation(), canvas, drawn, text, n_objects, detail)


def _draw_page(plan: _Plan, file: Path | None, reason: str) -> _Drawn:
    """The page from poppler's ``file``; from PDFium if there is no file or if it is blank though the page is not."""
    details = [plan.detail]
    image, damage = _read_poppler_image(plan, file)
    reason = damage or reason
    blank = image is not None and plan.n_objects > 0 and _is_blank(image)
    if image is None or blank:
        try:
            other = _draw_with_pdfium(plan)
        except pdfium.PdfiumError as error:
            details.append(f"PDFium cannot draw it: {one_line(error)}")
        else:
            other_blank = plan.n_objects > 0 and _is_blank(other)
            if blank and not other_blank:
                reason = "poppler drew a blank page"
            if image is None or not other_blank:
                image, blank = other, other_blank
    if reason:
        details.append(f"{reason}; drawn with PDFium" if image is not None else reason)
    if blank:
        details.append(f"blank, though the page has {plan.n_objects} objects")
    return _Drawn(plan.number, image, "; ".join(filter(None, details)), plan.text)


def _draw_without_pdfium(plan: _Plan, file: Path | None, reason: str) -> _Drawn:
    """The page from poppler's ``file``. ``reason``: why PDFium does not open it, and why there is no file."""
    image, damage = _read_poppler_image(plan, file)
    end = damage if image is None else "drawn with poppler"
    return _Drawn(plan.number, image, "; ".join(filter(None, [plan.detail, reason, end])), plan.text)


def _read_poppler_image(plan: _Plan, file: Path | None) -> tuple[Image.Image | None, str]:
    """Poppler's image on the page's canvas, or None and, if the file is damaged, how."""
    if file is None:
        return None, ""
    try:
        with Image.open(file) as image:
            return on_canvas(image.convert("RGB"), plan.canvas), ""
    except OSError as error:
        return None, f"poppler's image is damaged ({one_line(error)})"


def _is_blank(image: Image.Image) -> bool:
    return all(low == 255 for low, _ in image.getextrema())  # type: ignore[misc]


def _draw_with_pdfium(plan: _Plan) -> Image.Image:
    (width, height), page = plan.canvas, plan.page
    with closing(pdfium.PdfBitmap.new_native(width, height, pdfium_c.FPDFBitmap_BGR)) as bitmap:
        bitmap.fill_rect((255, 255, 255, 255), 0, 0, width, height)
        # PdfPage.render() has one scale for both sides. Here one side may differ from it by a few pixels.
        args = (bitmap, page, *offset(plan.canvas, plan.drawn), *plan.drawn, 0, pdfium_c.FPDF_ANNOT)
        pdfium_c.FPDF_RenderPageBitmap(*args)
        if page.formenv:
            pdfium_c.FPDF_FFLDraw(page.formenv, *args)
        image: Image.Image = bitmap.to_pil()
        return image


def _run_poppler(
    path: Path, plans: Sequence[_Plan], folder: Path, files: dict[int, Path], reasons: dict[int, str]
) -> None:
    """Draw pages as PPM files below ``folder``: each gets an entry in ``files``, or in ``reasons`` why not."""

    # One process draws neighbouring pages of the same size.
    def run_key(item: tuple[int, _Plan]) -> object:
        place, plan = item
        return plan.number - place, plan.drawn, plan.points, plan.rotation % 180

    pending = [[plan for _, plan in group] for _, group in groupby(enumerate(plans), run_key)]
    while pending:
        group = pending.pop(0)
        reason = _run_pdftoppm(path, group, folder, files)
        missing = [plan for plan in group if plan.number not in files]
        if missing:
            # The first missing page stopped poppler: leave it out and continue after it.
            reasons[missing[0].number] = reason
            pending[:0] = [missing[1:]] if missing[1:] else []


def _disagreements(path: Path, n_pages: int, plans: Sequence[_Plan]) -> dict[int, str]:
    """Pages that poppler counts or measures differently from PDFium: {number: reason}.

    The two may repair a damaged file differently. The image of poppler could then be stretched or show another page.
    """
    numbers = [plan.number for plan in plans]
    try:
        info = poppler.read_info(path, min(numbers), max(numbers))
    except poppler.PopplerError as error:
        return dict.fromkeys(numbers, f"poppler cannot open the PDF ({one_line(error)})")
    if info.n_pages != n_pages:
        return dict.fromkeys(numbers, f"poppler counts {info.n_pages} pages where PDFium counts {n_pages}")
    reasons: dict[int, str] = {}
    for plan in plans:
        shape = info.shapes.get(plan.number, poppler.Shape(0.0, 0.0, -1))
        sides = [shape.width, shape.height]
        if plan.rotation % 180:
            sides.reverse()
        same = all(math.isclose(a, b, rel_tol=0.01, abs_tol=1) for a, b in zip(sides, plan.points, strict=True))
        if not same or shape.rotation != plan.rotation:
            reasons[plan.number] = "poppler sees a page of another shape"
    return reasons


def _run_pdftoppm(path: Path, group: Sequence[_Plan], folder: Path, files: dict[int, Path]) -> str:
    """Draw neighbouring pages of one size. Complete images go to ``files``. Returns why others are missing."""
    reason = ""
    width, height = group[0].drawn
    sizes: list[tuple[int, int | None]] = [(width, height)]
    if group[0].rotation % 180:
        # pdftoppm scales each side of a rotated page by the scale of the other side, and so cuts off a strip. One scale
        # for both sides avoids this; the rest of the canvas stays white. Poppler 22 takes the size before rotation. If
        # another version takes it after rotation, the second size in the list is right.
        scale = min(side / points for side, points in zip(group[0].drawn, group[0].points, strict=True))
        width, height = (max(1, int(points * scale + 1e-6)) for points in group[0].points)
        sizes = [(height, None), (width, None)]
    for size in sizes:
        missing = [plan.number for plan in group if plan.number not in files]
        if not missing:
            break
        images, reason = poppler.draw(path, missing[0], missing[-1], size, folder)
        for number, file in images.items():
            with suppress(OSError, ValueError), Image.open(file) as image:  # skips a truncated image
                off = max(abs(image.width - width), abs(image.height - height))  # poppler may round up by 1 pixel
                if off <= (len(sizes) > 1) and file.stat().st_size > 3 * math.prod(image.size):
                    files[number] = file
    return reason


# Images


def _draw_images(source: Source, numbers: Sequence[int], options: RenderOptions) -> Generator[_Drawn, None, None]:
    try:
        frames = page_frames(source)
    except OSError as error:
        if is_machine_fault(error):
            raise
        frames, problem = [], f"the folder cannot be read: {one_line(error)}"
    else:
        problem = f"the document has {len(frames)} pages"
    for number in numbers:
        if not 1 <= number <= len(frames):
            yield _Drawn(number, None, problem, "")
            continue
        try:
            image = _draw_image(*frames[number - 1], options.max_tokens)
        except Exception as error:
            if is_machine_fault(error):
                raise
            yield _Drawn(number, None, f"{utf8(frames[number - 1][0].name)}: {one_line(error)}", "")
        else:
            yield _Drawn(number, image, "", "")


def _draw_image(path: Path, frame: int, max_tokens: int) -> Image.Image:
    with open_image(path) as opened:
        if frame:  # a HEIC file starts at its main image, which need not be the first
            opened.seek(frame)
        # Pillow checks the size of the first frame only.
        if Image.MAX_IMAGE_PIXELS and math.prod(opened.size) > 2 * Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"{opened.width} x {opened.height} pixels are too many")
        opened.load()
        image: Image.Image = opened
        with suppress(Exception):  # with a broken EXIF block only the orientation is lost
            image = ImageOps.exif_transpose(opened)
        image = to_rgb(image)
    canvas = target_size(*image.size, max_tokens)
    image = image.resize(drawn_size(*image.size, canvas), Image.Resampling.BICUBIC)
    return on_canvas(image, canvas)
