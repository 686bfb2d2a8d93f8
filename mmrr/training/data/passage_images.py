"""A text passage as a small square image, as list-wise reranking by sight begins (arXiv 2605.11864). Knows fonts.

280 x 280 pixels, black on white, in a monospaced face: 12 pixels where that fills at least 0.7 of the height, larger
where it fills less. A passage too long for 12 pixels is set smaller, down to 6; the public code cuts it off.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from PIL import Image, ImageDraw

from mmrr.training.synthetic.fonts import face, families, suited, written

SIDE_PX, PADDING_PX = 280, 20
BOX_PX = SIDE_PX - 2 * PADDING_PX
#: Sizes of letters in pixels: the usual one, the smallest and the largest.
USUAL_PX, LEAST_PX, MOST_PX = 12, 6, 48
#: Share of the height that the usual size has to fill, or the letters grow.
FULL = 0.7
#: Between two lines, beside the height of their letters.
LEADING_PX = 4
FAMILY = "DejaVu Sans Mono"


@lru_cache(maxsize=1)
def font_file() -> str:
    """The published face, or else the first monospaced one, or else the first there is."""
    known = families()
    named = [family for family in known if family.name == FAMILY] + [family for family in known if family.mono]
    return (named or list(known))[0].regular


def draw_passage(text: str) -> Image.Image:
    """(280, 280) RGB. What does not fit at 6 pixels, beyond about 1,500 letters, is cut off behind an ellipsis."""
    file = font_file()
    text = written(text, file)
    size_px = fitting(text)
    lines, step = list(wrapped(text, size_px)), line_px(size_px)
    room = BOX_PX // step
    if len(lines) > room:
        lines[room - 1 :] = ["..."]
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), "white")
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        x = float(PADDING_PX)
        for word in line.split(" "):
            chosen = face(suited(word, file), size_px)
            draw.text((x, PADDING_PX + row * step), word, fill="black", font=chosen.font)
            x += chosen.width(word) + face(file, size_px).width(" ")
    return image


def fitting(text: str) -> int:
    """Size of the letters in pixels: 12 where it fills enough, else the largest of 6 to 48 that fits, else 6."""

    def height(size_px: int) -> int:
        return sum(1 for _ in wrapped(text, size_px)) * line_px(size_px)

    if FULL * BOX_PX <= height(USUAL_PX) <= BOX_PX:
        return USUAL_PX
    least, most = LEAST_PX, MOST_PX
    while least < most:
        middle = (least + most + 1) // 2
        if height(middle) <= BOX_PX:
            least = middle
        else:
            most = middle - 1
    return least


def line_px(size_px: int) -> int:
    """Pixels from one line to the next."""
    _, top, _, bottom = face(font_file(), size_px).font.getbbox("Ay")
    return int(bottom - top) + LEADING_PX


def wrapped(text: str, size_px: int) -> Iterator[str]:
    """Lines of at most 240 pixels: as many words as fit, and parts with a hyphen of a word that alone does not."""
    file = font_file()
    space = face(file, size_px).width(" ")
    line: list[str] = []
    used = 0.0
    for word in text.split():
        for part in _parts(word, size_px):
            width = face(suited(word, file), size_px).width(part)
            if line and used + space + width > BOX_PX:
                yield " ".join(line)
                line, used = [], 0.0
            used += width + (space if line else 0.0)
            line.append(part)
    if line:
        yield " ".join(line)


def _parts(word: str, size_px: int) -> Iterator[str]:
    chosen = face(suited(word, font_file()), size_px)
    while chosen.width(word) > BOX_PX:
        n = 1
        while chosen.width(word[: n + 1] + "-") <= BOX_PX:
            n += 1
        yield word[:n] + "-"
        word = word[n:]
    yield word
