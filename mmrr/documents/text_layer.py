"""The text of a PDF page as PDFium reads it.

This module knows no renderer, workspace, models or command line. As in :mod:`mmrr.documents.discovery`, two threads of
one process must not use it at the same time.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pypdfium2 as pdfium  # type: ignore[import-untyped]

#: A hyphen at the end of a line, which may or may not belong to the word, and the end of the line.
LINE_END_HYPHEN = "\u00ad\n"


def read_text(page: Any) -> tuple[str, str]:
    """(text, "") of an open ``PdfPage``; ("", reason) if PDFium cannot read the text. Lines end with ``\\n``.

    A hyphen at the end of a line becomes ``LINE_END_HYPHEN``: readers of the text decide whether the two halves are one
    word. Any: pypdfium2 has no types.
    """
    try:
        with closing(page.get_textpage()) as textpage:
            text: str = textpage.get_text_range()  # drops lone surrogates
    except (pdfium.PdfiumError, AssertionError, RecursionError):  # pypdfium2 raises the last two for odd text layers
        return "", "the text layer could not be read"
    # PDFium writes U+FFFE for a hyphen at the end of a line, and no end of the line.
    return text.replace("\r\n", "\n").replace("\0", "").replace("\ufffe", LINE_END_HYPHEN), ""
