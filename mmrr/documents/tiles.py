"""Cuts a page with small print into tiles: page images of its parts, at a scale at which the print can be read.

A tile is numbered ``TILES * page number + tile``, so that it has its own file and its own place in a shard.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import pypdfium2 as pdfium  # type: ignore[import-untyped]
import pypdfium2.raw as pdfium_c  # type: ignore[import-untyped]
from PIL import Image

from mmrr.documents.canvas import target_size
from mmrr.documents.discovery import Source
from mmrr.documents.drawn import RenderOptions
from mmrr.documents.page_grid import CELL_PX
from mmrr.documents.pdf_pages import OpenPdfs
from mmrr.documents.print_size import ASSUMED_POINTS, print_points
from mmrr.documents.rendering import PNG_LEVEL, RenderedPage

TILES = 1000
#: The height of print in a tile, from ascender to descender, in pixels: as that of 10 points on an A4 page.
PRINT_PX = 18.0
#: The most tiles of a page. A page that needs more has smaller print in them.
MOST_TILES = 64
#: Neighbouring tiles share this part of their side, so that a line is whole in one of them.
OVERLAP = 0.05

Box = tuple[float, float, float, float]


def boxes(width: float, height: float, max_tokens: int) -> list[Box]:
    """The tiles of a page of this size in pixels: left, top, right, bottom, row by row."""
    area = max_tokens * CELL_PX**2
    shrink = max(1.0, math.sqrt(width * height / (area * MOST_TILES * (1 - OVERLAP) ** 4)))
    side = math.sqrt(area) * (1 - 2 * OVERLAP) * shrink
    columns = max(1, round(width / side))
    rows = max(1, math.ceil(height / (side * side / (width / columns))))
    across, down = width / columns, height / rows
    margin_x, margin_y = OVERLAP * across, OVERLAP * down
    return [
        (
            max(0.0, column * across - margin_x),
            max(0.0, row * down - margin_y),
            min(width, (column + 1) * across + margin_x),
            min(height, (row + 1) * down + margin_y),
        )
        for row in range(rows)
        for column in range(columns)
    ]


def draw_tiles(source: Source, number: int, out: Path, options: RenderOptions) -> list[RenderedPage]:
    """Draw the tiles of a PDF page with PDFium into ``out``. [] for other documents and for a page that does not open.

    Raises OSError if ``out`` cannot be written.
    """
    if source.kind != "pdf":
        return []
    with closing(OpenPdfs()) as pdfs:
        file = pdfs.get(source.file)
        if file.pdf is None:
            return []
        try:
            with closing(file.pdf[number - 1]) as page:
                return _tiles(page, number, out, options)
        except (pdfium.PdfiumError, ValueError):
            return []


def _tiles(page: Any, number: int, out: Path, options: RenderOptions) -> list[RenderedPage]:
    width, height = page.get_size()
    scale = min(options.dpi / 72, PRINT_PX / (print_points(page) or ASSUMED_POINTS))
    found = boxes(width * scale, height * scale, options.max_tokens)
    if len(found) < 2:
        return []
    tiles = []
    with closing(page.get_textpage()) as textpage:
        for index, (left, top, right, bottom) in enumerate(found, 1):
            canvas = target_size(right - left, bottom - top, options.max_tokens)
            x, y = canvas[0] / (right - left), canvas[1] / (bottom - top)
            view = (round(-left * x), round(-top * y), round(width * scale * x), round(height * scale * y))
            image = _draw(page, canvas, view)
            tiles.append(_save(image, TILES * number + index, _text(page, textpage, canvas, view), out))
    return tiles


def _draw(page: Any, canvas: tuple[int, int], view: tuple[int, int, int, int]) -> Image.Image:
    with closing(pdfium.PdfBitmap.new_native(*canvas, pdfium_c.FPDFBitmap_BGR)) as bitmap:
        bitmap.fill_rect((255, 255, 255, 255), 0, 0, *canvas)
        pdfium_c.FPDF_RenderPageBitmap(bitmap, page, *view, 0, pdfium_c.FPDF_ANNOT)
        if page.formenv:
            pdfium_c.FPDF_FFLDraw(page.formenv, bitmap, page, *view, 0, pdfium_c.FPDF_ANNOT)
        image: Image.Image = bitmap.to_pil()
        return image


def _text(page: Any, textpage: Any, canvas: tuple[int, int], view: tuple[int, int, int, int]) -> str:
    """The text inside a tile. PDFium knows how a turned page lies on the canvas."""
    x, y = ctypes.c_double(), ctypes.c_double()
    corners = []
    for corner in ((0, 0), canvas):
        pdfium_c.FPDF_DeviceToPage(page, *view, 0, *corner, ctypes.byref(x), ctypes.byref(y))
        corners.append((x.value, y.value))
    (x0, y0), (x1, y1) = corners
    text: str = textpage.get_text_bounded(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    return text.replace("\r\n", "\n").replace("\0", "").replace("\ufffe", "\u00ad\n")


def _save(image: Image.Image, number: int, text: str, out: Path) -> RenderedPage:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=PNG_LEVEL)
    data, file = buffer.getvalue(), f"{number:04d}.png"
    (out / file).write_bytes(data)
    return RenderedPage(number, "ok", "", *image.size, hashlib.sha256(data).hexdigest(), file, text)
