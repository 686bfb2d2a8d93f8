"""Draws PDF pages with PDFium and poppler. Where one renderer fails or draws a blank page, the other one is tried."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import groupby, repeat
from pathlib import Path
from typing import Any

import pypdfium2 as pdfium  # type: ignore[import-untyped]
import pypdfium2.raw as pdfium_c  # type: ignore[import-untyped]
from PIL import Image

from mmrr.documents import poppler
from mmrr.documents.canvas import Size, drawn_size, offset, on_canvas, target_size
from mmrr.documents.discovery import check_readable, one_line, open_pdf
from mmrr.documents.drawn import Drawn, Job
from mmrr.documents.limits import PastLimitError
from mmrr.documents.page_notes import BLANK, CJK_FONT, OTHER_RENDERER, SMALL_PRINT, needs_cjk_font
from mmrr.documents.print_size import is_small, print_points
from mmrr.documents.text_layer import PageText, TextLayer

# Pages per poppler process. A limit bounds the temporary folder (4 MB a page); many pages hide the process start.
BATCH_PAGES = 16
#: Pages whose shapes pdfinfo reports at once. It walks through all pages before the first one.
_INFO_PAGES = 256
_UNDRAWN = (
    pdfium_c.FPDF_ANNOT_UNKNOWN,
    pdfium_c.FPDF_ANNOT_LINK,
    pdfium_c.FPDF_ANNOT_POPUP,
    pdfium_c.FPDF_ANNOT_WIDGET,
)
_HIDDEN = 1 << 1 | 1 << 5  # the flags Hidden and NoView of the PDF reference, table 165


class OpenPdf:
    """A PDF that stays open while its pages are drawn: opening it again takes as long as all its earlier pages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stamp = _stamp(path)
        self.pdf: Any = None  # pypdfium2.PdfDocument; None: PDFium cannot open it
        self.problem = ""  # why not
        self._infos: dict[int, poppler.Info] = {}
        try:
            self.pdf = open_pdf(path)
        except pdfium.PdfiumError as error:
            check_readable(path)
            self.problem = f"PDFium cannot open the PDF: {error}"
            return
        # The form environment draws fields without an appearance stream. pypdfium2 logs a warning for XFA forms, which
        # PDFium cannot fill in. Their stored appearances are drawn as annotations.
        if self.pdf.get_formtype() == pdfium_c.FORMTYPE_ACRO_FORM:
            with suppress(pdfium.PdfiumError):
                self.pdf.init_forms()
        self.texts = TextLayer(self.pdf, path, lambda: open_pdf(path))

    @property
    def n_pages(self) -> int:
        """PDFium's count, 0 if it cannot open the PDF."""
        return len(self.pdf) if self.pdf else 0

    def info(self, numbers: Sequence[int]) -> poppler.Info:
        """What poppler says of the file and of these pages. Raises PopplerError."""
        shapes: dict[int, poppler.Shape] = {}
        n_pages = 0
        blocks = sorted({(number - 1) // _INFO_PAGES for number in numbers})
        for block in blocks:
            if block not in self._infos:
                first = block * _INFO_PAGES + 1
                self._infos[block] = poppler.read_info(self.path, first, first + _INFO_PAGES - 1)
            n_pages = self._infos[block].n_pages
            shapes |= self._infos[block].shapes
        return poppler.Info(n_pages, {number: shapes[number] for number in numbers if number in shapes})

    def close(self) -> None:
        """Close the file."""
        if self.pdf:
            self.texts.close()
            self.pdf.close()


class OpenPdfs:
    """Keeps the PDF that was drawn last open, so that neighbouring shards of a long document open it once."""

    def __init__(self) -> None:
        self._last: OpenPdf | None = None

    def get(self, path: Path) -> OpenPdf:
        """The open PDF. It is opened if another file is open or if the file has changed."""
        last = self._last
        if last is None or last.path != path or last.stamp != _stamp(path):
            self.close()
            self._last = last = OpenPdf(path)
        return last

    def close(self) -> None:
        """Close what is open."""
        if self._last:
            self._last.close()
        self._last = None


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Changes with the file. None: there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class _Plan:
    """A PDF page that opened, and the size at which it will be drawn."""

    number: int
    page: Any  # pypdfium2.PdfPage, to be closed; None: only poppler opens the page
    points: tuple[float, float]  # width and height after rotation
    rotation: int  # degrees clockwise: 0, 90, 180, 270
    canvas: Size
    drawn: Size  # size of the page on the canvas; smaller than the canvas only beyond MAX_ASPECT
    layer: PageText
    content: str = ""  # what a blank image lacks, for people; "" for a page without content
    print_points: float | None = None

    @property
    def is_small(self) -> bool:
        """Whether its print is too small to read."""
        return is_small(self.print_points, math.sqrt(math.prod(self.drawn) / math.prod(self.points)))


def draw_pdf(file: OpenPdf, job: Job, temporary: Path | None = None) -> Generator[Drawn, None, None]:
    """The pages ``job.numbers`` of a PDF. Poppler's images are written below ``temporary`` (default: the system's)."""
    for start in range(0, len(job.numbers), BATCH_PAGES):
        with tempfile.TemporaryDirectory(prefix="mmrr-", dir=temporary) as folder:
            batch = _Batch(file, job, job.numbers[start : start + BATCH_PAGES], Path(folder))
            with closing(batch):
                batch.plan()
                for number in batch.numbers:
                    yield batch.draw(number)


@dataclass(slots=True)
class _Batch:
    """Neighbouring pages that one process of poppler draws."""

    file: OpenPdf
    job: Job
    numbers: Sequence[int]
    folder: Path
    plans: dict[int, _Plan] = field(default_factory=dict)
    poppler_plans: dict[int, _Plan] = field(default_factory=dict)  # of pages that PDFium does not open
    errors: dict[int, str] = field(default_factory=dict)  # why it does not
    files: dict[int, Path] = field(default_factory=dict)  # poppler's images
    reasons: dict[int, str] = field(default_factory=dict)  # why there is none
    past: dict[int, PastLimitError] = field(default_factory=dict)  # the limits that poppler went past

    def close(self) -> None:
        for plan in self.plans.values():
            plan.page.close()

    def plan(self) -> None:
        """Open the pages and read everything except their pixels; draw those that poppler draws."""
        for number in self.numbers:
            if number in self.job.without_pdfium:
                self.errors[number] = str(self.job.without_pdfium[number])
            elif self.file.problem:
                self.errors[number] = self.file.problem
            else:
                self.job.begin(number, False)
                try:
                    self.plans[number] = self._plan(number)
                except (pdfium.PdfiumError, ValueError) as error:
                    self.errors[number] = f"page {number} of {self.file.n_pages}: {one_line(error)}"
        self.job.begin(0, False)  # poppler has limits of its own
        self.poppler_plans = self._plans_without_pdfium()
        agreed: list[_Plan] = []
        if self.job.options.renderer == "poppler" and self.plans:
            self.reasons |= self._disagreements(list(self.plans.values()))
            agreed = [plan for plan in self.plans.values() if plan.number not in self.reasons]
        self._run_poppler([*agreed, *self.poppler_plans.values()])

    def draw(self, number: int) -> Drawn:
        """One page. The pages are drawn in order, each once."""
        if number in self.poppler_plans:
            return self._without_pdfium(self.poppler_plans[number])
        if number in self.errors:
            past = self.job.without_pdfium.get(number)
            return Drawn(number, None, self.errors[number], status=past.status if past else "failed")
        self.job.begin(number, True)
        plan = self.plans.pop(number)
        try:
            if self.job.options.renderer == "poppler":
                return self._poppler_first(plan)
            return self._pdfium_first(plan)
        finally:
            plan.page.close()

    # Planning

    def _plan(self, number: int) -> _Plan:
        """Raises PdfiumError (does not load) or ValueError (no area)."""
        page = self.file.pdf[number - 1]
        width, height = page.get_size()
        scale = self.job.options.dpi / 72
        canvas = target_size(width * scale, height * scale, self.job.options.max_tokens)
        layer = self.file.texts.read(page, number)
        return _Plan(
            number,
            page,
            (width, height),
            page.get_rotation(),
            canvas,
            drawn_size(width, height, canvas),
            layer,
            _content(page, layer.text),
            print_points(page),
        )

    def _plans_without_pdfium(self) -> dict[int, _Plan]:
        """The pages among ``errors``, which PDFium does not open, that poppler opens.

        If poppler counts other pages than PDFium, its pages may be other ones.
        """
        if not self.errors or not poppler.installed():
            return {}
        try:
            info = self.file.info(sorted(self.errors))
        except poppler.PopplerError:
            return {}
        plans = {}
        for number, shape in info.shapes.items() if self.file.n_pages in (0, info.n_pages) else ():
            points = (shape.height, shape.width) if shape.rotation % 180 else (shape.width, shape.height)
            scale = self.job.options.dpi / 72
            try:
                canvas = target_size(points[0] * scale, points[1] * scale, self.job.options.max_tokens)
            except ValueError:  # no area
                continue
            try:
                layer = PageText(poppler.read_text(self.file.path, number, self.job.limits.seconds))
            except poppler.PopplerError:
                layer = PageText("", "the text layer could not be read")
            drawn = drawn_size(*points, canvas)
            plans[number] = _Plan(number, None, points, shape.rotation, canvas, drawn, layer)
        return plans

    def _disagreements(self, plans: Sequence[_Plan]) -> dict[int, str]:
        """Pages that poppler counts or measures differently from PDFium: {number: reason}.

        The two may repair a damaged file differently. The image of poppler could then be stretched or show another
        page.
        """
        numbers = [plan.number for plan in plans]
        try:
            info = self.file.info(numbers)
        except poppler.PopplerError as error:
            return dict.fromkeys(numbers, f"poppler cannot open the PDF ({one_line(error)})")
        if info.n_pages != self.file.n_pages:
            return dict.fromkeys(
                numbers, f"poppler counts {info.n_pages} pages where PDFium counts {self.file.n_pages}"
            )
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

    # Drawing

    def _poppler_first(self, plan: _Plan) -> Drawn:
        """Poppler's image; PDFium's if there is none or if it is blank."""
        details = [plan.layer.detail]
        image, damage = _read_poppler_image(plan, self.files.get(plan.number))
        reason = damage or self.reasons.get(plan.number, "")
        if image is None or _is_blank(image):
            try:
                other = _draw_with_pdfium(plan)
            except pdfium.PdfiumError as error:
                details.append(f"PDFium cannot draw it: {one_line(error)}")
            else:
                if image is not None and not _is_blank(other):
                    reason = "poppler drew a blank page"
                if image is None or not _is_blank(other):
                    image = other
        by_other = bool(reason) and image is not None
        if reason:
            details.append(f"{reason}; drawn with PDFium" if by_other else reason)
        return _drawn(plan, image, details, by_other=by_other)

    def _pdfium_first(self, plan: _Plan) -> Drawn:
        """PDFium's image; poppler's, where it is installed, if there is none or if it is blank."""
        details = [plan.layer.detail]
        image, reason = None, "PDFium drew a blank page"
        try:
            image = _draw_with_pdfium(plan)
        except pdfium.PdfiumError as error:
            reason = f"PDFium cannot draw it: {one_line(error)}"
        by_other = False
        if (image is None or _is_blank(image)) and poppler.installed():
            self.job.begin(0, False)
            other = self._ask_poppler(plan)
            if other is not None and (image is None or not _is_blank(other)):
                image, by_other = other, True
        if by_other:
            details.append(f"{reason}; drawn with poppler")
        elif image is None:
            details.append(reason)
        return _drawn(plan, image, details, by_other=by_other)

    def _ask_poppler(self, plan: _Plan) -> Image.Image | None:
        """Poppler's image of one page, or None if it draws none or sees another page."""
        if self._disagreements([plan]):
            return None
        self._run_poppler([plan])
        return _read_poppler_image(plan, self.files.get(plan.number))[0]

    def _without_pdfium(self, plan: _Plan) -> Drawn:
        """Poppler's image of a page that PDFium does not open."""
        image, damage = _read_poppler_image(plan, self.files.get(plan.number))
        # The limit of PDFium comes first: a larger one lets it draw the page.
        past = self.job.without_pdfium.get(plan.number) or self.past.get(plan.number)
        if image is None and past:
            return Drawn(plan.number, None, str(past), plan.layer.text, status=past.status)
        end = damage if image is None else "drawn with poppler"
        details = [plan.layer.detail, self.errors[plan.number], self.reasons.get(plan.number, ""), end]
        return _drawn(plan, image, details, by_other=True)

    # Poppler

    def _run_poppler(self, plans: Sequence[_Plan]) -> None:
        """Draw pages: each gets an entry in ``files``, or in ``reasons`` why not."""

        # One process draws neighbouring pages of the same size.
        def run_key(item: tuple[int, _Plan]) -> object:
            place, plan = item
            return plan.number - place, plan.drawn, plan.points, plan.rotation % 180

        pending = [[plan for _, plan in group] for _, group in groupby(enumerate(plans), run_key)]
        while pending:
            group = pending.pop(0)
            reason, past = self._run_pdftoppm(group)
            missing = [plan for plan in group if plan.number not in self.files]
            if missing:
                # The first missing page stopped poppler: leave it out and continue after it.
                self.reasons[missing[0].number] = reason
                if past:
                    self.past[missing[0].number] = past
                pending[:0] = [missing[1:]] if missing[1:] else []

    def _run_pdftoppm(self, group: Sequence[_Plan]) -> tuple[str, PastLimitError | None]:
        """Draw neighbouring pages of one size. Complete images go to ``files``. Returns why others are missing."""
        reason, past = "", None
        width, height = group[0].drawn
        sizes: list[tuple[int, int | None]] = [(width, height)]
        if group[0].rotation % 180:
            # pdftoppm scales each side of a rotated page by the scale of the other side, and so cuts off a strip. One
            # scale for both sides avoids this; the rest of the canvas stays white. Poppler 22 takes the size before
            # rotation. If another version takes it after rotation, the second size in the list is right.
            scale = min(side / points for side, points in zip(group[0].drawn, group[0].points, strict=True))
            width, height = (max(1, int(points * scale + 1e-6)) for points in group[0].points)
            sizes = [(height, None), (width, None)]
        for size in sizes:
            missing = [plan.number for plan in group if plan.number not in self.files]
            if not missing or past:
                break
            found = poppler.draw(self.file.path, missing[0], missing[-1], size, self.folder, self.job.limits)
            reason, past = found.reason, found.past
            for number, file in found.files.items():
                with suppress(OSError, ValueError), Image.open(file) as image:  # skips a truncated image
                    off = max(abs(image.width - width), abs(image.height - height))  # poppler may round up by 1 pixel
                    if off <= (len(sizes) > 1) and file.stat().st_size > 3 * math.prod(image.size):
                        self.files[number] = file
        return reason, past


def _drawn(plan: _Plan, image: Image.Image | None, details: list[str], *, by_other: bool) -> Drawn:
    """The page with its notes."""
    notes: list[str] = []
    if image is not None:
        notes += plan.layer.notes
        if plan.content and _is_blank(image):
            notes.append(BLANK)
            details = [*details, f"blank, though the page has {plan.content}"]
            if needs_cjk_font(plan.layer.text):
                notes.append(CJK_FONT)
        if plan.is_small:
            notes.append(SMALL_PRINT)
        if by_other:
            notes.append(OTHER_RENDERER)
    detail = "; ".join(filter(None, details))
    return Drawn(plan.number, image, detail, plan.layer.text, tuple(notes), label=plan.layer.label)


def _content(page: Any, text: str) -> str:
    """What a page has, for people: what is missing if its image is blank. Links and form fields may draw nothing."""
    counts = {"objects": pdfium_c.FPDFPage_CountObjects(page), "characters of text": len(text.strip())}
    counts["annotations"] = sum(map(_draws, range(pdfium_c.FPDFPage_GetAnnotCount(page)), repeat(page)))
    return next((f"{count} {what}" for what, count in counts.items() if count > 0), "")


def _draws(index: int, page: Any) -> bool:
    """Whether an annotation is of a kind that draws something, and is not hidden."""
    annotation = pdfium_c.FPDFPage_GetAnnot(page, index)
    if not annotation:
        return False
    try:
        hidden = pdfium_c.FPDFAnnot_GetFlags(annotation) & (_HIDDEN)
        return pdfium_c.FPDFAnnot_GetSubtype(annotation) not in _UNDRAWN and not hidden
    finally:
        pdfium_c.FPDFPage_CloseAnnot(annotation)


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
