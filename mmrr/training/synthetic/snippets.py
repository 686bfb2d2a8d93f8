"""Snippets: small images of plain text, black on white in common fonts. A reader is first trained on them. Seeded."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from functools import lru_cache

from mmrr.training.synthetic.canvas import Canvas, DrawnPage
from mmrr.training.synthetic.fonts import Family, Font, drawable_text, families
from mmrr.training.synthetic.style import COMMON, Style


@lru_cache(maxsize=1)
def _common() -> tuple[Family, ...]:
    """The common proportional families, or all families if none of them is installed."""
    known = families()
    return tuple(family for family in known if family.name.startswith(COMMON) and not family.mono) or known


def draw_snippet(vocabulary: Sequence[str], width_px: int, height_px: int, rng: random.Random) -> DrawnPage:
    """Lines of unrelated words. A third are random letters or digits, so that context does not help to read them."""
    family = rng.choice(_common())
    size = rng.uniform(12.0, 22.0)
    font = Font(family.bold if rng.random() < 0.15 else family.regular, size)
    canvas = Canvas(_plain_style(family, size, (width_px, height_px), rng.choice((1, 2))))
    space = canvas.width(" ", font)
    step = size * rng.uniform(1.15, 1.6)
    y = rng.uniform(-0.3, 0.9) * size
    while y < height_px:
        x = rng.uniform(-40.0, 12.0)
        while x < width_px:
            word = drawable_text(_word(vocabulary, rng), font.file)
            if not word:
                continue
            canvas.word(word, x, y + size * 0.8, font, (0, 0, 0), 0)
            x += canvas.width(word, font) + space
        y += step
    return canvas.finish(rng)


def _plain_style(family: Family, size_px: float, page_px: tuple[int, int], supersample: int) -> Style:
    """Black on white, without margins, colours or scanner. ``page_px``: width and height."""
    return Style(
        width_px=page_px[0],
        height_px=page_px[1],
        slide=False,
        margin_px=0,
        columns=1,
        gap_px=0,
        body_px=size_px,
        leading=1.2,
        body=family,
        heading=family,
        mono=family,
        heading_scale=1.0,
        bold_headings=False,
        centred_headings=False,
        capitals=False,
        banners=False,
        justified=False,
        paragraph_gap=0.0,
        paper=(255, 255, 255),
        ink=(0, 0, 0),
        accent=(0, 0, 0),
        table_lines="none",
        zebra=False,
        header="",
        footer="",
        figures=0.0,
        boxes=0.0,
        supersample=supersample,
        scan=None,
    )


def _word(vocabulary: Sequence[str], rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.2:
        word = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 9)))
    elif chance < 0.32:
        return str(rng.randrange(10 ** rng.randint(1, 7)))
    else:
        word = rng.choice(vocabulary)
    if chance > 0.9:
        return word.upper()
    return word.capitalize() if chance > 0.8 else word
