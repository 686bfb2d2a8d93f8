"""Boxes of words against the pixels of the drawn page: however it is turned and cropped, the ink is in the boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pypdfium2 as pdfium
import pytest
from PIL import Image

from mmrr.documents import word_boxes
from mmrr.documents.discovery import Source
from mmrr.documents.drawn import RenderOptions
from mmrr.documents.rendering import render_pages
from tests.documents.layered import one_page, words
from tests.pdfs import make_pdf

PAGE = b"BT /F1 30 Tf 1 0 0 1 60 300 Tm (harbour quay) Tj 0 1 -1 0 330 300 Tm (turned) Tj ET"


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize(
    ("size", "cropbox"), [((400, 600), None), ((400, 600), (40, 240, 380, 580)), ((40_000, 100), None)]
)
def test_the_ink_is_in_the_boxes(tmp_path: Path, rotate: int, size: tuple[float, float], cropbox: object):
    path = tmp_path / "a.pdf"
    content = PAGE if size[0] < 1000 else b"BT /F1 80 Tf 60 20 Td (harbour quay) Tj ET"
    path.write_bytes(make_pdf([content], size=size, rotate=rotate, cropbox=cropbox))  # type: ignore[arg-type]
    (page,) = render_pages(Source("a.pdf", path, "pdf"), 1, 1, tmp_path, RenderOptions("pdfium", 150, 400))
    found = word_boxes.read(path, 1, (page.width_px, page.height_px))
    assert {"harbour", "quay"} <= {box.text for box in found}
    with Image.open(tmp_path / page.file) as image:
        ink = np.asarray(image.convert("L")) < 128
    assert ink.any()
    covered = np.zeros_like(ink)
    for box in found:
        left, right = (round(x * page.width_px) for x in (box.left, box.left + box.width))
        top, bottom = (round(y * page.height_px) for y in (box.top, box.top + box.height))
        inside = np.s_[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1]
        assert ink[inside].any(), box
        covered[inside] = True
    assert (ink & covered).sum() / ink.sum() > 0.99
    assert covered.mean() < 0.5


def test_words_are_runs_without_a_blank(tmp_path: Path):
    path = tmp_path / "a.pdf"
    path.write_bytes(make_pdf(["a well-\nknown thing:\n(x)"]))
    assert [box.text for box in word_boxes.read(path, 1, (400, 500))] == [
        "a",
        "wellknown",
        "wellknown",
        "thing:",
        "(x)",
    ]
    path.write_bytes(make_pdf([""]))
    assert word_boxes.read(path, 1, (400, 500)) == []
    with pytest.raises(ValueError, match="found 1 pages"):
        word_boxes.read(path, 2, (400, 500))
    path.write_bytes(b"no document")
    with pytest.raises(pdfium.PdfiumError):
        word_boxes.read(path, 1, (400, 500))


def test_words_outside_of_the_page_are_left_out(tmp_path: Path):
    path = tmp_path / "a.pdf"
    path.write_bytes(one_page(words("inside", 100) + b"BT /F1 12 Tf 900 20 Td (outside) Tj ET"))
    assert [box.text for box in word_boxes.read(path, 1, (400, 400))] == ["inside"]
