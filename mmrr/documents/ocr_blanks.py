"""Blanks that OCR lost between words: put back where the image shows a gap as wide as the other blanks of the line.

The recogniser of text sees a line in steps of a quarter of its height, so it loses narrow blanks ("desMietvertrages").
The image has them. A gap between two letters is a blank if it is wide compared with the blanks that were found in the
same line, and wider than the gaps between its letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from PIL import Image

Corners = Sequence[Sequence[float]]  # (4, 2) x and y in pixels, clockwise from the upper left

_HEIGHT_PX = 96  # the line is enlarged to this height, so that gaps are measured in parts of a pixel
_INK = 400  # sum of differences to the background in a column, of 255 x 96; less is a gap
_OF_BLANKS = 0.6  # of the median of the blanks of the line
_OF_LETTERS = 1.3  # of the median of the gaps between its letters
_LEAST_BLANKS = 2  # that the line must have
_TILT = 0.3  # of the height; lines that are more slanted stay as they are


def mend(text: str, centres: Sequence[float], corners: Corners, page: Image.Image) -> str:
    """The text of a line with the blanks that were lost.

    ``centres`` are the horizontal centres of its characters without the blanks, in pixels of ``page``, which is grey;
    ``corners`` are those of the line's box.
    """
    places = [i for i, character in enumerate(text) if not character.isspace()]
    left, right = min(x for x, _ in corners), max(x for x, _ in corners)
    top, bottom = min(y for _, y in corners), max(y for _, y in corners)
    tilt = abs(corners[0][1] - corners[1][1])
    if len(centres) != len(places) or bottom - top < 4 or right - left < 4 or tilt > _TILT * (bottom - top):
        return text
    gaps = _gaps(page.crop((int(left), int(top), int(right) + 1, int(bottom) + 1)), int(left))
    blanks: list[float] = []
    between: dict[int, float] = {}  # place of a character -> the gap before it, without a blank
    unsure: set[int] = set()  # places next to a blank without a gap: the gap is taken for one of its neighbours
    for (place, centre), (following, next_centre) in pairwise(zip(places, centres, strict=True)):
        width = max((end - start for start, end in gaps if centre < (start + end) / 2 <= next_centre), default=0.0)
        if following - place == 1:
            between[following] = width
        elif width > 0:
            blanks.append(width)
        else:
            unsure |= {place, following + 1}
    between = {place: width for place, width in between.items() if width > 0 and place not in unsure}
    if len(blanks) < _LEAST_BLANKS or not between:
        return text
    least = max(_OF_BLANKS * median(blanks), _OF_LETTERS * median(between.values()))
    lost = {place for place, width in between.items() if width >= least and _may_part(text[place - 1], text[place])}
    return "".join(" " * (place in lost) + character for place, character in enumerate(text))


def _may_part(before: str, after: str) -> bool:
    """Whether a blank may stand between two characters: words are parted, not numbers or what follows a word."""
    if before.isdigit() and after.isdigit():
        return False
    return (after.isalnum() and before.isalnum()) or (after.isalpha() and before in ",;:!?)")


def _gaps(line: Image.Image, left: int) -> list[tuple[float, float]]:
    """The gaps without ink in the grey image of a line, from and to, in pixels of the page; not the one at its left."""
    scale = _HEIGHT_PX / line.height
    line = line.resize((max(1, round(line.width * scale)), _HEIGHT_PX), Image.Resampling.BICUBIC)
    background = _median_grey(line)
    columns = line.point(lambda value: abs(value - background)).resize((line.width, 1), Image.Resampling.BOX)
    gaps, start = [], None
    for x, mean in enumerate(columns.tobytes()):
        if mean * _HEIGHT_PX < _INK:
            start = x if start is None else start
        elif start is not None:
            gaps.append((left + start / scale, left + x / scale))
            start = None
    return [gap for gap in gaps if gap[0] > left]


def _median_grey(image: Image.Image) -> int:
    counted = 0
    for value, count in enumerate(image.histogram()):
        counted += count
        if 2 * counted >= image.width * image.height:
            return value
    return 255
