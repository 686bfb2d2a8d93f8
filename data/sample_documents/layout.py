"""Pages, frames, text and tables for the sample documents. This module does not know their content."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from reportlab import rl_config
from reportlab.lib.colors import Color, HexColor, black
from reportlab.lib.enums import TA_CENTER, TA_JUSTIFY, TA_LEFT, TA_RIGHT
from reportlab.lib.styles import ParagraphStyle
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, Frame, Paragraph, Spacer, Table, TableStyle

rl_config.useA85 = 0  # binary streams: a fifth smaller than the ASCII armour

ALIGN = {"l": TA_LEFT, "r": TA_RIGHT, "c": TA_CENTER, "j": TA_JUSTIFY}
GREY = HexColor("#9aa3ab")
CELL_ALIGN = {"l": "LEFT", "r": "RIGHT", "c": "CENTER"}
Box = tuple[float, float, float, float]  # left, bottom, width, height in points


def open_canvas(path: Path | IO[bytes], pagesize: tuple[float, float], title: str, author: str) -> Canvas:
    """A canvas without clock time and random identifiers: the same input gives the same bytes."""
    canvas = Canvas(path if hasattr(path, "write") else str(path), pagesize=pagesize, invariant=1, pageCompression=1)
    canvas.setTitle(title)
    canvas.setAuthor(author)
    return canvas


def style(font: str, size: float, leading: float | None = None, align: str = "l", **extra: Any) -> ParagraphStyle:
    return ParagraphStyle(
        f"{font}-{size}", fontName=font, fontSize=size, leading=leading or 1.3 * size, alignment=ALIGN[align], **extra
    )


def typeset(words: str) -> str:
    """Text with typographic quotes, dashes and multiplication signs. Markup is not changed."""
    parts = re.split(r"(<[^>]*>)", words)
    for n in range(0, len(parts), 2):
        plain = re.sub(r'(^|(?<=[\s(]))"', "\u201c", parts[n]).replace('"', "\u201d")
        parts[n] = plain.replace("--", "\u2013").replace("'", "\u2019").replace(" x ", " \u00d7 ")
    return "".join(parts)


def rows(source: str) -> list[list[str]]:
    """Table rows from lines with cells that are separated by bars."""
    return [[cell.strip() for cell in line.split("|")] for line in source.strip().splitlines()]


def text(source: str, look: ParagraphStyle) -> list[Flowable]:
    """Paragraphs of `source`. Blank lines separate paragraphs."""
    return [Paragraph(typeset(" ".join(part.split())), look) for part in re.split(r"\n\s*\n", source.strip())]


def story(
    source: str, looks: dict[str, ParagraphStyle], inserts: dict[str, Sequence[Flowable]] | None = None
) -> list[Flowable]:
    """Flowables of `source`, whose blocks are separated by blank lines.

    A block that starts with a key of `looks` and a space ("#", "##") is set in that style, one that starts with "- " is
    a list, "@name" is replaced by an insert, and anything else is a paragraph in the style "p".
    """
    result: list[Flowable] = []
    for block in re.split(r"\n\s*\n", source.strip()):
        mark, _, rest = block.strip().partition(" ")
        if mark.startswith("@"):
            result += (inserts or {})[mark[1:]]
        elif mark == "-":
            result += bullets(re.split(r"\n\s*- ", rest), looks["p"])
        elif mark in looks:
            result += text(rest, looks[mark])
        else:
            result += text(block, looks["p"])
    return result


def numbered(items: Sequence[str], look: ParagraphStyle, indent: float = 16, first: int = 1) -> list[Flowable]:
    hanging = ParagraphStyle("numbered", parent=look, leftIndent=indent, bulletIndent=0)
    return [
        Paragraph(typeset(" ".join(item.split())), hanging, bulletText=f"{n}.") for n, item in enumerate(items, first)
    ]


def bullets(items: Sequence[str], look: ParagraphStyle, indent: float = 11) -> list[Flowable]:
    hanging = ParagraphStyle("bullets", parent=look, leftIndent=indent, bulletIndent=0)
    return [Paragraph(typeset(" ".join(item.split())), hanging, bulletText="\u2022") for item in items]


def together(items: Sequence[Flowable], width: float) -> Table:
    """The items as one block without a column break inside."""
    edges = [(f"{side}PADDING", (0, 0), (-1, -1), 0) for side in ("LEFT", "RIGHT", "TOP", "BOTTOM")]
    return Table([[list(items)]], colWidths=[width], style=TableStyle(edges))


def gap(points: float) -> Spacer:
    return Spacer(1, points)


def table(
    rows: Sequence[Sequence[Any]],
    widths: Sequence[float],
    align: str,
    size: float = 9,
    font: str = "Helvetica",
    head: Color = black,
    head_fill: Color | None = None,
    stripe: Color | None = None,
    rule: Color = GREY,
    bold_rows: Sequence[int] = (),
    pad: float = 2.5,
    extra: Sequence[tuple] = (),
) -> Table:
    """A table with one heading row. `align` has one letter per column. `bold_rows` are totals with a line above.

    Twelve parameters, because each is one property of the table; all but three have defaults.
    """
    bold = {"Times-Roman": "Times-Bold"}.get(font, f"{font}-Bold")
    commands: list[tuple] = [
        ("FONT", (0, 0), (-1, -1), font, size, 1.2 * size),
        ("FONT", (0, 0), (-1, 0), bold, size, 1.2 * size),
        ("TEXTCOLOR", (0, 0), (-1, 0), head),
        ("LINEBELOW", (0, 0), (-1, 0), 0.8, rule),
        ("LINEBELOW", (0, -1), (-1, -1), 0.8, rule),
        ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
        ("TOPPADDING", (0, 0), (-1, -1), pad),
        ("BOTTOMPADDING", (0, 0), (-1, -1), pad),
        ("LEFTPADDING", (0, 0), (-1, -1), 4),
        ("RIGHTPADDING", (0, 0), (-1, -1), 4),
    ]
    commands += [("ALIGN", (c, 0), (c, -1), CELL_ALIGN[letter]) for c, letter in enumerate(align)]
    if head_fill is not None:
        commands.append(("BACKGROUND", (0, 0), (-1, 0), head_fill))
    if stripe is not None:
        commands += [("BACKGROUND", (0, r), (-1, r), stripe) for r in range(2, len(rows), 2)]
    for r in bold_rows:
        r %= len(rows)
        commands += [("FONT", (0, r), (-1, r), bold, size, 1.2 * size), ("LINEABOVE", (0, r), (-1, r), 0.5, rule)]
    cells = [[typeset(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    return Table(cells, colWidths=list(widths), style=TableStyle(commands + list(extra)))


def fill(canvas: Canvas, boxes: Sequence[Box], story: Sequence[Flowable]) -> list[Flowable]:
    """Put the story into the boxes in order. Returns the flowables that did not fit."""
    rest = list(story)
    for left, bottom, width, height in boxes:
        frame = Frame(left, bottom, width, height, leftPadding=0, rightPadding=0, topPadding=0, bottomPadding=0)
        while rest:
            look = getattr(rest[0], "style", None)
            if getattr(look, "keepWithNext", 0) and frame._y - frame._y1p < 4.5 * look.leading:
                break  # a heading is never the last line of a column
            if frame.add(rest[0], canvas):
                rest.pop(0)
                continue
            parts = frame.split(rest[0], canvas)
            if len(parts) > 1:
                frame.add(parts[0], canvas)
                rest[:1] = parts[1:]
            break
    return rest


def place(canvas: Canvas, boxes: Sequence[Box], story: Sequence[Flowable]) -> None:
    """`fill` for a story that must fit."""
    rest = fill(canvas, boxes, story)
    if rest:
        raise ValueError(f"page {canvas.getPageNumber()}: {len(rest)} items do not fit, first {rest[0]!r:.120}")


def write_pages(
    canvas: Canvas,
    pages: Sequence[Sequence[Flowable] | Callable[[Canvas], None]],
    boxes: Sequence[Box],
    decorate: Callable[[Canvas], None],
) -> None:
    """One page per entry: a story with running header and footer, or a function that draws the whole page."""
    for page in pages:
        if callable(page):
            page(canvas)
        else:
            decorate(canvas)
            place(canvas, boxes, page)
        canvas.showPage()
    canvas.save()


def panel(canvas: Canvas, box: Box, colour: Color, radius: float = 0) -> None:
    canvas.setFillColor(colour)
    canvas.roundRect(*box, radius, stroke=0, fill=1)


def label(
    canvas: Canvas, x: float, y: float, words: str, font: str, size: float, colour: Color = black, align: str = "l"
) -> None:
    """Draw one line of text. Eight parameters: the place, the words and their four properties."""
    canvas.setFillColor(colour)
    canvas.setFont(font, size)
    {"l": canvas.drawString, "c": canvas.drawCentredString, "r": canvas.drawRightString}[align](x, y, typeset(words))
