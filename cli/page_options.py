"""The options of documents and their pages, for ``options.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from mmrr.config import OcrMode

RendererName = Literal["auto", "poppler", "pdfium"]
_PAGES = "Pages"

Renderer = Annotated[
    RendererName,
    typer.Option(
        "--renderer", help="PDF renderer. auto: poppler if it is installed, else pdfium.", rich_help_panel=_PAGES
    ),
]
Dpi = Annotated[
    int,
    typer.Option("--dpi", help="Resolution of PDF pages before --max-tokens limits it.", rich_help_panel=_PAGES),
]
MaxTokens = Annotated[
    int,
    typer.Option(
        "--max-tokens", help="Most visual tokens of a page; one token is 32x32 pixels.", rich_help_panel=_PAGES
    ),
]
Ocr = Annotated[
    OcrMode,
    typer.Option(
        "--ocr",
        help="Pages whose text is read from their images, in seconds a page. auto: those without a text layer, images "
        "with a layer of few words, garbled layers. force: all. Needs: pip install 'mmrr[ocr]'.",
        rich_help_panel=_PAGES,
    ),
]
OcrLanguage = Annotated[
    str,
    typer.Option(
        "--ocr-language",
        metavar="CODE",
        help="Language of the pages that OCR reads, such as ru, ko, el, ar, hi or th, or the path of a recognition "
        "model of RapidOCR. Latin script, Chinese and Japanese need no option.",
        rich_help_panel=_PAGES,
        show_default=False,
    ),
]

Convert = Annotated[
    bool,
    typer.Option(
        "--convert/--no-convert",
        help="Read office files (docx, pptx, xlsx, odt, ...). LibreOffice, if it is installed, converts them to PDF.",
        rich_help_panel=_PAGES,
    ),
]
Password = Annotated[
    Optional[Path],
    typer.Option(
        "--password",
        metavar="FILE",
        help="File with the passwords of encrypted PDFs: NAME PASSWORD a line, or one password for all.",
        rich_help_panel=_PAGES,
        show_default=False,
    ),
]
Tiles = Annotated[
    bool,
    typer.Option(
        "--tiles/--no-tiles",
        help="Cut PDF pages whose print is too small for --max-tokens into several images, which rank as one page.",
        rich_help_panel=_PAGES,
    ),
]
PageTimeout = Annotated[
    float,
    typer.Option(
        "--page-timeout",
        metavar="SECONDS",
        envvar="MMRR_PAGE_TIMEOUT",
        help="Most seconds in which a renderer may draw one page. A page past it is left out and named.",
        rich_help_panel="Machine",
    ),
]
PageMemory = Annotated[
    str,
    typer.Option(
        "--page-memory",
        metavar="SIZE",
        envvar="MMRR_PAGE_MEMORY",
        help="Most memory of each process that draws pages, e.g. 2GiB. A page past it is left out and named.",
        rich_help_panel="Machine",
    ),
]
