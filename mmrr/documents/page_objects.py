"""The objects of a PDF page: which text is on a layer that is switched off, and whether the page is an image.

PDFium reads the text of all layers (optional content groups) and draws those that are on. It has no function that says
which are. So a black square with the same mark is drawn, on a page of its own: it is black if the layer is on. A form
(a part of the page with its own content) may be on a layer without a mark. It is drawn alone, on a page of one colour:
if the colour stays, nothing of it is drawn.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pypdfium2 as pdfium  # type: ignore[import-untyped]
import pypdfium2.raw as pdfium_c  # type: ignore[import-untyped]

_LAYERS = b"/OCProperties"
_OBJECT_STREAM = re.compile(rb"/ObjStm\b[^>]{0,300}>>\s{0,4}stream\r?\n")
_MOST_PACKED, _MOST_UNPACKED = 1 << 20, 1 << 23
_DEPTH = 4  # of nested forms; text that is nested deeper is always read
_MOST_OBJECTS = 100_000  # of a page; later ones are not looked at
_SCAN_SHARE = 0.6  # of the page's area, which its images cover
_STRIP_SHARE = 0.5  # of the page's width: scans come in strips, one below the other
_ALONE_PX = 800  # the longer side of the picture of a form
_ODD_COLOUR = (255, 0, 253, 255)


def may_have_layers(path: Path) -> bool:
    """Whether a PDF names layers. Asking which are on takes time, and few files have any. Raises OSError.

    It looks for the name in the file and in its compressed objects. An encrypted file may have layers.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.find(_LAYERS) >= 0 or data.find(b"/Encrypt") >= 0:
                return True
            return any(_LAYERS in _unpacked(data, found.end()) for found in _OBJECT_STREAM.finditer(data))


def _unpacked(data: mmap.mmap, start: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data[start : start + _MOST_PACKED], _MOST_UNPACKED)
    except zlib.error:
        return b""


def hide_switched_off(pdf: Any, page: Any) -> None:
    """Leave text on layers that are switched off out of what PDFium reads of an open page. Drawing stays the same."""
    with closing(_Layers(pdf, page)) as layers:
        layers.hide(_top_objects(page), 0)


class _Layers:
    """Asks PDFium which layers it draws."""

    def __init__(self, pdf: Any, page: Any) -> None:
        self._pdf = pdf
        self._page = page
        self._probe: Any = None  # a page of a new document
        self._known: dict[int, bool] = {}  # by the address of a mark
        self._left = _MOST_OBJECTS

    def close(self) -> None:
        if self._probe:
            pdfium_c.FPDF_ClosePage(self._probe)
            pdfium_c.FPDFPage_Delete(self._pdf, len(self._pdf) - 1)

    def hide(self, objects: Iterator[Any], depth: int) -> None:
        """Make text inactive that is on a layer that is off, and forms with such text."""
        for item in objects:
            self._left -= 1
            if self._left < 0:
                return
            kind = pdfium_c.FPDFPageObj_GetType(item)
            if kind not in (pdfium_c.FPDF_PAGEOBJ_TEXT, pdfium_c.FPDF_PAGEOBJ_FORM):
                continue
            if not all(map(self._is_on, _layer_marks(item))):
                pdfium_c.FPDFPageObj_SetIsActive(item, False)
            elif kind == pdfium_c.FPDF_PAGEOBJ_FORM and depth < _DEPTH:
                if depth == 0 and _has_visible_text(item, depth) and not _is_drawn_alone(self._page, item):
                    pdfium_c.FPDFPageObj_SetIsActive(item, False)
                else:
                    self.hide(_form_objects(item), depth + 1)

    def _is_on(self, mark: Any) -> bool:
        address = ctypes.cast(mark, ctypes.c_void_p).value or 0
        if address not in self._known:
            self._known[address] = self._is_drawn(mark)
        return self._known[address]

    def _is_drawn(self, mark: Any) -> bool:
        if self._probe is None:
            self._probe = pdfium_c.FPDFPage_New(self._pdf, len(self._pdf), 1, 1)
        square = pdfium_c.FPDFPageObj_CreateNewRect(0, 0, 1, 1)
        pdfium_c.FPDFPageObj_SetFillColor(square, 0, 0, 0, 255)
        pdfium_c.FPDFPath_SetDrawMode(square, pdfium_c.FPDF_FILLMODE_ALTERNATE, False)
        marked = pdfium_c.FPDFPageObj_AddExistingMark(square, mark)
        pdfium_c.FPDFPage_InsertObject(self._probe, square)
        with closing(pdfium.PdfBitmap.new_native(1, 1, pdfium_c.FPDFBitmap_BGR)) as bitmap:
            bitmap.fill_rect((255, 255, 255, 255), 0, 0, 1, 1)
            pdfium_c.FPDF_RenderPageBitmap(bitmap, self._probe, 0, 0, 1, 1, 0, 0)
            black = bytes(bitmap.buffer)[:1] == b"\0"
        pdfium_c.FPDFPage_RemoveObject(self._probe, square)
        pdfium_c.FPDFPageObj_Destroy(square)
        return black or not marked


def _has_visible_text(form: Any, depth: int) -> bool:
    """Whether a form has text that is meant to be seen. The text of OCR is not: it lies below its image."""
    for item in _form_objects(form):
        kind = pdfium_c.FPDFPageObj_GetType(item)
        if kind == pdfium_c.FPDF_PAGEOBJ_TEXT:
            if pdfium_c.FPDFTextObj_GetTextRenderMode(item) != pdfium_c.FPDF_TEXTRENDERMODE_INVISIBLE:
                return True
        elif kind == pdfium_c.FPDF_PAGEOBJ_FORM and depth < _DEPTH and _has_visible_text(item, depth + 1):
            return True
    return False


def _is_drawn_alone(page: Any, form: Any) -> bool:
    """Whether a form of an open page draws anything."""
    others = [item for item in _top_objects(page) if _is_active(item) and not _same(item, form)]
    width, height = page.get_size()
    scale = _ALONE_PX / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    try:
        for item in others:
            pdfium_c.FPDFPageObj_SetIsActive(item, False)
        with closing(pdfium.PdfBitmap.new_native(*size, pdfium_c.FPDFBitmap_BGR)) as bitmap:
            bitmap.fill_rect(_ODD_COLOUR, 0, 0, *size)
            before = bytes(bitmap.buffer)
            pdfium_c.FPDF_RenderPageBitmap(bitmap, page, 0, 0, *size, 0, 0)
            return bytes(bitmap.buffer) != before
    finally:
        for item in others:
            pdfium_c.FPDFPageObj_SetIsActive(item, True)


def _is_active(item: Any) -> bool:
    active = pdfium_c.FPDF_BOOL()
    return not pdfium_c.FPDFPageObj_GetIsActive(item, ctypes.byref(active)) or bool(active.value)


def _same(one: Any, other: Any) -> bool:
    return ctypes.cast(one, ctypes.c_void_p).value == ctypes.cast(other, ctypes.c_void_p).value


def _top_objects(page: Any) -> Iterator[Any]:
    for index in range(pdfium_c.FPDFPage_CountObjects(page)):
        yield pdfium_c.FPDFPage_GetObject(page, index)


def _form_objects(form: Any) -> Iterator[Any]:
    for index in range(pdfium_c.FPDFFormObj_CountObjects(form)):
        yield pdfium_c.FPDFFormObj_GetObject(form, index)


def _layer_marks(item: Any) -> Iterator[Any]:
    for index in range(pdfium_c.FPDFPageObj_CountMarks(item)):
        mark = pdfium_c.FPDFPageObj_GetMark(item, index)
        if _name(mark) == "OC":
            yield mark


def _name(mark: Any) -> str:
    buffer, length = ctypes.create_string_buffer(64), ctypes.c_ulong()
    pdfium_c.FPDFPageObjMark_GetName(
        mark, ctypes.cast(buffer, ctypes.POINTER(pdfium_c.FPDF_WCHAR)), 64, ctypes.byref(length)
    )
    return buffer.raw[: min(length.value, 64)].decode("utf-16-le", "replace").rstrip("\0")


def is_scan(page: Any) -> bool:
    """Whether images cover most of an open page: one large image, or strips that are as wide as half of the page."""
    left, bottom, right, top = page.get_bbox()
    width, height = right - left, top - bottom
    covered = 0.0
    for item in _top_objects(page):
        if pdfium_c.FPDFPageObj_GetType(item) not in (pdfium_c.FPDF_PAGEOBJ_IMAGE, pdfium_c.FPDF_PAGEOBJ_FORM):
            continue
        if not _is_image(item):
            continue
        sides = [ctypes.c_float() for _ in range(4)]
        if not pdfium_c.FPDFPageObj_GetBounds(item, *map(ctypes.byref, sides)):
            continue
        x0, y0, x1, y1 = (side.value for side in sides)
        wide, high = min(x1, right) - max(x0, left), min(y1, top) - max(y0, bottom)
        if wide >= _STRIP_SHARE * width and high > 0:
            covered += wide * high
    return covered >= _SCAN_SHARE * width * height


def _is_image(item: Any) -> bool:
    """Whether an object is an image, or a form with an image and nothing but images and text."""
    if pdfium_c.FPDFPageObj_GetType(item) == pdfium_c.FPDF_PAGEOBJ_IMAGE:
        return True
    kinds = {pdfium_c.FPDFPageObj_GetType(inner) for inner in _form_objects(item)}
    return pdfium_c.FPDF_PAGEOBJ_IMAGE in kinds and kinds <= {
        pdfium_c.FPDF_PAGEOBJ_IMAGE,
        pdfium_c.FPDF_PAGEOBJ_TEXT,
    }
