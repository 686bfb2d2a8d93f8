"""The manual of an espresso machine: a labelled drawing, numbered steps, tables of settings and errors. A5."""

from pathlib import Path

from reportlab.lib.colors import HexColor, white
from reportlab.lib.pagesizes import A5
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable

from . import espresso_text as words
from .layout import gap, label, numbered, open_canvas, panel, place, rows, story, style, table, text, write_pages

WIDTH, HEIGHT = A5
INK, RED, STEEL, MIST, ROSE = (HexColor(c) for c in ("#22262a", "#b3372c", "#8d979e", "#eef0f1", "#f8e3df"))
COLUMN = WIDTH - 80
BOX = [(40, 44, COLUMN, HEIGHT - 92)]
BODY = style("Helvetica", 10, 14.2, spaceAfter=6, textColor=INK)
LOOKS = {
    "p": BODY,
    "#": style("Helvetica-Bold", 16, 20, textColor=INK, spaceAfter=8),
    "##": style("Helvetica-Bold", 10.5, 14, textColor=RED, spaceBefore=9, spaceAfter=4),
    "!": style("Helvetica", 9.5, 13, textColor=INK, backColor=ROSE, borderPadding=5, spaceBefore=12, spaceAfter=10),
}
SMALL = style("Helvetica", 9.5, 12.2)


def page(source: str, **inserts: list[Flowable]) -> list[Flowable]:
    return story(source, LOOKS, inserts)


def steps(source: str) -> list[Flowable]:
    return numbered(source.strip().split("\n\n"), BODY, 15)


def grid(source: str, widths: tuple[float, ...], align: str) -> list[Flowable]:
    """A striped table. Cells of left-aligned columns may have several lines."""
    head, *body = rows(source)
    cells = [[text(cell, SMALL) if a == "l" else cell for cell, a in zip(row, align, strict=True)] for row in body]
    return [table([head, *cells], widths, align, size=9.5, head=white, head_fill=INK, stripe=MIST, pad=4), gap(6)]


def machine(canvas: Canvas, left: float, bottom: float, unit: float) -> None:
    """The front of the machine, 100 units wide and 120 high."""

    def box(x: float, y: float, w: float, h: float, colour: HexColor, radius: float = 2) -> None:
        panel(canvas, (left + x * unit, bottom + y * unit, w * unit, h * unit), colour, radius * unit)

    box(5, 0, 90, 12, INK)
    box(10, 12, 80, 3, STEEL, 0)
    box(62, 15, 26, 60, INK)
    box(5, 68, 90, 38, STEEL, 4)
    box(12, 84, 30, 14, INK)
    for x in (50, 62, 74):
        canvas.setFillColor(white)
        canvas.circle(left + x * unit, bottom + 91 * unit, 4 * unit, stroke=0, fill=1)
    box(84, 86, 6, 10, RED, 1)
    box(14, 106, 72, 5, INK, 1)
    for x in (20, 36, 52, 68):
        box(x, 111, 10, 8, MIST, 1)
    box(24, 58, 26, 10, INK, 1)
    box(22, 52, 30, 6, STEEL, 1)
    box(33, 40, 8, 12, INK, 1)
    box(30, 44, 14, 4, RED, 1)
    box(88, 34, 3, 34, STEEL, 1)
    box(30, 15, 14, 12, white, 2)


def cover(canvas: Canvas) -> None:
    panel(canvas, (0, 0, WIDTH, HEIGHT), MIST)
    panel(canvas, (0, HEIGHT - 170, WIDTH, 170), RED)
    label(canvas, 40, HEIGHT - 78, "Torvella T2", "Helvetica-Bold", 34, white)
    label(canvas, 40, HEIGHT - 106, "Espresso machine with steam wand", "Helvetica", 14, white)
    label(canvas, 40, HEIGHT - 146, "User manual", "Helvetica-Bold", 14, white)
    machine(canvas, 95, 110, 2.3)
    label(canvas, 40, 60, "Read the safety notes on page 2 before you plug the machine in.", "Helvetica", 9.5)
    label(canvas, 40, 44, "Keep this manual. Edition 3, for machines numbered T2-40000 and above.", "Helvetica", 9.5)


def parts(canvas: Canvas) -> None:
    decorate(canvas)
    place(canvas, BOX, page("# Parts of the machine"))
    left, bottom, unit = 118.0, 262.0, 1.85
    machine(canvas, left, bottom, unit)
    spots = [
        (24, 115, -26, 122),
        (30, 91, -26, 98),
        (36, 63, -26, 74),
        (24, 55, -26, 50),
        (42, 46, -26, 26),
        (14, 6, -26, 2),
    ]
    spots += [
        (76, 107, 126, 122),
        (50, 91, 126, 104),
        (62, 91, 126, 88),
        (74, 91, 126, 72),
        (87, 91, 126, 56),
        (90, 40, 126, 34),
    ]
    spots += [(76, 24, 126, 14)]
    for number, (x, y, to_x, to_y) in enumerate(spots, 1):
        x, y, to_x, to_y = left + x * unit, bottom + y * unit, left + to_x * unit, bottom + to_y * unit
        canvas.setStrokeColor(RED)
        canvas.setLineWidth(0.8)
        canvas.line(x, y, to_x, to_y)
        panel(canvas, (to_x - 8, to_y - 8, 16, 16), RED, 8)
        label(canvas, to_x, to_y - 3.2, str(number), "Helvetica-Bold", 9, white, "c")
    legend = table(rows(words.PARTS), (20, COLUMN / 2 - 20) * 2, "rlrl", size=9.5, pad=2.4, rule=white)
    legend.setStyle([("FONT", (0, 0), (-1, -1), "Helvetica", 9.5)])
    place(canvas, [(40, 44, COLUMN, 176)], [legend, gap(6), *text(words.IN_THE_BOX, BODY)])


def decorate(canvas: Canvas) -> None:
    number = canvas.getPageNumber()
    canvas.setStrokeColor(STEEL)
    canvas.setLineWidth(0.5)
    canvas.line(40, HEIGHT - 36, WIDTH - 40, HEIGHT - 36)
    label(canvas, 40, HEIGHT - 30, "Torvella T2", "Helvetica-Bold", 8, STEEL)
    label(canvas, WIDTH - 40, 26, str(number), "Helvetica", 9, STEEL, "r")


def build(path: Path) -> None:
    brewing = {
        "table": grid(words.DOSES, (COLUMN - 180, 90, 90), "lcc"),
        "taste": grid(words.TASTE, (80, COLUMN - 80), "ll"),
    }
    pages = [
        cover,
        page(words.SAFETY),
        parts,
        page(words.FIRST, steps=steps(words.FIRST_STEPS)),
        page(words.BREW, steps=steps(words.BREW_STEPS), **brewing),
        page(words.MILK, steps=steps(words.MILK_STEPS), table=grid(words.FOAM, (COLUMN - 210, 60, 70, 80), "lccc")),
        page(words.MENU, table=grid(words.SETTINGS, (50, COLUMN - 190, 80, 60), "clcc")),
        page(words.WATER, table=grid(words.HARDNESS, (60, COLUMN - 200, 50, 90), "clcc")),
        page(words.CLEAN, table=grid(words.CARE, (90, COLUMN - 90), "ll"), steps=steps(words.CLEAN_STEPS)),
        page(words.DESCALE, steps=steps(words.DESCALE_STEPS)),
        page(words.ERRORS, table=grid(words.CODES, (40, 110, COLUMN - 150), "cll")),
        page(words.SPECS, table=grid(words.DATA, (120, COLUMN - 120), "ll")),
    ]
    write_pages(open_canvas(path, A5, "Torvella T2 user manual", "Torvella"), pages, BOX, decorate)
