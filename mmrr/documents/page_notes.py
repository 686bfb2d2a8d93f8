"""What is wrong with a page: the codes that are stored with it, and the words for people."""

from __future__ import annotations

import re
from collections.abc import Mapping

BLANK, SMALL_PRINT, OTHER_RENDERER = "blank", "small_print", "other_renderer"
#: Besides ``blank``: the page's text is Chinese, Japanese or Korean, so a missing font is the likely reason.
CJK_FONT = "cjk_font"

_CJK = re.compile("[\u2e80-\u2fdf\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")

#: For people, of one page and of several: what is wrong, and what to do about it.
MEANINGS: dict[str, tuple[str, str]] = {
    BLANK: ("came out blank although it has content", "came out blank although they have content"),
    CJK_FONT: (
        "lacks a font: install a CJK font, e.g. fonts-noto-cjk",
        "lack a font: install a CJK font, e.g. fonts-noto-cjk",
    ),
    SMALL_PRINT: (
        "has print below what its tokens can show (--tiles or a larger --max-tokens shows it)",
        "have print below what their tokens can show (--tiles or a larger --max-tokens shows it)",
    ),
    "tiled": ("has small print and was cut into tiles", "have small print and were cut into tiles"),
    OTHER_RENDERER: ("was drawn by the other renderer", "were drawn by the other renderer"),
    "time_limit": ("took longer than --page-timeout", "took longer than --page-timeout"),
    "memory_limit": ("needs more memory than --page-memory", "need more memory than --page-memory"),
    "xfa": (
        "is an XFA form, which shows its notice alone: print it to PDF with Adobe Reader",
        "are XFA forms, which show their notice alone: print them to PDF with Adobe Reader",
    ),
    "little_text": (
        "is an image with a text layer of few words: OCR reads it",
        "are images with a text layer of few words: OCR reads them",
    ),
    "garbled": ("has a garbled text layer: OCR reads it", "have a garbled text layer: OCR reads them"),
}


def summary(counts: Mapping[str, int]) -> list[str]:
    """One clause for each code that pages have, for example ``5 pages came out blank although they have content``."""
    counts = {code: count for code, count in counts.items() if code != "no_text"}  # the summary counts these itself
    known = [code for code in MEANINGS if code in counts] + sorted(counts.keys() - MEANINGS.keys())
    clauses = []
    for code in known:
        one, several = MEANINGS.get(code, (f"noted {code}", f"noted {code}"))
        clauses.append(f"1 page {one}" if counts[code] == 1 else f"{counts[code]} pages {several}")
    return clauses


def needs_cjk_font(text: str) -> bool:
    """Whether a text has characters of Chinese, Japanese or Korean."""
    return bool(_CJK.search(text))
