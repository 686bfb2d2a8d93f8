"""Where the words of a PDF page's text layer are on its image, as PDFium reads it.

As in :mod:`mmrr.documents.discovery`, two threads of one process must not use it at the same time. Any: pypdfium2 has
no types.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pypdfium2 as pdfium  # type: ignore[import-untyped]
import pypdfium2.raw as pdfium_c  # type: ignore[import-untyped]

from mmrr.documents.canvas import Size, drawn_size, offset
from mmrr.documents.discovery import one_line, open_pdf
from mmrr.documents.page_objects import hide_switched_off, may_have_layers

#: The most words of a page. A page of a newspaper has 5,000.
MOST_WORDS = 20_000
#: Boxes are computed on a device that is this many pixels wide and high: PDFium gives whole pixels.
_DEVICE = 100_000
#: PDFium's signs for a hyphen at the end of a line, after which it gives no end of the line; the soft hyphen.
_LINE_END, _SOFT_HYPHEN = ("\x02", "\ufffe"), "\u00ad"


class WordBox(NamedTuple):
    """A word, or the part of it that is on one line, as fractions (0 to 1) of the page image's width and height."""

    text: str  # the whole word
    left: float
    top: float
    width: float
    height: float


def read(path: Path, number: int, canvas: Size) -> list[WordBox]:
    """The words of page ``number`` (from 1), in the order of the text layer. ``canvas``: the page image's size.

    Words on layers that are switched off, and words outside of the page, are left out.
    Raises OSError, ValueError and PdfiumError for a file or a page that does not open.
    """
    with closing(open_pdf(path)) as pdf:
        if not 1 <= number <= len(pdf):
            raise ValueError(f"found {len(pdf)} pages; expected at least {number}")
        with closing(pdf[number - 1]) as page:
            if may_have_layers(path):
                hide_switched_off(pdf, page)
            return list(_words(page, canvas))


def _words(page: Any, canvas: Size) -> Iterator[WordBox]:
    width, height = page.get_size()
    drawn = drawn_size(width, height, canvas)
    left, top = offset(canvas, drawn)
    with closing(page.get_textpage()) as textpage:
        for text, lines in itertools.islice(_grouped(textpage), MOST_WORDS):
            # PDFium gives the halves of a character beyond U+FFFF; one alone is no text.
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
            for line in lines:
                # The page fills the device; on the image it may have a margin.
                x0, y0, x1, y1 = _on_device(page, line)
                x0, x1 = ((left + x * drawn[0]) / canvas[0] for x in (x0, x1))
                y0, y1 = ((top + y * drawn[1]) / canvas[1] for y in (y0, y1))
                if x1 > 0 and y1 > 0 and x0 < 1 and y0 < 1:
                    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0)
                    yield WordBox(text, x0, y0, x1 - x0, y1 - y0)


_Box = tuple[float, float, float, float]  # left, bottom, right, top in points


def _grouped(textpage: Any) -> Iterator[tuple[str, list[_Box]]]:
    """Each word with the box of its part on each line."""
    text = ""
    lines: list[_Box] = []
    broken, new_line = False, True  # broken: the word goes on in the next line
    for i in range(max(0, pdfium_c.FPDFText_CountChars(textpage))):
        char = chr(pdfium_c.FPDFText_GetUnicode(textpage, i))
        if text and (char in _LINE_END or char == _SOFT_HYPHEN):
            broken, new_line = True, new_line or char in _LINE_END
            continue
        if char.isspace() or char == "\0":
            if not broken and text:
                yield text, lines
                text, lines = "", []
            new_line = True
            continue
        box = _char_box(textpage, i)
        if box is None:
            continue
        if lines and not new_line and _is_next(lines[-1], box):
            lines[-1] = _union(lines[-1], box)
        elif lines and not broken and not new_line:  # the next line, without a blank between
            yield text, lines
            text, lines = "", [box]
        else:
            lines.append(box)
        text += char
        broken = new_line = False
    if text:
        yield text, lines


def _char_box(textpage: Any, i: int) -> _Box | None:
    """The line box of a character: as high as its line, so that a word is covered evenly."""
    box = pdfium_c.FS_RECTF()
    if not pdfium_c.FPDFText_GetLooseCharBox(textpage, i, ctypes.byref(box)):
        return None
    sides = (box.left, box.right, box.bottom, box.top)
    if not all(map(math.isfinite, sides)) or box.left == box.right or box.top == box.bottom:
        return None
    return min(box.left, box.right), min(box.bottom, box.top), max(box.left, box.right), max(box.bottom, box.top)


def _is_next(word: _Box, box: _Box) -> bool:
    """Whether a character belongs to the line of a word: upright or turned, it lies beside the word."""
    high, wide = box[3] - box[1], box[2] - box[0]
    across = min(word[3], box[3]) - max(word[1], box[1])
    along = min(word[2], box[2]) - max(word[0], box[0])
    return across > 0.5 * min(high, word[3] - word[1]) or along > 0.5 * min(wide, word[2] - word[0])


def _union(one: _Box, other: _Box) -> _Box:
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])


def _on_device(page: Any, box: _Box) -> _Box:
    """Left, top, right, bottom as fractions of the page as it is drawn: PDFium knows how it is turned and cropped."""
    x, y = ctypes.c_int(), ctypes.c_int()
    corners = []
    for corner in ((box[0], box[1]), (box[2], box[3])):
        pdfium_c.FPDF_PageToDevice(page, 0, 0, _DEVICE, _DEVICE, 0, *corner, ctypes.byref(x), ctypes.byref(y))
        corners.append((x.value / _DEVICE, y.value / _DEVICE))
    (x0, y0), (x1, y1) = corners
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def serve(connection: Connection) -> None:
    """Answer (path, number, canvas) over a pipe with a list of ``WordBox``, or with why there is none."""
    while True:
        path, number, canvas = connection.recv()
        try:
            found: list[WordBox] | str = read(path, number, canvas)
        except (pdfium.PdfiumError, OSError, ValueError, AssertionError, RecursionError) as error:
            found = one_line(error)
        connection.send(found)
