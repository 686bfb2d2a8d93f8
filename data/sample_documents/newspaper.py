"""A weekly town newspaper in three columns: news, letters, tables, a puzzle, small advertisements. A4, four pages."""

from pathlib import Path

from reportlab.graphics.shapes import Drawing, Line, String
from reportlab.lib.colors import HexColor, black
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable

from . import newspaper_text as words
from .charts import bars
from .layout import Box, fill, gap, label, open_canvas, panel, place, rows, story, style, table, text, together

WIDTH, HEIGHT = A4
MARGIN, GUTTER = 38, 15
COLUMN = (WIDTH - 2 * MARGIN - 2 * GUTTER) / 3
BODY = style("Times-Roman", 10.9, 13.1, "j", spaceAfter=3, firstLineIndent=8, allowWidows=0, allowOrphans=0)
LOOKS = {
    "p": BODY,
    "#": style("Times-Bold", 15, 16.5, spaceBefore=10, spaceAfter=4, keepWithNext=1),
    "by": style("Times-Italic", 9, 11, spaceAfter=3, keepWithNext=1),
    "sig": style("Times-Italic", 9.5, 11, "r", spaceAfter=5),
    "n": style("Times-Roman", 10.9, 13.1, spaceAfter=3.5),
    "cap": style("Times-Italic", 9, 10.8, spaceAfter=5),
}
DATE = "Friday 1 August 2025"

SQUARE = ["1.45..", ".36...", "...4..", "412..3", "......", "3...41"]


def advert(name: str, slogan: str, offer: str) -> Flowable:
    """A boxed advertisement, one column wide."""
    looks = [style("Times-Bold", 19, 23, "c"), style("Times-Italic", 12, 15, "c"), style("Times-Roman", 10, 12.5, "c")]
    cells = [text(part.replace("&", "&amp;"), look) for part, look in zip((name, slogan, offer), looks, strict=True)]
    box = ("BOX", (0, 0), (-1, -1), 1.4, black)
    return table([[[line for part in cells for line in part]]], (COLUMN,), "c", pad=7, rule=black, extra=[box])


def square() -> Drawing:
    """The number puzzle: a grid of six by six in boxes of three by two, with the given digits."""
    cell = 22
    left = (COLUMN - 6 * cell) / 2
    drawing = Drawing(COLUMN, 6 * cell + 8)
    for k in range(7):
        y, x = 4 + k * cell, left + k * cell
        drawing.add(Line(left, y, left + 6 * cell, y, strokeWidth=1.8 if k % 2 == 0 else 0.5))
        drawing.add(Line(x, 4, x, 4 + 6 * cell, strokeWidth=1.8 if k % 3 == 0 else 0.5))
    for row, line in enumerate(SQUARE):
        for column, figure in enumerate(line):
            if figure != ".":
                x, y = left + (column + 0.5) * cell, 4 + (5 - row) * cell + 6.5
                drawing.add(String(x, y, figure, fontName="Times-Bold", fontSize=13, textAnchor="middle"))
    return drawing


def picture(canvas: Canvas, box: Box) -> None:
    """The crane on the quay, as a woodcut: hatched sky, black quay, white crane."""
    left, bottom, width, height = box
    canvas.saveState()
    frame = canvas.beginPath()
    frame.rect(*box)
    canvas.clipPath(frame, stroke=0)
    panel(canvas, box, HexColor("#e9e6df"))
    canvas.setStrokeColor(HexColor("#8c8a84"))
    canvas.setLineWidth(0.6)
    for k in range(0, int(height), 5):
        canvas.line(left, bottom + k, left + width, bottom + k + 6)
    panel(canvas, (left, bottom, width, 26), black)
    panel(canvas, (left + 190, bottom + 26, 34, 62), black)
    canvas.setStrokeColor(black)
    canvas.setLineWidth(5)
    canvas.line(left + 207, bottom + 86, left + 74, bottom + 170)
    canvas.line(left + 207, bottom + 86, left + 262, bottom + 122)
    canvas.setLineWidth(2)
    canvas.line(left + 262, bottom + 122, left + 74, bottom + 170)
    canvas.line(left + 76, bottom + 168, left + 76, bottom + 66)
    panel(canvas, (left + 62, bottom + 46, 28, 22), black)
    panel(canvas, (left + 250, bottom + 104, 24, 20), black)
    for x in (24, 112, 292):  # boats below the quay
        canvas.setLineWidth(1.6)
        canvas.line(left + x, bottom + 20, left + x, bottom + 72)
        canvas.line(left + x, bottom + 72, left + x + 20, bottom + 34)
    canvas.restoreState()
    canvas.setLineWidth(0.7)
    canvas.rect(*box)


def columns(top: float, count: int = 3, first: int = 0) -> list[Box]:
    return [(MARGIN + k * (COLUMN + GUTTER), 40, COLUMN, top - 40) for k in range(first, first + count)]


def rules(canvas: Canvas, top: float, which: tuple[int, ...] = (1, 2)) -> None:
    canvas.setStrokeColor(HexColor("#777777"))
    canvas.setLineWidth(0.4)
    for k in which:
        x = MARGIN + k * (COLUMN + GUTTER) - GUTTER / 2
        canvas.line(x, 40, x, top)


def decorate(canvas: Canvas, heading: str) -> None:
    canvas.setStrokeColor(black)
    canvas.setLineWidth(0.8)
    canvas.line(MARGIN, HEIGHT - 48, WIDTH - MARGIN, HEIGHT - 48)
    label(canvas, MARGIN, HEIGHT - 43, str(canvas.getPageNumber()), "Times-Bold", 11)
    label(canvas, WIDTH / 2, HEIGHT - 43, heading, "Times-Bold", 11, align="c")
    label(canvas, WIDTH - MARGIN, HEIGHT - 43, f"The Tolmhaven Lantern, {DATE}", "Times-Italic", 9.5, align="r")
    rules(canvas, HEIGHT - 58)


def front(canvas: Canvas, inserts: dict[str, list[Flowable]]) -> None:
    label(canvas, WIDTH / 2, HEIGHT - 82, "The Tolmhaven Lantern", "Times-Bold", 46, align="c")
    canvas.setLineWidth(1.2)
    for y in (HEIGHT - 96, HEIGHT - 114):
        canvas.line(MARGIN, y, WIDTH - MARGIN, y)
    label(canvas, MARGIN, HEIGHT - 109, "No. 2,418", "Times-Roman", 10)
    label(canvas, WIDTH / 2, HEIGHT - 109, DATE, "Times-Roman", 10, align="c")
    label(canvas, WIDTH - MARGIN, HEIGHT - 109, "90p", "Times-Roman", 10, align="r")
    label(canvas, MARGIN, HEIGHT - 152, "Old crane to lift again by spring", "Times-Bold", 33)
    box = (MARGIN + COLUMN + GUTTER, HEIGHT - 358, 2 * COLUMN + GUTTER, 190)
    picture(canvas, box)
    caption = text("The crane on the West Quay, idle since May. Its jib goes to Dunmarrow on 18 August.", LOOKS["cap"])
    place(canvas, [(box[0], box[1] - 18, box[2], 15)], caption)
    rest = fill(canvas, columns(HEIGHT - 168, 1), story(words.FRONT, LOOKS, inserts))
    place(canvas, columns(HEIGHT - 382, 2, 1), rest)
    rules(canvas, HEIGHT - 168, (1,))
    rules(canvas, HEIGHT - 382, (2,))


def small(body: str, widths: tuple[float, ...], align: str) -> list[Flowable]:
    return [together([table(rows(body), widths, align, 9, "Times-Roman", pad=1.9), gap(5)], COLUMN)]


def build(path: Path) -> None:
    kinds, tonnes = ["Mackerel", "Crab", "Haddock", "Ling", "Squid"], [38.5, 6.2, 21.0, 12.4, 3.1]
    fish = bars(
        (COLUMN, 180), "July landings, West Quay (tonnes)", kinds, [tonnes], [black], [0, 10, 20, 30, 40], font_size=7
    )
    inserts = {
        "results": small(words.RESULTS, (COLUMN - 98, 50, 48), "lll"),
        "tides": small(words.TIDES, (COLUMN - 120, 35, 25, 35, 25), "lrrrr"),
        "quoits": small(words.QUOITS, (COLUMN - 98, 18, 18, 18, 18, 26), "lrrrrr"),
        "square": [together([square(), gap(4)], COLUMN)],
        "boats": small(words.BOATS, (COLUMN - 116, 29, 29, 29, 29), "lrrrr"),
        "mart": small(words.MART, (COLUMN - 120, 40, 40, 40), "lrrr"),
        "adverts": [item for advertisement in words.ADVERTS for item in (gap(9), advert(*advertisement))],
        "inside": small(words.INSIDE, (COLUMN - 34, 34), "lr"),
        "numbers": small(words.NUMBERS, (COLUMN - 60, 60), "lr"),
        "engineers": [gap(8), advert(*words.ENGINEERS)],
        "fish": [together([fish, gap(4)], COLUMN)],
    }
    canvas = open_canvas(path, A4, f"The Tolmhaven Lantern, {DATE}", "The Tolmhaven Lantern")
    front(canvas, inserts)
    canvas.showPage()
    for heading, source in [("Regatta and letters", words.REGATTA), ("The week", words.WEEK), ("Notices", words.BACK)]:
        decorate(canvas, heading)
        place(canvas, columns(HEIGHT - 58), story(source, LOOKS, inserts))
        canvas.showPage()
    canvas.save()
