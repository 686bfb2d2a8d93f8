"""Text of page images by RapidOCR, an optional package: PP-OCRv6 small, on a CPU. The only module that imports it.

The models (31 MB) are inside the package, so nothing is downloaded. One process uses one core and about 0.8 GB. Several
processes may read at the same time, each with its own engine.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from mmrr.documents.ocr_blanks import mend
from mmrr.documents.ocr_models import Recognition
from mmrr.errors import MmrrError

#: The OCR model, and the version of the reading below. Part of hashes: change it with anything that changes text.
ENGINE = "PP-OCRv6 small/2"

_PACKAGES = ("rapidocr", "onnxruntime")
_COLUMN_LINES = 3  # minimum number of lines in a column
_COLUMN_WIDTH = 8  # lines this many line heights wide must hold most of a column's text; narrower ones are table cells


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
    """Raises MmrrError if the package is missing. Imports nothing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MmrrError(
            f"--ocr needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
            "run: pip install 'mmrr[ocr]'"
        )


def read_page(image: Path, sha256: str, recognition: Recognition) -> tuple[str, str] | None:
    """(text, "") of one page image; ("", reason) if OCR failed; None if the file has another hash.

    Raises MmrrError if OCR does not work on this machine at all, or if memory runs out.
    """
    try:
        data = image.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(data).hexdigest() != sha256:
        return None
    engine = _engine(recognition)
    try:
        return in_reading_order(_lines(engine(data), data)), ""
    except MemoryError:  # of the machine, not of the page: it must not be stored
        raise MmrrError("memory ran out while a page was read by OCR; run the command again with --workers 1") from None
    except Exception as error:  # any error of the package on one page fails only this page
        return "", f"OCR failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def in_reading_order(lines: Iterable[Line]) -> str:
    """The text in rows from top to bottom, each row from left to right; columns of text one after the other.

    A page is cut into two columns at a vertical line that leaves most of its text intact. Lines that cross the cut,
    such as a title, end the columns above them. Narrow columns are not cut: a table is read row by row.
    """
    return "\n".join(_ordered(sorted(lines, key=lambda line: (line.middle, line.left))))


def _ordered(lines: list[Line]) -> list[str]:
    """Texts in reading order. ``lines`` are sorted by their middles."""
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
    """Bands from top to bottom: lines that cross ``cut`` or lines that do not; with a flag: the band is two columns."""
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


# Any: the package has no types.
def _lines(found: Any, data: bytes) -> Iterable[Line]:
    """The boxes of the package, corners (n, 4, 2), as upright boxes; none if it found no text."""
    if found.boxes is None or found.txts is None:
        return
    with Image.open(io.BytesIO(data)) as image:
        page = image.convert("L")
    # Of each line, its characters: (character, score, corners).
    characters = getattr(found, "word_results", None) or [()] * len(found.txts)
    for box, found_text, boxes in zip(found.boxes, found.txts, characters, strict=True):
        centres = [sum(x for x, _ in corners) / len(corners) for _, _, corners in boxes if corners]
        text = mend(found_text, centres, box.tolist(), page)
        (left, top), (right, bottom) = box.min(0).tolist(), box.max(0).tolist()
        yield Line(left, top, right, bottom, " ".join(text.replace("\0", "").split()))


@functools.cache
def _engine(recognition: Recognition) -> Any:
    """The package's engine, one per process. Raises MmrrError if it cannot read a test image."""
    require()
    if recognition.path:
        _check_characters(recognition.path)
    try:
        import cv2
        from rapidocr import ModelType, OCRVersion, RapidOCR

        cv2.setNumThreads(1)
        model = {"ocr_version": OCRVersion.PPOCRV6, "model_type": ModelType.SMALL}
        threads = ("intra_op_num_threads", "inter_op_num_threads")
        engine = RapidOCR(
            params={f"{part}.{name}": value for part in ("Det", "Rec") for name, value in model.items()}
            | {f"EngineConfig.onnxruntime.{name}": 1 for name in threads}
            | {"Global.log_level": "critical", "Global.return_word_box": True, "Global.return_single_char_box": True}
            | _parameters(recognition)
        )
        image = Image.new("RGB", (240, 80), "white")
        ImageDraw.Draw(image).text((20, 20), "a word", "black", ImageFont.load_default(40))
        engine(image)  # the engine loads its models at the first call
    except Exception as error:
        raise MmrrError(
            f"OCR does not work here ({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
            "run: pip install --force-reinstall 'mmrr[ocr]'"
        ) from error
    return engine


def _parameters(recognition: Recognition) -> dict[str, object]:
    """The package's parameters for another recognition model. With a path, it downloads none."""
    if recognition.path is None:
        return {}
    parameters: dict[str, object] = {"Rec.model_path": str(recognition.path)}
    if recognition.is_rtl:
        from rapidocr import LangRec

        parameters["Rec.lang_type"] = LangRec.ARABIC
    return parameters


def _check_characters(path: Path) -> None:
    """Raise MmrrError for a model without its list of characters: the package would download one."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # any error of the package says that it is no model
        raise MmrrError(f"--ocr-language {path}: expected a recognition model of RapidOCR in ONNX format") from error
    if "character" not in session.get_modelmeta().custom_metadata_map:
        raise MmrrError(
            f"--ocr-language {path}: the model has no list of characters; take one of RapidOCR's own models"
        )
