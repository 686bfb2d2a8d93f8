"""Passage images: a text passage as a small square image, for listwise reranking (arXiv 2605.11864). Knows fonts.

The image has 280 x 280 pixels, black text on white, in a monospaced font of 12 pixels. If the text fills less than 0.7
of the height, the font is larger. If the text does not fit, the font is smaller, down to 6 pixels; the public code
truncates the text instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from PIL import Image, ImageDraw

from mmrr.training.synthetic.fonts import drawable_text, face, families, font_file_for

SIDE_PX, PADDING_PX = 280, 20
BOX_PX = SIDE_PX - 2 * PADDING_PX
#: Font sizes in pixels.
DEFAULT_PX, SMALLEST_PX, LARGEST_PX = 12, 6, 48
#: Share of the height below which the default size is too small.
FULL = 0.7
#: Space between two lines, in addition to the height of their letters.
LEADING_PX = 4
FAMILY = "DejaVu Sans Mono"


@lru_cache(maxsize=1)
def font_file() -> str:
    """The published font, else the first monospaced font, else the first font."""
    known = families()
    named = [family for family in known if family.name == FAMILY] + [family for family in known if family.mono]
    return (named or list(known))[0].regular


def draw_passage(text: str) -> Image.Image:
    """(280, 280) RGB. Text that does not fit at 6 pixels (about 1,500 letters) is truncated with an ellipsis."""
    file = font_file()
    text = drawable_text(text, file)
    size_px = fitting_size(text)
    lines, step = list(wrapped(text, size_px)), line_px(size_px)
    room = BOX_PX // step
    if len(lines) > room:
        lines[room - 1 :] = ["..."]
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), "white")
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        x = float(PADDING_PX)
        for word in line.split(" "):
            chosen = face(font_file_for(word, file), size_px)
            draw.text((x, PADDING_PX + row * step), word, fill="black", font=chosen.font)
            x += chosen.width(word) + face(file, size_px).width(" ")
    return image


def fitting_size(text: str) -> int:
    """Font size in pixels: 12 if the text fits and fills 0.7 of the height, else the largest of 6 to 48 that fits."""

    def height(size_px: int) -> int:
        return sum(1 for _ in wrapped(text, size_px)) * line_px(size_px)

    if FULL * BOX_PX <= height(DEFAULT_PX) <= BOX_PX:
        return DEFAULT_PX
    smallest, largest = SMALLEST_PX, LARGEST_PX
    while smallest < largest:
        middle = (smallest + largest + 1) // 2
        if height(middle) <= BOX_PX:
            smallest = middle
        else:
            largest = middle - 1
    return smallest


def line_px(size_px: int) -> int:
    """Line height in pixels."""
    _, top, _, bottom = face(font_file(), size_px).font.getbbox("Ay")
    return int(bottom - top) + LEADING_PX


def wrapped(text: str, size_px: int) -> Iterator[str]:
    """Lines of at most 240 pixels. A word that is wider is split with hyphens."""
    file = font_file()
    space = face(file, size_px).width(" ")
    line: list[str] = []
    used = 0.0
    for word in text.split():
        for part in _parts(word, size_px):
            width = face(font_file_for(word, file), size_px).width(part)
            if line and used + space + width > BOX_PX:
                yield " ".join(line)
                line, used = [], 0.0
            used += width + (space if line else 0.0)
            line.append(part)
    if line:
        yield " ".join(line)


def _parts(word: str, size_px: int) -> Iterator[str]:
    """A word, or its hyphenated parts of at most 240 pixels."""
    chosen = face(font_file_for(word, font_file()), size_px)
    while chosen.width(word) > BOX_PX:
        n = 1
        while chosen.width(word[: n + 1] + "-") <= BOX_PX:
            n += 1
        yield word[:n] + "-"
        word = word[n:]
    yield word
