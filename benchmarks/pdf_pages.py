"""Shared code: size, image and character positions of PDF pages, as mmrr renders them at 150 dpi and 1,280 tokens."""

from __future__ import annotations

import numpy as np
import pypdfium2 as pdfium
from PIL import Image

from mmrr.documents.page_grid import CELL_PX, snap
from mmrr.training.synthetic.canvas import Word

#: A page with fewer characters in its text layer is a scan or a picture, so its text layer is not the truth.
MIN_CHARACTERS = 100
SCALE, MAX_TOKENS = 150 / 72, 1280


def size_px(page: pdfium.PdfPage) -> tuple[int, int]:
    """Width and height of the page image in pixels, whole visual tokens."""
    width, height = page.get_size()
    return snap(width * SCALE, height * SCALE, CELL_PX, MAX_TOKENS)


def image(page: pdfium.PdfPage) -> Image.Image:
    """The page at 150 dpi in RGB."""
    return page.render(scale=SCALE).to_pil().convert("RGB")


def characters(page: pdfium.PdfPage, width_px: int, height_px: int) -> list[Word]:
    """The characters of the text layer, each as a ``Word`` at the centre of its box, in pixels.

    Boxes are in PDF coordinates; the page may show a part of them only. The page must not be rotated.
    """
    width, height = page.get_size()
    x_shown, y_shown, _, _ = page.get_bbox()
    layer = page.get_textpage()
    words = []
    for index in range(layer.count_chars()):
        character = layer.get_text_range(index, 1)[:1]
        left, bottom, right, top = layer.get_charbox(index)
        x, y = (left + right) / 2 - x_shown, (bottom + top) / 2 - y_shown
        centre = (x / width * width_px, (1 - y / height) * height_px)
        words.append(Word(character, np.array([centre], dtype=np.float32), 0))
    return [word for word in words if word.text]
