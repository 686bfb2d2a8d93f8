"""Calls poppler's programs: ``pdfinfo`` for pages and their sizes, ``pdftoppm`` for images, ``pdftotext`` for text.

Poppler is optional. This module knows paths and page numbers; :mod:`mmrr.documents.rendering` decides what is drawn.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pdf2image import convert_from_path, pdfinfo_from_path
from pdf2image.exceptions import PDFInfoNotInstalledError, PDFPageCountError, PDFPopplerTimeoutError

TIMEOUT_S = 120
# These have no common base class. pdf2image raises ValueError for a report that it cannot read.
_ERRORS = (PDFInfoNotInstalledError, PDFPageCountError, PDFPopplerTimeoutError, OSError, ValueError)


class PopplerError(Exception):
    """A program of poppler is missing, failed, or took more than ``TIMEOUT_S``."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a page in points before its rotation, and the rotation in degrees clockwise."""

    width: float
    height: float
    rotation: int


@dataclass(frozen=True, slots=True)
class Info:
    """What ``pdfinfo`` says of a file."""

    n_pages: int
    shapes: dict[int, Shape]  # by page number; a page that poppler cannot load has none


def installed() -> bool:
    """Whether ``pdftoppm`` and ``pdfinfo`` are on PATH."""
    return bool(shutil.which("pdftoppm") and shutil.which("pdfinfo"))


def read_info(path: Path, first: int = 1, last: int = 1) -> Info:
    """The number of pages, and the shapes of pages ``first`` to ``last``. Raises PopplerError."""
    try:
        fields = pdfinfo_from_path(str(path), first_page=first, last_page=last, timeout=TIMEOUT_S)
        n_pages = int(fields["Pages"])
    except (*_ERRORS, KeyError) as error:
        raise PopplerError(str(error) or type(error).__name__) from error
    values = {" ".join(key.split()): value for key, value in fields.items()}
    shapes = {}
    for number in range(first, last + 1):
        size = re.match(r"(\S+) x (\S+) pts", values.get(f"Page {number} size", ""))
        with suppress(KeyError, ValueError):
            if size:
                shapes[number] = Shape(float(size[1]), float(size[2]), int(values[f"Page {number} rot"]))
    return Info(n_pages, shapes)


def read_text(path: Path, number: int) -> str:
    """The text layer of one page. Raises PopplerError."""
    program = shutil.which("pdftotext")
    if program is None:
        raise PopplerError("pdftotext is not on PATH")
    command = [program, "-f", str(number), "-l", str(number), "-enc", "UTF-8", str(path), "-"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise PopplerError(str(error)) from error
    return done.stdout.decode("utf-8", "replace").replace("\r\n", "\n").replace("\0", "").rstrip("\n\f")


def draw(path: Path, first: int, last: int, size: tuple[int, int | None], folder: Path) -> tuple[dict[int, Path], str]:
    """Draw pages as PPM files of this width and height into a new folder below ``folder``.

    Returns {number: file}, and why pages are missing if some are. A file may be truncated.
    """
    reason = "poppler drew no image"
    target = Path(tempfile.mkdtemp(dir=folder))
    try:
        convert_from_path(
            str(path),
            first_page=first,
            last_page=last,
            size=size,
            use_cropbox=True,
            output_folder=str(target),
            paths_only=True,
            timeout=TIMEOUT_S,
        )
    except PDFPopplerTimeoutError:
        reason = f"poppler took more than {TIMEOUT_S} s"
    except _ERRORS as error:
        reason = f"poppler failed ({' '.join(str(error).split())[:200] or type(error).__name__})"
    return {int(file.stem.rpartition("-")[2]): file for file in target.glob("*.ppm")}, reason
