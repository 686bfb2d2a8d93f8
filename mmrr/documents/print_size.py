"""How high the print of a page is, and whether it can be read in the drawn image."""

from __future__ import annotations

import ctypes
from contextlib import closing
from typing import Any

import pypdfium2 as pdfium  # type: ignore[import-untyped]
import pypdfium2.raw as pdfium_c  # type: ignore[import-untyped]

#: Print is too small if a quarter of a page's characters are lower than this, from ascender to descender, in pixels of
#: the drawn image. RapidOCR reads 82 % of the words of a page whose print has 8 pixels, 28 % at 7 and none at 6.
LEGIBLE_PX = 8.0
#: The height of print that is assumed where nothing tells it: 10 points, from ascender to descender.
ASSUMED_POINTS = 11.7
#: The most characters of a page that are measured.
_SAMPLE = 400


def print_points(page: Any) -> float | None:
    """The height in points that three quarters of the characters of an open ``PdfPage`` reach; None without text.

    Up to ``_SAMPLE`` characters are measured, spread over the page. Any: pypdfium2 has no types.
    """
    try:
        with closing(page.get_textpage()) as textpage:
            n_chars = pdfium_c.FPDFText_CountChars(textpage)
            step = max(1, n_chars // _SAMPLE)
            heights = [_char_points(textpage, i) for i in range(0, max(0, n_chars), step)]
    except (pdfium.PdfiumError, AssertionError, RecursionError):
        return None
    measured = sorted(height for height in heights if height > 0)
    return measured[len(measured) // 4] if measured else None


def _char_points(textpage: Any, i: int) -> float:
    """The height of a character's line box, for upright and turned text; 0 for white space."""
    if chr(pdfium_c.FPDFText_GetUnicode(textpage, i)).isspace():
        return 0.0
    box = pdfium_c.FS_RECTF()
    if not pdfium_c.FPDFText_GetLooseCharBox(textpage, i, ctypes.byref(box)):
        return 0.0
    # A character is at least as high as wide, except for some wide ones: of turned text, the width is its height.
    return float(max(abs(box.top - box.bottom), abs(box.right - box.left)))


def is_small(points: float | None, pixels_per_point: float) -> bool:
    """Whether print of this height (None: unknown, ``ASSUMED_POINTS``) is too small in the drawn image."""
    return (ASSUMED_POINTS if points is None else points) * pixels_per_point < LEGIBLE_PX
