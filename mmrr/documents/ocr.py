"""Reads the text of page images with RapidOCR, an optional package: PP-OCRv6 small, on a CPU. Its only importer.

The models (31 MB) lie inside the package, so nothing is downloaded. A process reads on one core and takes about 0.8 GB;
several may read at once, each with an engine of its own.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from mmrr.errors import MmrrError

#: What reads, and the version of what is made of it here. Hashed: whatever changes the text changes this.
ENGINE = "PP-OCRv6 small/1"

_PACKAGES = ("rapidocr", "onnxruntime")
_COLUMN_LINES = 3  # a column has as many lines at least
_COLUMN_WIDTH = 8  # and most of its text in lines as many line heights wide: narrower ones are cells of a table


class Line(NamedTuple):
    """A line of text, or a cell of a table, and the box around it in pixels."""

    left: float
    top: float
    right: float
    bottom: float
    text: str

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


def require() -> None:
    """Raises MmrrError where the package is missing. Imports nothing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MmrrError(
            f"--ocr needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
            "run: pip install 'mmrr[ocr]'"
        )


def read_page(image: Path, sha256: str) -> tuple[str, str] | None:
    """The text of one page image, and why there is none where reading it failed; None for a file of another hash.

    Raises MmrrError if OCR does not work here at all.
    """
    try:
        data = image.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(data).hexdigest() != sha256:
        return None
    engine = _engine()
    try:
        return in_reading_order(_lines(engine(data))), ""
    except Exception as error:  # a page that the package cannot cope with costs that page
        return "", f"OCR failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def in_reading_order(lines: Iterable[Line]) -> str:
    """Rows from top to bottom, one a line, from left to right in them; columns of text one after the other.

    A page is cut where a vertical line leaves most of its text whole, in two columns: lines that cross it, such as
    a title, end the columns above them. Narrow columns are not cut: a table is read row by row.
    """
    return "\n".join(_ordered(sorted(lines, key=lambda line: (line.middle, line.left))))


def _ordered(lines: list[Line]) -> list[str]:
    """Texts of lines that are sorted by their middles."""
    best, cut = 0, 0.0
    for place in sorted({line.right for line in lines}):
        in_columns = sum(len(band) for band, columns in _bands(lines, place) if columns)
        if in_columns > best:
            best, cut = in_columns, place
    if not best:
        return _rows(lines)
    texts = []
    for columns, group in groupby(_bands(lines, cut), key=lambda band: band[1]):
        bands = [band for band, _ in group]
        if columns:
            for band in bands:
                texts += _ordered([line for line in band if line.right <= cut])
                texts += _ordered([line for line in band if line.right > cut])
        else:
            texts += _ordered([line for band in bands for line in band])
    return texts


def _bands(lines: list[Line], cut: float) -> list[tuple[list[Line], bool]]:
    """Lines that cross ``cut``, lines that do not, and so on downwards; with whether a band is two columns."""
    bands = []
    for crosses, group in groupby(lines, key=lambda line: line.left < cut < line.right):
        band = list(group)
        sides = [[line for line in band if (line.right <= cut) is left] for left in (True, False)]
        bands.append((band, not crosses and all(map(_is_column, sides))))
    return bands


def _is_column(lines: list[Line]) -> bool:
    if len(lines) < _COLUMN_LINES:
        return False
    least = _COLUMN_WIDTH * median(line.bottom - line.top for line in lines)
    widths = [line.right - line.left for line in lines]
    return 2 * sum(width for width in widths if width >= least) > sum(widths)


def _rows(lines: list[Line]) -> list[str]:
    rows: list[list[Line]] = []
    for line in lines:
        first = rows[-1][0] if rows else line
        if rows and line.middle - first.middle < min(line.bottom - line.top, first.bottom - first.top) / 2:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [" ".join(line.text for line in sorted(row)) for row in rows]


def _lines(found: Any) -> Iterable[Line]:
    """The package's corners of boxes, (n, 4, 2), as upright boxes; nothing where it found nothing."""
    if found.boxes is None or found.txts is None:
        return
    for box, text in zip(found.boxes, found.txts, strict=True):
        (left, top), (right, bottom) = box.min(0).tolist(), box.max(0).tolist()
        yield Line(left, top, right, bottom, " ".join(text.replace("\0", "").split()))


@functools.cache
def _engine() -> Any:
    """The package's reader, once a process. Raises MmrrError if it does not read a word."""
    require()
    try:
        import cv2
        from rapidocr import ModelType, OCRVersion, RapidOCR

        cv2.setNumThreads(1)
        model = {"ocr_version": OCRVersion.PPOCRV6, "model_type": ModelType.SMALL}
        threads = ("intra_op_num_threads", "inter_op_num_threads")
        engine = RapidOCR(
            params={f"{part}.{name}": value for part in ("Det", "Rec") for name, value in model.items()}
            | {f"EngineConfig.onnxruntime.{name}": 1 for name in threads}
            | {"Global.log_level": "critical"}
        )
        image = Image.new("RGB", (240, 80), "white")
        ImageDraw.Draw(image).text((20, 20), "a word", "black", ImageFont.load_default(40))
        engine(image)  # it loads its models only when it reads
    except Exception as error:
        raise MmrrError(
            f"OCR does not work here ({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
            "run: pip install --force-reinstall 'mmrr[ocr]'"
        ) from error
    return engine
