"""The text of a PDF page as PDFium reads it: what is drawn, form fields and annotations too, and nothing else.

This module knows no renderer, workspace, models or command line. As in :mod:`mmrr.documents.discovery`, two threads of
one process must not use it at the same time. Any: pypdfium2 has no types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pypdfium2 as pdfium  # type: ignore[import-untyped]
import pypdfium2.raw as pdfium_c  # type: ignore[import-untyped]

from mmrr.documents.garbled import is_garbled
from mmrr.documents.page_objects import hide_switched_off, is_scan, may_have_layers

#: A hyphen at the end of a line, which may or may not belong to the word, and the end of the line.
LINE_END_HYPHEN = "\u00ad\n"
#: Codes of what is wrong with the text of a page: a form that shows its notice alone; an image of the page with a text
#: layer of few words; letters that are no words.
XFA, LITTLE_TEXT, GARBLED = "xfa", "little_text", "garbled"

# Flags of an annotation: table 165 of ISO 32000-1.
_INVISIBLE, _HIDDEN, _NO_VIEW = 1 << 0, 1 << 1, 1 << 5
#: An appearance is drawn for these kinds too, but their text is a link's, or belongs to another annotation.
_WITHOUT_TEXT = (pdfium_c.FPDF_ANNOT_LINK, pdfium_c.FPDF_ANNOT_POPUP)
_WITH_TEXT = (pdfium_c.FPDF_PAGEOBJ_TEXT, pdfium_c.FPDF_PAGEOBJ_FORM)
_FEW_WORDS = 30
_LABEL_CHARACTERS = 40
#: The notice of Adobe's programs in a form that only they can show, in some of their languages.
_NOTICE = re.compile(
    "please wait|bitte warten|veuillez patienter|espere|por favor, aguarde|attendere|een ogenblik geduld"
    "|v\u00e4nligen v\u00e4nta|vent venligst|prosz\u0119 czeka\u0107"
    "|\u043f\u043e\u0434\u043e\u0436\u0434\u0438\u0442\u0435"
    "|\u304a\u5f85\u3061\u304f\u3060\u3055\u3044|\u8bf7\u7a0d\u5019|adobe reader|acrobat reader",
    re.IGNORECASE,
)
_NOTICE_CHARACTERS = 2000  # a page with more text is more than the notice


class PageText(NamedTuple):
    """The text of a page. Lines end with ``\\n``."""

    text: str
    detail: str = ""  # why there is no text, for people
    label: str = ""  # the page's own number, such as iv or A-3; "" if it is the physical number
    notes: tuple[str, ...] = ()


class TextLayer:
    """Reads the texts of the pages of an open ``PdfDocument``."""

    def __init__(self, pdf: Any, path: Path, reopen: Callable[[], Any]) -> None:
        """``reopen`` opens the same file once more. The second copy is changed in memory: appearances become text."""
        self._pdf = pdf
        self._has_layers = True
        with suppress(OSError, ValueError):
            self._has_layers = may_have_layers(path)
        self._reopen = reopen
        self._copy: Any = None
        self._is_xfa = pdf.get_formtype() in (pdfium_c.FORMTYPE_XFA_FULL, pdfium_c.FORMTYPE_XFA_FOREGROUND)

    def read(self, page: Any, number: int) -> PageText:
        """The text of the page ``number`` (from 1), which is open as ``page``.

        A hyphen at the end of a line becomes ``LINE_END_HYPHEN``: readers of the text decide whether the two halves are
        one word. Text on layers that are switched off is left out.
        """
        label = self._label(number)
        try:
            if self._has_layers:
                hide_switched_off(self._pdf, page)
            text = _text(page)
            if _has_drawn_annotations(page):
                text = self._with_annotations(number, text)
        except (pdfium.PdfiumError, AssertionError, RecursionError):  # pypdfium2 raises the last two for odd layers
            return PageText("", "the text layer could not be read", label)
        return PageText(text, "", label, tuple(self._notes(page, text)))

    def close(self) -> None:
        """Close the second copy of the file."""
        if self._copy:
            self._copy.close()
        self._copy = None

    def _label(self, number: int) -> str:
        try:
            label = "".join(filter(str.isprintable, self._pdf.get_page_label(number - 1))).strip()[:_LABEL_CHARACTERS]
        except Exception:  # pypdfium2 decodes it; a broken label is none
            return ""
        return "" if label == str(number) else label

    def _notes(self, page: Any, text: str) -> Iterator[str]:
        if self._is_xfa and len(text) < _NOTICE_CHARACTERS and _NOTICE.search(text):
            yield XFA
        if is_garbled(text):
            yield GARBLED
        elif 0 < len(text.split()) < _FEW_WORDS and is_scan(page):
            yield LITTLE_TEXT

    def _with_annotations(self, number: int, text: str) -> str:
        """The text with what form fields and annotations show; ``text`` itself if PDFium cannot add it."""
        if self._copy is None:
            self._copy = self._reopen()
            if self._copy.get_formtype() == pdfium_c.FORMTYPE_ACRO_FORM:
                with suppress(pdfium.PdfiumError):
                    self._copy.init_forms()  # makes the appearance of fields that have none
        with closing(self._copy[number - 1]) as page:
            n_objects = pdfium_c.FPDFPage_CountObjects(page)
            _hide_undrawn(page)
            if pdfium_c.FPDFPage_Flatten(page, pdfium_c.FLAT_NORMALDISPLAY) != pdfium_c.FLATTEN_SUCCESS:
                return text
        with closing(self._copy[number - 1]) as page:
            # The appearances are the last objects. PDFium would mix their lines with those behind them.
            for index in range(n_objects):
                pdfium_c.FPDFPageObj_SetIsActive(pdfium_c.FPDFPage_GetObject(page, index), False)
            if self._has_layers:
                hide_switched_off(self._copy, page)
            return "\n".join(filter(None, [text, _text(page)]))


def _text(page: Any) -> str:
    with closing(page.get_textpage()) as textpage:
        text: str = textpage.get_text_range()  # drops lone surrogates
    # PDFium writes U+FFFE for a hyphen at the end of a line, and no end of the line.
    return text.replace("\r\n", "\n").replace("\0", "").replace("\ufffe", LINE_END_HYPHEN)


@contextmanager
def _annotation(page: Any, index: int) -> Iterator[Any]:
    annotation = pdfium_c.FPDFPage_GetAnnot(page, index)
    try:
        yield annotation
    finally:
        if annotation:
            pdfium_c.FPDFPage_CloseAnnot(annotation)


def _has_drawn_annotations(page: Any) -> bool:
    """Whether form fields or annotations may draw text."""
    for index in range(pdfium_c.FPDFPage_GetAnnotCount(page)):
        with _annotation(page, index) as annotation:
            if not annotation or pdfium_c.FPDFAnnot_GetFlags(annotation) & (_HIDDEN | _NO_VIEW):
                continue
            subtype = pdfium_c.FPDFAnnot_GetSubtype(annotation)
            if subtype == pdfium_c.FPDF_ANNOT_WIDGET:
                return True  # PDFium makes the appearance of a field that has none
            if subtype not in _WITHOUT_TEXT and any(
                pdfium_c.FPDFPageObj_GetType(pdfium_c.FPDFAnnot_GetObject(annotation, place)) in _WITH_TEXT
                for place in range(pdfium_c.FPDFAnnot_GetObjectCount(annotation))
            ):
                return True
    return False


def _hide_undrawn(page: Any) -> None:
    """Give annotations the flags with which ``FPDFPage_Flatten`` keeps what is drawn, and nothing else."""
    for index in range(pdfium_c.FPDFPage_GetAnnotCount(page)):
        with _annotation(page, index) as annotation:
            if not annotation:
                continue
            flags = pdfium_c.FPDFAnnot_GetFlags(annotation)
            subtype = pdfium_c.FPDFAnnot_GetSubtype(annotation)
            if flags & _NO_VIEW or subtype in _WITHOUT_TEXT:
                pdfium_c.FPDFAnnot_SetFlags(annotation, flags | _HIDDEN)
            elif flags & _INVISIBLE and subtype != pdfium_c.FPDF_ANNOT_WIDGET:
                pdfium_c.FPDFAnnot_SetFlags(annotation, flags & ~_INVISIBLE)  # it applies to unknown kinds only
