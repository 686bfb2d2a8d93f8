"""The style of a document: page size, fonts, columns, colours and the effects of a scanner. Chosen by a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from mmrr.training.synthetic.fonts import Family, families

Colour = tuple[int, int, int]

#: (columns, rows) of a page in cells of 32 x 32 pixels: letter, A4, slides, a half page. At most 1,280 cells.
PORTRAIT = ((31, 40), (30, 42), (28, 40), (31, 41), (26, 36))
LANDSCAPE = ((41, 31), (40, 30), (46, 26), (36, 26), (32, 24))

#: Prefixes of the families that look like the usual fonts of documents. They are drawn four times as often.
COMMON = ("Liberation", "Nimbus", "Carlito", "DejaVu", "TeX Gyre Heros", "TeX Gyre Termes", "Latin Modern Roman")


@dataclass(frozen=True, slots=True)
class Scan:
    """The effects of printing, scanning and saving a page."""

    angle: float  # degrees, counter-clockwise
    blur_px: float
    noise: float  # standard deviation in pixel values of 0 to 255
    contrast: float
    jpeg: int  # JPEG quality; 0: not saved as JPEG


@dataclass(frozen=True, slots=True)
class Style:
    """The choices that hold for a whole document. ``_px``: pixels of the page."""

    width_px: int
    height_px: int
    slide: bool
    margin_px: int
    columns: int
    gap_px: int
    body_px: float
    leading: float  # line height in font sizes
    body: Family
    heading: Family
    mono: Family
    heading_scale: float  # size of a heading of level 1 in body sizes
    bold_headings: bool
    centred_headings: bool
    capitals: bool  # headings in capital letters
    banners: bool  # headings in the paper's colour on a band of the accent colour
    justified: bool
    paragraph_gap: float  # in body sizes
    paper: Colour
    ink: Colour
    accent: Colour
    table_lines: str  # all | rows | header | none
    zebra: bool  # every second row of a table on a tint
    header: str
    footer: str  # a format string with {n}, the page number, and {title}
    figures: float  # probability of a picture after a text block; twice as likely: a chart after a table
    boxes: float  # probability of a coloured box behind a paragraph
    supersample: int  # pages are drawn this many times larger and reduced
    scan: Scan | None

    def tint(self, share: float) -> Colour:
        """The paper's colour mixed with ``share`` (0 to 1) of the accent colour."""
        red, green, blue = (round((1 - share) * c + share * a) for c, a in zip(self.paper, self.accent, strict=True))
        return red, green, blue


def choose_style(rng: random.Random, title: str) -> Style:
    """A random style for one document with this title."""
    known = families()
    proportional = [family for family in known if not family.mono] or list(known)
    monospaced = [family for family in known if family.mono] or list(known)
    weights = [4.0 if family.name.startswith(COMMON) else 1.0 for family in proportional]
    body = rng.choices(proportional, weights)[0]
    if rng.random() < 0.03:
        body = rng.choice(monospaced)
    slide = rng.random() < 0.22
    columns, rows = rng.choice(LANDSCAPE if slide or rng.random() < 0.05 else PORTRAIT)
    width, height = columns * 32, rows * 32
    size = rng.uniform(19, 36) if slide else min(24.0, max(11.0, rng.gauss(16.0, 2.3)))
    paper, ink, accent = _colours(rng, slide)
    supersample = rng.choice((1, 2))
    return Style(
        width_px=width,
        height_px=height,
        slide=slide,
        margin_px=round(width * rng.uniform(0.04, 0.14)),
        columns=1 if slide else rng.choices((1, 2, 3), (0.66, 0.29, 0.05))[0],
        gap_px=rng.randint(18, 44),
        body_px=round(size * 2) / 2,
        leading=rng.uniform(1.1, 1.6),
        body=body,
        heading=body if rng.random() < 0.5 else rng.choices(proportional, weights)[0],
        mono=rng.choice(monospaced),
        heading_scale=rng.uniform(1.1, 1.9) if rng.random() < 0.8 else rng.uniform(1.9, 3.2),
        bold_headings=rng.random() < 0.75,
        centred_headings=rng.random() < 0.2,
        capitals=rng.random() < 0.12,
        banners=rng.random() < (0.3 if slide else 0.12),
        justified=rng.random() < 0.45 and not slide,
        paragraph_gap=rng.uniform(0.1, 1.0),
        paper=paper,
        ink=ink,
        accent=accent,
        table_lines=rng.choice(("all", "rows", "header", "none")),
        zebra=rng.random() < 0.25,
        header=title if rng.random() < 0.4 else "",
        footer=rng.choice(("", "{n}", "Page {n}", "{title}  |  {n}")),
        figures=rng.choice((0.0, 0.0, 0.08, 0.2)),
        boxes=rng.choice((0.0, 0.0, 0.05, 0.15)),
        supersample=supersample,
        scan=_scan(rng) if rng.random() < 0.3 else None,
    )


def _colours(rng: random.Random, slide: bool) -> tuple[Colour, Colour, Colour]:
    hue = tuple(rng.randint(0, 160) for _ in range(3))
    accent: Colour = (hue[0], hue[1], hue[2])
    if rng.random() < (0.35 if slide else 0.04):  # light text on dark paper
        dark = tuple(rng.randint(0, 70) for _ in range(3))
        return (dark[0], dark[1], dark[2]), (rng.randint(215, 255),) * 3, tuple(255 - c // 2 for c in accent)  # type: ignore[return-value]
    if rng.random() < 0.08:  # pastel paper
        light = tuple(rng.randint(195, 255) for _ in range(3))
        return (light[0], light[1], light[2]), (rng.randint(0, 40),) * 3, accent
    shade = rng.choice((255, 255, 255, 255, rng.randint(232, 254)))
    tint = rng.randint(0, 12) if rng.random() < 0.2 else 0
    ink = rng.choice((0, 0, 0, rng.randint(10, 90)))
    return (shade, shade, shade - tint), (ink, ink, min(120, ink + tint * 3)), accent


def _scan(rng: random.Random) -> Scan:
    return Scan(
        angle=rng.gauss(0, 0.5) if rng.random() < 0.5 else 0.0,
        blur_px=rng.uniform(0, 0.8) if rng.random() < 0.6 else 0.0,
        noise=rng.uniform(0, 14) if rng.random() < 0.6 else 0.0,
        contrast=rng.uniform(0.65, 1.1),
        jpeg=rng.randint(25, 90) if rng.random() < 0.6 else 0,
    )
